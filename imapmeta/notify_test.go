package imapmeta

import (
	"context"
	"testing"
	"time"

	"dovepush/internal/dovecot"
	"dovepush/internal/dovecot/dovecottest"
)

// What stands behind user= is what the driver sends: the driver undoes the
// escapes that NewValue makes.
func TestAnIdentityArrivesInTheNotification(t *testing.T) {
	t.Parallel()
	dovecottest.Each(t, dovecot.Options{Users: people, UserFromMetadata: true}, func(t *testing.T, s *dovecot.Server) {
		c := on(t, s)
		for _, identity := range []string{
			"3@7", "a\tuser=mallory", "line\nfeed\rreturn", "soh\x01t\x011", `quo"te\back`, "müller 日本", "user=alice", " padded ",
		} {
			value, err := NewValue(identity)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Update(t.Context(), "alice", setTo(value)); err != nil {
				t.Fatal(err)
			}
			holds(t, s, "alice", value)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if err := s.Deliver(ctx, "alice", "bob@example.com", "lunch?", "at noon"); err != nil {
				t.Fatal(err)
			}
			n, err := s.WaitNotification(ctx, func(dovecot.Notification) bool { return true })
			if err != nil || n.User != identity {
				t.Errorf("%q is notified as %q (%s), %v", identity, n.User, n.Raw, err)
			}
			s.Drain()
		}
		update(t, c, "alice", Remove(), mustValue(t, " padded "))
	})
}

func mustValue(t *testing.T, identity string) Value {
	t.Helper()
	v, err := NewValue(identity)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
