package api

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dovepush/agent"
	"dovepush/imapmeta"
	"dovepush/registry"
)

func TestTheTokenIsWanted(t *testing.T) {
	token, required := "hunter2", true
	s := start(t, "tcp", func(o *Options) {
		o.Token = func() (string, bool) { return token, required }
		o.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
			_, _ = io.WriteString(w, "up 1\n")
		})
	})
	s.intend(registry.Key{User: "alice", Server: "main"})
	closed := []string{"GET " + alice, "PUT " + alice, "POST " + alice + "/verify", "GET " + registrations,
		"GET /v1/openapi.json", "GET /metrics", "DELETE " + alice}
	for _, target := range append(closed, "GET /nowhere", "PATCH "+alice, "GET "+registrations+"/..") {
		method, path, _ := strings.Cut(target, " ")
		for _, field := range []string{"", "Bearer", "Bearer ", "hunter2", "Basic hunter2", "Bearer hunter", "Bearer hunter2 x",
			"Bearer hunter22", "Bearer HUNTER2", "Bearer hunter2|Bearer hunter2", "Bearer hunter2|Bearer x", "Bearer\thunter2"} {
			got := s.want(401, method, path, "", "Authorization", field)
			if !strings.HasPrefix(got.header.Get("WWW-Authenticate"), `Bearer realm="dovepush"`) || strings.Contains(got.body, "hunter2") {
				t.Errorf("%s with %q: %v %s", target, field, got.header, got.body)
			}
			if wrong := strings.Contains(got.header.Get("WWW-Authenticate"), "invalid_token"); wrong != (strings.HasPrefix(field, "Bearer h") || strings.HasPrefix(field, "Bearer H")) != strings.Contains(field, "|") {
				t.Errorf("%q: %v", field, got.header)
			}
		}
	}
	s.want(200, "GET", alice, "", "Authorization", "Bearer hunter2").holds(t, `"wanted":"present"`) // nothing has happened
	for _, target := range closed {
		method, path, _ := strings.Cut(target, " ")
		for _, field := range []string{"Bearer hunter2", "bearer  hunter2 "} {
			if got := s.ask(method, path, "", "Authorization", field); got.status >= 300 {
				t.Errorf("%s with %q: %d", target, field, got.status)
			}
		}
	}
	s.want(404, "GET", "/nowhere", "", "Authorization", "Bearer hunter2")
	s.want(200, "GET", "/healthz", "")
	s.want(200, "GET", "/readyz", "")

	token = "renewed"
	s.want(401, "GET", registrations, "", "Authorization", "Bearer hunter2")
	s.want(200, "GET", registrations, "", "Authorization", "Bearer renewed")
	token = "" // lost: nobody gets in
	s.want(401, "GET", registrations, "", "Authorization", "Bearer renewed")
	s.want(401, "GET", registrations, "")
	if given, ok := bearer([]string{"Bearer  "}); ok { // HTTP/1 trims it before
		t.Errorf("an empty token is one: %q", given)
	}
	required = false
	s.want(200, "GET", registrations, "")
	if strings.Contains(s.log.String(), "hunter2") {
		t.Error("the log shows the token")
	}
}

// ailing is a registry that cannot be read.
type ailing struct {
	Registry
	err error
}

func (a ailing) Lookup(context.Context, string) ([]registry.Registration, error) { return nil, a.err }

