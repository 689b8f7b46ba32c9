package metrics

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"dovepush/agent"
	"dovepush/imapmeta"
	"dovepush/registry"
)

// busy has something in every metric.
func busy() *Metrics {
	m := New(still(receives, func(o *Options) {
		o.Counts = func(context.Context) ([]registry.Count, error) {
			return []registry.Count{{Server: "main", State: registry.Registered, N: 7}}, nil
		}
		o.Backlog = func(context.Context) ([]Backlog, error) {
			return []Backlog{{Server: "main", Due: 3, Retrying: 2, Oldest: noon.Add(-time.Minute)}}, nil
		}
		o.Endpoints = func() []Endpoint {
			return []Endpoint{{Server: "main", URL: urlA, Connections: 3, MaxConnections: 4}, {Server: "main", URL: urlB, Out: true, Since: noon, Reason: "refused", MaxConnections: 4}}
		}
	}))
	m.Updated("main", agent.Added, "", 20*time.Millisecond)
	m.Updated("main", agent.Deferred, imapmeta.Retry, 30*time.Second)
	m.RegistryFailed("record")
	m.Requested("register", 202, 5*time.Millisecond)
	m.Notified("accepted", 2*time.Millisecond)
	m.Delivered("app", "delivered", 20*time.Millisecond)
	return m
}

