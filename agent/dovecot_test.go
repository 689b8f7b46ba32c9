package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"dovepush/imapmeta"
	"dovepush/internal/dovecot"
	"dovepush/internal/dovecot/dovecottest"
)

func TestUsersOnARealDovecot(t *testing.T) {
	var people []dovecot.User
	var names []string
	for i := range 6 {
		names = append(names, fmt.Sprint("user", i))
		people = append(people, dovecot.User{Name: names[i], Password: "s3cr3t"})
	}
	dovecottest.Each(t, dovecot.Options{Users: people}, func(t *testing.T, s *dovecot.Server) {
		client, err := imapmeta.New(imapmeta.Options{
			Address: s.IMAP, TLS: imapmeta.TLSNone, Timeout: 20 * time.Second,
			Auth: imapmeta.Auth{Mechanism: imapmeta.Plain, MasterUser: s.MasterUser,
				Secret: func(context.Context, string) (string, error) { return s.MasterPassword, nil }},
		})
		if err != nil {
			t.Fatal(err)
		}
		a := newHouse(t, time.Now).agent(func(o *Options) { o.Servers[0].Entries = client })

		// do asks for all users and a stranger, and expects each one's verdict.
		do := func(action Action, identity string, stranger error, want ...Verdict) {
			t.Helper()
			var requests []Request
			for _, user := range append(slices.Clone(names), "stranger") {
				requests = append(requests, Request{Action: action, User: user, Identity: identity})
			}
			for i, result := range each(t.Context(), a, 4, requests...) {
				if i == len(names) {
					if result.Verdict != Failed || !errors.Is(result.Err, stranger) {
						t.Errorf("the stranger: %s, %v; want %v", result.Verdict, result.Err, stranger)
					}
				} else if result.Err != nil || result.Verdict != want[min(i, len(want)-1)] {
					t.Errorf("%s: %s, %v; want %q", result.User, result.Verdict, result.Err, want)
				}
			}
		}
		entries := func(want string) {
			t.Helper()
			for _, user := range names {
				if got, present, err := s.Entry(t.Context(), user); got != want || present != (want != "") || err != nil {
					t.Errorf("the entry of %s holds %q, %v; want %q", user, got, err, want)
				}
			}
		}

		do(Register, "7@1", imapmeta.ErrNoUser, Added)
		entries("user=7@1")
		if err := errors.Join(s.UnsetEntry(t.Context(), names[0]), s.SetEntry(t.Context(), names[1], "user=somebody")); err != nil {
			t.Fatal(err)
		}
		do(Verify, "", imapmeta.ErrNoUser, Added, Conflict, Unchanged)
		if err := s.SetEntry(t.Context(), names[1], "user=7@1"); err != nil {
			t.Fatal(err)
		}
		do(Register, "8@1", imapmeta.ErrNoUser, Changed)
		entries("user=8@1")
		do(Unregister, "", imapmeta.ErrNoUser, Removed)
		entries("")
		if counts, err := a.options.Registry.Counts(t.Context()); len(counts) > 0 || err != nil {
			t.Errorf("the registry still holds %v, %v", counts, err)
		}
	})
}
