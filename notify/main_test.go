package notify

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// endpoint is a running Handler that remembers what it handed on.
type endpoint struct {
	t       testing.TB
	addr    string
	client  *http.Client
	log     *syncBuffer
	handler *Handler

	mu        sync.Mutex
	published []Notification
	refused   []Refusal
	results   []Result
	changed   chan struct{} // closed and replaced when something is handed on
}

// start serves a Handler over TCP until the test ends.
func start(t testing.TB, change ...func(*Options)) *endpoint {
	t.Helper()
	e := &endpoint{t: t, log: new(syncBuffer), changed: make(chan struct{})}
	o := Options{
		Path:        notifyPath,
		Credentials: func() (string, string, bool) { return "dovecot", "secret", true },
		Publish:     func(n Notification) { e.note(func() { e.published = append(e.published, n) }) },
		Refused:     func(r Refusal) { e.note(func() { e.refused = append(e.refused, r) }) },
		Observe:     func(r Result, _ time.Duration) { e.note(func() { e.results = append(e.results, r) }) },
		Now:         func() time.Time { return noon },
		Log:         slog.New(slog.NewTextHandler(e.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, f := range change {
		f(&o)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e.addr = ln.Addr().String()
	e.handler = New(o)
	server := Server(e.handler, o.Log)
	served := make(chan error)
	go func() { served <- server.Serve(ln) }()
	transport := &http.Transport{}
	e.client = &http.Client{Transport: transport}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		_ = server.Close() // some tests leave connections open
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return e
}

func (e *endpoint) note(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f()
	close(e.changed)
	e.changed = make(chan struct{})
}

// await waits until done says so of what was handed on; it runs under the lock.
func (e *endpoint) await(what string, done func() bool) {
	e.t.Helper()
	limit := time.After(30 * time.Second)
	for {
		e.mu.Lock()
		ok, changed := done(), e.changed
		e.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-limit:
			e.mu.Lock()
			defer e.mu.Unlock()
			e.t.Fatalf("no %s; results %v, refused %+v, published %+v", what, e.results, e.refused, e.published)
		}
	}
}

// awaitResults waits until there are as many results, and compares them.
func (e *endpoint) awaitResults(want ...Result) {
	e.t.Helper()
	e.await("results", func() bool { return len(e.results) >= len(want) })
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range want {
		if e.results[i] != want[i] {
			e.t.Fatalf("results %v, want %v", e.results, want)
		}
	}
}

func (e *endpoint) url() string { return "http://" + e.addr + notifyPath }

// request is what Dovecot sends; more are pairs of header names and values,
// where an empty value takes the header away.
func (e *endpoint) request(method, url string, body io.Reader, more ...string) *http.Request {
	e.t.Helper()
	r, err := http.NewRequestWithContext(e.t.Context(), method, url, body)
	if err != nil {
		e.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json; charset=utf-8")
	r.SetBasicAuth("dovecot", "secret")
	for i := 0; i < len(more); i += 2 {
		r.Header.Del(more[i])
		if more[i+1] != "" {
			r.Header[more[i]] = strings.Split(more[i+1], "|")
		}
	}
	return r
}

type reply struct {
	status int
	header http.Header
	body   string
}

func (e *endpoint) do(r *http.Request) reply {
	e.t.Helper()
	res, err := e.client.Do(r)
	if err != nil {
		e.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		e.t.Fatal(err)
	}
	return reply{res.StatusCode, res.Header, string(body)}
}

// put sends a body as Dovecot does and wants a status.
func (e *endpoint) put(status int, body string, more ...string) reply {
	e.t.Helper()
	got := e.do(e.request(http.MethodPut, e.url(), strings.NewReader(body), more...))
	if got.status != status {
		e.t.Errorf("%.200s: %d %s; want %d", body, got.status, got.body, status)
	}
	return got
}

func basic(username, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(username+":"+password))
}

// limited is the test's context with a time limit, for what should come soon.
func limited(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
