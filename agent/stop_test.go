package agent

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dovepush/registry"
)

func TestRunFinishesWhatIsUnderWayAndBeginsNothingNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		h.box.reading = takes(5 * time.Second)
		a := h.agent(connections(4), func(o *Options) { o.Drain = time.Minute })
		h.intend(a.options.Registry, users("a.test", 20)...)
		stop := h.run(a)
		time.Sleep(7 * time.Second) // the first is done, four are under way
		stopped := time.Now()
		stop()
		if took := time.Since(stopped); took > 4*time.Second || h.box.underWay() != 0 || len(h.box.updated()) != 5 {
			t.Errorf("returned after %v and %d Updates, %d under way", took, len(h.box.updated()), h.box.underWay())
		}
		for user, reg := range h.rows(a.options.Registry) {
			done := slices.Contains(h.box.updated(), user)
			if reg.ClaimedBy != "" || done != (reg.State == registry.Registered) || !done && (reg.NextAt.After(time.Now()) || reg.Attempts != 0) {
				t.Errorf("done: %t; %+v", done, reg)
			}
		}
		time.Sleep(time.Hour)
		if n := len(h.box.updated()); n != 5 {
			t.Errorf("%d Updates", n)
		}
	})
}

func TestRunCancelsWhatOutlastsDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		h.box.reading = func(ctx context.Context, user string) error {
			if user == "user0@a.test" || hangs(ctx, user) == nil {
				return nil
			}
			return errUnreached // cancelled while it connects
		}
		a := h.agent(connections(4), func(o *Options) { o.Drain = 3 * time.Second })
		h.intend(a.options.Registry, users("a.test", 20)...)
		stop := h.run(a)
		time.Sleep(time.Second)
		stopped := time.Now()
		stop()
		if took := time.Since(stopped); took < 3*time.Second || took > 4*time.Second || h.box.underWay() != 0 {
			t.Errorf("returned after %v, %d under way", took, h.box.underWay())
		}
		h.unclaimed(a.options.Registry)
		if n := len(h.box.updated()); n != 5 {
			t.Errorf("%d Updates", n)
		}
		for user, reg := range h.rows(a.options.Registry) {
			if user == "user0@a.test" {
				continue
			}
			// Whoever was cancelled is as if nobody had tried him.
			if reg.State != registry.Pending || reg.Error != nil || reg.Attempts != 0 || reg.NextAt.After(time.Now()) {
				t.Errorf("%+v", reg)
			}
		}
		// That it was cancelled says nothing of the server.
		if list := h.circuits(a.options.Registry); len(list) != 0 {
			t.Errorf("circuits %+v", list)
		}

		h.box.reading = nil
		h.run(h.agent(connections(4)))
		time.Sleep(2 * retryInitial)
		h.registered(a.options.Registry, 20)
	})
}

func TestRunEndsAtOnceWhenItHasNothingToFinish(t *testing.T) {
	for name, row := range map[string]struct {
		users []string
		fails error
	}{
		"idle":              {nil, nil},
		"waits for a probe": {users("a.test", 5), errMaster},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t, time.Now)
				h.box.reading = fails(row.fails)
				a := h.agent(func(o *Options) { o.Drain = time.Hour })
				h.intend(a.options.Registry, row.users...)
				stop := h.run(a)
				time.Sleep(20 * time.Second)
				stopped := time.Now()
				stop()
				if took := time.Since(stopped); took > time.Second {
					t.Errorf("returned after %v", took)
				}
				h.unclaimed(a.options.Registry)
			})
		})
	}
}

// The registry leaves open whether claims were made when ctx ends during it.
func TestRunGivesClaimsBackWheneverContextEnds(t *testing.T) {
	h, _ := still(t)
	a, other := h.agent(connections(4)), h.open()
	s := a.sites["main"]
	must(t, a, register("warm-up"), Added)
	for n := range 60 {
		h.intend(other, users("a.test", 6)...)
		ctx := &endsAt{Context: t.Context(), n: n, done: make(chan struct{})}
		var work sync.WaitGroup
		_, err := a.takeDue(ctx, t.Context(), s, &work)
		work.Wait()
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		if h.unclaimed(other); t.Failed() || s.busy.Load() != 0 || len(s.slots) != 0 {
			t.Fatalf("when the context ended at look %d: %d places are taken", n, s.busy.Load())
		}
	}
}
