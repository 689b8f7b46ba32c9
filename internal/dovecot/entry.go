package dovecot

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
)

// entryKey is where the ox driver looks for its registration.
const entryKey = "/private/vendor/vendor.dovecot/http-notify"

// Entry asks doveadm what the user's http-notify entry holds.
//
// It asks through the DoveAdm HTTP API: that is the same code as the command
// line's, its JSON keeps tabs, line feeds and other control characters apart
// where the command line prints them bare, and no process is started. Reading
// a value tells an empty entry from an absent one by neither way; the list of
// the mailbox's entries does.
func (s *Server) Entry(ctx context.Context, user string) (value string, present bool, err error) {
	var listed []struct{ Key string }
	if err := s.doveadm(ctx, "mailboxMetadataList", user, nil, &listed); err != nil {
		return "", false, err
	}
	var got []struct{ Value string }
	if err := s.doveadm(ctx, "mailboxMetadataGet", user, map[string]any{"key": entryKey}, &got); err != nil {
		return "", false, err
	}
	if len(got) != 1 {
		return "", false, fmt.Errorf("doveadm mailboxMetadataGet for %q: %d values", user, len(got))
	}
	for _, e := range listed {
		// Listed without the scope.
		if strings.EqualFold(e.Key, strings.TrimPrefix(entryKey, "/private/")) {
			return got[0].Value, true, nil
		}
	}
	if got[0].Value != "" {
		return "", false, fmt.Errorf("doveadm lists no entry for %q, yet reads %q", user, got[0].Value)
	}
	return "", false, nil
}

// SetEntry writes the user's http-notify entry by doveadm; "" makes it empty,
// not absent.
func (s *Server) SetEntry(ctx context.Context, user, value string) error {
	return s.doveadm(ctx, "mailboxMetadataSet", user, map[string]any{"key": entryKey, "value": value}, nil)
}

// UnsetEntry removes the user's http-notify entry by doveadm.
func (s *Server) UnsetEntry(ctx context.Context, user string) error {
	return s.doveadm(ctx, "mailboxMetadataUnset", user, map[string]any{"key": entryKey}, nil)
}

// doveadm runs one command on the user's server metadata. One command a
// request: Dovecot 2.3 forgets commas between the replies of several.
func (s *Server) doveadm(ctx context.Context, command, user string, args map[string]any, result any) error {
	all := map[string]any{"user": user, "mailbox": "", "allowEmptyMailboxName": true}
	for k, v := range args {
		all[k] = v
	}
	body, err := json.Marshal([][]any{{command, all, "1"}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, s.DoveadmURL, bytes.NewReader(body))
	if err != nil {
		return err
	}
	q.Header.Set("Content-Type", "application/json")
	q.Header.Set("Authorization", "X-Dovecot-API "+base64.StdEncoding.EncodeToString([]byte(s.APIKey)))
	q.Close = true // Dovecot serves one request a connection
	resp, err := http.DefaultClient.Do(q)
	if err != nil {
		return fmt.Errorf("doveadm %s for %q: %w", command, user, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return fmt.Errorf("doveadm %s for %q: %w", command, user, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("doveadm %s for %q: HTTP %s: %.200s", command, user, resp.Status, raw)
	}
	var replies [][]json.RawMessage
	if err := json.Unmarshal(raw, &replies); err != nil || len(replies) != 1 || len(replies[0]) != 3 {
		return fmt.Errorf("doveadm %s for %q: unexpected reply %.200s (%v)", command, user, raw, err)
	}
	if !slices.Equal(replies[0][0], []byte(`"doveadmResponse"`)) {
		return fmt.Errorf("doveadm %s for %q: %w", command, user, doveadmError(replies[0][1]))
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(replies[0][1], result); err != nil {
		return fmt.Errorf("doveadm %s for %q: %w", command, user, err)
	}
	return nil
}

// A DoveadmError is a command that doveadm refused. Its exit codes are those
// of sysexits.h: 67 no such user, 75 temporary failure.
type DoveadmError struct {
	Type     string `json:"type"`
	ExitCode int    `json:"exitCode"`
}

func (e *DoveadmError) Error() string { return fmt.Sprintf("%s, exit code %d", e.Type, e.ExitCode) }

func doveadmError(raw json.RawMessage) error {
	e := new(DoveadmError)
	if err := json.Unmarshal(raw, e); err != nil {
		return fmt.Errorf("unexpected error reply %.200s: %w", raw, err)
	}
	return e
}
