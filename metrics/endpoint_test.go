package metrics

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	urlA = "https://a.example:8080/doveadm/v1"
	urlB = "https://b.example:8080/doveadm/v1"
)

func TestEndpointsAreShownAsTheyAre(t *testing.T) {
	endpoints := []Endpoint{
		{Server: "main", URL: urlA, Connections: 3, MaxConnections: 4, Since: noon, Reason: "key"}, // has been out
		{Server: "main", URL: urlB, Out: true, Since: noon.Add(-1500 * time.Millisecond), Reason: "tls", MaxConnections: 4},
		{Server: "old", URL: urlA, Out: true, Since: noon, Reason: "reply", Connections: 1, MaxConnections: 2},
	}
	m := New(still(func(o *Options) { o.Endpoints = func() []Endpoint { return endpoints } }))
	e := scrape(t, m)
	e.shows(t, exposition{
		`dovepush_endpoint_up{endpoint="` + urlA + `",server="main"}`:                                        1,
		`dovepush_endpoint_up{endpoint="` + urlB + `",server="main"}`:                                        0,
		`dovepush_endpoint_up{endpoint="` + urlA + `",server="old"}`:                                         0,
		`dovepush_endpoint_connections_in_use{endpoint="` + urlA + `",server="main"}`:                        3,
		`dovepush_endpoint_connections_in_use{endpoint="` + urlB + `",server="main"}`:                        0,
		`dovepush_endpoint_connections_in_use{endpoint="` + urlA + `",server="old"}`:                         1,
		`dovepush_endpoint_connections_max{endpoint="` + urlA + `",server="main"}`:                           4,
		`dovepush_endpoint_connections_max{endpoint="` + urlA + `",server="old"}`:                            2,
		`dovepush_endpoint_out_since_timestamp_seconds{endpoint="` + urlB + `",reason="tls",server="main"}`:  float64(noon.Unix()) - 1.5,
		`dovepush_endpoint_out_since_timestamp_seconds{endpoint="` + urlA + `",reason="reply",server="old"}`: float64(noon.Unix()),
	})
	if n := e.count("dovepush_endpoint_out_since_timestamp_seconds"); n != 2 {
		t.Errorf("%d are shown as out", n)
	}
	// It is asked each time.
	endpoints = endpoints[:1]
	e = scrape(t, m)
	e.shows(t, exposition{`dovepush_endpoint_up{endpoint="` + urlA + `",server="main"}`: 1})
	e.lacks(t, "dovepush_endpoint_out_since_timestamp_seconds")
	if n := e.count("dovepush_endpoint_up"); n != 1 {
		t.Errorf("%d endpoints are shown", n)
	}
}

func TestServersWithoutEndpointsShowNone(t *testing.T) {
	for name, m := range map[string]*Metrics{
		"nobody tells": New(still()),
		"none":         New(still(func(o *Options) { o.Endpoints = func() []Endpoint { return nil } })),
	} {
		for series := range scrape(t, m) {
			if strings.HasPrefix(series, "dovepush_endpoint_") {
				t.Errorf("%s: %s", name, series)
			}
		}
	}
}

func TestNoMistakeAboutEndpointsFillsAPrometheusOrCostsAScrape(t *testing.T) {
	m := New(still(func(o *Options) {
		o.Endpoints = func() (list []Endpoint) {
			for i := range 100 { // the same ones again, and why in many words
				list = append(list, Endpoint{Server: "main", URL: urlA, Out: true, Since: noon, Reason: fmt.Sprintf("alice%d: refused", i)},
					Endpoint{Server: "main\xff", URL: urlA + "\xff", Connections: i})
			}
			return list
		}
	}))
	own := prometheus.NewPedanticRegistry()
	own.MustRegister(collector{m})
	if _, err := own.Gather(); err != nil {
		t.Error(err)
	}
	e := scrape(t, m)
	e.shows(t, exposition{
		`dovepush_endpoint_out_since_timestamp_seconds{endpoint="` + urlA + `",reason="other",server="main"}`: float64(noon.Unix()),
		`dovepush_endpoint_connections_in_use{endpoint="` + urlA + `?",server="main?"}`:                       0,
	})
	if n := e.count("dovepush_endpoint_out_since_timestamp_seconds"); n != 1 {
		t.Errorf("%d are shown as out", n)
	}
}
