package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dovepush/imapmeta"
	"dovepush/registry"
)

func TestSweepMakesEntriesWhatTheListSays(t *testing.T) {
	h, a := prepared(t)
	h.box.set("drifted", "")
	must(t, a, register("drifted"), Added)
	h.box.set("drifted", imapmeta.Absent)
	h.box.set("adopted", "user=adopted")
	h.box.set("foreign", "user=9@9")
	got := swept(t, a, Aim{Listed: listed("adopted", "drifted", "foreign", "fresh", "new", "nolonger", "old", "other", "retrying"), Verify: All, Prune: true})
	want := map[string]Verdict{"adopted": Adopted, "drifted": Added, "foreign": Conflict, "fresh": Unchanged, "new": Added, "nolonger": Added,
		"old": Unchanged, "other": Changed, "retrying": Added,
		"backoff": Unchanged, "due": Removed, "expired": Removed, "lasting": Removed, "removing": Removed, "waiting": Unchanged}
	if !maps.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	h.box.holds(t, "other", "user=other")
	h.box.holds(t, "new", "user=new")
	h.box.holds(t, "due", imapmeta.Absent)
	h.box.holds(t, "foreign", "user=9@9")
	h.unclaimed(a.options.Registry)
	rows := h.rows(a.options.Registry)
	if users := slices.Sorted(maps.Keys(rows)); !slices.Equal(users, []string{"adopted", "drifted", "foreign", "fresh", "new", "nolonger", "old", "other", "retrying"}) {
		t.Errorf("rows of %q", users)
	}
	if rows["foreign"].State != registry.Conflict || rows["new"].State != registry.Registered {
		t.Errorf("%+v, %+v", rows["foreign"], rows["new"])
	}
	// The next one has nothing to do.
	asked := len(h.box.updated())
	if p, steps := plan(t, a, Aim{Listed: listed("adopted", "drifted", "foreign", "fresh", "new", "nolonger", "old", "other", "retrying"), Verify: Due, Prune: true}); p.Steps() != 0 {
		t.Errorf("steps %q", steps)
	}
	if len(h.box.updated()) != asked {
		t.Error("a plan has asked the server")
	}
}

func TestSweepRebuildsALostRegistryWithoutAWrite(t *testing.T) {
	h, _ := still(t)
	names := users("a.test", 700) // more than share a commit
	for _, name := range names {
		h.box.set(name, imapmeta.Value("user="+name))
	}
	h.box.wrote = func(_ context.Context, user string) error { return nil }
	a := h.agent(connections(8))
	for user, verdict := range swept(t, a, Aim{Listed: listed(names...), Verify: Due}) {
		if verdict != Adopted {
			t.Fatalf("%s: %s", user, verdict)
		}
	}
	for user, reg := range h.rows(a.options.Registry) {
		if !reg.WrittenAt.IsZero() || reg.State != registry.Registered {
			t.Fatalf("%s: %+v", user, reg)
		}
	}
	h.registered(a.options.Registry, 700)
}

func TestSweepKeepsConnectionsBusyAndNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		h.box.reading = takes(time.Second)
		a := h.agent(connections(8))
		began := time.Now()
		swept(t, a, Aim{Listed: listed(users("a.test", 401)...), Verify: Due})
		// The first goes alone.
		if took := time.Since(began); took < 51*time.Second || took > 53*time.Second || h.box.most != 8 {
			t.Errorf("took %v, at most %d at once", took, h.box.most)
		}
	})
}

func TestSweepChangesNothingThatOthersHaveChangedSinceThePlan(t *testing.T) {
	h, a := prepared(t)
	p, _ := plan(t, a, Aim{Listed: listed("early", "fresh", "left"), Verify: None, Prune: true})
	other := h.agent()
	must(t, other, register("early"), Added)          // is as it should be by now
	must(t, other, registerAs("old", "3@4"), Changed) // is somebody's wish, whatever the list says
	must(t, other, unregister("other"), Removed)      // has been done
	one(t.Context(), other, unregister("left"))       // and this one is registered again
	asked := len(h.box.updated())
	results, untried, err := carriedOut(t, t.Context(), a, p, Sweeping{Rows: true})
	if untried != 0 || err != nil {
		t.Fatalf("%d were not tried: %v", untried, err)
	}
	h.box.holds(t, "old", "user=3@4")
	if row, found := h.row(a.options.Registry, "old"); !found || row.Wanted != registry.Present || row.Identity != "3@4" {
		t.Errorf("%+v", row)
	}
	if row, found := h.row(a.options.Registry, "early"); !found || row.Revision != 1 {
		t.Errorf("early: %+v", row)
	}
	if results["early"].Verdict != Unchanged || results["left"].Verdict != Added || results["other"].Verdict != Removed || results["due"].Verdict != Removed {
		t.Errorf("%+v", results)
	}
	if since := h.box.updated()[asked:]; slices.Contains(since, "other") {
		t.Errorf("asked about %q", since)
	}
}

