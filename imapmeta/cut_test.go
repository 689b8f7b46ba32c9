package imapmeta

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dovepush/internal/dovecot"
)

func TestFaultyConnections(t *testing.T) {
	together(t, shared{"byte by byte", byteByByte}, shared{"cut anywhere", cutAnywhere})
}

// wire carries connections to a server, and spoils them.
type wire struct {
	to   string
	l    net.Listener
	done chan struct{} // one for each connection that has ended on both sides

	// Each connection ends after so many bytes of the server's replies, or of
	// the client's commands; negative: never.
	replies, commands atomic.Int64
	reset             atomic.Bool  // by RST instead of FIN
	chunk             atomic.Int64 // bytes in one packet to the client; 0: as they come

	said atomic.Int64 // bytes of the last connection's replies that came through
	sent atomic.Int64 // and of its commands
}

func wireTo(t *testing.T, addr string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{to: addr, l: l, done: make(chan struct{}, 1)}
	w.replies.Store(-1)
	w.commands.Store(-1)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			w.carry(client) // one after the other
			select {
			case w.done <- struct{}{}:
			default: // nobody waits for it
			}
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return w
}

func (w *wire) through(o *Options) { o.Address = w.l.Addr().String() }

// carry returns when the server has closed its side, and so is done with what
// it was sent.
func (w *wire) carry(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", w.to)
	if err != nil {
		return
	}
	defer server.Close()
	server.SetDeadline(time.Now().Add(20 * time.Second))
	w.said.Store(0)
	w.sent.Store(0)
	hangUp := func() {
		if w.reset.Load() {
			client.(*net.TCPConn).SetLinger(0)
		}
		client.Close()
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		copyUpTo(server, client, w.commands.Load(), 0, &w.sent)
		server.(*net.TCPConn).CloseWrite()
		if w.commands.Load() >= 0 {
			hangUp()
		}
	})
	copyUpTo(client, server, w.replies.Load(), w.chunk.Load(), &w.said)
	hangUp()
	io.Copy(io.Discard, server)
	wg.Wait()
}

// copyUpTo copies at most limit bytes.
func copyUpTo(to io.Writer, from io.Reader, limit, chunk int64, n *atomic.Int64) {
	buf := make([]byte, 16<<10)
	if chunk > 0 {
		buf = buf[:chunk]
	}
	for limit < 0 || n.Load() < limit {
		part := buf
		if limit >= 0 {
			part = buf[:min(int64(len(buf)), limit-n.Load())]
		}
		got, err := from.Read(part)
		if _, werr := to.Write(part[:got]); err != nil || werr != nil {
			return
		}
		n.Add(int64(got))
	}
}

// A connection that ends anywhere leaves an error of kind retry and the entry
// as it was, or as it was to be.
func cutAnywhere(t *testing.T, s *dovecot.Server) {
	const before, after = "user=before", "user=after, which is longer"
	for _, c := range []struct {
		name  string
		to    string
		with  func(*Options)
		every int64 // bytes
	}{
		{"plaintext", s.IMAP, func(*Options) {}, 11},
		{"LOGIN", s.IMAP, both(separator("*"), mechanism(Login)), 37},
		{"TLS", s.IMAPS, overTLS(s, &tls.Config{ServerName: "localhost"}), 89},
		{"STARTTLS", s.IMAP, both(overTLS(s, &tls.Config{ServerName: "localhost"}), startTLS(s)), 113},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := wireTo(t, c.to)
			client := on(t, s, c.with, w.through)
			holds := ""
			try := func() (Outcome, error) {
				t.Helper()
				if holds != before {
					setEntry(t, s, "alice", before)
				}
				began := time.Now()
				out, err := client.Update(t.Context(), "alice", setTo(after))
				if time.Since(began) > client.options.Timeout/2 {
					t.Errorf("it hung: %v", err)
				}
				<-w.done
				got, _, lookErr := s.Entry(t.Context(), "alice")
				holds = got
				var e *Error
				switch {
				case lookErr != nil:
					t.Error(lookErr)
				case err == nil && (out != Outcome{Had: before, Did: Set(after)} || got != after):
					t.Errorf("outcome %+v, the entry holds %q", out, got)
				case err == nil:
				case !errors.As(err, &e) || e.Kind != Retry || !out.Did.Keeps():
					t.Errorf("%+v, %v (%s); want kind retry", out, err, KindOf(err))
				case e.Op == "setmetadata" && got != before && got != after, e.Op != "setmetadata" && got != before:
					t.Errorf("the entry holds %q after %v", got, err)
				}
				return out, err
			}
			if _, err := try(); err != nil {
				t.Fatal(err)
			}
			said, sent := w.said.Load(), w.sent.Load()
			failed, done := 0, 0
			count := func() {
				if _, err := try(); err != nil {
					failed++
				} else {
					done++
				}
			}
			for at := int64(0); at < said; at += c.every {
				w.reset.Store(at%2 == 1)
				w.replies.Store(at)
				count()
			}
			w.replies.Store(-1)
			for at := int64(0); at < sent; at += c.every {
				w.reset.Store(at%2 == 1)
				w.commands.Store(at)
				count()
			}
			if failed < done { // behind the reply to SETMETADATA comes only that to LOGOUT
				t.Errorf("of %d cuts %d did no harm", failed+done, done)
			}
		})
	}
}

func byteByByte(t *testing.T, s *dovecot.Server) {
	had := Absent
	for _, c := range []struct {
		value Value
		to    string
		with  func(*Options)
	}{
		{"user=plain", s.IMAP, func(*Options) {}},
		{"user=login", s.IMAP, both(separator("*"), mechanism(Login))},
		{"user=tls", s.IMAPS, overTLS(s, &tls.Config{ServerName: "localhost"})},
	} {
		w := wireTo(t, c.to)
		w.chunk.Store(1)
		update(t, on(t, s, c.with, w.through), "alice", Set(c.value), had)
		holds(t, s, "alice", c.value)
		had = c.value
	}
}
