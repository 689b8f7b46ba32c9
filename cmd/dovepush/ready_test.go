package main

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dovepush/agent"
	"dovepush/config"
	"dovepush/registry"
)

// lock takes the registry's write lock, as another process would.
func lock(t *testing.T, path string) (unlock func()) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := db.Conn(t.Context())
	if err == nil {
		_, err = conn.ExecContext(t.Context(), "BEGIN IMMEDIATE")
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		_, err := conn.ExecContext(context.Background(), "ROLLBACK")
		if err := errors.Join(err, conn.Close(), db.Close()); err != nil {
			t.Error(err)
		}
	}
}

// Who asks /readyz sends its requests to another service while this one cannot
// take them down. SQLite waits for a lock by the bubble's clock.
func TestReadyWhileTheRegistryCanBeWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "registry.db")
		r, err := registry.Open(t.Context(), path, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		a, err := agent.New(agent.Options{
			Registry: r,
			Route:    func(string) (string, bool) { return "main", true },
			Identity: func(user string) string { return user },
			Owner:    "a", VerifyEvery: time.Hour, RetryInitial: time.Second, RetryMax: time.Minute,
			Now: time.Now, Random: rand.Float64,
		})
		if err != nil {
			t.Fatal(err)
		}
		s := &service{log: slog.New(slog.DiscardHandler), registry: r}
		s.metrics = s.newMetrics(&config.Config{})
		s.now.Store(&generation{crew: &crew{Agent: a}})
		pages := s.metricsPages()
		ready := func(status int, says string) {
			t.Helper()
			w := httptest.NewRecorder()
			pages.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/readyz", nil))
			if w.Code != status || !strings.Contains(w.Body.String(), says) {
				t.Errorf("%d %s, want %d %s", w.Code, w.Body, status, says)
			}
		}
		submit := func(want error) {
			t.Helper()
			if _, err := a.Submit(t.Context(), agent.Request{Action: agent.Register, User: "alice"}); !errors.Is(err, want) {
				t.Fatalf("%v, want %v", err, want)
			}
		}
		const cannot = "the registry cannot be written"

		ready(http.StatusServiceUnavailable, "starting or stopping")
		s.ready.Store(true)
		ready(http.StatusOK, "ok")
		unlock := lock(t, path)
		submit(registry.ErrBusy)
		ready(http.StatusServiceUnavailable, cannot)
		time.Sleep(30 * time.Second)
		ready(http.StatusOK, "ok") // else nobody would send the request that finds it mended
		submit(registry.ErrBusy)
		ready(http.StatusServiceUnavailable, cannot)
		unlock()
		submit(nil)
		ready(http.StatusOK, "ok")
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		ready(http.StatusServiceUnavailable, "the registry cannot be read")
	})
}
