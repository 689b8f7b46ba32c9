package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dovepush/imapmeta"
	"dovepush/registry"
)

// run has the agent run until stop is called, or the test ends.
func (h *house) run(a *Agent) (stop func()) {
	h.t.Helper()
	ctx, cancel := context.WithCancelCause(context.Background())
	errStop := errors.New("stopped by the test")
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel(errStop)
		if err := <-ended; err != errStop {
			h.t.Errorf("Run returned %v", err)
		}
	})
	h.t.Cleanup(stop)
	return stop
}

// intend makes users' entries due, as another process does.
func (h *house) intend(r *registry.Registry, names ...string) {
	h.t.Helper()
	for batch := range slices.Chunk(names, maxBatch) {
		var intents []registry.Intent
		for _, name := range batch {
			intents = append(intents, registry.Intent{Key: registry.Key{User: name, Server: "main"}, Value: "user=" + name, Wanted: registry.Present})
		}
		if err := r.Intend(context.Background(), intents...); err != nil {
			h.t.Fatal(err)
		}
	}
}

// rows returns all rows, by user.
func (h *house) rows(r *registry.Registry) map[string]registry.Registration {
	h.t.Helper()
	all := make(map[string]registry.Registration)
	for reg, err := range r.List(context.Background(), registry.Filter{}) {
		if err != nil {
			h.t.Fatal(err)
		}
		all[reg.User] = reg
	}
	return all
}

// registered expects that so many users are registered and unclaimed, and no others are known.
func (h *house) registered(r *registry.Registry, n int) {
	h.t.Helper()
	rows := h.rows(r)
	for user, reg := range rows {
		if reg.State != registry.Registered || reg.Error != nil || reg.ClaimedBy != "" {
			h.t.Errorf("%s: %+v", user, reg)
		}
		h.box.holds(h.t, user, imapmeta.Value(reg.Value))
	}
	if len(rows) != n {
		h.t.Errorf("%d rows, want %d", len(rows), n)
	}
}

// circuits returns what the registry says of servers that fail for everybody.
func (h *house) circuits(r *registry.Registry) []registry.Circuit {
	h.t.Helper()
	list, err := r.Circuits(context.Background())
	if err != nil {
		h.t.Fatal(err)
	}
	return list
}

// submit submits a request that must be accepted.
func submit(t testing.TB, a *Agent, r Request) registry.Registration {
	t.Helper()
	reg, err := a.Submit(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return reg
}

// look is an Update that has begun.
type look struct {
	user string
	at   time.Time
}

// looks returns the Updates that have begun, in order.
func (m *mailbox) looks() (list []look) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, user := range m.updates {
		list = append(list, look{user, m.begun[i]})
	}
	return list
}

// gaps returns how long after one another they began.
func gaps(list []look) (gaps []time.Duration) {
	for i := 1; i < len(list); i++ {
		gaps = append(gaps, list[i].at.Sub(list[i-1].at))
	}
	return gaps
}

// of returns those of one user.
func of(list []look, user string) []look {
	return slices.DeleteFunc(slices.Clone(list), func(l look) bool { return l.user != user })
}

// atOnce returns how many Updates have been under way at once, and whether any
// of one user overlapped.
func (m *mailbox) atOnce() (most int, overlap bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.most, m.overlap
}

// says has a mailbox do as the hook does, until told otherwise, while it is in use.
type says struct {
	hook atomic.Pointer[func(context.Context, string) error]
}

func (s *says) now(hook func(context.Context, string) error) { s.hook.Store(&hook) }

// weather makes what the house's server says changeable while it is in use.
func (h *house) weather(hook func(context.Context, string) error) *says {
	s := new(says)
	s.now(hook)
	h.box.reading = func(ctx context.Context, user string) error { return call(*s.hook.Load(), ctx, user) }
	return s
}

// errBusy is a failure of kind retry of a server that was reached.
var errBusy = &imapmeta.Error{Kind: imapmeta.Retry, Op: "login", Status: "NO", Code: "UNAVAILABLE", Text: "Temporary failure"}

// connections bounds those of the server "main".
func connections(n int) func(*Options) {
	return func(o *Options) { o.Servers[0].MaxConnections = n }
}

// randomly spreads what is spread.
func randomly(o *Options) { o.Random = rand.Float64 }

// seldom polls so that days pass quickly.
func seldom(o *Options) { o.Poll = 10 * time.Minute }

