package registry

import (
	"bufio"
	"context"
	"fmt"
	"io"
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
const helperEnv = "DOVEPUSH_REGISTRY_HELPER"

var helpers map[string]func(args []string) error

func TestMain(m *testing.M) {
	helpers = map[string]func([]string) error{
		"claim":      helpClaim,
		"take":       helpTake,
		"open fresh": helpOpenFresh,
		"write":      helpWrite,
		"permission": helpPermission,
		"read-only":  helpReadOnlyMount,
		"disk full":  helpDiskFull,
		"umask":      helpUmask,
	}
	if name := os.Getenv(helperEnv); name != "" {
		if err := helpers[name](os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// helper is another process that runs one of the helpers. The kernel finds
// the binary by /proc/self/exe even where the new user may not walk its path.
func helper(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), helperEnv+"="+name)
	return cmd
}

// started starts a helper and returns the lines that it prints.
func started(t *testing.T, cmd *exec.Cmd) (lines *bufio.Scanner, stdin io.WriteCloser, stderr *strings.Builder) {
	t.Helper()
	stderr = new(strings.Builder)
	cmd.Stderr = stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if stdin, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return bufio.NewScanner(stdout), stdin, stderr
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

func fresh(t testing.TB) (*Registry, *clock) {
	t.Helper()
	c := &clock{at: noon}
	return reopen(t, filepath.Join(t.TempDir(), "registry.db"), c.now), c
}

func reopen(t testing.TB, path string, now func() time.Time) *Registry {
	t.Helper()
	r, err := Open(t.Context(), path, now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

var alice = Key{User: "alice", Server: "main"}

func present(key Key, value string) Intent {
	return Intent{Key: key, Value: value, Wanted: Present}
}

func absent(key Key) Intent { return Intent{Key: key, Wanted: Absent} }

func intend(t testing.TB, r *Registry, intents ...Intent) {
	t.Helper()
	if err := r.Intend(t.Context(), intents...); err != nil {
		t.Fatal(err)
	}
}

func get(t testing.TB, r *Registry, key Key) Registration {
	t.Helper()
	reg, ok, err := r.Get(t.Context(), key)
	if err != nil || !ok {
		t.Fatalf("get %v: found %v, error %v", key, ok, err)
	}
	return reg
}

// take claims a row for a minute and must get it.
func take(t testing.TB, r *Registry, key Key, owner string) Registration {
	t.Helper()
	reg, claimed, err := r.Claim(t.Context(), key, owner, r.now().Add(time.Minute), r.now().Add(30*time.Second))
	if err != nil || claimed != Taken {
		t.Fatalf("claim %v for %s: %v, error %v", key, owner, claimed, err)
	}
	return reg
}

func record(t testing.TB, r *Registry, owner string, results ...Result) (lost []Key) {
	t.Helper()
	lost, err := r.Record(t.Context(), owner, results...)
	if err != nil {
		t.Fatal(err)
	}
	return lost
}

func all(t testing.TB, r *Registry, f Filter) []Registration {
	t.Helper()
	var regs []Registration
	for reg, err := range r.List(t.Context(), f) {
		if err != nil {
			t.Fatal(err)
		}
		regs = append(regs, reg)
	}
	return regs
}
