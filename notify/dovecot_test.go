package notify

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dovepush/internal/dovecot"
	"dovepush/internal/dovecot/dovecottest"
)

var people = []dovecot.User{{Name: "alice", Password: "x"}, {Name: "jörg@example.com", Password: "x"}}

// deliver brings a message by LMTP, header and all.
func deliver(ctx context.Context, s *dovecot.Server, user, message string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", s.LMTP)
	if err != nil {
		return err
	}
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	c := textproto.NewConn(conn)
	defer c.Close()
	if _, _, err := c.ReadResponse(220); err != nil {
		return err
	}
	for _, step := range []struct {
		line string
		code int
	}{{"LHLO localhost", 250}, {"MAIL FROM:<a@example.com>", 250}, {"RCPT TO:<" + user + ">", 250}, {"DATA", 354}} {
		if err := c.PrintfLine("%s", step.line); err != nil {
			return err
		}
		if _, _, err := c.ReadResponse(step.code); err != nil {
			return err
		}
	}
	w := c.DotWriter()
	_, _ = io.WriteString(w, message)
	if err := w.Close(); err != nil {
		return err
	}
	_, _, err = c.ReadResponse(250)
	return err
}

func (e *endpoint) pushURL(password string) string {
	return "http://dovecot:" + password + "@" + e.addr + notifyPath
}

func TestWhatARealDovecotSendsIsUnderstood(t *testing.T) {
	for _, fromMetadata := range []bool{false, true} {
		t.Run(fmt.Sprintf("user_from_metadata=%t", fromMetadata), func(t *testing.T) {
			e := start(t)
			dovecottest.Each(t, dovecot.Options{Users: people, PushURL: e.pushURL("secret"), UserFromMetadata: fromMetadata}, func(t *testing.T, s *dovecot.Server) {
				e.mu.Lock()
				before := len(e.published)
				e.mu.Unlock()
				ctx := limited(t)
				if err := s.SetEntry(ctx, "alice", "user=3@42"); err != nil {
					t.Fatal(err)
				}
				for _, message := range []string{
					"From: =?iso-8859-1?q?J=F6rg?= \"the \\\" Mouse\" <j@example.com>\r\nSubject: =?utf-8?q?Gr=C3=BC=C3?=\r\n =?utf-8?q?=9Fe?= aus\r\n\t=?koi8-r?B?8NLJ18XU?=\r\n" +
						"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\nfirst \"line\"\r\nsecond\tline, ü 🕊\r\n",
					"From: caf\xe9 <c@example.com>\r\nSubject: \xe9\xfc \x1b[31m\x01 raw 8 bit\r\n\r\n\x01\xff\x1bbody\r\n", // neither allowed nor rare
					"\r\n", // nothing at all
				} {
					if err := deliver(ctx, s, "alice", message); err != nil {
						t.Fatal(err)
					}
				}
				e.await("notifications", func() bool { return len(e.published) >= before+3 })
				e.mu.Lock()
				defer e.mu.Unlock()
				got := e.published[before:]
				user := map[bool]string{false: "alice", true: "3@42"}[fromMetadata]
				for i, n := range got {
					if n.User != user || n.Event != "messageNew" || n.Folder != "INBOX" || n.UID != uint32(i+1) || n.UIDValidity == 0 ||
						n.Unseen == nil || *n.Unseen != int64(i+1) || len(n.Fields) != 0 || n.Key() == "" || n.Received.IsZero() {
						t.Errorf("notification %d: %+v", i, n)
					}
				}
				if n := got[0]; n.From != `Jörg "the \" Mouse" <j@example.com>` || n.Subject != "Grüße aus Привет" || n.Snippet != `first "line" second line, ü 🕊` {
					t.Errorf("%q, %q, %q", n.From, n.Subject, n.Snippet)
				}
				if n := got[1]; !strings.HasPrefix(n.From, "caf") || !strings.HasSuffix(n.Subject, " raw 8 bit") || !strings.HasSuffix(n.Snippet, "body") {
					t.Errorf("%q, %q, %q", n.From, n.Subject, n.Snippet)
				}
				if n := got[2]; n.From != "" || n.Subject != "" || n.Snippet != "" {
					t.Errorf("%q, %q, %q", n.From, n.Subject, n.Snippet)
				}
				if len(e.refused) != 0 {
					t.Errorf("refused %+v", e.refused)
				}
			})
		})
	}
}

// Without these, 2.4.1 waits a minute, and sends nothing again: the driver's own
// defaults (2s and 2, as in 2.3) came back in a later release.
const sendsAgain = `
push_notification ox {
  http_client_request_timeout = 2s
  http_client_request_max_attempts = 2
}
`

// The first answer comes after the driver's 2 s; it sends the same again.
func TestWhatARealDovecotSendsAgainIsHandedOnOnce(t *testing.T) {
	for _, version := range dovecot.Versions() {
		t.Run(string(version), func(t *testing.T) {
			var calls atomic.Int32
			again := make(chan struct{})
			e := start(t, func(o *Options) {
				o.Accept = func(ctx context.Context, _ Notification) error {
					if calls.Add(1) == 1 {
						select {
						case <-again:
						case <-ctx.Done():
						}
					}
					return nil
				}
			})
			// What Dovecot reaches first counts its requests.
			var requests atomic.Int32
			front := listen(t, e, func() {
				if requests.Add(1) == 2 {
					close(again)
				}
			})
			s := dovecottest.Start(t, dovecot.Options{Version: version, Users: people, PushURL: "http://dovecot:secret@" + front + notifyPath,
				Extra: map[dovecot.Version]string{dovecot.V24: sendsAgain}})
			ctx := limited(t)
			if err := s.SetEntry(ctx, "alice", "user=alice"); err != nil {
				t.Fatal(err)
			}
			if err := s.Deliver(ctx, "alice", "a@example.com", "late", "b"); err != nil {
				t.Fatal(err)
			}
			e.await("two answers", func() bool { return len(e.results) == 2 })
			e.await("notification", func() bool { return len(e.published) == 1 })
			if calls.Load() != 1 || requests.Load() != 2 {
				t.Errorf("kept %d times, %d requests", calls.Load(), requests.Load())
			}
		})
	}
}

func TestAWrongPasswordOfARealDovecotIsSeen(t *testing.T) {
	e := start(t)
	dovecottest.Each(t, dovecot.Options{Users: people, PushURL: e.pushURL("wrong")}, func(t *testing.T, s *dovecot.Server) {
		e.mu.Lock()
		before := len(e.refused)
		e.mu.Unlock()
		ctx := limited(t)
		if err := s.SetEntry(ctx, "alice", "user=alice"); err != nil {
			t.Fatal(err)
		}
		if err := s.Deliver(ctx, "alice", "a@example.com", "s", "b"); err != nil {
			t.Fatal(err)
		}
		e.await("refusal", func() bool { return len(e.refused) > before })
		e.mu.Lock()
		defer e.mu.Unlock()
		if r := e.refused[before]; r.Reason != WrongCredentials || r.Remote != "127.0.0.1" || len(e.published) != 0 {
			t.Errorf("%+v", r)
		}
	})
}

// listen serves the endpoint's handler elsewhere, and tells of each request
// before it is looked at.
func listen(t *testing.T, e *endpoint, arrived func()) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := Server(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		arrived()
		e.handler.ServeHTTP(w, r)
	}), nil)
	served := make(chan error)
	go func() { served <- server.Serve(ln) }()
	t.Cleanup(func() {
		_ = server.Close()
		<-served
	})
	return ln.Addr().String()
}