func TestSweepEndsAtOnceWhenTheServerFailsForEverybody(t *testing.T) {
	h, _ := still(t)
	h.box.reading = fails(errMaster)
	a := h.agent(connections(8))
	results, untried, err := sweepAll(t, t.Context(), a, Aim{Listed: listed(users("a.test", 600)...), Verify: Due})
	if n := len(h.box.updated()); n != 1 {
		t.Errorf("%d logins", n)
	}
	if untried != 599 || len(results) != 1 || !errors.Is(err, ErrStopped) || !errors.Is(err, imapmeta.ErrLogin) {
		t.Errorf("%d were not tried, %d were, %v", untried, len(results), err)
	}
	// What should be is known nevertheless, and due at once.
	p, _ := plan(t, a, Aim{Listed: listed(users("a.test", 600)...), Verify: None})
	if p.Added != 600 {
		t.Errorf("%d are to be added", p.Added)
	}
	h.unclaimed(a.options.Registry)
	for user, reg := range h.rows(a.options.Registry) {
		if reg.Attempts != 0 || reg.NextAt.After(noon) {
			t.Errorf("%s: %+v", user, reg)
		}
	}
	h.box.reading = nil
	a = h.agent(connections(8))
	swept(t, a, Aim{Listed: listed(users("a.test", 600)...), Verify: None})
	h.registered(a.options.Registry, 600)
}

func TestSweepGoesOnWithOneServerWhenAnotherFails(t *testing.T) {
	h, _ := still(t)
	down := newMailbox()
	down.reading = fails(errMaster)
	a := h.agent(func(o *Options) {
		o.Servers = append(o.Servers, Server{Name: "down", Entries: down, Timeout: timeout})
		o.Route = func(user string) (string, bool) {
			if strings.HasSuffix(user, "@b.test") {
				return "down", true
			}
			return "main", true
		}
	})
	results, untried, err := sweepAll(t, t.Context(), a, Aim{Listed: listed(append(users("a.test", 50), users("b.test", 50)...)...), Verify: Due})
	if untried != 49 || !errors.Is(err, ErrStopped) || len(results) != 51 {
		t.Errorf("%d were not tried, %d were, %v", untried, len(results), err)
	}
	if n := len(h.box.updated()); n != 50 {
		t.Errorf("%d users of the other server were seen to", n)
	}
}

func TestSweepGoesOnAfterAUsersFault(t *testing.T) {
	h, _ := still(t)
	odd := map[string]error{"user3@a.test": errNologin, "user5@a.test": errRefused, "user7@a.test": errNoUser}
	h.box.reading = func(_ context.Context, user string) error { return odd[user] }
	a := h.agent(connections(4))
	results, untried, err := sweepAll(t, t.Context(), a, Aim{Listed: listed(append(users("a.test", 40), "bad\nname")...), Verify: Due})
	if untried != 0 || err != nil {
		t.Fatalf("%d were not tried: %v", untried, err)
	}
	want := map[string]Verdict{"user3@a.test": Failed, "user5@a.test": Deferred, "user7@a.test": Failed, "bad\nname": Failed}
	for user, r := range results {
		verdict, isOdd := want[user]
		if !isOdd {
			verdict = Added
		}
		if r.Verdict != verdict || isOdd == (r.Err == nil) {
			t.Errorf("%s: %s, %v", user, r.Verdict, r.Err)
		}
		if isOdd && user != "bad\nname" && (r.Registration == nil || r.Registration.Error == nil) {
			t.Errorf("%s: %+v", user, r.Registration)
		}
	}
	if len(results) != 41 {
		t.Errorf("%d results", len(results))
	}
	h.unclaimed(a.options.Registry)
}

