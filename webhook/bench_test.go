package webhook

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"
)

func BenchmarkForward(b *testing.B) {
	for _, connections := range []int{1, 4, 16} {
		b.Run(fmt.Sprintf("connections=%d", connections), func(b *testing.B) {
			hook := serve(b, ok)
			h := open(b, Options{}, Target{Name: "hook", URL: hook.URL, MaxConnections: connections})
			for n := range b.N {
				h.add(fmt.Sprint("user", n%100), n/100)
			}
			b.ResetTimer()
			h.start()
			for h.stats("hook").Waiting > 0 {
				time.Sleep(time.Millisecond)
			}
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// BenchmarkAdd is what Dovecot waits for: with nothing to forward to that is
// slow, and with a target that hangs.
func BenchmarkAdd(b *testing.B) {
	hanging := make(chan struct{})
	works := serve(b, ok)
	hangs := serve(b, func(w http.ResponseWriter, c call) { <-hanging })
	b.Cleanup(func() { close(hanging) }) // before the server is closed, which awaits them
	for name, targets := range map[string][]Target{
		"works":           {{Name: "works", URL: works.URL}},
		"works and hangs": {{Name: "works", URL: works.URL}, {Name: "hangs", URL: hangs.URL, Timeout: time.Hour}},
	} {
		b.Run(name, func(b *testing.B) {
			h := open(b, Options{Grace: time.Millisecond}, targets...)
			h.start()
			took := make([]time.Duration, b.N)
			b.ResetTimer()
			for n := range b.N {
				began := time.Now()
				h.add(fmt.Sprint("user", n%100), n/100)
				took[n] = time.Since(began)
				time.Sleep(2 * time.Millisecond) // 300 to 400 a second
			}
			b.StopTimer()
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
		})
	}
}