func TestRunWorksOffWhatIsDueAndThenSleeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		var turns atomic.Int64 // each turn of a loop looks at the clock
		a := h.agent(connections(4), func(o *Options) {
			o.Poll = time.Minute
			o.Now = func() time.Time { turns.Add(1); return time.Now() }
		})
		h.intend(a.options.Registry, users("a.test", 30)...)
		h.run(a)
		time.Sleep(time.Second)
		h.registered(a.options.Registry, 30)

		turns.Store(0)
		time.Sleep(4 * time.Hour)
		// The loops turn once a minute, for the poll and maxSleep.
		if n := turns.Load(); n > 4*60*10 {
			t.Errorf("looked at the clock %d times in 4 h", n)
		}
		if n := len(h.box.updated()); n != 30 {
			t.Errorf("%d Updates of 30", n)
		}
	})
}

func TestRunVerifiesEachInTimeAndApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		const every = 2 * time.Hour
		a := h.agent(connections(4), randomly, seldom, func(o *Options) { o.VerifyEvery = every })
		names := users("a.test", 40)
		h.intend(a.options.Registry, names...)
		h.run(a)
		const times = 4
		time.Sleep(times * every)

		looks := h.box.looks()
		for _, user := range names {
			mine := of(looks, user)
			for i, gap := range gaps(mine) {
				if gap < every*3/4-time.Millisecond || gap > every+time.Second {
					t.Errorf("%s: look %d came %v after the one before", user, i+1, gap)
				}
			}
			if len(mine) < times {
				t.Errorf("%s: %d looks in %v", user, len(mine), times*every)
			}
		}
		for i, l := range looks {
			together := slices.IndexFunc(looks[i:], func(other look) bool { return other.at.Sub(l.at) > time.Minute })
			if l.at.Sub(looks[0].at) > time.Hour && together > len(names)/3 {
				t.Fatalf("%d of %d users are looked at within a minute", together, len(names))
			}
		}
		h.registered(a.options.Registry, len(names))
	})
}

func TestRunMendsDriftAtTheNextLook(t *testing.T) {
	for name, row := range map[string]struct {
		found, left imapmeta.Value
		state       registry.State
	}{
		"absent":  {imapmeta.Absent, "user=alice", registry.Registered},
		"foreign": {"user=somebody", "user=somebody", registry.Conflict},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t, time.Now)
				a := h.agent(seldom, func(o *Options) { o.VerifyEvery = 2 * time.Hour })
				h.run(a)
				submit(t, a, register("alice"))
				time.Sleep(time.Hour)
				h.box.holds(t, "alice", "user=alice")
				h.box.set("alice", row.found)
				time.Sleep(2 * time.Hour)
				h.box.holds(t, "alice", row.left)
				if reg, _ := h.row(a.options.Registry, "alice"); reg.State != row.state {
					t.Errorf("row %+v", reg)
				}
			})
		})
	}
}

func TestRunUnregistersAtTheTimeOfExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		a := h.agent(seldom)
		h.run(a)
		submit(t, a, Request{User: "alice", Expires: time.Hour})
		submit(t, a, Request{User: "bob", Expires: time.Hour})
		time.Sleep(59 * time.Minute)
		submit(t, a, Request{User: "bob", Expires: time.Hour}) // renewed
		time.Sleep(time.Minute - time.Second)
		h.box.holds(t, "alice", "user=alice")
		time.Sleep(2 * time.Second)
		h.box.holds(t, "alice", imapmeta.Absent)
		h.box.holds(t, "bob", "user=bob")
		if _, found := h.row(a.options.Registry, "alice"); found {
			t.Error("alice still has a row")
		}
		time.Sleep(59 * time.Minute)
		h.box.holds(t, "bob", imapmeta.Absent)
	})
}

func TestRunRetriesWithinBounds(t *testing.T) {
	doubling := []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 16 * time.Minute,
		32 * time.Minute, 64 * time.Minute, 128 * time.Minute, 256 * time.Minute, retryMax, retryMax}
	for random, want := range map[float64][]time.Duration{
		0:         slices.Repeat([]time.Duration{retryInitial}, len(doubling)),
		nearlyOne: doubling,
	} {
		t.Run(fmt.Sprintf("random %.0f", random), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t, time.Now)
				h.box.reading = fails(errBusy)
				a := h.agent(seldom, func(o *Options) { o.Random = func() float64 { return random } })
				h.run(a)
				submit(t, a, register("alice"))
				for _, wait := range want {
					time.Sleep(wait)
				}
				time.Sleep(time.Second)
				got := gaps(h.box.looks())
				if len(got) < len(want) {
					t.Fatalf("tried again after %v", got)
				}
				for i, want := range want {
					// What is stored is cut to milliseconds.
					if got[i] < want-time.Millisecond || got[i] > want+100*time.Millisecond {
						t.Errorf("wait %d was %v, want %v", i+1, got[i], want)
					}
				}
			})
		})
	}
}

