package agent

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dovepush/imapmeta"
	"dovepush/registry"
)

func TestHungServerHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		b := newMailbox()
		b.reading = hangs
		a := h.agent(twoServers(b), func(o *Options) { o.Servers[0].MaxConnections, o.Servers[1].MaxConnections = 4, 4 })
		h.run(a)
		for _, names := range [][]string{users("b.test", 20), users("a.test", 20)} {
			for _, user := range names {
				submit(t, a, register(user))
			}
			time.Sleep(time.Second)
		}
		for user, reg := range h.rows(a.options.Registry) {
			if hung := strings.HasSuffix(user, "@b.test"); (reg.State == registry.Registered) == hung {
				t.Errorf("%s: %+v", user, reg)
			}
		}
		if n := b.underWay(); n != 1 {
			t.Errorf("%d Updates on the hung server", n)
		}
	})
}

func TestRunUsesNoMoreThanMaxConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		h.box.reading = takes(time.Second)
		a := h.agent(connections(5))
		h.intend(a.options.Registry, users("a.test", 41)...)
		h.run(a)
		time.Sleep(1500 * time.Millisecond)
		if l := a.Loads()[0]; l.InUse != 5 || l.MaxConnections != 5 || l.CircuitOpen {
			t.Errorf("loads %+v", l)
		}
		time.Sleep(8 * time.Second) // the first alone, then 40 by fives
		h.registered(a.options.Registry, 41)
		if most, _ := h.box.atOnce(); most != 5 {
			t.Errorf("%d Updates at once", most)
		}
		if l := a.Loads()[0]; l.InUse != 0 {
			t.Errorf("loads %+v", l)
		}
	})
}

// Who waits for his turn holds no claim: it would run out, and somebody else
// could have worked meanwhile.
func TestRunSpacesLoginsAndClaimsNobodyWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		a, other := h.agent(connections(8), func(o *Options) { o.Servers[0].LoginsPerSecond = 2 }), h.open()
		h.box.reading = func(ctx context.Context, user string) error {
			err := takes(700*time.Millisecond)(ctx, user)
			claimed := 0
			for _, reg := range h.rows(other) {
				if reg.ClaimedBy != "" {
					claimed++
				}
			}
			if n := h.box.underWay(); claimed != n {
				t.Errorf("%d rows are claimed, %d Updates under way", claimed, n)
			}
			return err
		}
		h.intend(other, users("a.test", 20)...)
		h.run(a)
		time.Sleep(time.Minute)
		looks := h.box.looks()
		for i, l := range looks {
			// The second waits until the first, which goes alone, is back. The
			// limiter counts in float64.
			turn := time.Duration(i) * time.Second / 2
			if since := l.at.Sub(looks[0].at); since < turn-time.Microsecond || since > turn+time.Second/2 {
				t.Errorf("Update %d began %v after the first", i+1, since)
			}
		}
		if len(looks) != 20 {
			t.Errorf("%d Updates", len(looks))
		}
		h.registered(other, 20)
	})
}

// seen is an exchange that an Observer was told of.
type seen struct {
	server  string
	verdict Verdict
	kind    imapmeta.Kind
	took    time.Duration
}

// observer writes down what it is told.
type observer struct {
	mu      sync.Mutex
	updates []seen
	failed  []string
}

func (o *observer) Updated(server string, verdict Verdict, kind imapmeta.Kind, took time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.updates = append(o.updates, seen{server, verdict, kind, took})
}

func (o *observer) RegistryFailed(op string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.failed = append(o.failed, op)
}

// told returns what it was told since it was last asked.
func (o *observer) told() (updates []seen, failed []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	updates, failed = o.updates, o.failed
	o.updates, o.failed = nil, nil
	return updates, failed
}

func TestObserverIsToldOfEachExchange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		weather := h.weather(nil)
		told := new(observer)
		a := h.agent(func(o *Options) { o.Observe = told })
		h.run(a)
		for _, row := range []struct {
			request Request
			fails   error
			want    seen
		}{
			{register("alice"), nil, seen{verdict: Added}},
			{verify("alice"), nil, seen{verdict: Unchanged}},
			{verify("alice"), errBusy, seen{verdict: Deferred, kind: imapmeta.Retry}},
			{verify("alice"), errNologin, seen{verdict: Failed, kind: imapmeta.User}},
			{unregister("alice"), nil, seen{verdict: Removed}},
			{register("bob"), errMaster, seen{verdict: Deferred, kind: imapmeta.Server}},
		} {
			weather.now(func(ctx context.Context, user string) error {
				if err := takes(3*time.Second)(ctx, user); err != nil {
					return err
				}
				return row.fails
			})
			submit(t, a, row.request)
			time.Sleep(10 * time.Second)
			row.want.server, row.want.took = "main", 3*time.Second
			if got, failed := told.told(); !slices.Equal(got, []seen{row.want}) || len(failed) != 0 {
				t.Errorf("%+v: told %v, %v; want %v", row.request, got, failed, row.want)
			}
		}
	})
}