func TestPrometheusFindsNothingToComplainOf(t *testing.T) {
	body := fetch(t, serve(t, busy()))
	problems, err := promlint.New(strings.NewReader(body)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	seen := 0
	for series := range parse(t, body) {
		switch prefix, _, _ := strings.Cut(series, "_"); prefix {
		case "dovepush":
			seen++
		case "go", "process":
		default:
			t.Errorf("%s: neither ours nor a standard metric", series)
		}
	}
	if seen == 0 {
		t.Error("nothing of ours")
	}
}

func TestWhatHappensIsCounted(t *testing.T) {
	m := New(still())
	m.Updated("main", agent.Added, "", 20*time.Millisecond)
	m.Updated("main", agent.Added, "", 3*time.Second)
	m.Updated("main", agent.Failed, imapmeta.User, 0)
	m.Updated("main", agent.Deferred, imapmeta.Server, -time.Second) // the clock was set back
	m.RegistryFailed("record")
	m.RegistryFailed("record")
	m.Requested("register", 202, time.Millisecond)
	m.Requested("register", 503, time.Minute)
	scrape(t, m).shows(t, exposition{
		`dovepush_updates_total{kind="none",outcome="added",server="main"}`:          2,
		`dovepush_updates_total{kind="user",outcome="failed",server="main"}`:         1,
		`dovepush_updates_total{kind="server",outcome="deferred",server="main"}`:     1,
		`dovepush_updates_total{kind="none",outcome="added",server="old"}`:           0,
		`dovepush_update_duration_seconds_count{server="main"}`:                      4,
		`dovepush_update_duration_seconds_sum{server="main"}`:                        3.02,
		`dovepush_update_duration_seconds_bucket{server="main",le="0.001"}`:          2,
		`dovepush_update_duration_seconds_bucket{server="main",le="0.025"}`:          3,
		`dovepush_update_duration_seconds_bucket{server="main",le="30"}`:             4,
		`dovepush_registry_errors_total{op="record"}`:                                2,
		`dovepush_registry_errors_total{op="take"}`:                                  0,
		`dovepush_api_requests_total{code="202",operation="register"}`:               1,
		`dovepush_api_requests_total{code="503",operation="register"}`:               1,
		`dovepush_api_request_duration_seconds_count{operation="register"}`:          2,
		`dovepush_api_request_duration_seconds_sum{operation="register"}`:            60.001,
		`dovepush_build_info{goversion="` + runtime.Version() + `",version="1.2.3"}`: 1,
	})
}

func TestWhatIsUnknownIsOther(t *testing.T) {
	m := New(still())
	for i := range 100 {
		user := fmt.Sprintf("alice%d@example.com", i)
		m.Updated("main", agent.Verdict(user), imapmeta.Kind(user), 0)
		m.RegistryFailed(user)
		m.Requested("/v1/registrations/"+user, 600+i, 0)
		m.Requested("register", -i, 0)
	}
	e := scrape(t, m)
	e.shows(t, exposition{
		`dovepush_updates_total{kind="other",outcome="other",server="main"}`: 100,
		`dovepush_registry_errors_total{op="other"}`:                         100,
		`dovepush_api_requests_total{code="other",operation="other"}`:        100,
		`dovepush_api_requests_total{code="other",operation="register"}`:     100,
		`dovepush_api_request_duration_seconds_count{operation="other"}`:     100,
	})
	for series := range e {
		if strings.Contains(series, "alice") {
			t.Errorf("a user's name: %s", series)
		}
	}
}

func TestServersAreThereFromTheStart(t *testing.T) {
	want := exposition{`dovepush_registrations_counted_timestamp_seconds`: float64(noon.Unix())}
	for _, server := range []string{"main", "old"} {
		for _, state := range []registry.State{registry.Pending, registry.Registered, registry.Removing, registry.Conflict, registry.Failed} {
			want[fmt.Sprintf(`dovepush_registrations{server="%s",state="%s"}`, server, state)] = 0
		}
		for _, outcome := range []agent.Verdict{agent.Added, agent.Changed, agent.Removed, agent.Adopted, agent.Unchanged, agent.Conflict} {
			want[fmt.Sprintf(`dovepush_updates_total{kind="none",outcome="%s",server="%s"}`, outcome, server)] = 0
		}
		for kind, outcome := range map[imapmeta.Kind]agent.Verdict{imapmeta.User: agent.Failed, imapmeta.Retry: agent.Deferred, imapmeta.Server: agent.Deferred} {
			want[fmt.Sprintf(`dovepush_updates_total{kind="%s",outcome="%s",server="%s"}`, kind, outcome, server)] = 0
		}
		for _, metric := range []string{"due", "retrying", "oldest_overdue_seconds", "circuit_open", "connections_in_use", "update_duration_seconds_count"} {
			want[fmt.Sprintf(`dovepush_%s{server="%s"}`, metric, server)] = 0
		}
	}
	scrape(t, New(still())).shows(t, want)
}

func TestServersAreShownAsTheyAre(t *testing.T) {
	scrape(t, New(still(func(o *Options) {
		o.Loads = func() []agent.Load {
			return []agent.Load{{Server: "main", InUse: 3, MaxConnections: 16, CircuitOpen: true}, {Server: "old"}}
		}
		o.Backlog = func(context.Context) ([]Backlog, error) {
			return []Backlog{
				{Server: "main", Due: 3, Retrying: 2, Oldest: noon.Add(-90 * time.Second)},
				{Server: "old", Due: 1, Oldest: noon.Add(time.Second)}, // the clock was set back
				{Server: "gone", Retrying: 9},
			}, nil
		}
		o.Counts = func(context.Context) ([]registry.Count, error) {
			return []registry.Count{{Server: "gone", State: registry.Failed, N: 9}, {Server: "main", State: registry.Pending, N: 3}}, nil
		}
	}))).shows(t, exposition{
		`dovepush_circuit_open{server="main"}`:                  1,
		`dovepush_circuit_open{server="old"}`:                   0,
		`dovepush_connections_in_use{server="main"}`:            3,
		`dovepush_connections_max{server="main"}`:               16,
		`dovepush_connections_max{server="old"}`:                0,
		`dovepush_due{server="main"}`:                           3,
		`dovepush_retrying{server="main"}`:                      2,
		`dovepush_oldest_overdue_seconds{server="main"}`:        90,
		`dovepush_due{server="old"}`:                            1,
		`dovepush_oldest_overdue_seconds{server="old"}`:         0,
		`dovepush_retrying{server="gone"}`:                      9,
		`dovepush_oldest_overdue_seconds{server="gone"}`:        0,
		`dovepush_registrations{server="gone",state="failed"}`:  9,
		`dovepush_registrations{server="main",state="pending"}`: 3,
		`dovepush_registrations{server="main",state="failed"}`:  0,
	})
}

func TestTheCollectorShowsWhatItDescribes(t *testing.T) {
	own := prometheus.NewPedanticRegistry()
	own.MustRegister(collector{busy()})
	if _, err := own.Gather(); err != nil {
		t.Error(err)
	}
}

func TestNewAsksNobody(t *testing.T) {
	New(Options{}) // what the functions close over may not exist yet
}

func TestScrapesGoOnWhileTheAgentReports(t *testing.T) {
	var readers atomic.Int64
	reads := func() {
		if n := readers.Add(1); n > 1 {
			t.Errorf("%d scrapes read the registry at once", n)
		}
		runtime.Gosched()
		readers.Add(-1)
	}
	m := New(still(func(o *Options) {
		o.Counts = func(context.Context) ([]registry.Count, error) {
			reads()
			return []registry.Count{{Server: "main", State: registry.Registered, N: 1}}, nil
		}
		o.Backlog = func(context.Context) ([]Backlog, error) { reads(); return []Backlog{{Server: "main"}}, nil }
		o.Changed = func(context.Context) (int64, error) { reads(); return rand.Int64(), nil }
	}))
	url := serve(t, m)
	const reporters, each = 4, 500
	var reporting, scraping sync.WaitGroup
	done := make(chan struct{})
	for range maxScrapes {
		scraping.Go(func() {
			for last := -1.0; ; {
				body, err := get(t.Context(), url)
				n := parse(t, body)[`dovepush_updates_total{kind="none",outcome="added",server="main"}`]
				if err != nil || n < last {
					t.Errorf("a counter went from %v to %v, error %v", last, n, err)
				}
				last = n
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for range reporters {
		reporting.Go(func() {
			for range each {
				m.Updated("main", agent.Added, "", time.Millisecond)
				m.RegistryFailed("record")
				m.Requested("list", 200, time.Millisecond)
			}
		})
	}
	reporting.Wait()
	close(done)
	scraping.Wait()
	scrape(t, m).shows(t, exposition{
		`dovepush_updates_total{kind="none",outcome="added",server="main"}`: reporters * each,
		`dovepush_update_duration_seconds_count{server="main"}`:             reporters * each,
		`dovepush_registry_errors_total{op="record"}`:                       reporters * each,
		`dovepush_api_requests_total{code="200",operation="list"}`:          reporters * each,
	})
}
