package metrics

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dovepush/registry"
)

const (
	registered = `dovepush_registrations{server="main",state="registered"}`
	countedAt  = `dovepush_registrations_counted_timestamp_seconds`
)

// step is what happens before a scrape, and how often has been counted after.
type step struct {
	after   time.Duration
	changed bool
	fails   bool
	want    int64
}

func TestRegistrationsAreCountedRarely(t *testing.T) {
	for name, tc := range map[string]struct {
		takes time.Duration
		steps []step
	}{
		"not unless they have changed": {0, []step{{want: 1}, {after: 24 * time.Hour, want: 1}, {changed: true, want: 2}, {want: 2}}},
		"at once if it is cheap":       {cheap - 1, []step{{want: 1}, {changed: true, want: 2}, {changed: true, want: 3}}},
		"not twice in a minute if it is dear": {cheap, []step{
			{want: 1}, {changed: true, want: 1}, {after: countPause - cheap - 1, changed: true, want: 1}, {after: 1, want: 2},
		}},
		"a minute after a failure that took long": {cheap, []step{
			{fails: true, want: 1}, {after: countPause - cheap - 1, want: 1}, {after: 1, want: 2},
		}},
		"at once after a quick failure":    {0, []step{{fails: true, want: 1}, {want: 2}, {want: 2}}},
		"a failure does not hide a change": {0, []step{{want: 1}, {changed: true, fails: true, want: 2}, {want: 3}}},
		"although the clock was set back":  {cheap, []step{{want: 1}, {after: -time.Hour, changed: true, want: 2}}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var version int64
				var back time.Duration
				c := &counter{takes: tc.takes}
				m := New(still(func(o *Options) {
					o.Counts = c.counts
					o.Changed = func(context.Context) (int64, error) { return version, nil }
					o.Now = func() time.Time { return time.Now().Add(-back) }
				}))
				for i, s := range tc.steps {
					if s.after < 0 {
						back -= s.after
					} else {
						time.Sleep(s.after)
					}
					if s.changed {
						version++
					}
					c.fails.Store(s.fails)
					e := scrape(t, m)
					if got := c.calls.Load(); got != s.want {
						t.Errorf("step %d: counted %d times, want %d", i, got, s.want)
					}
					if found := float64(c.found.Load()); e[registered] != found {
						t.Errorf("step %d: shows %v, found %v", i, e[registered], found)
					}
				}
			})
		})
	}
}

func TestTheTimeOfTheCountIsWhenItWasLastRight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var version int64
		c := &counter{takes: time.Second}
		c.fails.Store(true)
		m := New(still(func(o *Options) {
			o.Counts = c.counts
			o.Changed = func(context.Context) (int64, error) { return version, nil }
			o.Now = time.Now
		}))
		at := func() float64 { return float64(time.Now().Unix()) }

		e := scrape(t, m)
		e.shows(t, exposition{countedAt: 0})
		e.lacks(t, "dovepush_registrations")

		c.fails.Store(false)
		time.Sleep(countPause)
		counted := at()
		scrape(t, m).shows(t, exposition{countedAt: counted, registered: 2})

		time.Sleep(time.Hour) // nothing has changed, so the count is right still
		seen := at()
		scrape(t, m).shows(t, exposition{countedAt: seen, registered: 2})

		version++
		c.fails.Store(true)
		time.Sleep(time.Hour)
		scrape(t, m).shows(t, exposition{countedAt: seen, registered: 2})
	})
}

