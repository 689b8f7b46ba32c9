package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dovepush/imapmeta"
	"dovepush/registry"
)

// pausing makes the next Update pause, before it reads or after it wrote. It
// says on entered that it does, and goes on when it gets something.
func pausing(m *mailbox, afterWriting bool) (entered, goOn chan struct{}) {
	entered, goOn = make(chan struct{}), make(chan struct{})
	var paused atomic.Bool
	pause := func(context.Context, string) error {
		if paused.CompareAndSwap(false, true) {
			entered <- struct{}{}
			<-goOn
		}
		return nil
	}
	if afterWriting {
		m.wrote = pause
	} else {
		m.reading = pause
	}
	return entered, goOn
}

// begin starts a request and returns where its result will come.
func begin(ctx context.Context, a *Agent, r Request) <-chan Result {
	result := make(chan Result, 1)
	go func() { result <- one(ctx, a, r) }()
	return result
}

func TestWishThatChangesDuringTheWorkIsTheOneThatStands(t *testing.T) {
	for _, row := range []struct {
		name        string
		first, last Request
		verdict     Verdict // of the last, if the first had written already
		entry       imapmeta.Value
	}{
		{"register, then unregister", registerAs("alice", "7"), unregister("alice"), Removed, imapmeta.Absent},
		{"unregister, then register", unregister("alice"), registerAs("alice", "9"), Added, "user=9"},
		{"register, then as another", registerAs("alice", "8"), registerAs("alice", "9"), Changed, "user=9"},
	} {
		for _, afterWriting := range []bool{false, true} {
			for _, noWait := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/after writing %t/no wait %t", row.name, afterWriting, noWait), func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) {
						h := newHouse(t, time.Now)
						a, b := h.agent(), h.agent()
						must(t, a, registerAs("alice", "7"), Added)
						entered, goOn := pausing(h.box, afterWriting)

						wish := row.last
						wish.NoWait = noWait
						first := begin(t.Context(), a, row.first)
						<-entered
						last := begin(t.Context(), b, wish)
						time.Sleep(time.Second)
						close(goOn)
						if result := <-first; result.Err != nil {
							t.Error(result.Err)
						}
						result := <-last
						if noWait {
							if reg, found := h.row(b.options.Registry, "alice"); !found || reg.NextAt.After(time.Now()) || reg.Attempts != 0 {
								t.Errorf("the later wish is not due: %+v", reg)
							}
							result = one(t.Context(), b, verify("alice"))
						}
						if result.Verdict != row.verdict || result.Err != nil {
							t.Errorf("%s, %v; want %s", result.Verdict, result.Err, row.verdict)
						}
						h.box.holds(t, "alice", row.entry)
						reg, found := h.row(b.options.Registry, "alice")
						if found != (row.last.Action == Register) || found && (reg.State != registry.Registered || imapmeta.Value(reg.Value) != row.entry) {
							t.Errorf("row (%t) %+v", found, reg)
						}
						if h.box.overlap {
							t.Error("two Updates of alice overlapped")
						}
						h.unclaimed(b.options.Registry)
					})
				})
			}
		}
	}
}

func TestUpdatesOfOneUserNeverOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		h.box.reading = takes(30 * time.Millisecond)
		const each = 4
		// Both agents have the same name, as processes in two containers may.
		agents := []*Agent{h.agent(), h.agent()}
		var all sync.WaitGroup
		for _, a := range agents {
			for i := range each {
				all.Go(func() {
					if result := one(t.Context(), a, registerAs("alice", fmt.Sprint(i))); result.Err != nil {
						t.Error(result.Err)
					}
				})
			}
		}
		all.Wait()
		// Who finds the row settled since he asked has nothing left to do.
		if n := len(h.box.updated()); h.box.overlap || n == 0 || n > each*len(agents) {
			t.Errorf("overlapped: %t; %d Updates", h.box.overlap, n)
		}
		reg, _ := h.row(agents[0].options.Registry, "alice")
		h.box.holds(t, "alice", imapmeta.Value(reg.Value))
		if reg.State != registry.Registered {
			t.Errorf("row %+v", reg)
		}
	})
}

