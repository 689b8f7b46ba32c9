package webhook

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"dovepush/registry/spool"
)

const killUsers = 20

// helpForward forwards what is in a spool, and adds to it: for each user the
// events from a number on, up to another. It prints each event that was
// acknowledged, and ends when all have been forwarded.
func helpForward(args []string) error {
	path, url := args[0], args[1]
	each, _ := strconv.Atoi(args[2])
	ctx := context.Background()
	s, err := spool.Open(ctx, path, spool.Options{})
	if err != nil {
		return err
	}
	if _, err := s.Recover(ctx); err != nil {
		return err
	}
	f, err := New(Options{Spool: s, Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
		Targets: []Target{{Name: "hook", URL: url, Secrets: secrets(secretA), RetryInitial: 10 * time.Millisecond}}})
	if err != nil {
		return err
	}
	go f.Run(ctx)
	var wg sync.WaitGroup
	var out sync.Mutex
	errs := make(chan error, killUsers)
	for u, first := range strings.Split(args[3], ",") {
		from, _ := strconv.Atoi(first)
		wg.Go(func() {
			for n := from; n < each; n++ {
				if _, err := s.Add(ctx, event(fmt.Sprint("user", u), n), []spool.Target{{Name: "hook"}}); err != nil {
					errs <- err
					return
				}
				out.Lock()
				fmt.Println(u, n)
				out.Unlock()
				f.Kick()
			}
		})
	}
	wg.Wait()
	for {
		list, err := s.Stats(ctx)
		if err != nil || len(errs) > 0 {
			return fmt.Errorf("%w %d", err, len(errs))
		}
		if list[0].Waiting == 0 {
			return s.Check(ctx)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestEveryAcknowledgedEventIsForwardedThoughTheProcessIsKilled(t *testing.T) {
	const each = killEvents / killUsers
	const kills = 12
	path := filepath.Join(t.TempDir(), "spool.db")
	var mu sync.Mutex
	var calls []call
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := seen(r)
		if !verified(secretA, c) {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		mu.Lock()
		calls = append(calls, c)
		n := len(calls)
		mu.Unlock()
		if n%97 == 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(server.Close)
	var next [killUsers]int // of each user, after the last that was acknowledged
	run := func(kill bool) {
		var firsts []string
		for _, n := range next {
			firsts = append(firsts, strconv.Itoa(n))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "/proc/self/exe", path, server.URL, strconv.Itoa(each), strings.Join(firsts, ","))
		cmd.Env = append(os.Environ(), helperEnv+"=1")
		stderr := new(strings.Builder)
		cmd.Stderr = stderr
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		left := 1 + rand.N(killEvents/kills)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			var u, n int
			if _, err := fmt.Sscan(lines.Text(), &u, &n); err != nil {
				continue // cut off
			}
			next[u] = n + 1
			if left--; left == 0 && kill {
				if err := cmd.Process.Kill(); err != nil { // SIGKILL
					t.Fatal(err)
				}
			}
		}
		// On a slow machine all may be done before the kill comes.
		if err := cmd.Wait(); err != nil && !kill || stderr.Len() > 0 {
			t.Fatal(err, stderr)
		}
	}
	for range kills {
		run(true)
	}
	killedAt := 0
	for _, n := range next {
		killedAt += n
	}
	run(false)
	mu.Lock()
	defer mu.Unlock()
	got := make(map[string]int)
	for _, c := range calls {
		got[c.id]++
	}
	for u := range killUsers {
		for n := range each {
			if id := event(fmt.Sprint("user", u), n).ID; got[id] == 0 {
				t.Errorf("%s was acknowledged and never forwarded", id)
			}
		}
	}
	ordered(t, calls)
	if killedAt == 0 {
		t.Error("nothing was acknowledged before the last kill: this test proves nothing")
	}
	t.Logf("%d events acknowledged before the last of %d kills, %d requests for %d events", killedAt, kills, len(calls), len(got))
}
