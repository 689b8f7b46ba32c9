package doveadm

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"dovepush/imapmeta"
)

// gone expects that an Update has ended because its context has.
func gone(t testing.TB, user, op string, err, cause error) {
	t.Helper()
	fault{kind: imapmeta.Retry, op: op}.check(t, user, err)
	if !errors.Is(err, cause) {
		t.Errorf("%v; want %v", err, cause)
	}
}

func TestAPOSTThatNobodyWaitsForIsBrokenOff(t *testing.T) {
	brokenOff := make(chan bool, 1)
	g := newGate()
	d := play(t, onPost(func(w http.ResponseWriter, r *http.Request, commands []command) bool {
		done := g.hold(w, r, commands)
		brokenOff <- r.Context().Err() != nil
		return done
	}))
	c := d.client()
	alice, aliceLeaves := context.WithCancel(t.Context())
	bob, bobLeaves := context.WithCancelCause(t.Context())
	var all sync.WaitGroup
	hold(c)
	all.Go(func() {
		_, err := c.Update(alice, "alice", keepIt)
		gone(t, "alice", "getmetadata", err, context.Canceled)
	})
	why := errors.New("bob has better things to do")
	all.Go(func() {
		_, err := c.Update(bob, "bob", keepIt)
		gone(t, "bob", "getmetadata", err, why)
	})
	queued(t, c, 2)
	release(c)
	g.next(t)
	aliceLeaves()
	eventually(t, "one is left", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.posts == 1
	})
	select {
	case <-brokenOff:
		t.Error("broken off, though bob still waits")
	default:
	}
	bobLeaves(why)
	all.Wait()
	if !<-brokenOff {
		t.Error("not broken off")
	}
	eventually(t, "its connection is free", func() bool { return c.Endpoints()[0].Connections == 0 })
	if e := c.Endpoints()[0]; e.Out || d.lookedAt() != 0 {
		t.Errorf("%+v, and it was looked at %d times", e, d.lookedAt())
	}
}

// Who stays gets his answer, whoever leaves.
func TestWhoStaysIsAnswered(t *testing.T) {
	g := newGate()
	d := play(t, onPost(g.hold))
	c := d.client()
	var all sync.WaitGroup
	hold(c)
	leaving, leave := context.WithCancel(t.Context())
	var left sync.WaitGroup
	left.Add(10)
	for i, user := range several(20) {
		all.Go(func() {
			if i%2 == 0 {
				_, err := c.Update(leaving, user, keepIt)
				gone(t, user, "getmetadata", err, context.Canceled)
				left.Done()
			} else if _, err := c.Update(t.Context(), user, keepIt); err != nil {
				t.Error(err)
			}
		})
	}
	queued(t, c, 20)
	release(c)
	g.next(t)
	leave()
	left.Wait()
	close(g.open)
	all.Wait()
	if n := len(d.sent()); n != 1 {
		t.Errorf("%d POSTs", n)
	}
}

func TestCallsWhoseCallerHasLeftAreNotSent(t *testing.T) {
	g := newGate()
	d := play(t, onPost(g.hold))
	c := d.client(batchOf(3), connections(1))
	var all sync.WaitGroup
	all.Go(func() { c.Update(t.Context(), "first", keepIt) })
	g.next(t)
	leaving, leave := context.WithCancel(t.Context())
	for i, user := range several(20) {
		ctx := t.Context()
		if i%3 == 0 {
			ctx = leaving
		}
		all.Go(func() { c.Update(ctx, user, keepIt) })
	}
	queued(t, c, 20)
	leave()
	eventually(t, "they have left", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		n := 0
		for _, call := range slices.Concat(c.wait[0].calls, c.wait[1].calls) {
			if call.left {
				n++
			}
		}
		return n == 7
	})
	close(g.open)
	all.Wait()
	n := 0
	for _, post := range d.sent()[1:] {
		n += len(post)
		for _, command := range post {
			var i int
			if fmt.Sscanf(command.user, "user%d", &i); i%3 == 0 {
				t.Errorf("%s was sent", command.user)
			}
		}
	}
	if n != 13 {
		t.Errorf("%d commands were sent", n)
	}
	// Nor is one whose caller had left before.
	over, cancel := context.WithCancel(t.Context())
	cancel()
	for _, limit := range []int{1, 3} {
		c.mu.Lock()
		c.limit = limit
		c.mu.Unlock()
		before := len(d.sent())
		hold(c)
		_, err := c.Update(over, "late", keepIt)
		gone(t, "late", "getmetadata", err, context.Canceled)
		if n := c.waiting(); n != 0 {
			t.Errorf("limit %d: %d calls wait", limit, n)
		}
		release(c)
		update(t, c, "alice", imapmeta.Keep(), imapmeta.Absent)
		if n := len(d.sent()) - before; n != 1 {
			t.Errorf("limit %d: %d POSTs", limit, n)
		}
	}
}

// What has to be sent again is not sent for those who have left meanwhile.
func TestWhatIsSentAgainIsForThoseWhoStay(t *testing.T) {
	g := newGate()
	var spoilt atomic.Bool
	spoilt.Store(true)
	d := play(t, onPost(func(w http.ResponseWriter, r *http.Request, commands []command) bool {
		if len(commands) > 1 && spoilt.Swap(false) {
			closeOn(w)
			return true
		}
		return g.hold(w, r, commands)
	}))
	c := d.client(batchOf(100), connections(1))
	var all sync.WaitGroup
	leaving, leave := context.WithCancel(t.Context())
	users := several(20) // in parts of 2 then
	hold(c)
	for i, user := range users {
		ctx := t.Context()
		if i%2 == 1 || i == 2 {
			ctx = leaving
		}
		all.Go(func() { c.Update(ctx, user, keepIt) })
		queued(t, c, i+1)
	}
	release(c)
	if first := g.next(t); len(first) != 2 { // the first part
		t.Fatalf("%v", first)
	}
	leave()
	eventually(t, "they have left", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		n := 0
		for _, b := range c.again {
			n += b.waiting
		}
		return n == 8
	})
	close(g.open)
	all.Wait()
	if n := len(d.sent()); n != 1+1+8 || d.lookedAt() != 1 {
		t.Errorf("%d POSTs, and %d without commands", n, d.lookedAt())
	}
	for i, post := range d.sent()[2:] {
		if len(post) != 1 || post[0].user != users[2*(i+2)] { // the second part was of nobody
			t.Errorf("part %d is %v", i+2, post)
		}
	}
}

// An answer that comes when the caller is about to leave is not lost: a change
// would be taken for one that may or may not have been made.
func TestAnAnswerAtTheLastMoment(t *testing.T) {
	c := play(t).client()
	ctx, cancel := context.WithCancel(t.Context())
	hold(c)
	got := make(chan answer, 1)
	go func() {
		a, _ := c.doAlone(ctx, command{method: get, user: "alice"})
		got <- a
	}()
	queued(t, c, 1)
	c.mu.Lock()
	cancel() // he cannot leave while we hold the lock
	c.wait[get.turn()].calls[0].answer <- answer{reply: reply{status: "late"}}
	c.mu.Unlock()
	if a := <-got; a.reply.status != "late" {
		t.Errorf("%+v", a)
	}
	release(c)
}
