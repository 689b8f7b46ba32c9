package notify

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// BenchmarkNotifications compares the Handler with one that does nothing but
// decode the same JSON, over the same kind of connections. "ratio" has all in
// turns, so that what else the machine does hits all, and compares one with a
// webhook spool to a bare one that waits as long.
func BenchmarkNotifications(b *testing.B) {
	bare := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			User, Event, Folder    string
			UIDValidity            uint32 `json:"imap-uidvalidity"`
			UID                    uint32 `json:"imap-uid"`
			From, Subject, Snippet string
			Unseen                 int64
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			w.WriteHeader(http.StatusBadRequest)
		}
	})
	handler := func(accept func(context.Context, Notification) error) http.Handler {
		hub := NewHub()
		return New(Options{
			Path: notifyPath, Accept: accept,
			Credentials: func() (string, string, bool) { return "dovecot", "secret", true },
			Publish:     func(n Notification) { hub.Publish(Event{Notification: &n}) },
		})
	}
	spool := func(ctx context.Context, _ Notification) error { // about what a grouped commit takes
		pause(ctx, time.Millisecond)
		return nil
	}
	waiting := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = spool(r.Context(), Notification{})
		bare(w, r)
	})
	b.Run("bare", func(b *testing.B) { newLoad(b, bare).run(b, b.N).report(b, "") })
	b.Run("notify", func(b *testing.B) { newLoad(b, handler(nil)).run(b, b.N).report(b, "") })
	b.Run("webhook", func(b *testing.B) { newLoad(b, handler(spool)).run(b, b.N).report(b, "") })
	b.Run("ratio", func(b *testing.B) {
		loads := []*load{newLoad(b, bare), newLoad(b, handler(nil)), newLoad(b, waiting), newLoad(b, handler(spool))}
		sums := make([]outcome, len(loads))
		const slice = 500
		for done := 0; done < b.N; done += slice {
			for i, l := range loads {
				got := l.run(b, min(slice, b.N-done))
				sums[i] = outcome{sums[i].n + got.n, sums[i].took + got.took, append(sums[i].each, got.each...)}
			}
		}
		for i, name := range []string{"bare-", "notify-", "waiting-", "webhook-"} {
			sums[i].report(b, name)
		}
		b.ReportMetric(sums[1].rate()/sums[0].rate(), "notify/bare")
		b.ReportMetric(sums[3].rate()/sums[2].rate(), "webhook/waiting")
	})
}

const (
	notifyPath = "/preliminary/http-notify/v1/notify"
	clients    = 32
)

// load sends notifications to a handler over connections that stay open.
type load struct {
	conns []net.Conn
	uid   atomic.Uint32
}

type outcome struct {
	n    int
	took time.Duration
	each []time.Duration
}

func (o outcome) rate() float64 { return float64(o.n) / o.took.Seconds() }

func (o outcome) report(b *testing.B, prefix string) {
	slices.Sort(o.each)
	b.ReportMetric(o.rate(), prefix+"notifications/s")
	b.ReportMetric(float64(o.each[len(o.each)*99/100].Microseconds())/1000, prefix+"p99-ms")
}

func newLoad(b *testing.B, handler http.Handler) *load {
	b.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	server := Server(handler, nil)
	done := make(chan error)
	go func() { done <- server.Serve(ln) }()
	b.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	l := new(load)
	for range clients {
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = conn.Close() })
		l.conns = append(l.conns, conn)
	}
	return l
}

// run sends n notifications, as Dovecot writes them.
func (l *load) run(b *testing.B, n int) outcome {
	var left atomic.Int64
	left.Store(int64(n))
	var mu sync.Mutex
	o := outcome{n: n}
	began := time.Now()
	var group sync.WaitGroup
	for _, conn := range l.conns {
		group.Go(func() {
			var each []time.Duration
			in := bufio.NewReader(conn)
			for left.Add(-1) >= 0 {
				sent := time.Now()
				if _, err := conn.Write(l.request()); err != nil {
					b.Error(err)
					return
				}
				if err := answered(in); err != nil {
					b.Error(err)
					return
				}
				each = append(each, time.Since(sent))
			}
			mu.Lock()
			defer mu.Unlock()
			o.each = append(o.each, each...)
		})
	}
	group.Wait()
	o.took = time.Since(began)
	return o
}

func (l *load) request() []byte {
	uid := strconv.Itoa(int(l.uid.Add(1)))
	body := `{"user":"user` + uid + `@example.com","event":"messageNew","folder":"INBOX","imap-uidvalidity":1764154321,"imap-uid":` + uid +
		`,"from":"\"Alice Adams\" <alice@example.com>","subject":"=?utf-8?q?Gr=C3=BC=C3=9Fe_aus_K=C3=B6ln?=","snippet":"Hello, shall we have lunch at noon? The usual place, I think.","unseen":3}`
	return []byte("PUT " + notifyPath + " HTTP/1.1\r\nHost: 127.0.0.1:8026\r\nDate: Thu, 26 Nov 2026 12:00:00 GMT\r\n" +
		"Content-Type: application/json; charset=utf-8\r\nAuthorization: Basic " + base64.StdEncoding.EncodeToString([]byte("dovecot:secret")) +
		"\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\nConnection: Keep-Alive\r\n\r\n" + body)
}

// answered reads an answer with an empty body.
func answered(in *bufio.Reader) error {
	status, err := in.ReadSlice('\n')
	if err == nil && !bytes.HasPrefix(status, []byte("HTTP/1.1 200 ")) {
		err = fmt.Errorf("answer %q", status)
	}
	for err == nil {
		var line []byte
		if line, err = in.ReadSlice('\n'); err == nil && len(line) == 2 {
			return nil
		}
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}
