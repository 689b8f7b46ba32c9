package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dovepush/imapmeta"
	"dovepush/registry"
)

// errUnreached is that nobody answers at the server's address.
var errUnreached = &imapmeta.Error{Kind: imapmeta.Retry, Op: "connect", Err: errors.New("connection refused"), Unreached: true}

// probes expects single Updates of different users, at intervals that grow up
// to a bound, and returns how many there were.
func probes(t *testing.T, list []look) int {
	t.Helper()
	users := make(map[string]bool)
	for _, l := range list {
		users[l.user] = true
	}
	if len(users) != len(list) {
		t.Errorf("%d different users in %d probes", len(users), len(list))
	}
	last := time.Duration(0)
	for i, gap := range gaps(list) {
		if gap < retryInitial || gap > maxProbe*3/2+time.Second || gap <= last && gap < maxProbe {
			t.Errorf("probe %d came %v after the one before, which came after %v", i+1, gap, last)
		}
		last = gap
	}
	return len(list)
}

func TestWrongMasterPasswordIsTriedOnceForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		h.box.reading = fails(errMaster)
		a, other := h.agent(connections(16), randomly, seldom), h.open()
		h.intend(other, users("a.test", manyDue)...)
		due := h.rows(other)
		time.Sleep(time.Second) // who is tried goes behind those who are due for longer
		began := time.Now()
		stop := h.run(a)
		time.Sleep(retryInitial - time.Second)
		if tried := h.box.updated(); len(tried) != 1 {
			t.Fatalf("%d tried before it was time for a probe", len(tried))
		}
		list := h.circuits(other)
		if len(list) != 1 || list[0].Server != "main" || list[0].Since.Before(began.Truncate(time.Millisecond)) || list[0].Since.After(began.Add(time.Second)) || list[0].Failures != 1 ||
			!list[0].ProbeAt.After(time.Now()) || list[0].Failure.Kind != "server" || !strings.Contains(list[0].Failure.Message, "Authentication failed.") {
			t.Errorf("circuits %+v", list)
		}

		time.Sleep(6 * time.Hour)
		stop()
		looks := h.box.looks()
		if n := probes(t, looks); n < 15 || n > 35 {
			t.Errorf("%d probes in 6 h", n)
		}
		for user, reg := range h.rows(other) {
			tried := slices.ContainsFunc(looks, func(l look) bool { return l.user == user })
			if reg.Attempts != 0 || reg.State != registry.Pending || reg.ClaimedBy != "" || (reg.Error != nil) != tried || !tried && !reg.NextAt.Equal(due[user].NextAt) {
				t.Fatalf("tried: %t; %+v", tried, reg)
			}
		}
		if again := h.circuits(other); len(again) != 1 || !again[0].Since.Equal(list[0].Since) || again[0].Failures != len(looks) {
			t.Errorf("circuits %+v after %d tries", again, len(looks))
		}
	})
}

func TestRightMasterPasswordLetsEverybodyGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		weather := h.weather(fails(errMaster))
		a := h.agent(connections(16))
		h.intend(a.options.Registry, users("a.test", 300)...)
		h.run(a)
		time.Sleep(5 * time.Minute)
		weather.now(nil)
		time.Sleep(5 * time.Minute)
		h.registered(a.options.Registry, 300)
		if list := h.circuits(a.options.Registry); len(list) != 0 || a.Loads()[0].CircuitOpen {
			t.Errorf("circuits %+v, loads %+v", list, a.Loads())
		}
	})
}

func TestServerThatBeginsToRefuseEverybodyStopsTheSweep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const all, good, most = 300, 100, 16
		h := newHouse(t, time.Now)
		var n atomic.Int64
		refuses := func(ctx context.Context, user string) error {
			i := n.Add(1)
			if err := takes(time.Second)(ctx, user); err != nil || i <= good {
				return err
			}
			return errMaster
		}
		weather := h.weather(refuses)
		a := h.agent(connections(most))
		h.intend(a.options.Registry, users("a.test", all)...)
		h.run(a)
		time.Sleep(25 * time.Second)
		tried := h.box.looks()
		if len(tried) <= good || len(tried) > good+most {
			t.Errorf("%d were tried; the server refused all after %d", len(tried), good)
		}
		for _, reg := range h.rows(a.options.Registry) {
			if reg.State != registry.Registered && (reg.Attempts != 0 || reg.NextAt.After(time.Now())) {
				t.Errorf("the failure counts against %+v", reg)
			}
		}
		time.Sleep(15 * time.Minute)
		probes(t, h.box.looks()[len(tried):])
		weather.now(nil)
		time.Sleep(maxProbe * 3 / 2)
		h.registered(a.options.Registry, all)
		if list := h.circuits(a.options.Registry); len(list) != 0 {
			t.Errorf("circuits %+v", list)
		}
	})
}

