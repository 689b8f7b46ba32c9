package imapmeta

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// script is a server for what a real Dovecot cannot be made to say. Each step
// is one line: "S: ..." is sent (\r\n added), "C: ..." must be received (a "*"
// at the end stands for anything), "HANG" waits until the client goes away,
// "CLOSE" ends the connection. The conversation may be had any number of times.
type script struct {
	t     *testing.T
	steps []string
	l     net.Listener
	wg    sync.WaitGroup

	mu       sync.Mutex
	sessions int
}

const (
	greets   = "S: * OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL+ AUTH=PLAIN] ready"
	logsIn   = "C: L1 AUTHENTICATE PLAIN *"
	gets     = `C: T1 GETMETADATA "" ("/private/vendor/vendor.dovecot/http-notify")`
	loggedIn = "S: L1 OK [CAPABILITY IMAP4rev1 LITERAL+ METADATA] Logged in"
	absent   = `S: * METADATA "" (/private/vendor/vendor.dovecot/http-notify NIL)`
	gotten   = "S: T1 OK Getmetadata completed"
)

func play(t *testing.T, steps ...string) *script {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &script{t: t, steps: steps, l: l}
	s.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.sessions++
			s.mu.Unlock()
			s.wg.Go(func() { s.serve(conn) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		s.wg.Wait()
	})
	return s
}

func (s *script) serve(conn net.Conn) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	r := bufio.NewReader(conn)
	for _, step := range s.steps {
		verb, line, _ := strings.Cut(step, ": ")
		switch verb {
		case "S":
			if _, err := io.WriteString(conn, line+"\r\n"); err != nil {
				return
			}
		case "RAW":
			if _, err := io.WriteString(conn, line); err != nil {
				return
			}
		case "C":
			got, err := r.ReadString('\n')
			if err != nil {
				return // the client gave up: its own result tells whether it should have
			}
			got = strings.TrimRight(got, "\r\n")
			if prefix, any := strings.CutSuffix(line, "*"); got != line && !(any && strings.HasPrefix(got, prefix)) {
				s.t.Errorf("the client sent %q, want %q", got, line)
				return
			}
		case "HANG":
			io.Copy(io.Discard, r)
			return
		case "CLOSE":
			return
		default:
			panic(fmt.Sprintf("unknown step %q", step))
		}
	}
}

func (s *script) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions
}

// client returns a client for the script, logging in as master.
func (s *script) client(change ...func(*Options)) *Client {
	s.t.Helper()
	o := Options{
		Address: s.l.Addr().String(), TLS: TLSNone, Timeout: 20 * time.Second,
		Auth: Auth{Mechanism: Plain, MasterUser: "agent", Secret: secretIs("s3cr3t-of-the-agent")},
	}
	for _, f := range change {
		f(&o)
	}
	c, err := New(o)
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

func secretIs(secret string) func(context.Context, string) (string, error) {
	return func(context.Context, string) (string, error) { return secret, nil }
}

func keepIt(Value) Change { return Keep() }

func setTo(v Value) func(Value) Change { return func(Value) Change { return Set(v) } }
