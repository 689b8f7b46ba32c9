package agent

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dovepush/registry"
)

// refusing is a hook of a Dovecot that refuses some users after a while, and
// takes a second for the others.
func refusing(after time.Duration, refused ...string) func(context.Context, string) error {
	return func(ctx context.Context, user string) error {
		if slices.Contains(refused, user) {
			if err := takes(after)(ctx, user); err != nil {
				return err
			}
			return errNoUser
		}
		return takes(time.Second)(ctx, user)
	}
}

// refusedOnes expects that the last Updates were those of the refused, one
// after the other, and returns the times between them.
func (h *house) refusedOnes(refused []string) (between []time.Duration) {
	h.t.Helper()
	h.box.mu.Lock()
	defer h.box.mu.Unlock()
	first := len(h.box.updates) - len(refused)
	last := slices.Sorted(slices.Values(h.box.updates[first:]))
	if !slices.Equal(last, refused) {
		h.t.Errorf("the last were %q, want %q", last, refused)
	}
	for i := first + 1; i < len(h.box.begun); i++ {
		between = append(between, h.box.begun[i].Sub(h.box.begun[i-1]))
	}
	return between
}

func TestRefusedUsersComeLastAndSlowly(t *testing.T) {
	names := users("a.test", 60)
	refused := []string{"user10@a.test", "user20@a.test", "user30@a.test", "user40@a.test"}
	for _, test := range []struct {
		name     string
		delay    time.Duration // of a refusal
		between  time.Duration // the refused
		sweeping func(t *testing.T, h *house, a *Agent)
	}{
		{"in a sweep", 2 * time.Second, 18 * time.Second, func(t *testing.T, h *house, a *Agent) {
			if _, untried, err := sweepAll(t, t.Context(), a, Aim{Listed: listed(names...), Verify: All}); untried != 0 || err != nil {
				t.Errorf("%d not tried: %v", untried, err)
			}
		}},
		{"without a pause where Dovecot has no penalty", 10 * time.Millisecond, 10 * time.Millisecond, func(t *testing.T, h *house, a *Agent) {
			if _, untried, err := sweepAll(t, t.Context(), a, Aim{Listed: listed(names...), Verify: All}); untried != 0 || err != nil {
				t.Errorf("%d not tried: %v", untried, err)
			}
		}},
		{"without a pause where nobody is logged in", 2 * time.Second, 2 * time.Second, func(t *testing.T, h *house, _ *Agent) {
			a := h.agent(connections(8), logsNobodyIn)
			if _, untried, err := sweepAll(t, t.Context(), a, Aim{Listed: listed(names...), Verify: All}); untried != 0 || err != nil {
				t.Errorf("%d not tried: %v", untried, err)
			}
		}},
		{"in the service", 2 * time.Second, 18 * time.Second, func(t *testing.T, h *house, a *Agent) {
			time.Sleep(25 * time.Hour) // all are due
			stop := h.run(a)
			time.Sleep(5 * time.Minute)
			stop()
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t, time.Now)
				h.box.reading = refusing(test.delay, refused...)
				a := h.agent(connections(8))
				if _, untried, err := sweepAll(t, t.Context(), a, Aim{Listed: listed(names...), Verify: Due}); untried != 0 || err != nil {
					t.Fatalf("%d not tried: %v", untried, err)
				}
				time.Sleep(time.Minute)
				before := len(h.box.updated())
				test.sweeping(t, h, h.agent(connections(8)))
				if n := len(h.box.updated()) - before; n != 60 {
					t.Errorf("%d Updates", n)
				}
				for _, d := range h.refusedOnes(refused) {
					if d < test.between || d > test.between+time.Second {
						t.Errorf("%v between two", d)
					}
				}
				for user, reg := range h.rows(a.options.Registry) {
					if (reg.State == registry.Failed) != slices.Contains(refused, user) || reg.ClaimedBy != "" {
						t.Errorf("%s: %+v", user, reg)
					}
				}
			})
		})
	}
}

func logsNobodyIn(o *Options) { o.Servers[0].LogsNobodyIn = true }

