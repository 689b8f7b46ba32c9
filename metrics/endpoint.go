package metrics

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Endpoint is how things stand with an endpoint of a server's DoveAdm API.
type Endpoint struct {
	Server         string
	URL            string    // as configured, without a password
	Out            bool      // set aside
	Since          time.Time // when it was set aside
	Reason         string    // why: refused, timeout, closed, tls, http, redirect, key or reply
	Connections    int       // in use
	MaxConnections int       // that may be in use at once
}

// showEndpoints shows each endpoint once: Prometheus' registry refuses a series
// that comes twice, and its client panics at a label that is not UTF-8.
func (m *Metrics) showEndpoints(ch chan<- prometheus.Metric) {
	if m.options.Endpoints == nil {
		return
	}
	seen := make(map[[2]string]bool)
	for _, e := range m.options.Endpoints() {
		server, url := strings.ToValidUTF8(e.Server, "?"), strings.ToValidUTF8(e.URL, "?")
		if seen[[2]string{server, url}] {
			continue
		}
		seen[[2]string{server, url}] = true
		ch <- gauge(m.shown.endpointUp, bit(!e.Out), server, url)
		ch <- gauge(m.shown.endpointConns, float64(e.Connections), server, url)
		ch <- gauge(m.shown.endpointMax, float64(e.MaxConnections), server, url)
		if e.Out {
			ch <- gauge(m.shown.endpointOut, unix(e.Since), server, url, reasonLabel(e.Reason))
		}
	}
}