func TestThreeInARowWhoReachNoServerStopTheRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		weather := h.weather(fails(errUnreached))
		a := h.agent(connections(8), randomly)
		h.intend(a.options.Registry, users("a.test", 40)...)
		h.run(a)
		time.Sleep(retryInitial - time.Second)
		if n := len(h.box.updated()); n != 3 {
			t.Fatalf("%d were tried, want 3", n)
		}
		if list := h.circuits(a.options.Registry); len(list) != 1 || list[0].Failure.Kind != "retry" {
			t.Errorf("circuits %+v", list)
		}
		time.Sleep(30 * time.Minute)
		looks := h.box.looks()[2:]
		for i, gap := range gaps(looks) {
			if gap < retryInitial || gap > maxProbeElse*3/2+time.Second {
				t.Errorf("probe %d came %v after the one before", i+1, gap)
			}
		}
		if len(looks) < 20 {
			t.Errorf("%d probes in half an hour", len(looks))
		}
		counted := 0
		for _, reg := range h.rows(a.options.Registry) {
			counted += reg.Attempts
		}
		if counted > 2 {
			t.Errorf("%d attempts are counted against users", counted)
		}
		weather.now(nil)
		time.Sleep(2 * time.Minute)
		h.registered(a.options.Registry, 40)
	})
}

func TestWhatDoesNotStopTheRest(t *testing.T) {
	for name, row := range map[string]struct {
		fails func(nth int64) error
		n     int
	}{
		"two in a row who reach no server": {func(nth int64) error {
			if nth%3 == 0 {
				return nil
			}
			return errUnreached
		}, 30},
		"between them, who fail otherwise": {func(nth int64) error {
			if nth%3 == 0 {
				return errBusy
			}
			return errUnreached
		}, 30},
		"temporary failures": {func(int64) error { return errBusy }, 30},
		"users' own":         {func(int64) error { return errNoUser }, 30},
		"what is not known":  {func(int64) error { return errors.New("odd") }, 30},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t, time.Now)
				var n atomic.Int64
				h.box.reading = func(context.Context, string) error { return row.fails(n.Add(1)) }
				a := h.agent(connections(1), func(o *Options) { o.Random = func() float64 { return nearlyOne } })
				h.intend(a.options.Registry, users("a.test", row.n)...)
				h.run(a)
				time.Sleep(retryInitial - time.Second)
				if tried := h.box.updated(); len(tried) != row.n {
					t.Errorf("%d of %d were tried", len(tried), row.n)
				}
				if list := h.circuits(a.options.Registry); len(list) != 0 || a.Loads()[0].CircuitOpen {
					t.Errorf("circuits %+v, loads %+v", list, a.Loads())
				}
			})
		})
	}
}

// One whose mailbox fails as if the server did keeps the others waiting at
// most for a probe or two.
func TestOddUserDoesNotStarveTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		h.box.reading = func(_ context.Context, user string) error {
			if user == "odd" {
				return errMaster
			}
			return nil
		}
		a := h.agent(connections(4), randomly, seldom)
		names := users("a.test", 15)
		h.intend(a.options.Registry, "odd")
		h.intend(a.options.Registry, names...)
		h.run(a)
		time.Sleep(2 * verifyEvery)
		for _, user := range names {
			looks := of(h.box.looks(), user)
			if len(looks) < 2 {
				t.Errorf("%s: %d looks in 2 days", user, len(looks))
			}
			for _, gap := range gaps(looks) {
				if gap > verifyEvery+time.Hour {
					t.Errorf("%s was looked at after %v", user, gap)
				}
			}
		}
	})
}

