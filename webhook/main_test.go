package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"dovepush/registry/spool"
)

// helperEnv has a re-executed test binary forward instead of testing.
const helperEnv = "DOVEPUSH_WEBHOOK_HELPER"

func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) != "" {
		if err := helpForward(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// The real one fits.
var _ Spool = (*spool.Spool)(nil)

const (
	secretA = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	secretB = "whsec_c2Vjb25kIHNlY3JldCBvZiB0aGUgdGVzdHMu"
)

func secrets(list ...string) func(context.Context) ([]string, error) {
	return func(context.Context) ([]string, error) { return list, nil }
}

// call is a request that a target got.
type call struct {
	id, user string
	n        int // which of the user's
	at       time.Time
	body     string
	header   http.Header
}

// answers is a target's HTTP client's transport, for tests in which time does
// not pass by itself. The function returns a status and a Retry-After.
type answers struct {
	answer func(c call) (int, string)
	mu     sync.Mutex
	calls  []call
}

func (a *answers) RoundTrip(r *http.Request) (*http.Response, error) {
	c := seen(r)
	a.mu.Lock()
	a.calls = append(a.calls, c)
	a.mu.Unlock()
	status, after := a.answer(c)
	if status == 0 {
		return nil, io.ErrUnexpectedEOF
	}
	res := &http.Response{StatusCode: status, Header: http.Header{}, Body: http.NoBody, Request: r}
	if after != "" {
		res.Header.Set("Retry-After", after)
	}
	return res, nil
}

func (a *answers) all() []call {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]call(nil), a.calls...)
}

func seen(r *http.Request) call {
	body, _ := io.ReadAll(r.Body)
	c := call{id: r.Header.Get("webhook-id"), at: time.Now(), body: string(body), header: r.Header.Clone()}
	user, n, _ := strings.Cut(c.id, "-")
	c.user = user
	_, _ = fmt.Sscan(n, &c.n)
	return c
}

// verified checks a signature by code that has nothing to do with the other side's.
func verified(secret string, c call) bool {
	raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil {
		return false
	}
	mac := hmac.New(sha256.New, raw)
	_, _ = io.WriteString(mac, c.id+"."+c.header.Get("webhook-timestamp")+"."+c.body)
	want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	for _, got := range strings.Split(c.header.Get("webhook-signature"), " ") {
		if hmac.Equal([]byte(got), []byte(want)) {
			return true
		}
	}
	return false
}

// house is a spool and a forwarder on it.
type house struct {
	t     testing.TB
	spool *spool.Spool
	f     *Forwarder
	log   *journal
}

// open opens a spool and makes a forwarder; start runs it.
func open(t testing.TB, o Options, targets ...Target) *house {
	t.Helper()
	s, err := spool.Open(t.Context(), filepath.Join(t.TempDir(), "spool.db"), spool.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Check(context.Background()); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	h := &house{t: t, spool: s, log: new(journal)}
	for i := range targets {
		if targets[i].Secrets == nil {
			targets[i].Secrets = secrets(secretA)
		}
		if targets[i].URL == "" {
			targets[i].URL = "http://target.test/hook"
		}
	}
	o.Targets, o.Spool, o.Version = targets, s, "1.2.3"
	o.Log = slog.New(slog.NewTextHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if h.f, err = New(o); err != nil {
		t.Fatal(err)
	}
	return h
}

// start runs the forwarder until the test is over or stop is called.
func (h *house) start() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- h.f.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Error(err)
		}
	})
	h.t.Cleanup(stop)
	return stop
}

// add adds an event of a user for all targets.
func (h *house) add(user string, n int) {
	h.t.Helper()
	var targets []spool.Target
	for _, l := range h.f.lanes {
		targets = append(targets, spool.Target{Name: l.target.Name})
	}
	if _, err := h.spool.Add(context.Background(), event(user, n), targets); err != nil {
		h.t.Fatal(err)
	}
	h.f.Kick()
}

func event(user string, n int) spool.Event {
	id := fmt.Sprintf("%s-%d", user, n)
	return spool.Event{ID: id, Key: id, User: user, Received: time.Now(), Body: []byte(`{"subject":"private ` + id + `"}`)}
}

func (h *house) stats(target string) spool.TargetStats {
	h.t.Helper()
	list, err := h.spool.Stats(context.Background())
	if err != nil {
		h.t.Fatal(err)
	}
	for _, s := range list {
		if s.Target == target {
			return s
		}
	}
	return spool.TargetStats{}
}

// until waits until all is well, with a bound that a slow machine keeps.
func (h *house) until(what string, ok func() bool) {
	h.t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			h.t.Fatalf("waited in vain: %s\n%s", what, h.log)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// empty waits until nothing waits for a target.
func (h *house) empty(target string) {
	h.t.Helper()
	h.until("nothing waits for "+target, func() bool { return h.stats(target).Waiting == 0 })
}

// ordered compares the first time that each event came with the order in which
// they were added.
func ordered(t testing.TB, calls []call) {
	t.Helper()
	next := make(map[string]int)
	for _, c := range calls {
		if c.n > next[c.user] {
			t.Errorf("%s came before %s-%d", c.id, c.user, next[c.user])
		}
		if c.n == next[c.user] {
			next[c.user]++
		}
	}
}

// journal is a log.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

// count is how many lines have a text.
func (j *journal) count(text string) int { return strings.Count(j.String(), text) }
