package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dovepush/agent"
	"dovepush/registry"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

var errDisk = errors.New("disk I/O error")

// still is a service with the servers "main" and "old", an empty registry, and
// a clock that stands at noon.
func still(changes ...func(*Options)) Options {
	o := Options{
		Counts:  func(context.Context) ([]registry.Count, error) { return nil, nil },
		Changed: func(context.Context) (int64, error) { return 1, nil },
		Backlog: func(context.Context) ([]Backlog, error) { return nil, nil },
		Loads: func() []agent.Load {
			return []agent.Load{{Server: "main", MaxConnections: 16}, {Server: "old", MaxConnections: 4}}
		},
		Now:        func() time.Time { return noon },
		Version:    "1.2.3",
		Operations: []string{"register", "list"},
	}
	for _, change := range changes {
		change(&o)
	}
	return o
}

// serve answers scrapes at the returned URL.
func serve(t testing.TB, m *Metrics) string {
	t.Helper()
	server := httptest.NewServer(m.Handler())
	t.Cleanup(server.Close)
	return server.URL
}

// get scrapes over HTTP.
func get(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s: %s", resp.Status, body)
	}
	return string(body), err
}

// fetch scrapes over HTTP, successfully.
func fetch(t testing.TB, url string) string {
	t.Helper()
	body, err := get(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// answer scrapes without a network, for it cannot be used in a synctest bubble.
func answer(m *Metrics) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	return w
}

// exposition is what a scrape shows: values by series, as they are written.
type exposition map[string]float64

func parse(t testing.TB, body string) exposition {
	t.Helper()
	e := make(exposition)
	for line := range strings.Lines(body) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		at := strings.LastIndexByte(line, ' ')
		value, err := strconv.ParseFloat(line[at+1:], 64)
		if err != nil {
			t.Errorf("%s: %v", line, err)
		}
		e[line[:at]] = value
	}
	return e
}

// scrape scrapes without a network, successfully.
func scrape(t testing.TB, m *Metrics) exposition {
	t.Helper()
	w := answer(m)
	if w.Code != http.StatusOK {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	return parse(t, w.Body.String())
}

// shows expects series with their values.
func (e exposition) shows(t testing.TB, want exposition) {
	t.Helper()
	for series, value := range want {
		if got, found := e[series]; !found || got != value {
			t.Errorf("%s is %v (shown: %v), want %v", series, got, found, value)
		}
	}
}

// lacks expects that no series of these metrics is shown.
func (e exposition) lacks(t testing.TB, metrics ...string) {
	t.Helper()
	for series := range e {
		name, _, _ := strings.Cut(series, "{")
		for _, metric := range metrics {
			if name == metric {
				t.Errorf("%s is shown", series)
			}
		}
	}
}

// count is how many series of a metric are shown.
func (e exposition) count(metric string) (n int) {
	for series := range e {
		if name, _, _ := strings.Cut(series, "{"); name == metric {
			n++
		}
	}
	return n
}

// counter is a Counts that takes a while. It finds as many registrations as it
// was called times.
type counter struct {
	takes time.Duration
	fails atomic.Bool
	calls atomic.Int64
	found atomic.Int64 // by the last call that did not fail
}

func (c *counter) counts(ctx context.Context) ([]registry.Count, error) {
	n := c.calls.Add(1)
	if c.takes > 0 {
		if err := wait(ctx, c.takes); err != nil {
			return nil, err
		}
	}
	if c.fails.Load() {
		return nil, errDisk
	}
	c.found.Store(n)
	return []registry.Count{{Server: "main", State: registry.Registered, N: n}}, nil
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
