package metrics

import (
	"context"
	"log/slog"
	"net/http"
	"runtime"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"dovepush/agent"
	"dovepush/imapmeta"
	"dovepush/registry"
)

// Backlog is what a server's registrations wait for.
type Backlog = registry.Backlog

// Options says where the figures come from. All but Endpoints, Receiving,
// Operations and Log must be given. The functions are called by scrapes, not by New. Those
// that take a context shall heed it; they are called by one scrape at a time.
type Options struct {
	// Counts counts the registrations. It is called rarely: see recount.
	Counts func(ctx context.Context) ([]registry.Count, error)
	// Changed returns another number once the registry has changed. It is
	// called by every scrape.
	Changed func(ctx context.Context) (int64, error)
	// Backlog tells, by server, what waits. A server may be missing.
	Backlog func(ctx context.Context) ([]Backlog, error)
	// Loads tells how the configured servers are being used.
	Loads func() []agent.Load
	// Endpoints tells how things stand with the configured servers' endpoints;
	// nil: there are none. Of two with the same server and URL the first counts.
	Endpoints func() []Endpoint
	// Receiving is about notifications. nil: none are taken.
	Receiving *Receiving
	Now       func() time.Time
	Version   string // of dovepush
	// Operations are those of the HTTP API that Requested tells apart.
	Operations []string
	// Log hears why the registry cannot be read, once until it can be again.
	Log *slog.Logger
}

// What bounds a scrape. The registry gets less than the whole, and the whole
// less than the 10 s that Prometheus waits by default, so that a registry that
// hangs costs its own series only.
const (
	answerTime = 9 * time.Second // then the answer is 503, whatever hangs
	readTime   = 8 * time.Second // for all of the registry, waiting for other scrapes included
	maxScrapes = 4               // at once: two Prometheus servers and an admin with curl are welcome
)

// Metrics collects and exposes. Its methods may be called by many goroutines
// at once.
type Metrics struct {
	options Options
	handler http.Handler
	shown   shown

	updates      *prometheus.CounterVec
	updateTimes  *prometheus.HistogramVec
	failures     *prometheus.CounterVec
	requests     *prometheus.CounterVec
	requestTimes *prometheus.HistogramVec
	receiving    *receiving // nil: none

	// reading has room for the one scrape that reads the registry, so that
	// scrapes never take more than one of its connections. Who is in owns
	// count and failing.
	reading chan struct{}
	count   count
	failing map[string]bool // reads that failed when last tried
}

// seconds are the buckets of all durations. On a loopback a look at an entry
// takes a millisecond or two, timeout is 30 s by default.
func seconds() []float64 {
	return []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}
}

// New returns Metrics in a Prometheus registry of their own, together with the
// standard metrics of the process and of Go.
func New(o Options) *Metrics {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	m := &Metrics{
		options: o,
		shown:   newShown(),
		updates: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "dovepush_updates_total",
			Help: "Exchanges about a user's entry, by outcome and by kind of failure.",
		}, []string{"server", "outcome", "kind"}),
		updateTimes: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "dovepush_update_duration_seconds",
			Help:    "How long an exchange about a user's entry took, login included.",
			Buckets: seconds(),
		}, []string{"server"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "dovepush_registry_errors_total",
			Help: "Operations on the registry that failed.",
		}, []string{"op"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "dovepush_api_requests_total",
			Help: "Requests to the HTTP API, by operation and HTTP status code.",
		}, []string{"operation", "code"}),
		requestTimes: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "dovepush_api_request_duration_seconds",
			Help:    "How long a request to the HTTP API took.",
			Buckets: seconds(),
		}, []string{"operation"}),
		reading: make(chan struct{}, 1),
		failing: make(map[string]bool),
	}
	if o.Receiving != nil {
		m.receiving = newReceiving(*o.Receiving)
	}
	for _, op := range ops() {
		m.failures.WithLabelValues(op)
	}
	for _, operation := range append(slices.Clone(o.Operations), other) {
		m.requestTimes.WithLabelValues(operation)
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "dovepush_build_info",
		Help:        "Always 1; the labels are the versions of dovepush and of Go.",
		ConstLabels: prometheus.Labels{"version": o.Version, "goversion": runtime.Version()},
	})
	build.Set(1)

	own := prometheus.NewRegistry()
	own.MustRegister(build, collector{m},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.handler = promhttp.HandlerFor(own, promhttp.HandlerOpts{
		ErrorHandling:       promhttp.ContinueOnError,
		ErrorLog:            slog.NewLogLogger(o.Log.Handler(), slog.LevelError),
		MaxRequestsInFlight: maxScrapes,
		Timeout:             answerTime,
	})
	return m
}

// Handler answers scrapes, all calls' handlers together at most four at once,
// each within nine seconds; else it answers 503. If the registry cannot be
// read, what would come from it is missing, or old (see docs/metrics.md), and
// the failure is counted.
func (m *Metrics) Handler() http.Handler { return m.handler }

// Updated counts an exchange about a user's entry on a configured server. The
// kind is that of the failure, or empty if it succeeded.
func (m *Metrics) Updated(server string, verdict agent.Verdict, kind imapmeta.Kind, took time.Duration) {
	m.updates.WithLabelValues(server, outcomeLabel(verdict), kindLabel(kind)).Inc()
	m.updateTimes.WithLabelValues(server).Observe(max(took, 0).Seconds())
}

// RegistryFailed counts an operation on the registry that failed. Operations
// that are not told apart (see ops) count as "other".
func (m *Metrics) RegistryFailed(op string) {
	if !slices.Contains(ops(), op) {
		op = other
	}
	m.failures.WithLabelValues(op).Inc()
}

// Requested counts a request to the HTTP API that was answered with an HTTP
// status. An operation that is not among Options.Operations counts as "other":
// a path, which holds a user's name, cannot become a label.
func (m *Metrics) Requested(operation string, status int, took time.Duration) {
	if !slices.Contains(m.options.Operations, operation) {
		operation = other
	}
	m.requests.WithLabelValues(operation, codeLabel(status)).Inc()
	m.requestTimes.WithLabelValues(operation).Observe(max(took, 0).Seconds())
}
