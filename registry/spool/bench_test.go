package spool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// body is about what a notification has.
var body = []byte(`{"type":"mail.new","data":{"subject":"` + strings.Repeat("x", 400) + `"}}`)

func BenchmarkAdd(b *testing.B) {
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			s, _ := fresh(b)
			took := make([]time.Duration, b.N)
			var next atomic.Int64
			var wg sync.WaitGroup
			b.ResetTimer()
			for range callers {
				wg.Go(func() {
					for {
						n := int(next.Add(1)) - 1
						if n >= b.N {
							return
						}
						began := time.Now()
						id := fmt.Sprint("event-", n)
						_, err := s.Add(b.Context(), Event{ID: id, Key: id, User: fmt.Sprint("user", n%1000), Body: body, Received: noon}, []Target{hook})
						if err != nil {
							b.Error(err)
						}
						took[n] = time.Since(began)
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// million is a spool in which a million events of 100,000 users wait for hook.
func million(b *testing.B) (*Spool, *clock) {
	b.Helper()
	s, c := fresh(b)
	err := s.writer.submit(context.Background(), "fill", &change{do: func(tx *transaction) error {
		_, err := tx.tx.Exec(`
			WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 999999)
			INSERT INTO deliveries (target, username, event, received, queued, next_at, attempts, refusals, head, leased, dead, reason, body)
			SELECT 'hook', 'user' || (i % 100000), 'event' || i, $1, $1, $1, 0, 0, i < 100000, 0, 0, '', $2 FROM n`, millis(noon), body)
		_, targetErr := tx.tx.Exec(`INSERT INTO targets (name, waiting, dead, skipped, delivered, error) VALUES ('hook', 1000000, 0, 0, 0, '')`)
		return errors.Join(err, targetErr)
	}})
	if err != nil {
		b.Fatal(err)
	}
	return s, c
}

func BenchmarkWithAMillionWaiting(b *testing.B) {
	s, c := million(b)
	b.Run("take and done", func(b *testing.B) {
		for b.Loop() {
			list := take(b, s, "hook", 1)
			must(b, s.Done(b.Context(), list[0].ID))
		}
	})
	b.Run("add", func(b *testing.B) {
		n := 0
		for b.Loop() {
			_, err := s.Add(b.Context(), Event{ID: "x", User: fmt.Sprint("user", n%100000), Body: body, Received: noon}, []Target{{Name: "second"}})
			must(b, err)
			n++
		}
	})
	b.Run("stats", func(b *testing.B) {
		for b.Loop() {
			stats(b, s, "hook")
		}
	})
	err := s.writer.submit(context.Background(), "back off", &change{do: func(tx *transaction) error {
		_, err := tx.tx.Exec(`UPDATE deliveries SET next_at = $1 WHERE target = 'hook' AND head = 1`, millis(c.now().Add(time.Hour)))
		return err
	}})
	must(b, err)
	b.Run("take when all back off", func(b *testing.B) {
		for b.Loop() {
			if list := take(b, s, "hook", 10); len(list) > 0 {
				b.Fatal("took some")
			}
		}
	})
}
