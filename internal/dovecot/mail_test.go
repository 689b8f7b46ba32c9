package dovecot_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/textproto"
	"os"
	"strings"
	"testing"
	"time"

	"dovepush/internal/dovecot"
	"dovepush/internal/dovecot/dovecottest"
)

func limited(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestEntryRoundTrip(t *testing.T) {
	dovecottest.Each(t, dovecot.Options{Users: people}, func(t *testing.T, s *dovecot.Server) {
		ctx := limited(t)
		expect := func(want string, wantPresent bool) {
			t.Helper()
			got, present, err := s.Entry(ctx, "alice")
			if err != nil || got != want || present != wantPresent {
				t.Errorf("entry %q, %t, %v; want %q, %t", got, present, err, want, wantPresent)
			}
		}
		expect("", false)
		for _, value := range []string{
			"user=alice", "", "user=a\tfoo=b", "user=a\x01tb", "user=\x01\x01\x01n", "user=é漢🕊\"\\'<>&", "line\nfeed\r\n", "\x02\x1f\x7f",
			strings.Repeat("x", 5000),
		} {
			if err := s.SetEntry(ctx, "alice", value); err != nil {
				t.Fatalf("set %q: %v", value, err)
			}
			expect(value, true)
		}
		// What IMAP writes is what doveadm reads.
		x := dial(t, s.IMAP)
		wantPrefix(t, "login", x.do(plain("alice", s.MasterUser, s.MasterPassword)), "OK ")
		wantPrefix(t, "set", x.do("SETMETADATA \"\" (/private/vendor/vendor.dovecot/http-notify \"user=im\x01tap\t\")"), "OK ")
		expect("user=im\x01tap\t", true)
		if err := s.SetEntry(ctx, people[4].Name, "user=x"); err != nil {
			t.Fatal(err)
		}
		for _, user := range []string{"alice", people[4].Name} {
			if _, err := os.Stat(s.AttributeFile(user)); err != nil {
				t.Error(err)
			}
		}
		for range 2 {
			if err := s.UnsetEntry(ctx, "alice"); err != nil {
				t.Fatal(err)
			}
			expect("", false)
		}
		var refused *dovecot.DoveadmError
		if _, _, err := s.Entry(ctx, "nobody"); !errors.As(err, &refused) || refused.ExitCode != 67 {
			t.Errorf("entry of an unknown user: %v", err)
		}
	})
}

func TestDeliveryNotifiesRegisteredUsersOnly(t *testing.T) {
	users := append([]dovecot.User{{Name: "fence", Password: "x"}}, people...)
	dovecottest.Each(t, dovecot.Options{Users: users}, func(t *testing.T, s *dovecot.Server) {
		ctx := limited(t)
		for _, user := range []string{"fence", "alice", people[4].Name} {
			if err := s.SetEntry(ctx, user, "user=id-of-"+user); err != nil {
				t.Fatal(err)
			}
		}
		for _, user := range []string{"alice", "bob", people[4].Name, "fence"} {
			if err := s.Deliver(ctx, user, "zoé@example.com", "a tést", "hello\n.dot\n"); err != nil {
				t.Fatal(err)
			}
		}
		// Notifications go out one after the other: when the last is here, so
		// are those before it.
		if _, err := s.WaitNotification(ctx, func(n dovecot.Notification) bool { return n.User == "fence" }); err != nil {
			t.Fatalf("%v; got %v", err, s.Notifications())
		}
		all := s.Drain()
		if len(all) != 3 || all[0].User != "alice" || all[1].User != people[4].Name {
			t.Fatalf("notifications %+v", all)
		}
		n := all[0]
		if n.Event != "messageNew" || n.Folder != "INBOX" || n.Unseen != 1 || !n.Authorized || !json.Valid(n.Raw) ||
			!strings.Contains(n.Snippet, "hello") || !strings.Contains(n.Subject, "=?utf-8?q?") ||
			n.Path != "/preliminary/http-notify/v1/notify" || n.Received.IsZero() {
			t.Errorf("notification %+v", n)
		}
		if rest := s.Notifications(); len(rest) != 0 {
			t.Errorf("%d notifications after Drain", len(rest))
		}
		var refused *textproto.Error
		if err := s.Deliver(ctx, "nobody", "a@example.com", "", ""); !errors.As(err, &refused) || refused.Code != 550 {
			t.Errorf("delivery to an unknown user: %v", err)
		}
	})
}

func TestUserFromMetadata(t *testing.T) {
	dovecottest.Each(t, dovecot.Options{Users: people, UserFromMetadata: true}, func(t *testing.T, s *dovecot.Server) {
		ctx := limited(t)
		if err := s.SetEntry(ctx, "alice", "user=3@42"); err != nil {
			t.Fatal(err)
		}
		if err := s.Deliver(ctx, "alice", "a@example.com", "s", "b"); err != nil {
			t.Fatal(err)
		}
		n, err := s.WaitNotification(ctx, func(dovecot.Notification) bool { return true })
		if err != nil || n.User != "3@42" {
			t.Errorf("user %q, %v", n.User, err)
		}
	})
}

func TestPushURLLeadsElsewhere(t *testing.T) {
	there := dovecottest.Start(t, dovecot.Options{Version: dovecot.V23})
	o := dovecot.Options{Users: people, PushURL: dovecot.NotifyURL(there)}
	dovecottest.Each(t, o, func(t *testing.T, s *dovecot.Server) {
		ctx := limited(t)
		if err := s.SetEntry(ctx, "bob", "user=bob"); err != nil {
			t.Fatal(err)
		}
		if err := s.Deliver(ctx, "bob", "a@example.com", "for "+t.Name(), "b"); err != nil {
			t.Fatal(err)
		}
		if _, err := there.WaitNotification(ctx, func(n dovecot.Notification) bool {
			return n.Authorized && n.Subject == "for "+t.Name()
		}); err != nil || len(s.Notifications()) != 0 {
			t.Errorf("%v, %d here", err, len(s.Notifications()))
		}
	})
}

func TestWrongCredentialsAreRecordedAndRefused(t *testing.T) {
	s := dovecottest.Start(t, dovecot.Options{Version: dovecot.V23})
	url := dovecot.NotifyURL(s)
	q, err := http.NewRequestWithContext(limited(t), http.MethodPut, strings.Replace(url, "@", "x@", 1), strings.NewReader(`{"user":"mallory"}`))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	got := s.Notifications()
	if resp.StatusCode != http.StatusUnauthorized || len(got) != 1 || got[0].Authorized || got[0].User != "mallory" {
		t.Errorf("status %s, %+v", resp.Status, got)
	}
}