func TestUsersWhomDovecotMayNotKnowComeAfterTheOthers(t *testing.T) {
	h, _ := still(t)
	old, leaving := users("b.test", 30), users("a1.test", 30)
	swept(t, h.agent(), Aim{Listed: listed(append(old, leaving...)...), Verify: Due})
	before := len(h.box.updated())
	swept(t, h.agent(), Aim{Listed: listed(append(users("a.test", 30), old...)...), Verify: All, Prune: true})
	asked := h.box.updated()[before:]
	for i, user := range asked {
		if _, domain, _ := strings.Cut(user, "@"); domain != []string{"b.test", "a.test", "a1.test"}[i/30] {
			t.Fatalf("asked about %q", asked)
		}
	}
}

func TestUsersWhoFailTogetherDoNotKeepAllOthersAwayForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		bad, good := users("a.test", 300), users("b.test", 700)
		for i := range bad {
			bad[i] = "test" + bad[i]
		}
		for i := range good {
			good[i] = "z" + good[i]
		}
		h.box.reading = refusing(0, bad...)
		turns := []float64{0, 0.5, 0.4, 0.3}
		for _, random := range turns {
			a := h.agent(connections(8), func(o *Options) { o.Random = func() float64 { return random } })
			sweepAll(t, t.Context(), a, Aim{Listed: listed(append(bad, good...)...), Verify: None})
		}
		registered := 0
		for _, reg := range h.rows(h.open()) {
			if reg.State == registry.Registered {
				registered++
			}
		}
		if registered < 600 {
			t.Errorf("%d of 700 were registered after %d sweeps", registered, len(turns))
		}
	})
}

func TestSweepsAtOnceTryAUserWhoIsRefusedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		bad := users("a.test", 10)
		h.box.reading = refusing(2*time.Second, bad...)
		for _, round := range []string{"new", "refused before, and due"} {
			before := len(h.box.updated())
			var all sync.WaitGroup
			for range 3 {
				a := h.agent(connections(4))
				all.Go(func() {
					results, untried, err := sweepAll(t, t.Context(), a, Aim{Listed: listed(bad...), Verify: Due})
					if untried != 0 || err != nil {
						t.Errorf("%s: %d not tried: %v", round, untried, err)
					}
					for user, r := range results {
						if r.Verdict != Failed || !errors.Is(r.Err, ErrRefused) && r.Err != errNoUser {
							t.Errorf("%s: %s: %s, %v", round, user, r.Verdict, r.Err)
						}
					}
				})
			}
			all.Wait()
			if n := len(h.box.updated()) - before; n != 10 {
				t.Errorf("%s: %d logins", round, n)
			}
			time.Sleep(25 * time.Hour)
		}
	})
}

func TestRefusedUserWhoIsAskedForGoesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		h.box.reading = refusing(2*time.Second, "ghost")
		a := h.agent(connections(2))
		h.run(a)
		for range 2 {
			asked := time.Now()
			reg := submit(t, a, register("ghost"))
			if reg, _, err := a.Await(t.Context(), reg); err != nil || reg.State != registry.Failed {
				t.Errorf("%+v, %v", reg, err)
			}
			if took := time.Since(asked); took > 3*time.Second {
				t.Errorf("took %v", took)
			}
		}
		asked := time.Now()
		reg := submit(t, a, verify("ghost"))
		if reg, _, err := a.Await(t.Context(), reg); err != nil || reg.State != registry.Failed {
			t.Errorf("%+v, %v", reg, err)
		}
		if took := time.Since(asked); took > 3*time.Second {
			t.Errorf("to verify took %v", took)
		}
	})
}

func TestHeldUpLoginsAreToldOfOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		var log journal
		a := h.agent(connections(2), logsTo(&log))
		h.box.reading = takes(6 * time.Second) // merely slow
		must(t, a, register("alice"), Added)
		if lines := log.lines("holds logins up"); len(lines) > 0 {
			t.Errorf("said %q", lines)
		}
		h.box.reading = refusing(2*time.Second, "ghost")
		one(t.Context(), a, register("ghost"))
		h.box.reading = takes(4100 * time.Millisecond)
		must(t, a, register("bob"), Added)
		must(t, a, register("carol"), Added)
		b := h.agent(connections(2), logsTo(&log), logsNobodyIn)
		h.box.reading = refusing(2*time.Second, "ghost")
		one(t.Context(), b, register("ghost"))
		h.box.reading = takes(10 * time.Second)
		must(t, b, verify("bob"), Unchanged)
		lines := log.lines("holds logins up")
		if len(lines) != 1 || !strings.Contains(lines[0], "anvil-auth-penalty") || !strings.Contains(lines[0], "by=4s") {
			t.Errorf("said %q", lines)
		}
	})
}
