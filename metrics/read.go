package metrics

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"dovepush/registry"
)

// How long each reading of the registry may take. Counting takes 0.2 s
// for each million rows that are in memory, and the rest is for the disk.
const (
	backlogTime = 2 * time.Second
	changedTime = 1 * time.Second
	countTime   = 5 * time.Second
	provenTime  = 1 * time.Second
	spoolTime   = 1 * time.Second
)

// Counting a million registrations costs 0.2 s of CPU, and a Prometheus asks
// every 15 s or so, for ever. After a count that took cheap or longer, or that
// failed after as long a time, there is none for countPause.
const (
	cheap      = 10 * time.Millisecond
	countPause = time.Minute
)

// count is what is known of the registrations' number.
type count struct {
	counts  []registry.Count // never changed, only replaced
	version int64            // what Changed returned before they were counted
	at      time.Time        // as of when they are right; zero: never counted
	triedAt time.Time        // when somebody last began to count
	took    time.Duration    // how long that took
}

// read asks the registry. The backlog is nil if it could not be read. If
// another scrape keeps the registry busy for all of ctx, ok is false; that
// scrape counts why.
//
// What it finds out of notifications it shows at once.
func (m *Metrics) read(ctx context.Context, ch chan<- prometheus.Metric) (backlog []Backlog, known count, ok bool) {
	select {
	case m.reading <- struct{}{}:
		defer func() { <-m.reading }()
	case <-ctx.Done():
		return nil, count{}, false
	}
	m.ask(ctx, opBacklog, backlogTime, func(ctx context.Context) error {
		list, err := m.options.Backlog(ctx)
		if err == nil {
			backlog = append([]Backlog{}, list...)
		}
		return err
	})
	m.recount(ctx)
	m.showReceiving(ctx, ch)
	return backlog, m.count, true
}

// recount counts the registrations if they have changed since, and the last
// count was cheap or is a minute old. The caller is in m.reading.
func (m *Metrics) recount(ctx context.Context) {
	now := m.options.Now()
	var version int64
	if !m.ask(ctx, opChanged, changedTime, func(ctx context.Context) (err error) {
		version, err = m.options.Changed(ctx)
		return err
	}) {
		return
	}
	c := &m.count
	if !c.at.IsZero() && version == c.version {
		c.at = now
		return
	}
	// A clock that was set back must not make us wait for it.
	if since := now.Sub(c.triedAt); c.took >= cheap && since >= 0 && since < countPause {
		return
	}
	c.triedAt = now
	m.ask(ctx, opCount, countTime, func(ctx context.Context) error {
		counts, err := m.options.Counts(ctx)
		if err == nil {
			c.counts, c.version, c.at = counts, version, now
		}
		return err
	})
	c.took = m.options.Now().Sub(now)
}

// ask reports whether do succeeded within most. A failure is counted, and
// logged once until it has succeeded again. The caller is in m.reading.
func (m *Metrics) ask(ctx context.Context, op string, most time.Duration, do func(ctx context.Context) error) bool {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	err := do(ctx)
	if err != nil {
		m.RegistryFailed(op)
		if !m.failing[op] {
			m.options.Log.Warn("metrics: cannot read the registry, its metrics are missing or old until it can be read", "op", op, "err", err)
		}
	}
	m.failing[op] = err != nil
	return err == nil
}