// hangs is what a registry does whose disk is gone.
func hangs(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func hanging(o *Options) {
	o.Counts = func(ctx context.Context) ([]registry.Count, error) { return nil, hangs(ctx) }
	o.Changed = func(ctx context.Context) (int64, error) { return 0, hangs(ctx) }
	o.Backlog = func(ctx context.Context) ([]Backlog, error) { return nil, hangs(ctx) }
}

// others are shown whatever the registry does.
var others = exposition{
	`dovepush_circuit_open{server="main"}`:                              0,
	`dovepush_connections_max{server="main"}`:                           16,
	`dovepush_updates_total{kind="none",outcome="added",server="main"}`: 0,
}

func TestARegistryThatFailsCostsItsOwnMetrics(t *testing.T) {
	fails := map[string]func(*Options){
		"backlog": func(o *Options) { o.Backlog = func(context.Context) ([]Backlog, error) { return nil, errDisk } },
		"changed": func(o *Options) { o.Changed = func(context.Context) (int64, error) { return 0, errDisk } },
		"count":   func(o *Options) { o.Counts = func(context.Context) ([]registry.Count, error) { return nil, errDisk } },
	}
	for op, fail := range fails {
		t.Run(op, func(t *testing.T) {
			e := parse(t, fetch(t, serve(t, New(still(fail)))))
			e.shows(t, others)
			for other := range fails {
				want := 0.0
				if other == op {
					want = 1
				}
				e.shows(t, exposition{`dovepush_registry_errors_total{op="` + other + `"}`: want})
			}
			if op == "backlog" {
				e.lacks(t, "dovepush_due", "dovepush_retrying", "dovepush_oldest_overdue_seconds")
				e.shows(t, exposition{registered: 0})
			} else {
				e.lacks(t, "dovepush_registrations")
				e.shows(t, exposition{countedAt: 0, `dovepush_due{server="main"}`: 0})
			}
		})
	}
}

func TestARegistryThatHangsDoesNotHangTheScrape(t *testing.T) {
	for name, hang := range map[string]func(*Options){
		"everything": hanging,
		"the count": func(o *Options) {
			o.Counts = func(ctx context.Context) ([]registry.Count, error) { return nil, hangs(ctx) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := New(still(hang, func(o *Options) { o.Now = time.Now }))
				began := time.Now()
				e := scrape(t, m)
				if took := time.Since(began); took > readTime {
					t.Errorf("took %s", took)
				}
				e.shows(t, others)
				e.shows(t, exposition{countedAt: 0})
				if e[`dovepush_registry_errors_total{op="count"}`]+e[`dovepush_registry_errors_total{op="backlog"}`] != 1 {
					t.Error("not counted")
				}
			})
		})
	}
}

func TestScrapesThatComeTogetherWhileTheRegistryHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(still(hanging, func(o *Options) { o.Now = time.Now }))
		began := time.Now()
		codes := make(chan int, maxScrapes+1)
		var all sync.WaitGroup
		for range maxScrapes {
			all.Go(func() {
				w := answer(m)
				parse(t, w.Body.String()).shows(t, others)
				codes <- w.Code
			})
		}
		synctest.Wait() // all are under way
		if w := answer(m); w.Code != http.StatusServiceUnavailable || time.Since(began) != 0 {
			t.Errorf("one too many: status %d after %s", w.Code, time.Since(began))
		}
		all.Wait()
		close(codes)
		for code := range codes {
			if code != http.StatusOK {
				t.Errorf("status %d", code)
			}
		}
		if took := time.Since(began); took > readTime {
			t.Errorf("took %s", took)
		}
	})
}

func TestAFunctionThatHeedsNothingCostsItsOwnScrape(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		m := New(still(func(o *Options) {
			o.Backlog = func(context.Context) ([]Backlog, error) { <-release; return nil, nil }
		}))
		began := time.Now()
		var first sync.WaitGroup
		defer first.Wait()
		defer close(release)
		first.Go(func() {
			if w := answer(m); w.Code != http.StatusServiceUnavailable || time.Since(began) != answerTime {
				t.Errorf("status %d after %s", w.Code, time.Since(began))
			}
		})
		synctest.Wait()
		e := scrape(t, m) // this one does without the registry
		e.shows(t, others)
		e.lacks(t, "dovepush_due", "dovepush_registrations", countedAt)
		if took := time.Since(began); took != readTime {
			t.Errorf("took %s", took)
		}
		time.Sleep(answerTime - readTime)
	})
}

