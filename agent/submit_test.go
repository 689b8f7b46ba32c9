package agent

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"dovepush/imapmeta"
	"dovepush/registry"
)

func TestSubmittedGoesBeforeThoseWhoAreMerelyDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		h.box.reading = takes(time.Second)
		a := h.agent(connections(1))
		h.intend(a.options.Registry, users("a.test", 30)...)
		h.run(a)
		time.Sleep(3500 * time.Millisecond)
		submit(t, a, register("vip"))
		n := len(h.box.updated())
		time.Sleep(2 * time.Second)
		if tried := h.box.updated(); n == 0 || tried[n] != "vip" {
			t.Errorf("after %d others came %q", n, tried[n:])
		}
	})
}

func TestSubmitIsDurableAndRefusesWhatNeverReachesAServer(t *testing.T) {
	h, _ := still(t)
	a, other := h.agent(func(o *Options) {
		o.Route = func(user string) (string, bool) { return "main", user != "alice@elsewhere.test" }
	}), h.open()
	reg := submit(t, a, Request{User: "alice", Identity: "7@1", Expires: time.Hour, Force: true})
	if row, found := h.row(other, "alice"); !found || row.Revision != reg.Revision || row.Value != "user=7@1" || !row.Force || !row.ExpiresAt.Equal(noon.Add(time.Hour)) || !row.NextAt.Equal(noon) {
		t.Errorf("row %+v; returned %+v", row, reg)
	}
	for _, row := range []struct {
		request Request
		want    error
	}{
		{verify("stranger"), ErrNotRegistered},
		{register("alice@elsewhere.test"), ErrNoServer},
		{register("alice\r\n"), ErrUser},
		{registerAs("alice", "\x00"), ErrIdentity},
	} {
		if reg, err := a.Submit(t.Context(), row.request); !errors.Is(err, row.want) || reg.User != "" {
			t.Errorf("%+v: %+v, %v; want %v", row.request, reg, err, row.want)
		}
	}
	if rows := h.rows(other); len(rows) != 1 || len(h.box.updated()) != 0 {
		t.Errorf("rows %v, Updates of %q", rows, h.box.updated())
	}
	a.options.Registry.Close()
	if _, err := a.Submit(t.Context(), register("bob")); err == nil {
		t.Error("accepted without a registry")
	}
}

func TestSubmittedIsCarriedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		a := h.agent(seldom)
		h.run(a)
		time.Sleep(time.Hour)
		for _, row := range []struct {
			request    Request
			found      imapmeta.Value // in the entry before
			left       imapmeta.Value
			registered bool
		}{
			{registerAs("alice", "7"), imapmeta.Absent, "user=7", true},
			{registerAs("alice", "8"), "user=7", "user=8", true},
			{verify("alice"), imapmeta.Absent, "user=8", true}, // drift is mended now, not at the next look
			{unregister("alice"), "user=8", imapmeta.Absent, false},
			{unregister("alice"), imapmeta.Absent, imapmeta.Absent, false},
		} {
			h.box.set("alice", row.found)
			before := time.Now()
			reg, found, err := a.Await(t.Context(), submit(t, a, row.request))
			if err != nil || found != row.registered || found && reg.State != registry.Registered {
				t.Errorf("%+v: %+v (%t), %v", row.request, reg, found, err)
			}
			h.box.holds(t, "alice", row.left)
			if took := time.Since(before); took > time.Second {
				t.Errorf("%+v: took %v", row.request, took)
			}
		}
	})
}

func TestRunFindsWhatAnotherProcessWantsWithinPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		a, other := h.agent(func(o *Options) { o.Poll = 7 * time.Second }), h.open()
		h.run(a)
		time.Sleep(time.Hour)
		wanted := time.Now()
		h.intend(other, "alice")
		time.Sleep(time.Minute)
		if looks := h.box.looks(); len(looks) != 1 || looks[0].at.After(wanted.Add(7*time.Second+100*time.Millisecond)) {
			t.Errorf("wanted at %v, looked at: %v", wanted, looks)
		}
	})
}

// awaited is what Await returned, and how long it took.
type awaited struct {
	reg   registry.Registration
	found bool
	err   error
	took  time.Duration
}

// await awaits in a goroutine of its own.
func await(ctx context.Context, a *Agent, submitted registry.Registration) <-chan awaited {
	result := make(chan awaited, 1)
	go func() {
		began := time.Now()
		reg, found, err := a.Await(ctx, submitted)
		result <- awaited{reg, found, err, time.Since(began)}
	}()
	return result
}

func TestAwaitEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		h.box.reading = hangs
		a := h.agent()
		h.run(a)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		got := <-await(ctx, a, submit(t, a, register("alice")))
		if got.err != nil || !got.found || got.reg.State != registry.Pending || got.took != 5*time.Second {
			t.Errorf("%+v", got)
		}
	})
}

func TestAwaitTellsOfFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		h.box.reading = func(_ context.Context, user string) error {
			return map[string]error{"alice": errBusy, "bob": errNologin}[user]
		}
		a := h.agent()
		h.run(a)
		for user, want := range map[string]registry.State{"alice": registry.Pending, "bob": registry.Failed} {
			got := <-await(t.Context(), a, submit(t, a, register(user)))
			if got.err != nil || !got.found || got.reg.State != want || got.reg.Error == nil || got.took > time.Second {
				t.Errorf("%s: %+v", user, got)
			}
		}
	})
}

func TestAwaitWaitsForTheNewLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		h.box.reading = takes(2 * time.Second)
		a := h.agent()
		h.run(a)
		for i, request := range []Request{registerAs("alice", "7"), registerAs("alice", "7"), verify("alice")} {
			submitted := time.Now()
			got := <-await(t.Context(), a, submit(t, a, request))
			if got.reg.State != registry.Registered || got.reg.VerifiedAt.Before(submitted.Add(2*time.Second)) || len(h.box.updated()) != i+1 {
				t.Errorf("submitted at %v, %d Updates: %+v", submitted, len(h.box.updated()), got)
			}
			time.Sleep(time.Minute)
		}

		// What is under way since before does not count either.
		first := await(t.Context(), a, submit(t, a, registerAs("alice", "8")))
		time.Sleep(time.Second)
		second := await(t.Context(), a, submit(t, a, registerAs("alice", "9")))
		if got := <-first; got.took > 1500*time.Millisecond || got.reg.Value != "user=9" {
			t.Errorf("overtaken: %+v", got)
		}
		if got := <-second; got.reg.State != registry.Registered || got.took < 2*time.Second {
			t.Errorf("the second: %+v", got)
		}
		h.box.holds(t, "alice", "user=9")
	})
}

func TestAwaitNoticesWhatAnotherProcessHasDone(t *testing.T) {
	for name, request := range map[string]Request{"done": verify("alice"), "overtaken": registerAs("alice", "9"), "gone": unregister("alice")} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t, time.Now)
				h.box.reading = func(ctx context.Context, user string) error {
					if user == "hung" {
						return hangs(ctx, user)
					}
					return nil
				}
				a, other := h.agent(connections(1)), h.agent()
				h.run(a)
				submit(t, a, register("hung"))
				time.Sleep(time.Second)
				result := await(t.Context(), a, submit(t, a, register("alice")))
				time.Sleep(time.Second)
				if r := one(t.Context(), other, request); r.Err != nil {
					t.Fatal(r.Err)
				}
				got := <-result
				if got.err != nil || got.found == (name == "gone") || got.took > 2*time.Second || slices.Contains(h.box.updated()[2:], "alice") {
					t.Errorf("%+v; Updates of %q", got, h.box.updated())
				}
			})
		})
	}
}

func TestAwaitDoesNotWaitForAServerThatFailsForEverybody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		h.box.reading = fails(errMaster)
		a := h.agent(connections(4))
		h.run(a)
		for _, user := range []string{"alice", "bob"} {
			got := <-await(t.Context(), a, submit(t, a, register(user)))
			if got.err != nil || !got.found || got.reg.State != registry.Pending || got.took > time.Second {
				t.Errorf("%s: %+v", user, got)
			}
			// Who was tried is told why; he is not shown half done.
			if tried := user == "alice"; got.reg.ClaimedBy != "" || (got.reg.Error != nil) != tried || got.reg.Attempts != 0 {
				t.Errorf("%s: %+v", user, got.reg)
			}
		}
		if tried := h.box.updated(); !slices.Equal(tried, []string{"alice"}) {
			t.Errorf("tried %q", tried)
		}
	})
}

// Who is at work may have read the entry before the verification was asked for.
func TestVerificationAskedForDuringWorkIsDoneAfterIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		h.box.wrote = takes(2 * time.Second) // the answer takes its time
		a := h.agent()
		h.run(a)
		submit(t, a, register("alice"))
		time.Sleep(time.Second)
		h.box.set("alice", imapmeta.Absent) // somebody removes it after it was written
		got := <-await(t.Context(), a, submit(t, a, verify("alice")))
		if got.err != nil || got.reg.State != registry.Registered {
			t.Errorf("%+v", got)
		}
		time.Sleep(time.Minute)
		h.box.holds(t, "alice", "user=alice")
	})
}

// Impatient callers come in as fast as logins are allowed, for ever.
func TestThoseWhoAreMerelyDueHaveTheirTurnBesideThoseWhomSomebodyWaitsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		a := h.agent(func(o *Options) { o.Servers[0].LoginsPerSecond = 5 })
		h.run(a)
		names := users("a.test", 200)
		for _, name := range names { // more than can be done at once
			submit(t, a, register(name))
		}
		h.intend(a.options.Registry, "patient")
		for i := range 600 {
			submit(t, a, register(names[i%len(names)]))
			time.Sleep(time.Second / 6)
		}
		h.box.holds(t, "patient", "user=patient")
	})
}