func TestAfterAPauseOneGoesAlone(t *testing.T) {
	for name, row := range map[string]struct {
		pause time.Duration
		alone bool
	}{
		"short": {trusted / 2, false},
		"long":  {trusted + time.Minute, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t, time.Now)
				h.box.reading = takes(time.Second)
				a := h.agent(connections(4))
				h.intend(a.options.Registry, users("a.test", 4)...)
				h.run(a)
				time.Sleep(3 * time.Second)
				time.Sleep(row.pause)
				h.intend(a.options.Registry, users("b.test", 9)...)
				time.Sleep(10 * time.Second)
				looks := h.box.looks()[4:]
				if len(looks) != 9 {
					t.Fatalf("%d Updates, want 9", len(looks))
				}
				first, then := gaps(looks)[0], gaps(looks)[1]
				if alone := first >= time.Second; alone != row.alone || then >= time.Second {
					t.Errorf("the second came %v after the first, the third %v after the second", first, then)
				}
				h.registered(a.options.Registry, 13)
			})
		})
	}
}

func TestServerThatAnotherProcessFindsToWorkIsTriedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		weather := h.weather(fails(errMaster))
		a, cli := h.agent(connections(4)), h.agent()
		h.intend(a.options.Registry, users("a.test", 20)...)
		h.run(a)
		time.Sleep(8 * time.Minute) // the next probe is minutes away
		weather.now(nil)
		if wait, _ := a.sites["main"].circuit.probeIn(); wait < time.Minute || len(h.circuits(cli.options.Registry)) != 1 {
			t.Fatal("the circuit is not open")
		}
		// Whoever asks at the command line is tried whatever the registry says.
		must(t, cli, register("alice"), Added)
		if list := h.circuits(cli.options.Registry); len(list) != 0 {
			t.Errorf("circuits %+v", list)
		}
		time.Sleep(time.Second)
		h.registered(cli.options.Registry, 21)
	})
}

// Our password is wrong, somebody else's is right: what he does tells us to
// try, but not again and again.
func TestSuccessOfAnotherProcessBringsOneProbeForwardInAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		h.box.reading = fails(errMaster)
		a, theirs := h.agent(connections(4)), newMailbox()
		h.intend(a.options.Registry, users("a.test", 50)...)
		h.run(a)
		time.Sleep(100 * time.Millisecond) // between two polls
		const each, lasts = 10 * time.Second, 5 * time.Minute
		for i := range int(lasts / each) {
			time.Sleep(each)
			cli := h.agent(func(o *Options) { o.Servers[0].Entries = theirs })
			must(t, cli, register(fmt.Sprintf("u%d", i)), Added)
			if list := h.circuits(cli.options.Registry); len(list) != 0 {
				t.Fatalf("circuits %+v", list)
			}
		}
		looks := h.box.looks()
		if n, most := len(looks), 1+int(lasts/retryInitial); n < most-1 || n > most {
			t.Errorf("%d logins were refused in %v, want %d at most, and hardly fewer", n, lasts, most)
		}
		for i, gap := range gaps(looks)[1:] { // the first follows what opened the circuit
			if gap < retryInitial {
				t.Errorf("probe %d came %v after the one before", i+2, gap)
			}
		}
	})
}

func TestCommandLineTriesWhateverTheRegistrySays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		h.box.reading = fails(errMaster)
		for i := range 3 { // processes one after the other
			one(t.Context(), h.agent(), register("alice"))
			list := h.circuits(h.open())
			if n := len(h.box.updated()); n != i+1 || len(list) != 1 || list[0].Failures != n {
				t.Errorf("%d Updates, circuits %+v", n, list)
			}
		}
	})
}

// What one process has noted, another that finds the server to work takes back.
func TestNoteOfAnotherProcessGoesWhenTheServerWorks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		wrong := newMailbox() // the same server, asked with a wrong password
		wrong.reading = fails(errMaster)
		a, cli := h.agent(), h.agent(func(o *Options) { o.Servers[0].Entries = wrong })
		h.run(a)
		submit(t, a, register("alice"))
		time.Sleep(time.Minute + 100*time.Millisecond) // between two polls
		one(t.Context(), cli, register("bob"))
		if list := h.circuits(cli.options.Registry); len(list) != 1 {
			t.Fatalf("circuits %+v", list)
		}
		time.Sleep(retryInitial + time.Second) // Run finds bob due, and registers him
		h.registered(cli.options.Registry, 2)
		if list := h.circuits(cli.options.Registry); len(list) != 1 {
			t.Errorf("taken back before it is time to probe: %+v", list)
		}
		time.Sleep(time.Minute)
		if list := h.circuits(cli.options.Registry); len(list) != 0 {
			t.Errorf("circuits %+v", list)
		}
	})
}

