package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"dovepush/agent"
	"dovepush/config"
	"dovepush/imapmeta"
	"dovepush/registry"
)

// The contract's exit codes, cause by cause.
func TestExitCodes(t *testing.T) {
	exchange := func(kind imapmeta.Kind, cause error) error {
		return fmt.Errorf("alice: %w", &imapmeta.Error{Kind: kind, Op: "login", Status: "NO", Err: cause})
	}
	refused := exchange(imapmeta.Server, imapmeta.ErrLogin)
	for _, c := range []struct {
		err  error
		code int
	}{
		{nil, 0},
		{usagef("no"), 64},
		{fmt.Errorf("x: %w", agent.ErrUser), 65},
		{fmt.Errorf("x: %w", agent.ErrIdentity), 65},
		{agent.ErrNoServer, 65},
		{exchange(imapmeta.User, imapmeta.ErrUser), 65},
		{agent.ErrNotRegistered, 67},
		{exchange(imapmeta.User, imapmeta.ErrNoUser), 67},
		{exchange(imapmeta.Server, imapmeta.ErrNoMetadata), 69},
		{exchange(imapmeta.Server, imapmeta.ErrTLS), 69},
		{errNoDovecot, 69},
		{errors.New("who knows"), 70},
		{exchange(imapmeta.Retry, nil), 75},
		{fmt.Errorf("%w: %w", agent.ErrStopped, refused), 75},
		{agent.ErrLate, 75},
		{agent.ErrDoubt, 75},
		{agent.ErrOvertaken, 75},
		{registry.ErrFull, 75},
		{registry.ErrBusy, 75},
		{refused, 77},
		{exchange(imapmeta.User, imapmeta.ErrLogin), 77},
		{exchange(imapmeta.User, nil), 77}, // NOPERM, CANNOT
		{exchange(imapmeta.Server, imapmeta.ErrPlaintext), 77},
		{registry.ErrPermission, 77},
		{&imapmeta.Error{Kind: imapmeta.Server, Op: "connect", Err: imapmeta.ErrPlaintext}, 78},
		{exchange(imapmeta.Server, &imapmeta.SecretError{Err: errors.New("gone")}), 78},
		{config.Errors{{Key: "identity", Msg: "no"}}, 78},
		{errNoConfig, 78},
		{fs.ErrNotExist, 78},
		{registry.ErrNewer, 78},
		{registry.ErrForeign, 78},
		{registry.ErrCorrupt, 78},
		{exchange(imapmeta.Retry, context.Canceled), 130},
	} {
		if code := exitCode(c.err); code != c.code {
			t.Errorf("%v: exit code %d, want %d", c.err, code, c.code)
		}
	}
}

func TestOfSeveralCodesTheGravestWins(t *testing.T) {
	for i, order := 0, []int{78, 77, 69, 75, 67, 73, 0}; i+1 < len(order); i++ {
		if a, b := graver(order[i], order[i+1]), graver(order[i+1], order[i]); a != order[i] || b != order[i] {
			t.Errorf("of %d and %d: %d, %d", order[i], order[i+1], a, b)
		}
	}
}
