package doveadm

import (
	"context"
	"errors"
	"fmt"
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

// The secret may come from a command that hangs.
func TestASecretThatHangs(t *testing.T) {
	t.Parallel()
	d := play(t)
	hangs := func(ctx context.Context) (string, error) {
		<-ctx.Done()
		return "", fmt.Errorf("command ended: %w", ctx.Err())
	}
	c := d.client(func(o *Options) { o.Secret, o.Timeout = hangs, 300*time.Millisecond })
	atOnce(t, c, several(30), func(user string, _ imapmeta.Outcome, err error) {
		gone(t, user, "connect", err, context.DeadlineExceeded)
	}, keepIt)
	_, err := list(t.Context(), d.client(func(o *Options) { o.Secret = secretIs("wrong") }))
	fault{kind: imapmeta.Server, is: ErrKey}.check(t, "", err)
	if n := len(d.sent()); n != 0 {
		t.Errorf("%d POSTs", n)
	}
	closed(t, c)

	// Who waits for it behind somebody else can leave.
	asked := make(chan struct{}, 1)
	c = d.client(func(o *Options) {
		o.Timeout = time.Hour
		o.Secret = func(ctx context.Context) (string, error) {
			asked <- struct{}{}
			return hangs(ctx)
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go c.Update(ctx, "alice", keepIt)
	<-asked
	short, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	ended := make(chan error, 1)
	go func() {
		_, err := list(short, c)
		ended <- err
	}()
	select {
	case err := <-ended:
		gone(t, "", "user", err, context.DeadlineExceeded)
	case <-time.After(20 * time.Second):
		t.Error("it waits on")
	}
}

func TestASecretThatCannotBeHad(t *testing.T) {
	var asked atomic.Int64
	c := play(t).client(func(o *Options) {
		o.Secret = func(context.Context) (string, error) {
			asked.Add(1)
			return "", errors.New("open key: no such file")
		}
	})
	inOnePost(t, c, several(30), func(user string, _ imapmeta.Outcome, err error) {
		fault{kind: imapmeta.Server, op: "connect", words: "open key: no such file"}.check(t, user, err)
		var secret *imapmeta.SecretError
		if !errors.As(err, &secret) {
			t.Errorf("%v is no SecretError", err)
		}
	}, func(string) imapmeta.Change { return imapmeta.Keep() })
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times for one POST", n)
	}
	if e := c.Endpoints()[0]; e.Out {
		t.Errorf("the endpoint was blamed: %+v", e)
	}
}

// Those who wait for a key that is refused are told so, and nothing is sent for
// them.
func TestARefusedKeyIsTriedForNobodyElse(t *testing.T) {
	d := play(t, func(d *dummy) { d.key = "another s3cr3t" })
	asked, answer := make(chan struct{}), make(chan struct{})
	c := d.client(batchOf(5), func(o *Options) {
		o.Secret = func(context.Context) (string, error) {
			close(asked) // once
			<-answer
			return dummyKey, nil
		}
	})
	var all sync.WaitGroup
	call := func(user string) {
		all.Go(func() {
			_, err := c.Update(t.Context(), user, keepIt)
			fault{kind: imapmeta.Server, is: ErrKey, op: "connect"}.check(t, user, err)
		})
	}
	call("first")
	<-asked
	for _, user := range several(30) {
		call(user)
	}
	queued(t, c, 30)
	close(answer)
	all.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refused != 1 {
		t.Errorf("%d POSTs", d.refused)
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

// The key is kept for a minute, and asked for again after a refusal, also of a
// look at an endpoint that is set aside.
func TestHowOftenTheKeyIsAskedFor(t *testing.T) {
	var asked, ahead atomic.Int64
	d := play(t)
	c := d.client(func(o *Options) {
		o.CheckInterval = 5 * time.Millisecond
		o.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
		o.Secret = func(context.Context) (string, error) {
			if asked.Add(1); asked.Load() == 3 {
				return "no more", nil
			}
			return dummyKey, nil
		}
	})
	for range 5 {
		update(t, c, "alice", imapmeta.Keep(), imapmeta.Absent)
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	ahead.Store(int64(keyAge))
	update(t, c, "alice", imapmeta.Keep(), imapmeta.Absent)
	ahead.Store(0) // the clock is set back
	if n := asked.Load(); n != 2 {
		t.Errorf("asked %d times after a minute", n)
	}
	_, err := c.Update(t.Context(), "alice", keepIt)
	fault{kind: imapmeta.Server, is: ErrKey}.check(t, "alice", err)
	eventually(t, "the endpoint is found to work again", func() bool { return !c.Endpoints()[0].Out })
	if n := asked.Load(); n != 4 {
		t.Errorf("asked %d times", n)
	}
	// A look that is refused asks for another key, too.
	d.change(func(d *dummy) { d.key = "a new s3cr3t" })
	if _, err := c.Update(t.Context(), "alice", keepIt); err == nil {
		t.Error("no error")
	}
	before := asked.Load()
	eventually(t, "the key is asked for again and again", func() bool { return asked.Load() > before+3 })
}

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
