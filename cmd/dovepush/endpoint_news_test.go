package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"dovepush/agent"
	"dovepush/config"
	"dovepush/doveadm"
	"dovepush/metrics"
	"dovepush/registry"
)

// forward passes connections on from an address of ours to another.
func forward(t *testing.T, from, to string) {
	t.Helper()
	l, err := net.Listen("tcp", from)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer client.Close()
				server, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer server.Close()
				defer context.AfterFunc(ctx, func() { client.Close(); server.Close() })()
				wg.Go(func() { io.Copy(server, client) })
				io.Copy(client, server) // Dovecot ends it
			})
		}
	})
}

// Which endpoint is out, since when and why, shows in the service's metrics and
// in status; and that it is back.
func TestServiceTellsWhichEndpointIsOut(t *testing.T) {
	t.Parallel()
	w := newSiteBy(t, onlyOne(t), config.ConnectorDoveadm)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	dead := "http://" + address + "/doveadm/v1"
	w.endpoints(dead, w.s.DoveadmURL)
	w.write("config.toml", strings.Replace(w.read("config.toml"), "[server.doveadm]", "[server.doveadm]\ncheck_interval = \"300ms\"", 1))
	r := w.start()
	for i := range 4 {
		answer := r.ask(http.StatusOK, "PUT", "/v1/registrations/alice?wait=30s", fmt.Sprintf(`{"identity":"%d@7"}`, i))
		if !strings.Contains(answer, `"state":"registered"`) {
			t.Error(answer)
		}
	}
	up := func(url string, n int) string {
		return fmt.Sprintf("dovepush_endpoint_up{endpoint=%q,server=\"main\"} %d\n", url, n)
	}
	page := r.ask(http.StatusOK, "GET", "/metrics", "")
	for _, line := range []string{up(dead, 0), up(w.s.DoveadmURL, 1),
		fmt.Sprintf("dovepush_endpoint_out_since_timestamp_seconds{endpoint=%q,reason=\"refused\",server=\"main\"} ", dead),
		fmt.Sprintf("dovepush_endpoint_connections_max{endpoint=%q,server=\"main\"} 4\n", dead),
		"dovepush_connections_max{server=\"main\"} 800\n"} {
		if !strings.Contains(page, line) {
			t.Errorf("the metrics have no %s", line)
		}
	}
	r.says("DoveAdm endpoint is set aside", 1)
	if text := w.run(exitOK, "status"); !strings.Contains(text, "server main does without endpoint "+dead+", since ") || !strings.Contains(text, "connection refused") {
		t.Errorf("status:\n%s", text)
	}
	forward(t, address, strings.TrimSuffix(strings.TrimPrefix(w.s.DoveadmURL, "http://"), "/doveadm/v1"))
	r.says("DoveAdm endpoint works again", 1)
	if page := r.ask(http.StatusOK, "GET", "/metrics", ""); !strings.Contains(page, up(dead, 1)) || strings.Contains(page, "dovepush_endpoint_out_since_timestamp_seconds{") {
		t.Errorf("the metrics still say that it is out")
	}
	eventually(t, "status has heard of it", func() error {
		if text := w.run(exitOK, "status"); strings.Contains(text, "endpoint") {
			return fmt.Errorf("status:\n%s", text)
		}
		return nil
	})
	if n := strings.Count(r.log.String(), "is set aside"); n != 1 {
		t.Errorf("said %d times that it is out", n)
	}
	r.stop()
}

// A reason that metrics does not know would be "other".
func TestMetricsKnowEveryReasonOfAnEndpoint(t *testing.T) {
	reasons := []doveadm.Reason{doveadm.Refused, doveadm.Timeout, doveadm.Closed, doveadm.TLS, doveadm.HTTP, doveadm.Redirect, doveadm.Key, doveadm.Reply}
	m := metrics.New(metrics.Options{
		Counts:  func(context.Context) ([]registry.Count, error) { return nil, nil },
		Changed: func(context.Context) (int64, error) { return 0, nil },
		Backlog: func(context.Context) ([]metrics.Backlog, error) { return nil, nil },
		Loads:   func() []agent.Load { return nil },
		Now:     time.Now,
		Endpoints: func() (list []metrics.Endpoint) {
			for _, reason := range reasons {
				list = append(list, metrics.Endpoint{Server: "main", URL: string(reason), Out: true, Since: time.Now(), Reason: string(reason)})
			}
			return list
		},
	})
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	for _, reason := range reasons {
		if want := fmt.Sprintf(`{endpoint=%q,reason=%q,server="main"}`, reason, reason); !strings.Contains(w.Body.String(), want) {
			t.Errorf("no %s in\n%s", want, w.Body)
		}
	}
}
