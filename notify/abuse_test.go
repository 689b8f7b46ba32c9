package notify

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

const head = "PUT " + notifyPath + " HTTP/1.1\r\nHost: x\r\nAuthorization: Basic ZG92ZWNvdDpzZWNyZXQ=\r\nContent-Type: application/json\r\n"

// raw opens a connection and sends text.
func (e *endpoint) raw(text string) (net.Conn, *bufio.Reader) {
	e.t.Helper()
	conn, err := net.Dial("tcp", e.addr)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(conn, text); err != nil {
		e.t.Fatal(err)
	}
	return conn, bufio.NewReader(conn)
}

func (e *endpoint) status(in *bufio.Reader) int {
	e.t.Helper()
	res, err := http.ReadResponse(in, nil)
	if err != nil {
		e.t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, res.Body)
	return res.StatusCode
}

// A body of 1 GiB is refused after its head, or as soon as it is found to be
// too large; what was sent by then is all that is ever read.
func TestAHugeBodyIsNotRead(t *testing.T) {
	for name, c := range map[string]struct {
		head  string
		chunk bool
		want  int
	}{
		"announced":                       {head + "Content-Length: 1073741824\r\n\r\n", false, 413},
		"announced, with expectations":    {head + "Expect: 100-continue\r\nContent-Length: 1073741824\r\n\r\n", false, 413},
		"announced, by a stranger":        {"PUT " + notifyPath + " HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n", false, 401},
		"announced, for another path":     {"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n", false, 404},
		"not announced":                   {head + "Transfer-Encoding: chunked\r\n\r\n", true, 413},
		"not announced, by a stranger":    {"PUT " + notifyPath + " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", true, 401},
		"not announced, for another path": {"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", true, 404},
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t)
			conn, in := e.raw(c.head)
			sent := make(chan int)
			go func() {
				part := strings.Repeat(" ", 32<<10)
				if c.chunk {
					part = fmt.Sprintf("%x\r\n%s\r\n", len(part), part)
				}
				total := 0
				for total < 1<<30 {
					n, err := io.WriteString(conn, part)
					total += n
					if err != nil {
						break
					}
				}
				sent <- total
			}()
			if got := e.status(in); got != c.want {
				t.Errorf("status %d, want %d", got, c.want)
			}
			// Sockets hold some MiB that nobody has read.
			if total := <-sent; total > 64<<20 {
				t.Errorf("%d bytes were taken", total)
			}
		})
	}
}

// What a handler reads of a body, counted.
type counted struct {
	io.Reader
	read atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.read.Add(int64(n))
	return n, err
}
func (*counted) Close() error { return nil }

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

func TestNoMoreIsReadThanMayBe(t *testing.T) {
	h := New(Options{Path: "/", Credentials: func() (string, string, bool) { return "dovecot", "secret", true }})
	for name, c := range map[string]struct {
		length   int64
		password string
		most     int64
		want     int
	}{
		"honest":   {1 << 30, "secret", 0, 413},
		"lying":    {-1, "secret", maxBody + 1, 413},
		"stranger": {-1, "x", 0, 401},
		"guessing": {1 << 30, "", 0, 401},
	} {
		body := &counted{Reader: endless{}}
		r := httptest.NewRequest(http.MethodPut, "/", nil)
		r.Body, r.ContentLength = body, c.length
		r.SetBasicAuth("dovecot", c.password)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != c.want || body.read.Load() > c.most || w.Header().Get("Connection") != "close" {
			t.Errorf("%s: status %d, %d bytes read, header %v", name, w.Code, body.read.Load(), w.Header())
		}
	}
}

// pipes is a listener of connections that a test's own clock can stop.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if c, ok := <-p; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (p pipes) Close() error { return nil }
func (pipes) Addr() net.Addr { return &net.TCPAddr{} }

func TestWhoSendsOneByteASecondIsCutOff(t *testing.T) {
	for name, c := range map[string]struct {
		at   int // of the request, what is sent at once
		want Result
	}{
		"in the head": {20, ""},
		"in the body": {strings.Index(slowRequest, "\r\n\r\n") + 4, "slow"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var results []Result
				h := New(Options{Path: notifyPath, Credentials: func() (string, string, bool) { return "dovecot", "secret", true },
					Observe: func(r Result, _ time.Duration) { results = append(results, r) }})
				listener := make(pipes)
				server := Server(h, nil)
				served := make(chan error)
				go func() { served <- server.Serve(listener) }()
				ours, theirs := net.Pipe()
				listener <- theirs
				go func() { _, _ = io.Copy(io.Discard, ours) }()
				began := time.Now()
				_, err := io.WriteString(ours, slowRequest[:c.at])
				for i := c.at; i < len(slowRequest) && err == nil; i++ {
					time.Sleep(time.Second)
					_, err = io.WriteString(ours, slowRequest[i:i+1])
				}
				if took := time.Since(began); err == nil || took > 15*time.Second {
					t.Errorf("cut off after %v, error %v", took, err)
				}
				close(listener)
				_ = server.Close()
				<-served
				_ = ours.Close()
				synctest.Wait()
				if c.want == "" && len(results) != 0 || c.want != "" && (len(results) != 1 || results[0] != c.want) {
					t.Errorf("results %v", results)
				}
			})
		})
	}
}

