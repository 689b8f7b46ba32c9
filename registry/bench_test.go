package registry

import (
	"fmt"
	"math/rand/v2"
	"syscall"
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

// BenchmarkSweep200 takes new users through a sweep, 200 at a time: what is
// wished, claimed and recorded. It reports the processor's time for each.
func BenchmarkSweep200(b *testing.B) {
	const rows = 200
	r, c := fresh(b)
	var spent [3]time.Duration
	next := 0
	for b.Loop() {
		intents, users, results := make([]Intent, rows), make([]string, rows), make([]Result, rows)
		for i := range rows {
			users[i] = rowKey(next).User
			intents[i] = Intent{Key: rowKey(next), Identity: users[i], Value: "user=" + users[i], Wanted: Present, OnlyIfOther: true}
			next++
		}
		now := c.advance(time.Millisecond)
		start := processorTime(b)
		intend(b, r, intents...)
		intended := processorTime(b)
		claims, err := r.ClaimEach(b.Context(), "main", "agent", now.Add(time.Minute), now.Add(time.Minute), users)
		if err != nil {
			b.Fatal(err)
		}
		claimed := processorTime(b)
		for i, claim := range claims {
			results[i] = Result{Key: claim.Key(), Revision: claim.Revision, State: Registered, Written: []string{claim.Value},
				WrittenAt: now, VerifiedAt: now, NextAt: now.Add(24*time.Hour + time.Duration(i)*time.Second)}
		}
		concluded := processorTime(b)
		if lost := record(b, r, "agent", results...); len(lost) > 0 {
			b.Fatal(lost)
		}
		for i, d := range []time.Duration{intended - start, claimed - intended, processorTime(b) - concluded} {
			spent[i] += d
		}
	}
	for i, what := range []string{"intend", "claim", "record"} {
		b.ReportMetric(float64(spent[i].Nanoseconds())/1000/float64(next), "µs/"+what)
	}
}

// processorTime is what the process has spent.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkStanding(b *testing.B) {
	const rows = 50_000
	r, c := fresh(b)
	seed(b, r, rows)
	exec1(b, r.writer.db, "UPDATE registrations SET identity = username")
	c.advance(time.UnixMilli(-1).Sub(c.now())) // before the first is due
	b.ResetTimer()
	for left := b.N; left > 0; {
		for _, err := range r.Standings(b.Context()) {
			if err != nil {
				b.Fatal(err)
			}
			if left--; left == 0 {
				break
			}
		}
	}
}

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

// BenchmarkTake16 takes 16 rows of 10,000 that are due.
func BenchmarkTake16(b *testing.B) {
	r, c := fresh(b)
	seed(b, r, 10_000)
	n := 0
	for b.Loop() {
		now := c.now()
		regs, err := r.Take(b.Context(), "main", "agent", now.Add(time.Minute), now, 16)
		if err != nil || len(regs) != 16 {
			b.Fatal(len(regs), err)
		}
		if n += 16; n%10_000 == 0 { // all were taken
			c.advance(time.Minute)
		}
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "rows/s")
}

func BenchmarkVersion(b *testing.B) {
	r, _ := fresh(b)
	for b.Loop() {
		version(b, r)
	}
}

// BenchmarkBacklogsNoneDue asks what waits where all 200,000 rows are settled.
func BenchmarkBacklogsNoneDue(b *testing.B) {
	r, c := fresh(b)
	seed(b, r, 200_000)
	c.advance(time.UnixMilli(-1).Sub(c.now())) // before the first is due
	for b.Loop() {
		if list, err := r.Backlogs(b.Context()); len(list) != 0 || err != nil {
			b.Fatal(list, err)
		}
	}
}

// BenchmarkProve proves users of 1,000,000 in no order, by their names and by
// identities of which every other is the first that he could have.
func BenchmarkProve(b *testing.B) {
	const rows = 1_000_000
	r, c := fresh(b)
	seed(b, r, rows)
	run := func(names func(user string) []string) func(b *testing.B) {
		return func(b *testing.B) {
			for _, size := range []int{1, 50, 500} {
				b.Run(fmt.Sprintf("batch=%d", size), func(b *testing.B) {
					proofs := make([]Proof, size)
					n, spent := 0, processorTime(b)
					for b.Loop() {
						now := c.advance(time.Millisecond)
						for i := range proofs {
							proofs[i] = Proof{Names: names(rowKey(rand.N(rows)).User), At: now}
						}
						if known := proven(b, r, proofs...); !known[0] {
							b.Fatal(proofs[0])
						}
						n += size
					}
					b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(n), "µs/proof")
					b.ReportMetric(float64((processorTime(b)-spent).Microseconds())/float64(n), "cpu-µs/proof")
				})
			}
		}
	}
	b.Run("users", run(func(user string) []string { return []string{user} }))
	exec1(b, r.writer.db, "UPDATE registrations SET identity = username || '~signed'")
	b.Run("identities", run(func(user string) []string { return []string{user + "~signed"} }))
	b.Run("other-identities", run(func(user string) []string { return []string{user + "~new", user + "~signed"} }))
}
