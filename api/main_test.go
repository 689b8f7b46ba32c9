package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"dovepush/agent"
	"dovepush/imapmeta"
	"dovepush/registry"
)

// standIn is an agent without Dovecot: what should be goes into a real
// registry, and what "comes of it" is what a test says. It does its work when
// it is waited for.
type standIn struct {
	registry *registry.Registry
	now      func() time.Time
	work     func(reg registry.Registration) registry.Result // nil: nobody works
	refuse   error                                           // Submit fails with it
	blind    error                                           // Await fails with it
	between  func(key registry.Key)                          // happens between Submit's two steps
	asked    func(agent.Request)                             // is told of every request
	awaiting chan struct{}                                   // gets one when Await waits for its context
	ended    chan error                                      // gets why that was over
}

// The real ones fit.
var (
	_ Agent    = (*agent.Agent)(nil)
	_ Registry = (*registry.Registry)(nil)
)

func route(user string) (string, bool) { return "main", !strings.HasSuffix(user, "@elsewhere.test") }

func (s *standIn) Submit(ctx context.Context, r agent.Request) (registry.Registration, error) {
	if s.asked != nil {
		s.asked(r)
	}
	if s.refuse != nil {
		return registry.Registration{}, s.refuse
	}
	if err := imapmeta.CheckUser(r.User); err != nil {
		return registry.Registration{}, err
	}
	server, ok := route(r.User)
	if !ok {
		return registry.Registration{}, agent.ErrNoServer
	}
	in := registry.Intent{Key: registry.Key{User: r.User, Server: server}, Identity: r.Identity, Force: r.Force, Wanted: registry.Present}
	if in.Identity == "" {
		in.Identity = r.User
	}
	value, err := imapmeta.NewValue(in.Identity)
	if err != nil {
		return registry.Registration{}, err
	}
	in.Value = string(value)
	if r.Expires > 0 {
		in.ExpiresAt = s.now().Add(r.Expires)
	}
	if r.Action == agent.Unregister {
		in.Wanted = registry.Absent
	}
	if r.Action == agent.Verify {
		switch _, found, err := s.registry.Get(ctx, in.Key); {
		case err != nil:
			return registry.Registration{}, err
		case !found:
			return registry.Registration{}, agent.ErrNotRegistered
		}
	} else if err := s.registry.Intend(ctx, in); err != nil {
		return registry.Registration{}, err
	}
	if s.between != nil {
		s.between(in.Key)
	}
	reg, _, err := s.registry.Get(ctx, in.Key)
	return reg, err
}

func (s *standIn) Await(ctx context.Context, submitted registry.Registration) (registry.Registration, bool, error) {
	if s.blind != nil {
		return registry.Registration{}, false, s.blind
	}
	if s.work == nil {
		if s.awaiting != nil {
			s.awaiting <- struct{}{}
		}
		<-ctx.Done()
		if s.ended != nil {
			s.ended <- ctx.Err()
		}
	} else if err := s.settle(submitted.Key()); err != nil {
		return registry.Registration{}, false, err
	}
	return s.registry.Get(context.WithoutCancel(ctx), submitted.Key())
}

func (s *standIn) settle(key registry.Key) error {
	ctx := context.Background()
	reg, claimed, err := s.registry.Claim(ctx, key, "stand-in", s.now().Add(time.Minute), s.now().Add(time.Minute))
	if err != nil || claimed != registry.Taken {
		return errors.Join(err, fmt.Errorf("claim: %v", claimed))
	}
	result := s.work(reg)
	result.Key, result.Revision = key, reg.Revision
	if result.NextAt.IsZero() {
		result.NextAt = s.now().Add(24 * time.Hour)
	}
	_, err = s.registry.Record(ctx, "stand-in", result)
	return err
}

// What may come of it.
func succeeds(reg registry.Registration) registry.Result {
	return registry.Result{State: registry.Registered, Gone: reg.Wanted == registry.Absent}
}
func conflicts(registry.Registration) registry.Result {
	return registry.Result{State: registry.Conflict, Unsettled: true, Failure: &registry.Failure{Kind: "user", Message: "somebody else's"}}
}
func cannotConnect(reg registry.Registration) registry.Result {
	return registry.Result{State: reg.State, Unsettled: true, Failure: &registry.Failure{Kind: "retry", Message: "connection refused"}}
}

