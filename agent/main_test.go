package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dovepush/imapmeta"
	"dovepush/registry"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(victimEnv); path != "" {
		fmt.Fprintln(os.Stderr, victim(path)) // comes back only if something is wrong
		os.Exit(1)
	}
	os.Exit(m.Run())
}

const (
	timeout      = 30 * time.Second
	retryInitial = 30 * time.Second
	retryMax     = 6 * time.Hour
	verifyEvery  = 24 * time.Hour
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// clock stands still until it is told to go on.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// house is a registry file, a server's mailboxes, and the agents that share them.
type house struct {
	t    testing.TB
	path string
	now  func() time.Time
	box  *mailbox
}

// newHouse uses the clock that the agents and the registry shall go by.
func newHouse(t testing.TB, now func() time.Time) *house {
	t.Helper()
	return &house{t: t, path: filepath.Join(t.TempDir(), "registry.db"), now: now, box: newMailbox()}
}

// still is a house whose clock is moved by hand.
func still(t testing.TB) (*house, *clock) {
	t.Helper()
	c := &clock{at: noon}
	return newHouse(t, c.now), c
}

// open returns a handle on the registry of its own, as another process has.
func (h *house) open() *registry.Registry {
	h.t.Helper()
	r, err := registry.Open(context.Background(), h.path, h.now)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		if err := r.Close(); err != nil {
			h.t.Error(err)
		}
	})
	return r
}

// agent returns an agent with its own handle on the registry, as another
// process has. It knows one server, "main", with the house's mailboxes.
func (h *house) agent(changes ...func(*Options)) *Agent {
	h.t.Helper()
	o := Options{
		Registry:     h.open(),
		Servers:      []Server{{Name: "main", Entries: h.box, Timeout: timeout}},
		Route:        func(string) (string, bool) { return "main", true },
		Identity:     func(user string) string { return user },
		VerifyEvery:  verifyEvery,
		RetryInitial: retryInitial,
		RetryMax:     retryMax,
		Owner:        "host:1",
		Now:          h.now,
		Random:       func() float64 { return 0.5 },
	}
	for _, change := range changes {
		change(&o)
	}
	a, err := New(o)
	if err != nil {
		h.t.Fatal(err)
	}
	return a
}

// row returns the user's row on the server "main", and whether there is one.
func (h *house) row(r *registry.Registry, user string) (registry.Registration, bool) {
	h.t.Helper()
	reg, found, err := r.Get(context.Background(), registry.Key{User: user, Server: "main"})
	if err != nil {
		h.t.Fatal(err)
	}
	return reg, found
}

// unclaimed expects that nobody holds any row.
func (h *house) unclaimed(r *registry.Registry) {
	h.t.Helper()
	for reg, err := range r.List(context.Background(), registry.Filter{}) {
		if err != nil {
			h.t.Fatal(err)
		}
		if reg.ClaimedBy != "" {
			h.t.Errorf("%s is still claimed by %q until %v", reg.User, reg.ClaimedBy, reg.ClaimedUntil)
		}
	}
}

// one carries out one request.
func one(ctx context.Context, a *Agent, r Request) Result {
	return slices.Collect(a.Each(ctx, slices.Values([]Request{r}), 1))[0]
}

// must carries out one request that ends in a verdict, without an error.
func must(t testing.TB, a *Agent, r Request, want Verdict) Result {
	t.Helper()
	result := one(t.Context(), a, r)
	if result.Verdict != want || result.Err != nil {
		t.Fatalf("%+v: %s, %v; want %s", r, result.Verdict, result.Err, want)
	}
	return result
}

func register(user string) Request { return Request{Action: Register, User: user} }

func registerAs(user, identity string) Request {
	return Request{Action: Register, User: user, Identity: identity}
}

func unregister(user string) Request { return Request{Action: Unregister, User: user} }

func verify(user string) Request { return Request{Action: Verify, User: user} }

func registerAll(users ...string) (requests []Request) {
	for _, user := range users {
		requests = append(requests, register(user))
	}
	return requests
}

