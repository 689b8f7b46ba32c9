package agent

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dovepush/imapmeta"
	"dovepush/registry"
)

// users returns names of users of a domain.
func users(domain string, n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprintf("user%d@%s", i, domain))
	}
	return names
}

// twoServers sends the users of b.test to a server of their own, and all
// others to "main".
func twoServers(b Entries) func(*Options) {
	return func(o *Options) {
		o.Servers = append(o.Servers, Server{Name: "b", Entries: b, Timeout: timeout})
		o.Route = func(user string) (string, bool) {
			if strings.HasSuffix(user, "@b.test") {
				return "b", true
			}
			return "main", true
		}
	}
}

func each(ctx context.Context, a *Agent, parallel int, requests ...Request) []Result {
	return slices.Collect(a.Each(ctx, slices.Values(requests), parallel))
}

func TestResultsComeInTheOrderOfTheRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		names := users("a.test", 12)
		h.box.reading = func(ctx context.Context, user string) error { // those that begin first end last
			return takes(time.Duration(len(names)-slices.Index(names, user))*time.Second)(ctx, user)
		}
		results := each(t.Context(), h.agent(), 4, registerAll(names...)...)
		var got []string
		for _, r := range results {
			if got = append(got, r.User); r.Verdict != Added || r.Server != "main" || r.Registration == nil || r.Registration.User != r.User {
				t.Errorf("%+v", r)
			}
		}
		if !slices.Equal(got, names) {
			t.Errorf("results of %q", got)
		}
	})
}

func TestAtMostParallelUpdatesAtOnce(t *testing.T) {
	for parallel, most := range map[int]int{-1: 1, 0: 1, 1: 1, 2: 2, 5: 5} {
		t.Run(fmt.Sprint(parallel), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t, time.Now)
				h.box.reading = takes(time.Second)
				each(t.Context(), h.agent(), parallel, registerAll(users("a.test", 12)...)...)
				if h.box.most != most {
					t.Errorf("%d Updates at once, want %d", h.box.most, most)
				}
			})
		})
	}
}

func TestFirstRequestOfEachServerGoesAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		b := newMailbox()
		h.box.reading, b.reading = takes(time.Second), takes(time.Second)
		names := slices.Concat(users("a.test", 5), users("b.test", 5))
		each(t.Context(), h.agent(twoServers(b)), 8, registerAll(names...)...)
		for name, m := range map[string]*mailbox{"main": h.box, "b": b} {
			if wait := m.begun[1].Sub(m.begun[0]); wait < time.Second || m.most < 4 {
				t.Errorf("server %s: the second began %v after the first, and then there were %d at once", name, wait, m.most)
			}
		}
	})
}

// A request that never reached its server does not count as its first.
func TestRequestThatReachesNoServerIsNotItsFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		h.box.reading = fails(errMaster)
		each(t.Context(), h.agent(), 8, append([]Request{verify("stranger"), registerAs("alice", "\x00")}, registerAll(users("a.test", 9)...)...)...)
		if n := len(h.box.updated()); n != 1 {
			t.Errorf("%d Updates, want 1", n)
		}
	})
}

func TestServerThatFailsForEverybodyIsTriedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		b := newMailbox()
		h.box.reading = fails(errMaster)
		a := h.agent(twoServers(b))
		bad, good := users("a.test", 20), users("b.test", 20)
		var requests []Request
		for i := range bad {
			requests = append(requests, register(bad[i]), register(good[i]))
		}
		requests = append(requests, unregister("leaver@a.test"))
		for i, result := range each(t.Context(), a, 8, requests...) {
			switch {
			case result.Server == "b":
				if result.Verdict != Added || result.Err != nil {
					t.Errorf("%s on the other server: %s, %v", result.User, result.Verdict, result.Err)
				}
			case i == 0:
				if result.Verdict != Deferred || !errors.Is(result.Err, imapmeta.ErrLogin) || errors.Is(result.Err, ErrStopped) {
					t.Errorf("the first: %s, %v", result.Verdict, result.Err)
				}
			default:
				reg := result.Registration
				if result.Verdict != Deferred || !errors.Is(result.Err, ErrStopped) || !errors.Is(result.Err, imapmeta.ErrLogin) || reg == nil {
					t.Fatalf("%s: %s, %v", result.User, result.Verdict, result.Err)
				}
				if reg.Attempts != 0 || reg.NextAt.After(time.Now()) || reg.State != registry.Pending && reg.State != registry.Removing {
					t.Errorf("the wish of %s is not recorded as due: %+v", result.User, reg)
				}
			}
		}
		if tried := h.box.updated(); len(tried) != 1 || len(b.updated()) != len(good) {
			t.Errorf("tried %q, and %d of %d on the other server", tried, len(b.updated()), len(good))
		}
	})
}

