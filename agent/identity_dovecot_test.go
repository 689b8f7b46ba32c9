package agent

import (
	"context"
	"testing"
	"time"

	"dovepush/imapmeta"
	"dovepush/internal/dovecot"
	"dovepush/internal/dovecot/dovecottest"
)

func TestUsersMoveToANewKeyOnARealDovecot(t *testing.T) {
	names := []string{"alice", "bob", "carol", "dave"}
	var people []dovecot.User
	for _, name := range names {
		people = append(people, dovecot.User{Name: name, Password: "s3cr3t"})
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
		h := newHouse(t, time.Now)
		imap := func(o *Options) { o.Servers[0].Entries = client }
		holds := func(user, want string) bool {
			t.Helper()
			got, _, err := s.Entry(t.Context(), user)
			if err != nil {
				t.Fatal(err)
			}
			return got == want
		}
		a, b := newSigner(t, keyA, ""), newSigner(t, keyB, keyA)
		first := h.agent(imap, signing(a))
		for _, user := range names {
			must(t, first, registerAs(user, user+"@7"), Added)
			if !holds(user, "user="+a.Sign(user+"@7")) {
				t.Fatalf("%s is not signed by the first key", user)
			}
		}
		second := h.agent(imap, signing(b))
		must(t, second, unregister("alice"), Removed)
		if !holds("alice", "") {
			t.Error("alice's entry is still there")
		}
		must(t, second, verify("bob"), Changed)
		if !holds("bob", "user="+b.Sign("bob@7")) {
			t.Error("bob was not moved")
		}

		// The service moves who is due, be it only to be verified.
		stop := h.run(second)
		submitted := submit(t, second, verify("carol"))
		for deadline := time.Now().Add(time.Minute); !holds("carol", "user="+b.Sign("carol@7")); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("carol was not moved: %+v", submitted)
			}
		}
		stop()

		if verdicts := swept(t, second, Aim{Verify: None}); len(verdicts) != 1 || verdicts["dave"] != Changed {
			t.Errorf("reconciled: %v", verdicts)
		}
		if !holds("dave", "user="+b.Sign("dave@7")) {
			t.Error("dave was not moved")
		}
		for _, user := range names[1:] {
			must(t, h.agent(imap, signing(newSigner(t, keyB, ""))), unregister(user), Removed)
			if !holds(user, "") {
				t.Errorf("%s's entry is still there", user)
			}
		}
	})
}
