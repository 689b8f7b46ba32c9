package agent

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dovepush/imapmeta"
	"dovepush/registry"
)

// wall is a clock that can be set while it goes on.
type wall struct{ ahead atomic.Int64 }

func (w *wall) now() time.Time { return time.Now().Round(0).Add(time.Duration(w.ahead.Load())) }

func (w *wall) set(by time.Duration) { w.ahead.Add(int64(by)) }

func TestNothingIsLostWhenTheClockIsSetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clock := new(wall)
		h := newHouse(t, clock.now)
		weather := h.weather(func(_ context.Context, user string) error {
			if user == "retried" {
				return errBusy
			}
			return nil
		})
		log := new(journal)
		a, other := h.agent(logsTo(log), func(o *Options) { o.Poll, o.Random = 3*time.Second, func() float64 { return nearlyOne } }), h.open()
		h.run(a)
		submit(t, a, register("registered"))
		submit(t, a, register("retried"))
		submit(t, a, register("leaver"))
		time.Sleep(40 * time.Minute) // the next try is half an hour away
		if n := len(of(h.box.looks(), "retried")); n < 5 {
			t.Fatalf("%d tries", n)
		}
		weather.now(hangsFor("leaver"))
		submit(t, a, register("first")) // goes alone after so long
		time.Sleep(time.Second)
		submit(t, a, unregister("leaver")) // under way when the clock is set
		h.killed(other, "elsewhere:7", "claimed")
		time.Sleep(time.Second)
		weather.now(nil)
		if reg, _ := h.row(other, "retried"); reg.NextAt.Before(clock.now().Add(10 * time.Minute)) {
			t.Fatalf("row %+v", reg)
		}

		clock.set(-time.Hour)
		set := clock.now()
		time.Sleep(3*time.Second + retryInitial + time.Second)
		for _, user := range []string{"first", "registered", "retried", "claimed"} {
			if reg, _ := h.row(other, user); reg.State != registry.Registered {
				t.Errorf("%s: %+v", user, reg)
			}
		}
		if reg, found := h.row(other, "leaver"); found {
			t.Errorf("leaver: %+v", reg)
		}
		if reg, _ := h.row(other, "registered"); reg.NextAt.After(set.Add(verifyEvery)) {
			t.Errorf("is verified %v after the clock was set", reg.NextAt.Sub(set))
		}
		if lines := log.lines("the clock was set"); len(lines) != 1 {
			t.Errorf("said %q", lines)
		}
	})
}

// hangsFor is a hook that hangs for one user.
func hangsFor(name string) func(context.Context, string) error {
	return func(ctx context.Context, user string) error {
		if user == name {
			return hangs(ctx, user)
		}
		return nil
	}
}

func TestWhatFallsDueAsTheClockIsSetForwardIsWorkedOnWithinPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clock := new(wall)
		h := newHouse(t, clock.now)
		a := h.agent(func(o *Options) { o.Poll = 5 * time.Second })
		h.run(a)
		submit(t, a, Request{User: "alice", Expires: time.Hour})
		submit(t, a, Request{User: "bob", Expires: 2 * time.Hour})
		time.Sleep(70 * time.Second) // the keeper looks once a minute anyway
		clock.set(time.Hour)
		time.Sleep(5*time.Second + 100*time.Millisecond)
		if rows := h.rows(a.options.Registry); len(rows) != 1 || rows["bob"].State != registry.Registered {
			t.Errorf("rows %+v", rows)
		}
		h.box.holds(t, "alice", "")
		h.box.holds(t, "bob", "user=bob")
	})
}

// A probe waits by a clock that nobody sets.
func TestProbeIsNotPutOffByTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clock := new(wall)
		h := newHouse(t, clock.now)
		h.box.reading = fails(errMaster)
		a := h.agent()
		h.intend(a.options.Registry, users("a.test", 5)...)
		h.run(a)
		time.Sleep(10 * time.Second)
		clock.set(-time.Hour)
		time.Sleep(retryInitial * 3 / 2)
		if n := len(h.box.updated()); n != 2 {
			t.Errorf("%d tries", n)
		}
	})
}

func TestShorterVerifyEveryHoldsForWhatIsRegistered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		const month = 30 * 24 * time.Hour
		before := h.agent(connections(8), randomly, func(o *Options) { o.VerifyEvery = month })
		names := users("a.test", 60)
		h.intend(before.options.Registry, names...)
		stop := h.run(before)
		time.Sleep(time.Minute)
		stop()
		h.registered(before.options.Registry, len(names))

		began := time.Now()
		h.run(h.agent(connections(8), randomly, seldom))
		time.Sleep(verifyEvery + time.Second)
		looks := h.box.looks()[len(names):]
		perHour := make(map[time.Duration]int)
		for _, user := range names {
			mine := of(looks, user)
			if len(mine) == 0 {
				t.Fatalf("%s was not looked at within %v", user, verifyEvery)
			}
			perHour[mine[0].at.Sub(began)/time.Hour]++
		}
		for hour, n := range perHour {
			if n > len(names)/4 {
				t.Errorf("%d of %d were looked at within hour %d", n, len(names), hour)
			}
		}
	})
}

// The row says that it was verified later than now: before the clock was set back.
func TestVerificationFromTheFutureDoesNotCount(t *testing.T) {
	h, clock := still(t)
	a := h.agent()
	must(t, a, register("alice"), Added)
	clock.advance(-time.Hour)
	h.box.set("alice", imapmeta.Absent)
	must(t, a, verify("alice"), Added)
	h.box.holds(t, "alice", "user=alice")
}