func TestServerThatBeginsToFailForEverybodyStopsTheRest(t *testing.T) {
	for name, paced := range map[string]int{"at full speed": 0, "with those that wait for their turn": 1} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t, time.Now)
				names := users("a.test", 20)
				h.box.reading = func(ctx context.Context, user string) error {
					switch i := slices.Index(names, user); {
					case i >= 5: // once all who came before are through, or wait as well
						return errors.Join(takes(time.Millisecond)(ctx, user), errMaster)
					case i == 4: // succeeds after the others have failed
						return takes(time.Second)(ctx, user)
					}
					return nil
				}
				a := h.agent(func(o *Options) { o.Servers[0].LoginsPerSecond = paced })
				const parallel = 4
				results := each(t.Context(), a, parallel, registerAll(names...)...)
				tried, most := h.box.updated(), 5+parallel
				if paced > 0 {
					most = 5 + 1
				}
				if len(tried) < 6 || len(tried) > most {
					t.Errorf("%d were tried, want 6 to %d: %q", len(tried), most, tried)
				}
				if last := h.box.begun[len(tried)-1].Sub(h.box.begun[0]); paced == 0 && last > 0 {
					t.Errorf("an Update began %v after the failure", last)
				}
				// Whoever is stopped does not wait for a turn: it may be a million.
				if took := time.Since(h.box.begun[0]); took > 10*time.Second {
					t.Errorf("took %v for %d Updates", took, len(tried))
				}
				for i, result := range results {
					if stopped := errors.Is(result.Err, ErrStopped); stopped == slices.Contains(tried, result.User) || i < 5 && result.Verdict != Added {
						t.Errorf("%s: %s, %v", result.User, result.Verdict, result.Err)
					}
				}
			})
		})
	}
}

// What is left of a failure that does not concern everybody is that one user.
func TestOtherFailuresStopNobody(t *testing.T) {
	for _, err := range []error{errRefused, errNologin, errNoUser, errors.New("unclassified")} {
		h, _ := still(t)
		h.box.reading = fails(err)
		each(t.Context(), h.agent(), 3, registerAll(users("a.test", 6)...)...)
		if n := len(h.box.updated()); n != 6 {
			t.Errorf("%v: %d of 6 were tried", err, n)
		}
	}
}

// A goroutine that is left behind makes synctest fail, for it never ends.
func TestConsumerThatBreaksOffLeavesNothingBehind(t *testing.T) {
	for _, hook := range []string{"reading", "wrote"} {
		t.Run("while "+hook, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t, time.Now)
				slow := func(ctx context.Context, user string) error {
					if user == "user0@a.test" {
						return nil
					}
					return hangs(ctx, user)
				}
				if hook == "reading" {
					h.box.reading = slow
				} else {
					h.box.wrote = slow
				}
				a := h.agent()
				for result := range a.Each(t.Context(), slices.Values(registerAll(users("a.test", 9)...)), 4) {
					if result.Verdict != Added {
						t.Errorf("%+v", result)
					}
					time.Sleep(time.Second) // the others are at work
					break
				}
				if n := h.box.underWay(); n != 0 || len(h.box.updated()) < 4 {
					t.Errorf("%d Updates of %d are still under way", n, len(h.box.updated()))
				}
				h.unclaimed(a.options.Registry)
			})
		})
	}
}

func TestCancelledEachEndsAndLeavesNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		names := users("a.test", 50)
		h.box.reading = func(ctx context.Context, user string) error {
			if slices.Index(names, user) < 6 {
				return nil
			}
			return hangs(ctx, user)
		}
		a := h.agent()
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		results := each(ctx, a, 4, registerAll(names...)...)
		// Those under way, and at most a few that the choice between a free
		// place and the end let through.
		if len(results) < 10 || len(results) == len(names) {
			t.Errorf("%d results", len(results))
		}
		for i, result := range results {
			if result.User != names[i] || i < 6 && result.Verdict != Added || i >= 6 && !errors.Is(result.Err, context.Canceled) {
				t.Errorf("%+v", result)
			}
		}
		if n := h.box.underWay(); n != 0 || len(h.box.updated()) != 10 {
			t.Errorf("%d Updates of %d are still under way", n, len(h.box.updated()))
		}
		h.unclaimed(a.options.Registry)
		for reg, err := range a.options.Registry.List(t.Context(), registry.Filter{State: registry.Pending}) {
			if err != nil || reg.Error == nil && reg.NextAt.After(time.Now()) {
				t.Errorf("%+v, %v", reg, err)
			}
		}
	})
}

