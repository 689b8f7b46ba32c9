package doveadm

import (
	"context"
	"errors"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dovepush/imapmeta"
)

// ours are the goroutines that come from the package's own code.
func ours() []string {
	buf := make([]byte, 8<<20)
	var found []string
	for _, stack := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(stack, "doveadm.(*Client)") && !strings.Contains(stack, "_test.go") || strings.Contains(stack, "doveadm.(*endpoint)") ||
			strings.Contains(stack, "created by dovepush/doveadm.(*Client)") {
			found = append(found, stack)
		}
	}
	return found
}

// Close waits for those who call, and nothing of ours goes on after it. Not in
// parallel: other tests have clients of their own.
func TestAfterCloseNothingGoesOn(t *testing.T) {
	g := newGate()
	var silent *dummy
	silent = play(t, onPost(func(_ http.ResponseWriter, r *http.Request, _ []command) bool { silent.hang(r); return true }))
	good := play(t, onPost(g.hold))
	said := &changes{}
	c := to(t, []*dummy{good, silent}, func(o *Options) {
		o.ReadTimeout, o.CheckInterval, o.Changed = 100*time.Millisecond, time.Millisecond, said.add
	})
	// Some hang at one endpoint, some are held at the other, some have left,
	// one lists users.
	var all, started sync.WaitGroup
	var answered atomic.Int64
	for i, user := range several(60) {
		started.Add(1)
		all.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if i%3 == 0 {
				time.AfterFunc(time.Duration(i)*time.Millisecond, cancel)
			}
			started.Done()
			if _, err := c.Update(ctx, user, setTo("user=x")); err == nil {
				answered.Add(1)
			}
		})
	}
	started.Wait()
	g.next(t)
	closing := make(chan struct{})
	go func() {
		c.Close()
		close(closing)
	}()
	eventually(t, "it is closing", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.closed
	})
	select {
	case <-closing:
		t.Error("Close did not wait for those who call")
	default:
	}
	_, err := c.Update(t.Context(), "late", keepIt)
	fault{kind: imapmeta.Retry, op: "connect", words: "the client is closed"}.check(t, "late", err)
	if _, err := c.Exists(t.Context(), "late"); !errors.Is(err, errClosed) {
		t.Error(err)
	}
	if users, err := list(t.Context(), c); len(users) > 0 || !errors.Is(err, errClosed) {
		t.Error(users, err)
	}
	close(g.open)
	select {
	case <-closing:
	case <-time.After(30 * time.Second):
		t.Fatal("Close does not return")
	}
	said.end()
	if stacks := ours(); len(stacks) > 0 {
		slices.Sort(stacks)
		t.Errorf("%d goroutines are left, such as\n%s", len(stacks), stacks[0])
	}
	all.Wait()
	if answered.Load() == 0 {
		t.Error("nobody was answered")
	}
	c.mu.Lock()
	if c.posts != 0 || c.waitingLocked() != 0 || len(c.again) != 0 {
		t.Errorf("left over: %d posts, %d calls, %d batches", c.posts, c.waitingLocked(), len(c.again))
	}
	c.mu.Unlock()
	c.Close() // again is fine
	said.mu.Lock()
	defer said.mu.Unlock()
	if len(said.late) > 0 {
		t.Errorf("Changed was told after Close: %+v", said.late)
	}
}

// Close does not fall between the two halves of an Update.
func TestCloseWaitsForAnUpdateAsAWhole(t *testing.T) {
	t.Parallel()
	var changed atomic.Bool
	c := play(t, onCommand(func(c command) string {
		if c.method == set {
			changed.Store(true)
		}
		return ""
	})).client()
	deciding, decide, closing := make(chan struct{}), make(chan struct{}), make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		if _, err := c.Update(t.Context(), "alice", func(imapmeta.Value) imapmeta.Change {
			close(deciding)
			<-decide
			return imapmeta.Set("user=1")
		}); err != nil {
			t.Error(err)
		}
	})
	<-deciding
	eventually(t, "nothing else is under way", func() bool { return c.Endpoints()[0].Connections == 0 })
	all.Go(func() {
		close(closing)
		c.Close()
		if !changed.Load() {
			t.Error("Close returned in the middle")
		}
	})
	<-closing
	time.Sleep(20 * time.Millisecond) // a Close that does not wait has its chance
	close(decide)
	all.Wait()
}

// An endpoint that is set aside, or that hangs when it is looked at, does not
// hold Close up.
func TestCloseDoesNotWaitForLooks(t *testing.T) {
	t.Parallel()
	var silent *dummy
	silent = play(t, onPost(func(_ http.ResponseWriter, r *http.Request, _ []command) bool { silent.hang(r); return true }))
	c := silent.client(func(o *Options) {
		o.CheckInterval, o.Timeout, o.ReadTimeout = time.Millisecond, time.Hour, 10*time.Minute
	})
	ctx, cancel := context.WithCancel(t.Context())
	go cancel()
	c.Update(ctx, "alice", keepIt)
	c.mu.Lock()
	c.setOutLocked(c.endpoints[0], &trouble{reason: Timeout, err: &imapmeta.Error{}})
	c.mu.Unlock()
	eventually(t, "it is looked at", func() bool { return silent.lookedAt() > 0 })
	closed(t, c)
}