func TestSweepPausesWhenHalfOfTheUsersFailAndGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		h.box.reading = fails(errNologin)
		var log journal
		a := h.agent(connections(4), logsTo(&log))
		began := time.Now()
		results, untried, err := sweepAll(t, t.Context(), a, Aim{Listed: listed(users("a.test", 1000)...), Verify: Due})
		if !errors.Is(err, ErrStrained) || untried+int64(len(results)) != 1000 {
			t.Errorf("%d were tried, %d not: %v", len(results), untried, err)
		}
		if n := len(results); n < strainWindow/2 || n > 120 {
			t.Errorf("%d were tried", n)
		}
		if took := time.Since(began); took < 2*time.Minute || took > 10*time.Minute {
			t.Errorf("took %v", took)
		}
		if lines := log.lines("half of the users fail"); len(lines) != maxStrains {
			t.Errorf("said %q", lines)
		}
		h.unclaimed(a.options.Registry)
	})
}

func TestSweepGoesOnWhenUsersFailNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		began := time.Now()
		h.box.reading = func(context.Context, string) error {
			if time.Since(began) < 20*time.Second {
				return &imapmeta.Error{Kind: imapmeta.Retry, Op: "setmetadata", Status: "NO", Code: "SERVERBUG", Text: "Internal error"}
			}
			return nil
		}
		a := h.agent(connections(4))
		results, untried, err := sweepAll(t, t.Context(), a, Aim{Listed: listed(users("a.test", 1000)...), Verify: Due})
		done := 0
		for _, r := range results {
			if r.Verdict == Added {
				done++
			}
		}
		if err != nil || untried != 0 || done < 960 {
			t.Errorf("%d of %d were added, %d not tried: %v", done, len(results), untried, err)
		}
	})
}

func TestSweepThatIsStoppedIsContinuedByTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		h.box.reading = takes(time.Second)
		names := users("a.test", 300)
		gone := users("gone.test", 30)
		for _, name := range append(slices.Clone(gone), names...) {
			one(t.Context(), h.agent(), Request{Action: Register, User: name, NoWait: true})
		}
		aim := func() Aim { return Aim{Listed: listed(names...), Verify: Due, Prune: true} }
		errStop := errors.New("stopped by the test")
		tried := 0
		for round := 0; ; round++ {
			a := h.agent(connections(4))
			ctx, cancel := context.WithCancelCause(t.Context())
			timer := time.AfterFunc(20500*time.Millisecond, func() { cancel(errStop) })
			results, untried, err := sweepAll(t, ctx, a, aim())
			timer.Stop()
			tried += len(results)
			h.unclaimed(a.options.Registry)
			if err == nil && untried == 0 {
				break
			}
			if err != errStop || round > 10 {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		a := h.agent()
		h.registered(a.options.Registry, 300)
		for _, name := range gone {
			h.box.holds(t, name, imapmeta.Absent)
		}
		// What was under way at each stop was finished.
		if n := len(h.box.updated()); n != 330 || tried != 330 {
			t.Errorf("%d Updates, %d results", n, tried)
		}
	})
}

func TestSweepThatIsStoppedDoesNotWaitForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		h.box.reading = func(ctx context.Context, user string) error {
			if user == "user0@a.test" {
				return nil
			}
			return hangs(ctx, user)
		}
		a := h.agent(connections(4))
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(10*time.Second, cancel)
		began := time.Now()
		results, untried, err := sweepAll(t, ctx, a, Aim{Listed: listed(users("a.test", 50)...), Verify: Due})
		if took := time.Since(began); took != 10*time.Second+sweepDrain || err != context.Canceled || untried+int64(len(results)) != 50 {
			t.Errorf("took %v; %d results, %d not tried: %v", took, len(results), untried, err)
		}
		h.unclaimed(a.options.Registry)
		for user, reg := range h.rows(a.options.Registry) {
			if done := user == "user0@a.test"; done != (reg.State == registry.Registered) || !done && (reg.Attempts != 0 || reg.NextAt.After(time.Now())) {
				t.Errorf("%+v", reg)
			}
		}
	})
}

func TestSweepsAtOnceShareTheWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		h.box.reading = takes(time.Second)
		names := users("a.test", 400)
		var all sync.WaitGroup
		began := time.Now()
		for i := range 3 {
			a := h.agent(connections(4), func(o *Options) { o.Owner = fmt.Sprint("host:", i) })
			all.Go(func() {
				results, untried, err := sweepAll(t, t.Context(), a, Aim{Listed: listed(names...), Verify: Due})
				if err != nil || untried != 0 {
					t.Errorf("%d were not tried: %v", untried, err)
				}
				for user, r := range results {
					if r.Err != nil || r.Verdict != Added && r.Verdict != Unchanged {
						t.Errorf("%s: %s, %v", user, r.Verdict, r.Err)
					}
				}
			})
		}
		all.Wait()
		h.registered(h.open(), 400)
		if n := len(h.box.updated()); n != 400 || h.box.overlap {
			t.Errorf("%d Updates, two of a user at once: %t", n, h.box.overlap)
		}
		if took := time.Since(began); took > 60*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

func TestSweepBesideAServiceSharesTheWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		h.box.reading = takes(time.Second)
		h.run(h.agent(connections(4), func(o *Options) { o.Owner = "host:2" }))
		synctest.Wait()
		swept(t, h.agent(connections(4)), Aim{Listed: listed(users("a.test", 200)...), Verify: Due})
		h.registered(h.open(), 200)
		if n := len(h.box.updated()); n != 200 || h.box.overlap {
			t.Errorf("%d Updates, two of a user at once: %t", n, h.box.overlap)
		}
	})
}

func TestSweepTakesOverFromOneThatWasKilled(t *testing.T) {
	h, _ := still(t)
	a := h.agent(func(o *Options) { o.Dead = func(owner string) bool { return owner == "host:9" } })
	names := users("a.test", 5)
	h.intend(a.options.Registry, names...)
	for _, name := range names {
		if _, _, err := a.options.Registry.Claim(t.Context(), registry.Key{User: name, Server: "main"}, "host:9#x.1", noon.Add(time.Minute), noon.Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	swept(t, a, Aim{Listed: listed(names...), Verify: All})
	h.registered(a.options.Registry, 5)
}

func TestSweepDoesNotWorkOnUsersWhoseClaimRunsOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		h.box.reading = takes(8 * time.Second)
		a := h.agent(connections(1), func(o *Options) { o.Servers[0].Timeout = MaxTimeout })
		swept(t, a, Aim{Listed: listed(users("a.test", 40)...), Verify: Due})
		h.registered(a.options.Registry, 40)
		if n := len(h.box.updated()); n != 40 {
			t.Errorf("%d Updates", n)
		}
	})
}

func TestSweepWithoutWaitingOnlyRecords(t *testing.T) {
	h, _ := still(t)
	a := h.agent()
	must(t, a, register("old"), Added)
	asked := len(h.box.updated())
	p, _ := plan(t, a, Aim{Listed: listed(users("a.test", 1200)...), Verify: All, Prune: true})
	results, untried, err := carriedOut(t, t.Context(), a, p, Sweeping{NoWait: true})
	if untried != 0 || err != nil || len(results) != 1201 || len(h.box.updated()) != asked {
		t.Errorf("%d results, %d not tried, %d Updates: %v", len(results), untried, len(h.box.updated()), err)
	}
	for user, reg := range h.rows(a.options.Registry) {
		if want := map[bool]registry.State{true: registry.Removing, false: registry.Pending}[user == "old"]; reg.State != want {
			t.Errorf("%s: %s", user, reg.State)
		}
	}
}

func TestWhoIsPrunedAndUnknownIsForgotten(t *testing.T) {
	h, _ := still(t)
	a := h.agent()
	names := users("a.test", 3)
	swept(t, a, Aim{Listed: listed(names...), Verify: Due})
	h.box.reading = func(_ context.Context, user string) error {
		if user == names[2] {
			return errNoUser
		}
		return nil
	}
	one(t.Context(), a, unregister(names[2])) // nobody but him says that he is gone for good
	if reg, _ := h.row(a.options.Registry, names[2]); reg.State != registry.Failed {
		t.Errorf("%+v", reg)
	}
	results, _, err := sweepAll(t, t.Context(), a, Aim{Listed: listed(names[:2]...), Verify: All})
	if err != nil || results[names[2]].Verdict != Failed {
		t.Errorf("without --prune: %+v, %v", results, err)
	}
	results, _, err = sweepAll(t, t.Context(), a, Aim{Listed: listed(names[:2]...), Verify: All, Prune: true})
	if err != nil || results[names[2]].Verdict != Removed || results[names[2]].Err != nil {
		t.Errorf("with --prune: %+v, %v", results, err)
	}
	h.registered(a.options.Registry, 2)
}