func TestWhatIsWrongOnOurSide(t *testing.T) {
	wrapped := func(class error) error { return fmt.Errorf("registry /secret/r.db: intend: %w; chown /secret", class) }
	for _, row := range []struct {
		err    error
		status int
		words  string
		kind   string
	}{
		{wrapped(registry.ErrBusy), 503, "locked", "retry"},
		{wrapped(registry.ErrFull), 503, "disk is full", "retry"},
		{wrapped(fs.ErrClosed), 503, "stops", "retry"},
		{wrapped(context.DeadlineExceeded), 503, "in time", "retry"},
		{wrapped(registry.ErrPermission), 500, "may not write", ""},
		{wrapped(registry.ErrCorrupt), 500, "damaged", ""},
		{wrapped(registry.ErrForeign), 500, "replaced", ""},
		{wrapped(registry.ErrNewer), 500, "replaced", ""},
		{wrapped(fs.ErrNotExist), 500, "removed", ""},
		{wrapped(errors.New("hunter2")), 500, "its log has the reason", ""},
		{&imapmeta.Error{Kind: imapmeta.Server, Op: "/secret"}, 500, "its log has the reason", "server"},
	} {
		s := start(t, "unix", func(o *Options) { o.Registry = broken{ailing{o.Registry, row.err}, 0, row.err} })
		s.agent.refuse = row.err
		requests := []string{"PUT " + alice, "DELETE " + alice, "POST " + alice + "/verify", "GET " + alice, "GET " + registrations}
		for _, target := range requests {
			method, path, _ := strings.Cut(target, " ")
			got := s.want(row.status, method, path, "")
			got.holds(t, row.words)
			if strings.Contains(got.body, "secret") || strings.Contains(got.body, "hunter2") {
				t.Errorf("shows too much: %s", got.body)
			}
			if row.kind != "" {
				got.holds(t, `"kind":"`+row.kind+`"`)
			}
		}
		said := len(requests)
		if errors.Is(row.err, registry.ErrBusy) || errors.Is(row.err, registry.ErrFull) {
			said = 2 // the agent has said it of what was submitted
		}
		if log := s.log.String(); strings.Count(log, "level=ERROR") != said || strings.Count(log, "secret") < len(requests) {
			t.Errorf("log: %s", log)
		}
	}
}

func TestARegistryThatIsClosed(t *testing.T) {
	s := start(t, "tcp")
	if err := s.registry.Close(); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"PUT " + alice, "DELETE " + alice, "POST " + alice + "/verify"} {
		method, path, _ := strings.Cut(target, " ")
		if got := s.ask(method, path, ""); got.status < 500 || strings.Contains(got.body, "registry.db") {
			t.Errorf("%s: %d %s", target, got.status, got.body)
		}
	}
}

func TestRefusalsOfTheAgent(t *testing.T) {
	s := start(t, "unix")
	for err, kind := range map[error]string{
		fmt.Errorf("%w: of another kind", agent.ErrUser):     "bad-user",
		fmt.Errorf("%w: of another kind", agent.ErrIdentity): "bad-identity",
		fmt.Errorf("%w: s", agent.ErrNoServer):               "no-server",
	} {
		s.agent.refuse = err
		s.want(400, "PUT", alice, "").holds(t, types+kind, `"kind":"user"`)
	}
	if log := s.log.String(); strings.Contains(log, "level=ERROR") {
		t.Errorf("log: %s", log)
	}
}

func TestProbes(t *testing.T) {
	var sick, unready error
	s := start(t, "unix", func(o *Options) {
		o.Healthy = func() error { return sick }
		o.Ready = func(ctx context.Context) error {
			if _, bounded := ctx.Deadline(); !bounded {
				t.Error("no bound")
			}
			return unready
		}
	})
	for _, path := range []string{"/healthz", "/readyz"} {
		if got := s.want(200, "GET", path, ""); got.body != "ok\n" {
			t.Errorf("%s: %q", path, got.body)
		}
	}
	sick = errors.New("server main has not moved for 5m")
	s.want(503, "GET", "/healthz", "").holds(t, sick.Error())
	s.want(200, "GET", "/readyz", "")
	sick, unready = nil, fmt.Errorf("registry /secret/path: %w", registry.ErrCorrupt)
	s.want(200, "GET", "/healthz", "")
	if got := s.want(503, "GET", "/readyz", ""); strings.Contains(got.body, "secret") {
		t.Error(got.body)
	}
	unready = errors.New("x" + strings.Repeat("é", 300))
	if got := s.want(503, "GET", "/readyz", ""); strings.Contains(got.body, "\ufffd") || !strings.Contains(got.body, `é..."`) {
		t.Error(got.body)
	}
}

func TestMetrics(t *testing.T) {
	s := start(t, "unix")
	s.want(404, "GET", "/metrics", "")
}

func TestAPanicIsAnsweredAndLogged(t *testing.T) {
	s := start(t, "tcp")
	s.agent.asked = func(agent.Request) { panic("hunter2") }
	if got := s.want(500, "PUT", alice, ""); strings.Contains(got.body, "hunter2") {
		t.Error(got.body)
	}
	if log := s.log.String(); strings.Count(log, "level=ERROR") != 1 || !strings.Contains(log, "hunter2") || !strings.Contains(log, "stack=") {
		t.Errorf("log: %s", log)
	}
}