func TestNoWaitTouchesNoServer(t *testing.T) {
	h, _ := still(t)
	a := h.agent(func(o *Options) { o.Servers = nil }) // not even one that is configured
	must(t, a, Request{User: "alice", Identity: "7@1", Expires: time.Hour, Force: true, NoWait: true}, Deferred)
	reg, _ := h.row(a.options.Registry, "alice")
	if reg.State != registry.Pending || reg.Value != "user=7@1" || !reg.Force || reg.Attempts != 0 || !reg.NextAt.Equal(noon) || !reg.ExpiresAt.Equal(noon.Add(time.Hour)) {
		t.Errorf("row %+v", reg)
	}
	result := must(t, a, Request{Action: Unregister, User: "alice", NoWait: true}, Deferred)
	if reg = *result.Registration; reg.State != registry.Removing || reg.Identity != "7@1" || reg.Force || !reg.ExpiresAt.IsZero() {
		t.Errorf("row %+v", reg)
	}
	if n := len(h.box.updated()); n != 0 {
		t.Errorf("%d Updates", n)
	}

	// To verify is to look; there is nothing else to record.
	must(t, h.agent(), Request{Action: Verify, User: "alice", NoWait: true}, Unchanged)
}

func TestUnlimitedInputIsNotReadAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		h.box.reading = takes(time.Second)
		const parallel = 3
		var read atomic.Int64
		endless := iter.Seq[Request](func(yield func(Request) bool) {
			for i := 0; ; i++ {
				read.Add(1)
				if !yield(register(fmt.Sprint("user", i))) {
					return
				}
			}
		})
		done := 0
		for range h.agent().Each(t.Context(), endless, parallel) {
			time.Sleep(10 * time.Second) // a slow consumer
			// One more is in the reader's hand.
			if ahead := int(read.Load()) - done; ahead > parallel+1 {
				t.Fatalf("%d requests are read ahead", ahead)
			}
			if done++; done == 8 {
				break
			}
		}
	})
}

func TestLoginsPerSecondSpacesUpdates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		h.box.reading = takes(2 * time.Second) // several at once
		a := h.agent(func(o *Options) { o.Servers[0].LoginsPerSecond = 4 })
		each(t.Context(), a, 12, registerAll(users("a.test", 12)...)...)
		for i := 2; i < len(h.box.begun); i++ {
			// The limiter counts in float64.
			if gap := h.box.begun[i].Sub(h.box.begun[i-1]); gap < time.Second/4-time.Microsecond || gap > time.Second/4+time.Millisecond {
				t.Errorf("Update %d began %v after the one before", i, gap)
			}
		}
		if len(h.box.begun) != 12 {
			t.Errorf("%d Updates", len(h.box.begun))
		}
	})
}

func TestWaitingForATurnEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		a := h.agent(func(o *Options) { o.Servers[0].LoginsPerSecond = 1 })
		ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
		defer cancel()
		each(ctx, a, 8, registerAll(users("a.test", 8)...)...)
		if n := len(h.box.updated()); n != 3 {
			t.Errorf("%d Updates in 2.5 s at one a second", n)
		}
		h.unclaimed(a.options.Registry)
	})
}

func TestOfSeveralRequestsForOneUserTheLastIsWhatShouldBe(t *testing.T) {
	t.Parallel()
	for range 20 {
		h, _ := still(t)
		a := h.agent()
		requests := []Request{register("warm-up")}
		for i := range 5 {
			requests = append(requests, registerAs("alice", fmt.Sprint("id", i)))
		}
		// The clock stands still, so a claim can only end by being given back.
		for result := range a.Each(t.Context(), slices.Values(requests), 8) {
			if result.Err != nil {
				t.Fatal(result.Err)
			}
		}
		if have := h.box.get("alice"); have != "user=id4" {
			t.Fatalf("the entry holds %q", have)
		}
	}
}
