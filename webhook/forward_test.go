package webhook

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// target is a real HTTP server.
type target struct {
	*httptest.Server
	mu    sync.Mutex
	calls []call
}

func serve(t testing.TB, answer func(w http.ResponseWriter, c call)) *target {
	tt := new(target)
	tt.Server = httptest.NewServer(tt.handler(answer))
	t.Cleanup(tt.Close)
	return tt
}

func (tt *target) handler(answer func(w http.ResponseWriter, c call)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := seen(r)
		tt.mu.Lock()
		tt.calls = append(tt.calls, c)
		tt.mu.Unlock()
		answer(w, c)
	})
}

func (tt *target) all() []call {
	tt.mu.Lock()
	defer tt.mu.Unlock()
	return append([]call(nil), tt.calls...)
}

func ok(http.ResponseWriter, call) {}

func TestADeliveryIsAsTheConventionHasIt(t *testing.T) {
	hook := serve(t, ok)
	h := open(t, Options{}, Target{Name: "hook", URL: hook.URL + "/a?token=t", Secrets: secrets(secretB, secretA+"\n")})
	h.start()
	h.add("alice", 0)
	h.empty("hook")
	c := hook.all()[0]
	if c.body != string(event("alice", 0).Body) {
		t.Errorf("body %s", c.body)
	}
	for name, want := range map[string]string{"Content-Type": "application/json", "User-Agent": "dovepush/1.2.3", "Webhook-Id": "alice-0"} {
		if got := c.header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if at, err := strconv.ParseInt(c.header.Get("Webhook-Timestamp"), 10, 64); err != nil || time.Since(time.Unix(at, 0)).Abs() > time.Minute {
		t.Errorf("timestamp %d, error %v", at, err)
	}
	for _, secret := range []string{secretA, secretB} {
		if !verified(secret, c) {
			t.Errorf("not signed with %s: %s", secret, c.header.Get("webhook-signature"))
		}
		official, err := standardwebhooks.NewWebhook(secret)
		if err != nil {
			t.Fatal(err)
		}
		if err := official.Verify([]byte(c.body), c.header); err != nil {
			t.Error(err)
		}
	}
	if verified("whsec_"+strings.Repeat("A", 32), c) {
		t.Error("anything verifies")
	}
}

func TestOrderIsKeptThoughDeliveriesFailAndOverlap(t *testing.T) {
	const users, each = 15, 12
	hook := serve(t, func(w http.ResponseWriter, c call) {
		time.Sleep(rand.N(2 * time.Millisecond))
		switch rand.N(20) {
		case 0:
			w.WriteHeader(http.StatusBadGateway)
		case 1:
			w.WriteHeader(http.StatusConflict)
		case 2:
			panic(http.ErrAbortHandler)
		}
	})
	hook.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	var mu sync.Mutex
	results := make(map[Result]int64)
	h := open(t, Options{Observe: func(name string, r Result, took time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		if name != "hook" || took <= 0 {
			t.Errorf("observed %q, %v", name, took)
		}
		results[r]++
	}}, Target{Name: "hook", URL: hook.URL, MaxConnections: 8, RetryInitial: time.Millisecond, RetryMax: 20 * time.Millisecond, MaxRefusals: 100})
	h.start()
	var wg sync.WaitGroup
	for u := range users {
		wg.Go(func() {
			for n := range each {
				h.add(fmt.Sprint("user", u), n)
			}
		})
	}
	wg.Wait()
	h.empty("hook")
	ordered(t, hook.all())
	h.until("all are observed", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return results[Delivered] == users*each
	})
	mu.Lock()
	defer mu.Unlock()
	if st := h.stats("hook"); st.Delivered != users*each || st.Dead != 0 || results[Delivered] != users*each || results[Failed] == 0 || results[Refused] == 0 {
		t.Errorf("%+v, results %v", st, results)
	}
}

func TestATargetThatHangsHoldsUpNobodyAndTakesNoMoreThanItsShare(t *testing.T) {
	hanging := make(chan struct{})
	hangs := serve(t, func(w http.ResponseWriter, c call) { <-hanging })
	t.Cleanup(func() { close(hanging) })
	works := serve(t, ok)
	h := open(t, Options{Grace: time.Millisecond}, Target{Name: "hangs", URL: hangs.URL, MaxConnections: 3, Timeout: time.Hour}, Target{Name: "works", URL: works.URL})
	h.start()
	for n := range 20 {
		h.add("alice", n)
		h.add(fmt.Sprint("user", n), 0)
	}
	h.empty("works")
	h.until("three hang", func() bool { return len(hangs.all()) == 3 })
	if st := h.f.States()[0]; st.UnderWay != 3 {
		t.Errorf("%+v", st)
	}
	if st := h.stats("hangs"); st.Waiting != 40 {
		t.Errorf("%+v", st)
	}
}

func TestATimeoutSetsTheTargetAside(t *testing.T) {
	hanging := make(chan struct{})
	hook := serve(t, func(w http.ResponseWriter, c call) { <-hanging })
	t.Cleanup(func() { close(hanging) })
	h := open(t, Options{}, Target{Name: "hook", URL: hook.URL, Timeout: 50 * time.Millisecond})
	h.start()
	h.add("alice", 0)
	h.until("it is set aside", func() bool { return h.f.States()[0].Reason == "no answer in 50ms" })
}

