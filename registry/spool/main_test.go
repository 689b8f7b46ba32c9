package spool

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// helperEnv names the function that a re-executed test binary runs instead of
// the tests: the other processes in these tests are real ones.
const helperEnv = "DOVEPUSH_SPOOL_HELPER"

func TestMain(m *testing.M) {
	helpers := map[string]func([]string) error{"add": helpAdd, "disk full": helpDiskFull, "revive": helpRevive, "log": helpLog}
	if name := os.Getenv(helperEnv); name != "" {
		if err := helpers[name](os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func helper(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), helperEnv+"="+name)
	return cmd
}

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

func (c *clock) advance(d time.Duration) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
	return c.at
}

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// fresh opens a new spool, with a clock that starts at noon.
func fresh(t testing.TB, change ...func(*Options)) (*Spool, *clock) {
	t.Helper()
	c := &clock{at: noon}
	o := Options{Now: c.now}
	for _, f := range change {
		f(&o)
	}
	return reopen(t, filepath.Join(t.TempDir(), "spool.db"), o), c
}

func reopen(t testing.TB, path string, o Options) *Spool {
	t.Helper()
	s, err := Open(t.Context(), path, o)
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
	return s
}

var (
	hook  = Target{Name: "hook"}
	other = Target{Name: "other", Strip: true}
)

// mail is an event of a user; a number tells it from the user's others.
func mail(user string, n int) Event {
	id := fmt.Sprintf("%s-%d", user, n)
	return Event{ID: id, Key: "key " + id, User: user, Body: []byte(`{"subject":"secret ` + id + `"}`), Stripped: []byte(`{}`), Received: noon}
}

func add(t testing.TB, s *Spool, e Event, targets ...Target) {
	t.Helper()
	if added, err := s.Add(t.Context(), e, targets); err != nil || !added {
		t.Fatalf("add %s: %v, error %v", e.ID, added, err)
	}
}

func take(t testing.TB, s *Spool, target string, n int) []Delivery {
	t.Helper()
	list, err := s.Take(t.Context(), target, n, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// takes takes up to ten and compares their events.
func takes(t testing.TB, s *Spool, target string, want ...string) []Delivery {
	t.Helper()
	list := take(t, s, target, 10)
	var got []string
	for _, d := range list {
		got = append(got, d.Event)
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("took %q, want %q", got, want)
	}
	return list
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func stats(t testing.TB, s *Spool, target string) TargetStats {
	t.Helper()
	list, err := s.Stats(t.Context())
	must(t, err)
	for _, st := range list {
		if st.Target == target {
			return st
		}
	}
	return TargetStats{}
}

func letters(t testing.TB, s *Spool, target string) (list []DeadLetter) {
	t.Helper()
	for l, err := range s.Dead(t.Context(), target) {
		must(t, err)
		list = append(list, l)
	}
	return list
}