func TestWhoWaitsForAClaimSaysSoOnceAndStopsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		log := new(journal)
		a, b := h.agent(), h.agent(logsTo(log))
		entered, goOn := pausing(h.box, false)
		first := begin(t.Context(), a, register("alice"))
		<-entered

		ctx, cancel := context.WithCancel(t.Context())
		second := begin(ctx, b, verify("alice"))
		time.Sleep(heldQuiet)
		if lines := log.lines("user=alice"); len(lines) != 0 {
			t.Errorf("said that it waits, though it may be a service that does the same: %q", lines)
		}
		time.Sleep(time.Second)
		if lines := log.lines("user=alice"); len(lines) != 1 {
			t.Errorf("said %d times that it waits: %q", len(lines), lines)
		}
		cancel()
		synctest.Wait()
		select {
		case result := <-second:
			if result.Verdict != Deferred || !errors.Is(result.Err, context.Canceled) || result.Registration == nil {
				t.Errorf("%+v", result)
			}
		default:
			t.Error("it still waits")
		}
		close(goOn)
		if result := <-first; result.Verdict != Added {
			t.Errorf("the first: %+v", result)
		}
		if n := len(h.box.updated()); n != 1 {
			t.Errorf("%d Updates, want 1", n)
		}
	})
}

func TestClaimOfADeadProcessIsWaitedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		dead := h.agent()
		h.box.reading = died(dead)
		began := time.Now()
		one(t.Context(), dead, register("alice"))

		h.box.reading = nil
		must(t, h.agent(), register("alice"), Added)
		// The clock is the bubble's: it stands still but for what is waited for.
		if waited := time.Since(began); waited < timeout+claimSlack || waited > timeout+claimSlack+time.Second {
			t.Errorf("waited %v for a claim of %v", waited, timeout+claimSlack)
		}
	})
}

func TestClaimOfAProcessThatIsKnownToHaveEndedIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		dead := h.agent(func(o *Options) { o.Owner = "host:7" })
		h.box.reading = died(dead)
		began := time.Now()
		one(t.Context(), dead, register("alice"))

		h.box.reading = nil
		var asked string
		must(t, h.agent(func(o *Options) { o.Dead = func(owner string) bool { asked = owner; return true } }), register("alice"), Added)
		if waited := time.Since(began); waited >= time.Second || asked != "host:7" {
			t.Errorf("waited %v; asked for %q", waited, asked)
		}
	})
}

// The registry leaves open whether a claim was made when ctx ends during it.
func TestClaimIsGivenBackWheneverContextEnds(t *testing.T) {
	for _, expired := range []bool{false, true} {
		t.Run(fmt.Sprintf("expired %t", expired), func(t *testing.T) {
			h, clock := still(t)
			a, other := h.agent(), h.open()
			must(t, a, Request{User: "alice", Expires: time.Hour}, Added)
			if expired {
				clock.advance(time.Hour)
			}
			for n := range 60 {
				ctx := &endsAt{Context: t.Context(), n: n, done: make(chan struct{})}
				a.settle(ctx, registry.Key{User: "alice", Server: "main"}, time.Now(), manner{})
				h.unclaimed(other)
				if t.Failed() {
					t.Fatalf("when the context ended at look %d", n)
				}
			}
		})
	}
}

// endsAt is a context that ends when it is looked at for the nth time.
type endsAt struct {
	context.Context
	mu   sync.Mutex
	n    int
	done chan struct{}
}

func (c *endsAt) look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == 0 {
		close(c.done)
	}
	c.n--
}

func (c *endsAt) Done() <-chan struct{} { c.look(); return c.done }

func (c *endsAt) Err() error {
	c.look()
	select {
	case <-c.done:
		return context.Canceled
	default:
		return nil
	}
}

// A running service may do the work between a command's look and its claim.
func TestRowThatWasSettledJustBeforeTheClaimIsLeftAsItIs(t *testing.T) {
	h, clock := still(t)
	a := h.agent()
	asked := clock.now()
	clock.advance(time.Second)
	must(t, a, Request{User: "alice", Expires: time.Hour}, Added)
	key := registry.Key{User: "alice", Server: "main"}
	reg, outcome, err := a.options.Registry.Claim(t.Context(), key, "us", clock.now().Add(time.Minute), clock.now().Add(time.Minute))
	if err != nil || outcome != registry.Taken || !settledSince(unclaimed(reg), asked, clock.now()) {
		t.Fatalf("%+v, %v, %v", reg, outcome, err)
	}
	if err := a.giveBack(t.Context(), "us", reg); err != nil {
		t.Fatal(err)
	}
	h.unclaimed(a.options.Registry)
	if now, _ := h.row(a.options.Registry, "alice"); now.State != registry.Registered || now.Attempts != 0 || !now.NextAt.Equal(reg.ExpiresAt) ||
		!now.VerifiedAt.Equal(reg.VerifiedAt) || len(now.Written) != 1 {
		t.Errorf("%+v", now)
	}
}