func TestARedirectIsNotFollowed(t *testing.T) {
	elsewhere := serve(t, ok)
	hook := serve(t, func(w http.ResponseWriter, c call) {
		w.Header().Set("Location", elsewhere.URL+"/new?token=hidden")
		w.WriteHeader(http.StatusPermanentRedirect)
	})
	h := open(t, Options{}, Target{Name: "hook", URL: hook.URL})
	h.start()
	h.add("alice", 0)
	h.until("it is set aside", func() bool { return strings.Contains(h.f.States()[0].Reason, elsewhere.URL+"/new") })
	if len(elsewhere.all()) > 0 {
		t.Error("the event went where the target pointed")
	}
	if h.log.count("hidden") > 0 {
		t.Errorf("log:\n%s", h.log)
	}
}

func TestALongAnswerIsNotReadToItsEnd(t *testing.T) {
	var written atomic.Int64
	over := make(chan struct{}, 1)
	hook := serve(t, func(w http.ResponseWriter, c call) {
		for range 4096 {
			n, err := w.Write(make([]byte, 64<<10))
			written.Add(int64(n))
			if err != nil {
				break
			}
		}
		over <- struct{}{}
	})
	h := open(t, Options{}, Target{Name: "hook", URL: hook.URL})
	h.start()
	h.add("alice", 0)
	h.empty("hook")
	<-over
	if n := written.Load(); n >= 4096*64<<10 {
		t.Errorf("%d bytes were read", n)
	}
}

func TestNothingPrivateOrSecretIsLoggedOrKept(t *testing.T) {
	// It sends the event back where an error message might show it.
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := echo.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				buffer := make([]byte, 4096)
				n, _ := conn.Read(buffer)
				_, body, _ := strings.Cut(string(buffer[:n]), "\r\n\r\n")
				_, _ = io.WriteString(conn, "HTTP/1.1 "+body+"\r\n"+body+"\r\n\r\n")
			})
		}
	})
	t.Cleanup(func() { _ = echo.Close(); wg.Wait() })
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	rude := serve(t, func(w http.ResponseWriter, c call) {
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, c.body)
	})
	at := func(address string) string { return "http://name:password@" + address + "/path?token=hidden" }
	targets := []Target{
		{Name: "echo", URL: at(echo.Addr().String())},
		{Name: "closed", URL: at(closed.Addr().String())},
		{Name: "rude", URL: at(rude.Listener.Addr().String()), MaxRefusals: 1},
		{Name: "unknown", URL: at("target.invalid")},
		{Name: "tls", URL: strings.Replace(at(rude.Listener.Addr().String()), "http:", "https:", 1)},
	}
	h := open(t, Options{}, targets...)
	h.start()
	h.add("alice", 0)
	h.until("all have failed", func() bool {
		for _, name := range []string{"echo", "closed", "rude", "unknown", "tls"} {
			if h.stats(name).LastError == "" {
				return false
			}
		}
		return h.log.count("level=WARN") == 5
	})
	text := h.log.String()
	list, err := h.spool.Stats(t.Context())
	text += fmt.Sprintf("%+v %v %+v", list, err, h.f.States())
	for _, secret := range []string{"private", "password", "hidden", "whsec_", secretA[6:]} {
		if strings.Contains(text, secret) {
			t.Errorf("%q stands in\n%s", secret, text)
		}
	}
	for _, needed := range []string{"connection refused", "no answer that is HTTP", "status 418", "the port does not speak TLS", "http://target.invalid/path", "user=alice"} {
		if !strings.Contains(text, needed) {
			t.Errorf("no %q in\n%s", needed, text)
		}
	}
}

func TestHTTPSTrustsWhomTheConfigurationSays(t *testing.T) {
	hook := new(target)
	hook.Server = httptest.NewUnstartedServer(hook.handler(ok))
	hook.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	hook.StartTLS()
	t.Cleanup(hook.Close)
	pool := x509.NewCertPool()
	pool.AddCert(hook.Certificate())
	h := open(t, Options{},
		Target{Name: "trusts", URL: hook.URL, TLSConfig: &tls.Config{RootCAs: pool}},
		Target{Name: "does not", URL: hook.URL})
	h.start()
	h.add("alice", 0)
	h.empty("trusts")
	h.until("the other fails", func() bool { return strings.Contains(h.f.States()[1].Reason, "unknown authority") })
	if len(hook.all()) != 1 {
		t.Errorf("%d calls", len(hook.all()))
	}
}

func TestDeliveriesUnderWayMayEndWhenTheServiceStops(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	hook := serve(t, func(w http.ResponseWriter, c call) {
		entered <- struct{}{}
		<-leave
	})
	h := open(t, Options{Grace: time.Hour}, Target{Name: "hook", URL: hook.URL, Timeout: time.Hour})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- h.f.Run(ctx) }()
	h.add("alice", 0)
	h.add("alice", 1)
	<-entered
	cancel()
	close(leave)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if st := h.stats("hook"); st.Delivered != 1 || st.Waiting != 1 || len(hook.all()) != 1 {
		t.Errorf("%+v, %d calls", st, len(hook.all()))
	}
}

func TestWhatIsCutOffIsNobodysFaultAndIsDueAgain(t *testing.T) {
	entered, leave := make(chan struct{}, 1), make(chan struct{})
	hook := serve(t, func(w http.ResponseWriter, c call) {
		entered <- struct{}{}
		<-leave
	})
	t.Cleanup(func() { close(leave) })
	h := open(t, Options{Grace: time.Millisecond}, Target{Name: "hook", URL: hook.URL, Timeout: time.Hour})
	stop := h.start()
	h.add("alice", 0)
	<-entered
	stop()
	if st := h.stats("hook"); st.Waiting != 1 || st.LastError != "" || h.log.String() != "" {
		t.Errorf("%+v, log:\n%s", st, h.log)
	}
	if list, err := h.spool.Take(t.Context(), "hook", 1, time.Minute); len(list) != 1 || err != nil || list[0].Attempts != 1 {
		t.Errorf("took %+v, error %v", list, err)
	}
}
