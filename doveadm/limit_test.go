package doveadm

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dovepush/imapmeta"
)

// The first batches are small: of what Dovecot cannot do in time nothing is known
// yet.
func TestFirstBatchesAreSmall(t *testing.T) {
	d := play(t)
	c := d.client(batchOf(30), connections(1))
	c.limit = min(firstBatch, c.options.Batch) // as New has it
	known(t, c)
	before := len(d.sent())
	atOnce(t, c, several(200), func(user string, _ imapmeta.Outcome, err error) {
		if err != nil {
			t.Errorf("%s: %v", user, err)
		}
	}, keepIt)
	largest := 0
	for i, post := range d.sent()[before:] {
		if i == 0 && len(post) > firstBatch || len(post) > max(2*largest, firstBatch) || len(post) > 30 {
			t.Errorf("POST %d is of %d commands, the largest before was of %d", i+1, len(post), largest)
		}
		largest = max(largest, len(post))
	}
	if largest != 30 {
		t.Errorf("the largest was of %d", largest)
	}
}

// Who has been read is written before others are read: else an Update would take
// as long as all who wait for one.
func TestWritesGoFirst(t *testing.T) {
	g := newGate()
	var holding atomic.Bool
	d := play(t, onPost(func(w http.ResponseWriter, r *http.Request, commands []command) bool {
		return holding.Load() && g.hold(w, r, commands)
	}))
	c := d.client(batchOf(1), connections(1))
	known(t, c)
	holding.Store(true)
	before := len(d.sent())
	var all sync.WaitGroup
	all.Go(func() {
		if _, err := c.Update(t.Context(), "alice", func(imapmeta.Value) imapmeta.Change { return imapmeta.Set("user=alice") }); err != nil {
			t.Error(err)
		}
	})
	g.next(t) // alice is being read
	for _, user := range several(5) {
		all.Go(func() {
			if _, err := c.Update(t.Context(), user, keepIt); err != nil {
				t.Errorf("%s: %v", user, err)
			}
		})
	}
	queued(t, c, 5)
	g.step <- struct{}{}
	g.next(t)       // another is being read
	queued(t, c, 5) // alice is to be written: she waits in his place
	close(g.open)
	all.Wait()
	if third := d.sent()[before+2]; third[0].method != set {
		t.Errorf("%s goes before alice is written", third[0].user)
	}
}

// How long others keep somebody waiting is not part of Timeout.
func TestTimeoutBeginsWithTheFirstPOST(t *testing.T) {
	g := newGate()
	var holding atomic.Bool
	d := play(t, onPost(func(w http.ResponseWriter, r *http.Request, commands []command) bool {
		return holding.Load() && g.hold(w, r, commands)
	}))
	c := d.client(batchOf(2), connections(1), func(o *Options) { o.Timeout, o.ReadTimeout = 2*time.Second, time.Second })
	known(t, c)
	holding.Store(true)
	hold(c)
	var alice sync.WaitGroup
	alice.Go(func() {
		if _, err := c.Update(t.Context(), "alice", keepIt); err != nil {
			t.Error(err)
		}
	})
	queued(t, c, 1)
	time.Sleep(c.options.Timeout + 500*time.Millisecond) // in the test's own time: nothing may happen
	close(g.open)
	release(c)
	alice.Wait()
}

// A batch that takes too long is half as large next time; when they are quick
// again they grow.
func TestTheLimitShrinksAndGrowsBack(t *testing.T) {
	const batch = 16
	var d *dummy
	var slow atomic.Bool
	d = play(t, onPost(func(_ http.ResponseWriter, r *http.Request, commands []command) bool {
		if slow.Load() && len(commands) > 5 {
			d.hang(r)
			return true
		}
		return false
	}))
	c := d.client(batchOf(batch), func(o *Options) { o.ReadTimeout = 1500 * time.Millisecond })
	known(t, c)
	limit := func() int {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.limit
	}
	sweep := func(n int) {
		t.Helper()
		var all sync.WaitGroup
		hold(c) // full batches go all the same
		whole := n >= limit()
		for _, user := range several(n) {
			all.Go(func() {
				if _, err := c.doAlone(t.Context(), command{method: get, user: user}); err != nil {
					t.Error(err)
				}
			})
		}
		if !whole {
			queued(t, c, n)
			release(c)
		}
		all.Wait()
		release(c)
	}
	slow.Store(true)
	sweep(batch - 1)
	if got := limit(); got != batch {
		t.Errorf("limit %d after a batch that was not full", got)
	}
	sweep(4 * batch) // several at once: they say the same
	if got := limit(); got != batch/2 {
		t.Errorf("limit %d after time-outs of %d", got, batch)
	}
	sweep(batch / 2)
	if got := limit(); got != batch/4 {
		t.Errorf("limit %d after a time-out of %d", got, batch/2)
	}
	eventually(t, "a full batch is quick", func() bool {
		sweep(batch / 4)
		return limit() == batch/2
	})
	slow.Store(false)
	eventually(t, "all are quick", func() bool {
		sweep(limit())
		return limit() == batch
	})
}

func TestTimeoutHoldsForEveryCaller(t *testing.T) {
	t.Parallel()
	var d *dummy
	d = play(t, onPost(func(_ http.ResponseWriter, r *http.Request, _ []command) bool { d.hang(r); return true }))
	c := d.client(batchOf(2), connections(1), func(o *Options) { o.Timeout = 500 * time.Millisecond })
	if c.options.ReadTimeout != 250*time.Millisecond {
		t.Errorf("an answer may take %s: no other endpoint gets its turn", c.options.ReadTimeout)
	}
	atOnce(t, c, several(30), func(user string, _ imapmeta.Outcome, err error) {
		if imapmeta.KindOf(err) != imapmeta.Retry || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", user, err)
		}
	}, keepIt)
	if _, err := c.Exists(t.Context(), "alice"); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// Who gets no answer while others do has trouble of his own. If nobody does, it
// is the server's, and must not be taken for a sign that it works.
func TestWhoseTroubleSilenceIs(t *testing.T) {
	for op, others := range map[string]bool{"connect": false, "getmetadata": true} {
		t.Run(op, func(t *testing.T) {
			t.Parallel()
			c := play(t).client()
			hold(c)
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			var alice sync.WaitGroup
			alice.Go(func() {
				_, err := c.Update(ctx, "alice", keepIt)
				gone(t, "alice", op, err, context.DeadlineExceeded)
			})
			queued(t, c, 1)
			if others {
				c.mu.Lock()
				c.worksLocked(c.endpoints[0])
				c.mu.Unlock()
			}
			alice.Wait()
			release(c)
		})
	}
}
