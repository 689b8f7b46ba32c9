package imapmeta

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"dovepush/internal/dovecot"
	"dovepush/internal/dovecot/dovecottest"
)

// The tests against real Dovecots share this file. What an entry holds is
// never taken from our own reading, but from doveadm.

// Every password in these tests holds this word, so that a message that gives
// one away is seen.
const telltale = "s3cr3t"

var people = []dovecot.User{
	{Name: "alice", Password: "alice's s3cr3t"},
	{Name: "bob", Password: "bob's s3cr3t"},
	{Name: "carol", Password: "carol's s3cr3t", Extra: "nologin"},
}

// busyDoveadm serves many doveadm calls with one process; as Dovecot ships it
// each forks one of its own.
var busyDoveadm = map[dovecot.Version]string{
	dovecot.V23: "service doveadm {\n service_count = 0\n}\n",
	dovecot.V24: "service doveadm {\n restart_request_count = unlimited\n}\n",
}

// A shared test is one of several that want the same kind of server.
type shared struct {
	name string
	run  func(t *testing.T, s *dovecot.Server)
}

// together runs the tests on one server of each version, with people as its
// users. Each begins without an entry of alice's or bob's.
func together(t *testing.T, tests ...shared) {
	t.Helper()
	t.Parallel()
	dovecottest.Each(t, dovecot.Options{Users: people, Extra: busyDoveadm}, func(t *testing.T, s *dovecot.Server) {
		for _, test := range tests {
			for _, user := range []string{"alice", "bob"} {
				if err := s.UnsetEntry(t.Context(), user); err != nil {
					t.Fatal(err)
				}
			}
			t.Run(test.name, func(t *testing.T) { test.run(t, s) })
		}
	})
}

// on returns a client for the server that logs in as master by authorization
// identity, over plaintext, unless told otherwise.
func on(t *testing.T, s *dovecot.Server, change ...func(*Options)) *Client {
	t.Helper()
	o := Options{
		Address: s.IMAP, TLS: TLSNone, Timeout: 20 * time.Second,
		Auth: Auth{Mechanism: Plain, MasterUser: s.MasterUser, Secret: secretIs(s.MasterPassword)},
	}
	for _, f := range change {
		f(&o)
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func secret(secret string) func(*Options) {
	return func(o *Options) { o.Auth.Secret = secretIs(secret) }
}

// ownPassword lets users log in themselves.
func ownPassword(password string) func(*Options) {
	return func(o *Options) { o.Auth.MasterUser, o.Auth.Secret = "", secretIs(password) }
}

func mechanism(m Mechanism) func(*Options) { return func(o *Options) { o.Auth.Mechanism = m } }

func separator(sep string) func(*Options) { return func(o *Options) { o.Auth.MasterSeparator = sep } }

func both(fs ...func(*Options)) func(*Options) {
	return func(o *Options) {
		for _, f := range fs {
			f(o)
		}
	}
}

// update expects success and that the entry held had.
func update(t *testing.T, c *Client, user string, change Change, had Value) {
	t.Helper()
	out, err := c.Update(t.Context(), user, func(Value) Change { return change })
	if err != nil || out.Had != had || out.Did != change {
		t.Errorf("%s for %q: had %q, did %s, %v; want that it had %q", change, user, out.Had, out.Did, err, had)
	}
}

// holds asks doveadm what the user's entry holds; Absent stands for one that
// is not there, which an empty one is not.
func holds(t *testing.T, s *dovecot.Server, user string, want Value) {
	t.Helper()
	got, present, err := s.Entry(t.Context(), user)
	if err != nil || Value(got) != want || present != (want != Absent) {
		t.Errorf("the entry of %.40q holds %q (present: %t, %v); want %q", user, got, present, err, want)
	}
}

// stores looks into the user's dict itself, for users whom doveadm does not
// reach, or who are too many for it.
func stores(t *testing.T, s *dovecot.Server, user string, want Value) {
	t.Helper()
	text, err := os.ReadFile(s.AttributeFile(user))
	if err != nil || !strings.Contains(string(text), "/http-notify\n"+string(want)+"\n") {
		t.Errorf("the dict of %.40q holds %q (%v); want %q", user, text, err, want)
	}
}

func setEntry(t *testing.T, s *dovecot.Server, user, value string) {
	t.Helper()
	if err := s.SetEntry(t.Context(), user, value); err != nil {
		t.Fatal(err)
	}
}

// fault is what an error should be; empty fields are not looked at, but for is:
// an error that is none of the sentinels must be none of them.
type fault struct {
	kind  Kind
	is    error
	op    string
	code  string
	words string // in the error's text
	hint  string // in its hint
}

func (f fault) check(t *testing.T, s *dovecot.Server, user string, out Outcome, err error) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Errorf("had %q, did %s, error %v; want an *Error", out.Had, out.Did, err)
		return
	}
	if e.Kind != f.kind || e.User != user || f.op != "" && e.Op != f.op || f.code != "" && e.Code != f.code {
		t.Errorf("%s error in %q with code %q about %q: %v; want %s in %q with %q about %q", e.Kind, e.Op, e.Code, e.User, err, f.kind, f.op, f.code, user)
	}
	for _, sentinel := range []error{ErrLogin, ErrNoUser, ErrNoMetadata, ErrPlaintext, ErrTLS, ErrUser} {
		if got, want := errors.Is(err, sentinel), sentinel == f.is; got != want {
			t.Errorf("error %q is %q: %t", err, sentinel, got)
		}
	}
	if !strings.Contains(err.Error(), f.words) {
		t.Errorf("error %q; want %q in it", err, f.words)
	}
	if !strings.Contains(e.Hint, f.hint) {
		t.Errorf("error %q: hint %q; want %q in it", err, e.Hint, f.hint)
	}
	if !out.Did.Keeps() {
		t.Errorf("error %q: yet the outcome claims %s", err, out.Did)
	}
	for _, secret := range []string{telltale, s.MasterPassword, "eyJhbGci"} { // the last begins a token
		if strings.Contains(err.Error()+e.Hint, secret) {
			t.Errorf("error %q (%q) gives %.12q away", err, e.Hint, secret)
		}
	}
}

// refuses expects that an Update which would set the entry fails so.
func refuses(t *testing.T, s *dovecot.Server, c *Client, user string, want fault) {
	t.Helper()
	out, err := c.Update(t.Context(), user, setTo("user=must-not-be-written"))
	want.check(t, s, user, out, err)
}

// eventually waits for what another process does, at most as long as no
// working system takes.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}