func TestNoteStaysWhileTheServerHasNotWorkedSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		a, other := h.agent(), h.open()
		must(t, a, register("alice"), Added)
		time.Sleep(time.Second)
		now := time.Now()
		if err := other.OpenCircuit(t.Context(), registry.Circuit{Server: "main", Since: now, ProbeAt: now, Failures: 1}); err != nil {
			t.Fatal(err)
		}
		for _, noted := range []int{1, 0} {
			time.Sleep(time.Second)
			if err := a.tidy(t.Context()); err != nil {
				t.Error(err)
			}
			if list := h.circuits(other); len(list) != noted {
				t.Errorf("circuits %+v, want %d", list, noted)
			}
			must(t, a, verify("alice"), Unchanged)
		}
	})
}

// Dovecot's authentication fails for a while, and its password is wrong: who
// did not get past the login must not send everybody against it.
func TestLoginThatCameToNothingDoesNotProveTheServer(t *testing.T) {
	for name, earlier := range map[string]error{"at first": nil, "as a probe": errMaster} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t, time.Now)
				weather := h.weather(fails(errBusy))
				if earlier != nil {
					weather.now(fails(earlier))
				}
				a := h.agent(connections(16))
				h.intend(a.options.Registry, users("a.test", 300)...)
				h.run(a)
				time.Sleep(time.Second)
				if earlier != nil {
					weather.now(fails(errBusy))
					time.Sleep(4 * time.Minute) // probes
				}
				before := len(h.box.updated())
				weather.now(fails(errMaster))
				time.Sleep(10 * time.Minute)
				refused := len(h.box.updated()) - before
				if most, _ := h.box.atOnce(); most > 1 || refused > 10 {
					t.Errorf("%d at once, %d refused", most, refused)
				}
				if list := h.circuits(a.options.Registry); len(list) != 1 || list[0].Failure.Kind != "server" {
					t.Errorf("circuits %+v", list)
				}
				weather.now(nil)
				time.Sleep(2 * maxProbe)
				h.registered(a.options.Registry, 300)
			})
		})
	}
}

// Dovecot's penalty for refused logins may last longer than we wait for one.
func TestThreeInARowWithoutAnAnswerToTheLoginStopTheRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		silence := &imapmeta.Error{Kind: imapmeta.Retry, Op: "login", Err: fmt.Errorf("no answer: %w", context.DeadlineExceeded)}
		weather := h.weather(fails(silence))
		a := h.agent(connections(16))
		h.intend(a.options.Registry, users("a.test", 100)...)
		h.run(a)
		time.Sleep(10 * time.Minute)
		most, _ := h.box.atOnce()
		if n := len(h.box.updated()); n < 5 || n > 20 || most > 1 {
			t.Errorf("%d logins in 10 minutes, %d at once", n, most)
		}
		weather.now(nil)
		time.Sleep(5 * time.Minute)
		h.registered(a.options.Registry, 100)
	})
}

// Others get through between his failures: they are his own after all, and
// must not stop everybody again and again.
func TestUserWhoFailsLikeAServerIsTriedLessAndLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		h.box.reading = func(_ context.Context, user string) error {
			if user == "odd" {
				return errMaster
			}
			return nil
		}
		a := h.agent(connections(4))
		h.intend(a.options.Registry, "odd")
		h.run(a)
		for range 3 * 60 {
			submit(t, a, register("good"))
			time.Sleep(time.Minute)
		}
		if n := len(of(h.box.looks(), "odd")); n < 3 || n > 20 {
			t.Errorf("he was tried %d times in 3 hours", n)
		}
	})
}

func TestNoteOfAServerThatHasGoneFromTheSettingsGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		a := h.agent(seldom)
		failed := registry.Circuit{Server: "old", Since: h.now(), ProbeAt: h.now().Add(time.Minute), Failures: 1}
		if err := a.options.Registry.OpenCircuit(t.Context(), failed); err != nil {
			t.Fatal(err)
		}
		h.run(a)
		time.Sleep(time.Hour) // it may be another service's
		if list := h.circuits(a.options.Registry); len(list) != 1 {
			t.Errorf("after an hour: %+v", list)
		}
		time.Sleep(forgotten)
		if list := h.circuits(a.options.Registry); len(list) != 0 {
			t.Errorf("after a day: %+v", list)
		}
	})
}