func TestObserve(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	s := start(t, "unix", func(o *Options) {
		o.Observe = func(operation string, status int, took time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			if took < 0 {
				t.Error(took)
			}
			seen = append(seen, fmt.Sprint(operation, " ", status))
		}
	})
	names := make(map[string]bool)
	for _, row := range []struct{ method, path, want string }{
		{"PUT", alice, "register 202"},
		{"PUT", registrations + "/..", "register 400"},
		{"POST", alice + "/verify", "verify 202"},
		{"GET", alice, "get 200"},
		{"HEAD", alice, "get 200"},
		{"GET", registrations, "list 200"},
		{"DELETE", alice + "?wait=5s", "unregister 204"},
		{"GET", "/v1/openapi.json", "openapi 200"},
		{"GET", "/healthz", "other 200"},
		{"GET", "/readyz", "other 200"},
		{"GET", "/metrics", "other 404"},
		{"GET", "/v1/notifications", "notifications 404"},
		{"GET", "/alice", "other 404"},
		{"PATCH", alice, "other 405"},
	} {
		name, _, _ := strings.Cut(row.want, " ")
		names[name] = true
		s.ask(row.method, row.path, "")
		s.client.CloseIdleConnections()
		mu.Lock()
		if len(seen) != 1 || seen[0] != row.want {
			t.Errorf("%s %s: observed %q; want %s", row.method, row.path, seen, row.want)
		}
		seen = nil
		mu.Unlock()
	}
	if all := append(Operations(), other); len(all) != len(names) || slices.ContainsFunc(all, func(name string) bool { return !names[name] }) {
		t.Errorf("Operations are %q; observed were %v", all, names)
	}
}

func TestServerBoundsWhatClientsMayTake(t *testing.T) {
	s := Server(http.NotFoundHandler(), nil)
	if s.ReadHeaderTimeout <= 0 || s.ReadTimeout < s.ReadHeaderTimeout || s.IdleTimeout <= 0 || s.WriteTimeout <= maxWait || s.MaxHeaderBytes <= 0 || s.MaxHeaderBytes > 64<<10 {
		t.Errorf("%+v", s)
	}
}

// TestWaitingOutlastsTheTimeToRead: net/http reads on while a request is worked
// on, to notice that the client has gone.
func TestWaitingOutlastsTheTimeToRead(t *testing.T) {
	s := start(t, "unix")
	s.agent.work, s.agent.ended = nil, make(chan error, 1)
	server := httptest.NewUnstartedServer(s.handler)
	server.Config = Server(s.handler, nil)
	server.Config.ReadTimeout = time.Millisecond * 20
	server.Start()
	defer server.Close()
	req, err := http.NewRequestWithContext(t.Context(), "PUT", server.URL+alice+"?wait=200ms", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if err := <-s.agent.ended; !errors.Is(err, context.DeadlineExceeded) || res.StatusCode != 202 {
		t.Errorf("%d, waiting ended with %v", res.StatusCode, err)
	}
}

func TestWhatIsNoHTTPIsLoggedAtDebugOnly(t *testing.T) {
	log := new(syncBuffer)
	s := start(t, "tcp")
	server := httptest.NewUnstartedServer(s.handler)
	server.Config = Server(s.handler, slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	server.EnableHTTP2 = true
	server.StartTLS()
	plain, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(plain, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, err := bufio.NewReader(plain).ReadString('\n'); err != nil {
		t.Error(err)
	}
	plain.Close()

	// Over TLS it is HTTP/2, and the same.
	client := server.Client()
	client.Transport.(*http.Transport).TLSClientConfig.MinVersion = tls.VersionTLS12
	req, err := http.NewRequestWithContext(t.Context(), "PUT", server.URL+registrations+"/a%2F%2Fb?wait=5s", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(res.Body)
	res.Body.Close()
	if res.ProtoMajor != 2 || res.StatusCode != 200 || !strings.HasPrefix(string(body), `{"user":"a//b",`) {
		t.Errorf("%s %d %s", res.Proto, res.StatusCode, body)
	}
	server.Close()
	if text := log.String(); !strings.Contains(text, "TLS handshake error") || strings.Contains(text, "level=ERROR") || strings.Contains(text, "level=INFO") {
		t.Errorf("log: %s", text)
	}
}