// mailbox holds users' entries as a server does. Several Updates may run at
// once, and it counts them.
type mailbox struct {
	// reading is called before the entry is read, wrote after it was changed
	// and before the answer. Both may take their time, fail, or wait for ctx;
	// nil: nothing happens.
	reading, wrote func(ctx context.Context, user string) error
	resends        bool // what is written was sent before, without an answer

	mu      sync.Mutex
	entries map[string]imapmeta.Value
	updates []string       // the users, in the order in which their Updates began
	begun   []time.Time    // when they began
	working map[string]int // Updates under way, by user
	most    int            // at once, of all users
	overlap bool           // of one user
}

func newMailbox() *mailbox {
	return &mailbox{entries: make(map[string]imapmeta.Value), working: make(map[string]int)}
}

func (m *mailbox) Update(ctx context.Context, user string, decide func(imapmeta.Value) imapmeta.Change) (imapmeta.Outcome, error) {
	m.begin(user)
	defer m.end(user)
	if err := call(m.reading, ctx, user); err != nil {
		return imapmeta.Outcome{}, err
	}
	have := m.get(user)
	change := decide(have)
	if value, ok := change.Value(); ok {
		m.set(user, value)
	}
	if err := call(m.wrote, ctx, user); err != nil {
		return imapmeta.Outcome{Had: have}, err
	}
	return imapmeta.Outcome{Had: have, Did: change, Resent: m.resends && !change.Keeps()}, nil
}

func call(hook func(context.Context, string) error, ctx context.Context, user string) error {
	if hook == nil {
		return nil
	}
	return hook(ctx, user)
}

func (m *mailbox) begin(user string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.updates, m.begun = append(m.updates, user), append(m.begun, time.Now())
	m.working[user]++
	m.overlap = m.overlap || m.working[user] > 1
	m.most = max(m.most, m.underWayLocked())
}

func (m *mailbox) end(user string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.working[user]--
}

func (m *mailbox) underWayLocked() (n int) {
	for _, w := range m.working {
		n += w
	}
	return n
}

func (m *mailbox) underWay() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.underWayLocked()
}

func (m *mailbox) get(user string) imapmeta.Value {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.entries[user]
}

func (m *mailbox) set(user string, v imapmeta.Value) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entries[user] = v
}

// updated returns whose Updates have begun, in order.
func (m *mailbox) updated() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.updates)
}

// holds expects a value in the user's entry.
func (m *mailbox) holds(t testing.TB, user string, want imapmeta.Value) {
	t.Helper()
	if have := m.get(user); have != want {
		t.Errorf("the entry of %s holds %q, want %q", user, have, want)
	}
}

// The failures of the three kinds.
var (
	errRefused = &imapmeta.Error{Kind: imapmeta.Retry, Op: "connect", Err: errors.New("connection refused")}
	errNologin = &imapmeta.Error{Kind: imapmeta.User, Op: "login", Status: "NO", Code: "CONTACTADMIN", Text: "Login disabled", Err: imapmeta.ErrLogin}
	errNoUser  = &imapmeta.Error{Kind: imapmeta.User, Op: "login", Status: "NO", Code: "AUTHORIZATIONFAILED", Text: "Authorization failed", Err: imapmeta.ErrNoUser}
	errMaster  = &imapmeta.Error{Kind: imapmeta.Server, Op: "login", Status: "NO", Code: "AUTHENTICATIONFAILED", Text: "Authentication failed.", Err: imapmeta.ErrLogin}
)

// fails is a hook that fails.
func fails(err error) func(context.Context, string) error {
	return func(context.Context, string) error { return err }
}

// takes is a hook that takes a while, and ends early with ctx.
func takes(d time.Duration) func(context.Context, string) error {
	return func(ctx context.Context, _ string) error {
		if err := sleep(ctx, d); err != nil {
			return &imapmeta.Error{Kind: imapmeta.Retry, Op: "getmetadata", Err: err}
		}
		return nil
	}
}

// hangs is a hook that lasts as long as ctx.
var hangs = takes(1000 * time.Hour)

// journal is a log that can be read.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

// lines returns the lines that hold a phrase.
func (j *journal) lines(phrase string) (found []string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for line := range strings.Lines(j.text.String()) {
		if strings.Contains(line, phrase) {
			found = append(found, line)
		}
	}
	return found
}

func logsTo(j *journal) func(*Options) {
	return func(o *Options) { o.Log = slog.New(slog.NewTextHandler(j, nil)) }
}
