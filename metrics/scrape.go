package metrics

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"dovepush/agent"
	"dovepush/registry"
)

// shown are the metrics that are asked for when somebody scrapes.
type shown struct {
	registrations, countedAt                            *prometheus.Desc
	due, retrying, overdue                              *prometheus.Desc
	circuit, connections, connLimit                     *prometheus.Desc
	endpointUp, endpointOut, endpointConns, endpointMax *prometheus.Desc
}

func newShown() shown {
	perServer := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, []string{"server"}, nil)
	}
	perEndpoint := func(name, help string, more ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, append([]string{"server", "endpoint"}, more...), nil)
	}
	return shown{
		registrations: prometheus.NewDesc("dovepush_registrations",
			"Registrations, by state.", []string{"server", "state"}, nil),
		countedAt: prometheus.NewDesc("dovepush_registrations_counted_timestamp_seconds",
			"Unix time as of which dovepush_registrations is right; 0 before the first count.", nil, nil),
		due:         perServer("dovepush_due", "Registrations whose time has come and that nobody works on yet."),
		retrying:    perServer("dovepush_retrying", "Registrations whose last attempt failed and will be repeated."),
		overdue:     perServer("dovepush_oldest_overdue_seconds", "For how long the longest due registration has been due; 0 if none is."),
		circuit:     perServer("dovepush_circuit_open", "1 while the server fails for everybody, so that nobody else is tried there; else 0."),
		connections: perServer("dovepush_connections_in_use", "Users who are being worked on at once; over IMAP each has a connection."),
		connLimit:   perServer("dovepush_connections_max", "Users who may be worked on at once; 0 means no bound."),

		endpointUp: perEndpoint("dovepush_endpoint_up", "0 while the endpoint is set aside because it failed; else 1."),
		endpointOut: perEndpoint("dovepush_endpoint_out_since_timestamp_seconds",
			"Unix time when the endpoint was set aside, and why; only while it is.", "reason"),
		endpointConns: perEndpoint("dovepush_endpoint_connections_in_use", "Connections to the endpoint that are in use."),
		endpointMax:   perEndpoint("dovepush_endpoint_connections_max", "Connections to the endpoint that may be in use at once."),
	}
}

// collector makes Metrics a prometheus.Collector without showing it to others.
// It is one for everything, for what it finds in a scrape (a new server, a
// registry that fails) shall be in the same scrape's counters.
type collector struct{ *Metrics }

// vectors are the metrics that are counted.
func (m *Metrics) vectors() []prometheus.Collector {
	list := []prometheus.Collector{m.updates, m.updateTimes, m.failures, m.requests, m.requestTimes}
	if m.receiving != nil {
		list = append(list, m.receiving.vectors()...)
	}
	return list
}

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	s := c.shown
	for _, desc := range []*prometheus.Desc{s.registrations, s.countedAt, s.due, s.retrying, s.overdue, s.circuit, s.connections, s.connLimit,
		s.endpointUp, s.endpointOut, s.endpointConns, s.endpointMax} {
		ch <- desc
	}
	if c.receiving != nil {
		for _, desc := range c.receiving.descs() {
			ch <- desc
		}
	}
	for _, v := range c.vectors() {
		v.Describe(ch)
	}
}

// Collect implements prometheus.Collector. It bounds itself: Prometheus'
// registry gives it no context.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), readTime)
	defer cancel()

	loads := c.options.Loads()
	for _, l := range loads {
		c.introduce(l.Server)
		ch <- gauge(c.shown.circuit, bit(l.CircuitOpen), l.Server)
		ch <- gauge(c.shown.connections, float64(l.InUse), l.Server)
		ch <- gauge(c.shown.connLimit, float64(l.MaxConnections), l.Server)
	}
	c.showEndpoints(ch)
	c.showWatchers(ch)
	backlog, known, ok := c.read(ctx, ch)
	if backlog != nil {
		c.showBacklog(ch, loads, backlog)
	}
	if ok {
		c.showCount(ch, loads, known)
	}
	for _, v := range c.vectors() {
		v.Collect(ch)
	}
}

// introduce lets a server's counters begin with 0.
func (m *Metrics) introduce(server string) {
	for _, e := range ends() {
		m.updates.WithLabelValues(server, outcomeLabel(e.verdict), kindLabel(e.kind))
	}
	m.updateTimes.WithLabelValues(server)
}

// showBacklog shows what waits, also on servers that are not configured any
// more.
func (m *Metrics) showBacklog(ch chan<- prometheus.Metric, loads []agent.Load, backlog []Backlog) {
	byServer := make(map[string]Backlog)
	for _, l := range loads {
		byServer[l.Server] = Backlog{}
	}
	for _, b := range backlog {
		byServer[b.Server] = b
	}
	now := m.options.Now()
	for server, b := range byServer {
		var overdue time.Duration
		if !b.Oldest.IsZero() {
			overdue = max(now.Sub(b.Oldest), 0)
		}
		ch <- gauge(m.shown.due, float64(b.Due), server)
		ch <- gauge(m.shown.retrying, float64(b.Retrying), server)
		ch <- gauge(m.shown.overdue, overdue.Seconds(), server)
	}
}

// showCount shows all states of the configured servers, and what else is in
// the registry.
func (m *Metrics) showCount(ch chan<- prometheus.Metric, loads []agent.Load, known count) {
	if known.at.IsZero() {
		ch <- gauge(m.shown.countedAt, 0)
		return
	}
	ch <- gauge(m.shown.countedAt, unix(known.at))
	type cell struct {
		server string
		state  registry.State
	}
	cells := make(map[cell]int64)
	for _, l := range loads {
		for _, state := range states() {
			cells[cell{l.Server, state}] = 0
		}
	}
	for _, c := range known.counts {
		cells[cell{c.Server, c.State}] = c.N
	}
	for at, n := range cells {
		ch <- gauge(m.shown.registrations, float64(n), at.server, string(at.state))
	}
}

func gauge(desc *prometheus.Desc, value float64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
}

func unix(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

func bit(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
