package doveadm

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"dovepush/imapmeta"
	"dovepush/internal/dovecot"
	"dovepush/internal/dovecot/dovecottest"
)

// The tests against real Dovecots share this file. What an entry holds is
// never taken from our own reading, but from the harness's.

var people = []dovecot.User{
	{Name: "alice", Password: "alice's s3cr3t"},
	{Name: "bob", Password: "bob's s3cr3t"},
	{Name: "carol", Password: "carol's s3cr3t", Extra: "nologin"},
}

// named makes users of names.
func named(names ...string) (users []dovecot.User) {
	for _, name := range names {
		users = append(users, dovecot.User{Name: name, Password: "their s3cr3t"})
	}
	return users
}

// busyDoveadm serves many POSTs with one process; as Dovecot ships it each
// forks one of its own.
var busyDoveadm = map[dovecot.Version]string{
	dovecot.V23: "service doveadm {\n service_count = 0\n}\n",
	dovecot.V24: "service doveadm {\n restart_request_count = unlimited\n}\n",
}

// extra is the same text for both versions.
func extra(text string) map[dovecot.Version]string {
	return map[dovecot.Version]string{dovecot.V23: text, dovecot.V24: text}
}

// A shared test is one of several that want the same kind of server.
type shared struct {
	name string
	run  func(t *testing.T, s *dovecot.Server)
}

// together runs the tests on one server of each version. Each begins without
// an entry of alice's or bob's.
func together(t *testing.T, o dovecot.Options, tests ...shared) {
	t.Helper()
	t.Parallel()
	inTurn(t, o, tests...)
}

// inTurn does so while no other test runs: for those that take all that the
// machine has, or want an answer in time.
func inTurn(t *testing.T, o dovecot.Options, tests ...shared) {
	t.Helper()
	dovecottest.Each(t, o, func(t *testing.T, s *dovecot.Server) {
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

func secretIs(secret string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) { return secret, nil }
}

// on returns a client for the server, over plain HTTP with the API key unless
// told otherwise.
func on(t testing.TB, s *dovecot.Server, change ...func(*Options)) *Client {
	t.Helper()
	return open(t, Options{Endpoints: []string{s.DoveadmURL}, Secret: secretIs(s.APIKey)}, change...)
}

// open makes a client that is closed when the test ends.
func open(t testing.TB, o Options, change ...func(*Options)) *Client {
	t.Helper()
	for _, f := range change {
		f(&o)
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closed(t, c) })
	c.limit = c.options.Batch // as after a while
	return c
}

// closed expects that Close returns.
func closed(t testing.TB, c *Client) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		c.Close()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Error("Close does not return")
	}
}

func keepIt(imapmeta.Value) imapmeta.Change { return imapmeta.Keep() }

func setTo(v imapmeta.Value) func(imapmeta.Value) imapmeta.Change {
	return func(imapmeta.Value) imapmeta.Change { return imapmeta.Set(v) }
}

// update expects success and that the entry held had.
func update(t *testing.T, c *Client, user string, change imapmeta.Change, had imapmeta.Value) {
	t.Helper()
	out, err := c.Update(t.Context(), user, func(imapmeta.Value) imapmeta.Change { return change })
	if err != nil || out.Had != had || out.Did != change {
		t.Errorf("%.60s for %q: had %.60q, did %.60s, %v; want that it had %.60q", change, user, string(out.Had), out.Did, err, string(had))
	}
}

// holds asks the harness what the user's entry holds; Absent stands for one
// that is not there, which an empty one is not.
func holds(t *testing.T, s *dovecot.Server, user string, want imapmeta.Value) {
	t.Helper()
	got, present, err := s.Entry(t.Context(), user)
	if err != nil || imapmeta.Value(got) != want || present != (want != imapmeta.Absent) {
		t.Errorf("the entry of %.40q holds %.60q (present: %t, %v); want %.60q", user, got, present, err, string(want))
	}
}

// stores looks into the user's dict itself, where the harness reaches no
// DoveAdm.
func stores(t *testing.T, s *dovecot.Server, user string, want imapmeta.Value) {
	t.Helper()
	text, err := os.ReadFile(s.AttributeFile(user))
	if _, value, found := strings.Cut(string(text), "/vendor/vendor.dovecot/http-notify\n"); want == imapmeta.Absent && found ||
		want != imapmeta.Absent && !strings.HasPrefix(value, string(want)+"\n") {
		t.Errorf("the dict of %.40q holds %.300q (%v); want %.60q", user, text, err, string(want))
	}
}

