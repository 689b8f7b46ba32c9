// Package metrics shows what dovepush serve does, in the format of Prometheus.
//
// It counts what it is told (Updated, Requested, RegistryFailed), and asks for
// the rest when it is scraped. It decides nothing, and nobody waits for it: a
// registry that fails or hangs costs some series of a scrape, not the others
// and not the service.
//
// The usual order of calls:
//
//	m := metrics.New(metrics.Options{...})
//	mux.Handle("GET /metrics", m.Handler())
//	m.Updated("main", agent.Added, "", took) // after each exchange
//
// docs/metrics.md has all metrics, and what to alert on. No user name is ever
// in them.
package metrics