var slowRequest = head + "Content-Length: 60\r\n\r\n" + `{"user":"` + strings.Repeat("a", 60) + `"}`

func TestAnIdleConnectionIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		listener := make(pipes)
		server := Server(http.NotFoundHandler(), nil)
		served := make(chan error)
		go func() { served <- server.Serve(listener) }()
		for _, text := range []string{"", "GET / HTTP/1.1\r\nHost: x\r\n\r\n"} {
			ours, theirs := net.Pipe()
			listener <- theirs
			if text != "" {
				go func() { _, _ = io.WriteString(ours, text) }()
			}
			began := time.Now()
			_, _ = io.Copy(io.Discard, ours)
			if took := time.Since(began); took > 2*time.Minute {
				t.Errorf("after %q it was open for %v", text, took)
			}
			_ = ours.Close()
		}
		close(listener)
		_ = server.Close()
		<-served
	})
}

// What senders claim costs nothing: 1,000 of them, who have sent more than the
// first buffer holds, yet little of a body said to be large.
func TestSlowSendersHoldLittleMemory(t *testing.T) {
	e := start(t)
	const senders = 1000
	before := heap()
	for range senders {
		e.raw(head + fmt.Sprintf("Content-Length: %d\r\n\r\n", maxBody) + strings.Repeat(" ", firstRead+100))
	}
	// When this one is answered, so are or wait those before it.
	e.put(http.StatusOK, mail)
	each := (int64(heap()) - int64(before)) / senders
	t.Logf("%d bytes for each sender, ours and theirs", each)
	if each > 32<<10 {
		t.Errorf("%d bytes for each sender", each)
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

func TestABodyThatBreaksOffIsMalformed(t *testing.T) {
	e := start(t)
	conn, _ := e.raw(head + "Content-Length: 100\r\n\r\n{\"user\":\"a\"}")
	_ = conn.Close()
	e.awaitResults("malformed")
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.published) != 0 {
		t.Errorf("published %+v", e.published)
	}
}

func TestABodyInPiecesIsTakenWhole(t *testing.T) {
	e := start(t)
	for _, size := range []int{10, 1 << 10, 10 << 10, maxBody - 50} {
		body := `{"user":"alice","subject":"whole","x":"` + strings.Repeat("x", size) + `"}`
		body = body[:len(body)-2] + `"}`
		r := e.request(http.MethodPut, e.url(), struct{ io.Reader }{strings.NewReader(body)}) // chunked
		if got := e.do(r); got.status != http.StatusOK {
			t.Errorf("%d: %+v", size, got)
		}
		e.put(http.StatusOK, body)
	}
	e.await("notifications", func() bool { return len(e.published) == 8 })
	for _, n := range e.published {
		if n.User != "alice" || n.Subject != "whole" {
			t.Errorf("%+v", n)
		}
	}
}

func TestServerLogsStrangersAtDebug(t *testing.T) {
	e := start(t)
	_, in := e.raw("NONSENSE\r\n\r\n")
	if got := e.status(in); got != http.StatusBadRequest {
		t.Errorf("status %d", got)
	}
	_, in = e.raw("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n")
	if got := e.status(in); got != http.StatusNotFound {
		t.Errorf("status %d", got)
	}
	_, in = e.raw(head + "X: " + strings.Repeat("x", 32<<10) + "\r\n\r\n")
	if _, err := http.ReadResponse(in, nil); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !strings.Contains(err.Error(), "reset") {
		t.Error(err)
	}
	Server(e.handler, slog.New(slog.NewTextHandler(e.log, &slog.HandlerOptions{Level: slog.LevelDebug}))).ErrorLog.Print("a TLS handshake")
	if log := e.log.String(); !strings.Contains(log, "a TLS handshake") || strings.Contains(log, "level=INFO") || strings.Contains(log, "level=ERROR") || strings.Contains(log, "level=WARN") {
		t.Errorf("log %s", log)
	}
}