func setEntry(t *testing.T, s *dovecot.Server, user, value string) {
	t.Helper()
	if err := s.SetEntry(t.Context(), user, value); err != nil {
		t.Fatal(err)
	}
}

// fault is what an error should be; empty texts are not looked at, but for is:
// an error that is none of the sentinels must be none of them.
type fault struct {
	kind      imapmeta.Kind
	is        error
	op        string
	status    string
	words     string // in the error's text
	hint      string // in its hint
	unreached bool
}

var sentinels = []error{imapmeta.ErrNoUser, imapmeta.ErrUser, imapmeta.ErrTLS, imapmeta.ErrLogin, imapmeta.ErrNoMetadata,
	ErrForbidden, ErrUnsupported, ErrKey, ErrNotDoveadm, ErrNoAttributes, ErrNoReply, ErrNoList}

func (f fault) check(t testing.TB, user string, err error) {
	t.Helper()
	var e *imapmeta.Error
	if !errors.As(err, &e) {
		t.Errorf("error %v; want an *imapmeta.Error", err)
		return
	}
	if e.Kind != f.kind || e.User != user || e.Unreached != f.unreached || f.op != "" && e.Op != f.op || f.status != "" && e.Status != f.status {
		t.Errorf("%s error in %q with status %q about %q, unreached %t: %v; want %s in %q with %q about %q, unreached %t",
			e.Kind, e.Op, e.Status, e.User, e.Unreached, err, f.kind, f.op, f.status, user, f.unreached)
	}
	for _, sentinel := range sentinels {
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
}

// secretFree expects that a text gives no secret away, in whatever coding it
// goes over the wire.
func secretFree(t testing.TB, text string, secrets ...string) {
	t.Helper()
	for _, secret := range secrets {
		for _, form := range []string{secret, "doveadm:" + secret} {
			if strings.Contains(text, form) || strings.Contains(text, base64.StdEncoding.EncodeToString([]byte(form))) {
				t.Errorf("%q gives the secret away", text)
			}
		}
	}
}

// refuses expects that an Update which would set the entry fails so.
func refuses(t *testing.T, s *dovecot.Server, c *Client, user string, want fault) {
	t.Helper()
	out, err := c.Update(t.Context(), user, setTo("user=must-not-be-written"))
	want.check(t, user, err)
	if !out.Did.Keeps() {
		t.Errorf("error %q: yet the outcome claims %s", err, out.Did)
	}
	if err != nil {
		var e *imapmeta.Error
		errors.As(err, &e)
		secretFree(t, err.Error()+e.Hint, s.APIKey, s.DoveadmPassword)
	}
}

// eventually waits for what happens elsewhere, at most as long as no working
// system takes.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// atOnce updates all users at once and has each outcome looked at.
func atOnce(t testing.TB, c *Client, users []string, look func(user string, out imapmeta.Outcome, err error), decide func(imapmeta.Value) imapmeta.Change) {
	t.Helper()
	var all sync.WaitGroup
	for _, user := range users {
		all.Go(func() {
			out, err := c.Update(t.Context(), user, decide)
			look(user, out, err)
		})
	}
	all.Wait()
}

// imapEntry sets the mailbox's entry over IMAP, as another client would, unless
// value is empty, and reads it.
func imapEntry(t *testing.T, s *dovecot.Server, user, mailbox, value string) (string, error) {
	t.Helper()
	conn, err := net.Dial("tcp", s.IMAP)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	fmt.Fprintf(conn, "a LOGIN %q %q\r\n", user+"*"+s.MasterUser, s.MasterPassword)
	if value != "" {
		fmt.Fprintf(conn, "b SETMETADATA %q (%s {%d+}\r\n%s)\r\n", mailbox, imapmeta.Entry, len(value), value)
	}
	fmt.Fprintf(conn, "c GETMETADATA %q (%s)\r\n", mailbox, imapmeta.Entry)
	var text string
	for in, line := bufio.NewReader(conn), ""; !strings.HasPrefix(line, "c "); text += line {
		if line, err = in.ReadString('\n'); err != nil || strings.HasPrefix(line, "b ") && !strings.HasPrefix(line, "b OK ") {
			return "", fmt.Errorf("IMAP: %.300q, %w", line, err)
		}
	}
	_, rest, _ := strings.Cut(text, "http-notify {")
	_, rest, _ = strings.Cut(rest, "}\r\n")
	got, _, _ := strings.Cut(rest, ")\r\n")
	return got, nil
}