func TestAPanicCostsOneScrape(t *testing.T) {
	var broken atomic.Bool
	broken.Store(true)
	m := New(still(func(o *Options) {
		o.Backlog = func(context.Context) ([]Backlog, error) {
			if broken.Load() {
				panic("a mistake")
			}
			return nil, nil
		}
	}))
	scrape(t, m).lacks(t, "dovepush_registrations")
	broken.Store(false)
	scrape(t, m).shows(t, exposition{registered: 0})
}

func TestTheLogSaysOnceWhyTheRegistryCannotBeRead(t *testing.T) {
	var log bytes.Buffer
	var broken atomic.Bool
	m := New(still(func(o *Options) {
		o.Log = slog.New(slog.NewTextHandler(&log, nil))
		o.Backlog = func(context.Context) ([]Backlog, error) {
			if broken.Load() {
				return nil, errDisk
			}
			return nil, nil
		}
	}))
	for i, fails := range []bool{true, true, false, true, true} {
		broken.Store(fails)
		scrape(t, m)
		want := 1
		if i > 2 {
			want = 2
		}
		if got := strings.Count(log.String(), "op=backlog err=\""+errDisk.Error()+"\""); got != want {
			t.Errorf("scrape %d: said %d times, want %d:\n%s", i, got, want, &log)
		}
	}
}

func TestAgainstARealRegistry(t *testing.T) {
	now := noon
	r, err := registry.Open(t.Context(), filepath.Join(t.TempDir(), "registry.db"), func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	m := New(still(func(o *Options) {
		o.Counts, o.Changed, o.Backlog = r.Counts, r.Version, r.Backlogs
		o.Now = func() time.Time { return now }
	}))
	url := serve(t, m)
	look := func(want exposition) exposition {
		t.Helper()
		e := parse(t, fetch(t, url))
		e.shows(t, want)
		return e
	}
	intend := func(intents ...registry.Intent) {
		t.Helper()
		if err := r.Intend(t.Context(), intents...); err != nil {
			t.Fatal(err)
		}
	}

	look(exposition{registered: 0, `dovepush_due{server="main"}`: 0})

	alice, bob := registry.Key{User: "alice", Server: "main"}, registry.Key{User: "bob", Server: "main"}
	intend(registry.Intent{Key: alice, Value: "user=alice", Wanted: registry.Present}, registry.Intent{Key: bob, Value: "user=bob", Wanted: registry.Present})
	now = now.Add(30 * time.Second)
	e := look(exposition{
		`dovepush_registrations{server="main",state="pending"}`: 2,
		`dovepush_due{server="main"}`:                           2,
		`dovepush_oldest_overdue_seconds{server="main"}`:        30,
		`dovepush_retrying{server="main"}`:                      0,
	})
	for series := range e {
		if strings.Contains(series, "alice") || strings.Contains(series, "bob") {
			t.Errorf("a user's name: %s", series)
		}
	}

	reg, claimed, err := r.Claim(t.Context(), alice, "agent", now.Add(time.Minute), now.Add(time.Minute))
	if err != nil || claimed != registry.Taken {
		t.Fatalf("claim: %v, %v", claimed, err)
	}
	if _, err := r.Record(t.Context(), "agent", registry.Result{Key: alice, Revision: reg.Revision, State: registry.Pending, Unsettled: true,
		NextAt: now.Add(time.Hour), Failure: &registry.Failure{Kind: "retry", Message: "connection refused"}}); err != nil {
		t.Fatal(err)
	}
	look(exposition{
		`dovepush_registrations{server="main",state="pending"}`: 2,
		`dovepush_due{server="main"}`:                           1,
		`dovepush_retrying{server="main"}`:                      1,
	})

	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	e = look(others)
	look(exposition{`dovepush_registry_errors_total{op="backlog"}`: 2, `dovepush_registry_errors_total{op="changed"}`: 2})
	e.lacks(t, "dovepush_due", "dovepush_retrying", "dovepush_oldest_overdue_seconds")
	e.shows(t, exposition{`dovepush_registrations{server="main",state="pending"}`: 2}) // as last counted
}
