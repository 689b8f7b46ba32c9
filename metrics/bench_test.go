package metrics

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"dovepush/agent"
	"dovepush/imapmeta"
	"dovepush/registry"
)

func BenchmarkUpdated(b *testing.B) {
	m := New(still())
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			m.Updated("main", agent.Deferred, imapmeta.Retry, time.Millisecond)
		}
	})
}

func BenchmarkScrape(b *testing.B) {
	for _, n := range []int{1, 100} {
		b.Run(fmt.Sprintf("servers=%d", n), func(b *testing.B) {
			loads := make([]agent.Load, n)
			counts := make([]registry.Count, n)
			backlog := make([]Backlog, n)
			for i := range n {
				name := fmt.Sprintf("server-%d", i)
				loads[i], counts[i], backlog[i] = agent.Load{Server: name}, registry.Count{Server: name, State: registry.Registered, N: 1000}, Backlog{Server: name, Due: 1, Oldest: noon}
			}
			m := New(still(func(o *Options) {
				o.Loads = func() []agent.Load { return loads }
				o.Counts = func(context.Context) ([]registry.Count, error) { return counts, nil }
				o.Backlog = func(context.Context) ([]Backlog, error) { return backlog, nil }
			}))
			b.ReportAllocs()
			for b.Loop() {
				w := httptest.NewRecorder()
				m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
				if w.Code != http.StatusOK {
					b.Fatal(w.Code)
				}
			}
		})
	}
}
