package registry

import (
	"fmt"
	"testing"
	"time"
)

func benchmarkIntend(b *testing.B, rows int) {
	r, _ := fresh(b)
	intents := make([]Intent, rows)
	next := 0
	for b.Loop() {
		for i := range intents {
			key := rowKey(next)
			intents[i] = present(key, "user="+key.User)
			next++
		}
		intend(b, r, intents...)
	}
	b.ReportMetric(float64(next)/b.Elapsed().Seconds(), "rows/s")
}

func BenchmarkIntend1(b *testing.B)   { benchmarkIntend(b, 1) }
func BenchmarkIntend500(b *testing.B) { benchmarkIntend(b, 500) }

func BenchmarkClaim(b *testing.B) {
	const rows = 10_000
	for _, callers := range []int{1, 16} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			r, _ := fresh(b)
			seed(b, r, rows)
			keys := make(chan Key)
			done := make(chan error)
			for range callers {
				go func() {
					var failed error
					for key := range keys {
						_, claimed, err := r.Claim(b.Context(), key, "agent", noon.Add(time.Minute), noon)
						if err != nil || claimed != Taken {
							failed = fmt.Errorf("%v: %v: %w", key, claimed, err)
						}
					}
					done <- failed
				}()
			}
			n := 0
			for b.Loop() {
				keys <- rowKey(n % rows)
				n++
			}
			close(keys)
			for range callers {
				if err := <-done; err != nil {
					b.Error(err)
				}
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

func BenchmarkListRow(b *testing.B) {
	const rows = 50_000
	r, _ := fresh(b)
	seed(b, r, rows)
	b.ResetTimer()
	for left := b.N; left > 0; {
		for _, err := range r.List(b.Context(), Filter{}) {
			if err != nil {
				b.Fatal(err)
			}
			if left--; left == 0 {
				break
			}
		}
	}
}

func BenchmarkCounts200000(b *testing.B) {
	r, _ := fresh(b)
	seed(b, r, 200_000)
	for b.Loop() {
		if _, err := r.Counts(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