// service is a running API.
type service struct {
	t        testing.TB
	agent    *standIn
	registry *registry.Registry
	handler  *Handler
	client   *http.Client
	log      *syncBuffer
}

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// clock moves on by a second each time that it is looked at.
func clock() func() time.Time {
	var mu sync.Mutex
	now := noon
	return func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		now = now.Add(time.Second)
		return now
	}
}

// start serves the API over "tcp" or "unix" until the test ends.
func start(t testing.TB, network string, change ...func(*Options)) *service {
	t.Helper()
	now := clock()
	r, err := registry.Open(t.Context(), filepath.Join(t.TempDir(), "registry.db"), now)
	if err != nil {
		t.Fatal(err)
	}
	s := &service{t: t, registry: r, log: new(syncBuffer), agent: &standIn{registry: r, now: now, work: succeeds}}
	o := Options{Agent: s.agent, Registry: r, Route: route, Log: slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	for _, f := range change {
		f(&o)
	}
	s.handler = New(o)
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "s")
	}
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	server := Server(s.handler, o.Log)
	served := make(chan error)
	go func() { served <- server.Serve(ln) }()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, ln.Addr().String())
	}}
	s.client = &http.Client{Transport: transport, CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		return fmt.Errorf("redirected to %s", r.URL)
	}}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		if err := server.Shutdown(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
		_ = r.Close() // a test may have closed it
	})
	return s
}

// everywhere runs a test over TCP and over a UNIX socket.
func everywhere(t *testing.T, test func(t *testing.T, network string)) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) { test(t, network) })
	}
}

type reply struct {
	status int
	header http.Header
	body   string
}

// ask sends a request whose target goes on the wire as it is, and holds it and
// its answer against openapi.json. More are pairs of header names and values.
func (s *service) ask(method, target, body string, more ...string) reply {
	s.t.Helper()
	return s.askWith(s.t.Context(), method, target, strings.NewReader(body), more...)
}

func (s *service) askWith(ctx context.Context, method, target string, body io.Reader, more ...string) reply {
	s.t.Helper()
	path, query, _ := strings.Cut(target, "?")
	req, err := http.NewRequestWithContext(ctx, method, "http://dovepush/", body)
	if err != nil {
		s.t.Fatal(err)
	}
	req.URL = &url.URL{Scheme: "http", Host: "dovepush", Opaque: path, RawQuery: query}
	if req.ContentLength > 0 {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(more); i += 2 {
		req.Header[more[i]] = nil
		if more[i+1] != "" {
			req.Header[more[i]] = strings.Split(more[i+1], "|")
		}
	}
	res, err := s.client.Do(req)
	if err != nil {
		if ctx.Err() == nil {
			s.t.Fatalf("%s %s: %v", method, target, err)
		}
		return reply{}
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, target, err)
	}
	sent := ""
	if r, ok := body.(*strings.Reader); ok {
		_, _ = r.Seek(0, io.SeekStart)
		all, _ := io.ReadAll(r)
		sent = string(all)
	}
	got := reply{res.StatusCode, res.Header, string(data)}
	for _, wrong := range document.check(method, target, sent, got) {
		s.t.Errorf("%s %.200s: %d %.300s\n%s", method, target, got.status, got.body, wrong)
	}
	return got
}

// want asks and compares the status.
func (s *service) want(status int, method, target, body string, more ...string) reply {
	s.t.Helper()
	got := s.ask(method, target, body, more...)
	if got.status != status {
		s.t.Errorf("%s %.200s %.100s: %d %.300s; want %d", method, target, body, got.status, got.body, status)
	}
	return got
}

// holds tells whether the body has all these parts.
func (r reply) holds(t testing.TB, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(r.body, part) {
			t.Errorf("no %s in %s", part, r.body)
		}
	}
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