// killed leaves a registration that a process had claimed when it was killed.
func (h *house) killed(r *registry.Registry, process, user string) {
	h.t.Helper()
	h.intend(r, user)
	until := h.now().Add(timeout + claimSlack)
	_, outcome, err := r.Claim(context.Background(), registry.Key{User: user, Server: "main"}, process+"#x.1", until, until)
	if err != nil || outcome != registry.Taken {
		h.t.Fatalf("%v, %v", outcome, err)
	}
}

func TestRunTakesOverFromKilledProcesses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		a := h.agent(func(o *Options) { o.Dead = func(process string) bool { return process == "host:7" } })
		other := h.open()
		h.killed(other, "host:7", "alice")
		began := time.Now()
		h.run(a)
		synctest.Wait()
		if looks := h.box.looks(); len(looks) != 1 || looks[0].at.After(began.Add(time.Second)) {
			t.Errorf("at start: %v", looks)
		}
		h.box.holds(t, "alice", "user=alice")

		time.Sleep(time.Minute + 100*time.Millisecond) // between two polls
		killed := time.Now()
		h.killed(other, "host:7", "bob")
		time.Sleep(time.Minute)
		if looks := of(h.box.looks(), "bob"); len(looks) != 1 || looks[0].at.After(killed.Add(31*time.Second)) {
			t.Errorf("killed at %v, looked at: %v", killed, looks)
		}
		h.registered(other, 2)
	})
}

// A claim ends unseen: nothing changes in the registry then.
func TestRunNoticesThatAClaimHasRunOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		a, other := h.agent(), h.open()
		h.killed(other, "elsewhere:7", "alice")
		killed := time.Now()
		h.run(a)
		time.Sleep(10 * time.Minute)
		if looks := h.box.looks(); len(looks) == 0 || looks[0].at.Before(killed.Add(timeout+claimSlack)) || looks[0].at.After(killed.Add(timeout+claimSlack+maxSleep+time.Second)) {
			t.Errorf("killed at %v with a claim for %v, looked at: %v", killed, timeout+claimSlack, looks)
		}
	})
}

func TestTwoRunsAndACommandLineShareTheRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		h.box.reading = takes(100 * time.Millisecond)
		names := users("a.test", 60)
		a, b, cli := h.agent(connections(4)), h.agent(connections(4)), h.agent(connections(4))
		h.intend(cli.options.Registry, names...)
		h.run(a)
		h.run(b)
		for _, result := range each(t.Context(), cli, 4, registerAll(names[20:40]...)...) {
			if result.Err != nil {
				t.Error(result.Err)
			}
		}
		time.Sleep(time.Minute)
		looks := h.box.looks()
		for i, user := range names {
			most := 1
			if i >= 20 && i < 40 {
				most = 2 // asked for twice
			}
			if n := len(of(looks, user)); n < 1 || n > most {
				t.Errorf("%s: %d Updates", user, n)
			}
		}
		if most, overlap := h.box.atOnce(); overlap || most < 8 {
			t.Errorf("overlapped: %t; %d at once", overlap, most)
		}
		h.registered(cli.options.Registry, len(names))
	})
}

// The service does what the command line has just written down, and waits for.
func TestCommandLineDoesNotRepeatWhatRunHasDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		h.box.reading = func(ctx context.Context, user string) error {
			if user == "slow" {
				return takes(5*time.Second)(ctx, user)
			}
			return nil
		}
		service, cli := h.agent(connections(4)), h.agent(connections(1))
		h.run(service)
		time.Sleep(1100 * time.Millisecond)               // between two polls
		slow := begin(t.Context(), cli, register("slow")) // takes the only connection
		time.Sleep(time.Second)
		must(t, cli, register("alice"), Added)
		if result := <-slow; result.Verdict != Added {
			t.Errorf("%+v", result)
		}
		if tried := h.box.updated(); !slices.Equal(tried, []string{"slow", "alice"}) {
			t.Errorf("Updates of %q", tried)
		}
	})
}

// A server that was renamed in the settings leaves its users behind.
func TestRunTellsOfUsersWhoseServerIsNotConfigured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		log := new(journal)
		a := h.agent(logsTo(log))
		other := registry.Key{User: "alice", Server: "old"}
		if err := a.options.Registry.Intend(t.Context(), registry.Intent{Key: other, Value: "user=alice", Wanted: registry.Present}); err != nil {
			t.Fatal(err)
		}
		stop := h.run(a)
		time.Sleep(time.Second)
		stop()
		if lines := log.lines("not in the settings"); len(lines) != 1 || !strings.Contains(lines[0], "server=old\n") {
			t.Errorf("%q", lines)
		}
	})
}
