package agent

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dovepush/registry"
)

// BenchmarkRun is a sweep of due registrations over 16 connections to a server
// that answers at once: what the agent and its registry cost. The ratio is to
// as many goroutines that claim and record the same rows, and do nothing else.
func BenchmarkRun(b *testing.B) {
	const n, parallel = 2000, 16
	var ran, bare time.Duration
	for range b.N {
		ran += runAll(b, n, parallel)
		bare += claimAndRecord(b, n, parallel)
	}
	b.ReportMetric(float64(n*b.N)/ran.Seconds(), "users/s")
	b.ReportMetric(bare.Seconds()/ran.Seconds(), "of-bare")
	b.ReportMetric(0, "ns/op")
}

// runAll returns how long Run takes to register n users.
func runAll(b *testing.B, n, parallel int) time.Duration {
	h := newHouse(b, time.Now)
	a := h.agent(connections(parallel), func(o *Options) { o.Drain = time.Minute })
	h.intend(a.options.Registry, users("a.test", n)...)
	ctx, cancel := context.WithCancel(b.Context())
	var done atomic.Int64
	h.box.wrote = func(context.Context, string) error {
		if done.Add(1) == int64(n) {
			cancel()
		}
		return nil
	}
	began := time.Now()
	if err := a.Run(ctx); !errors.Is(err, context.Canceled) {
		b.Fatal(err)
	}
	took := time.Since(began)
	h.registered(a.options.Registry, n)
	return took
}

// claimAndRecord returns how long it takes to claim and record each of n rows.
func claimAndRecord(b *testing.B, n, parallel int) time.Duration {
	h := newHouse(b, time.Now)
	r := h.open()
	names := users("a.test", n)
	h.intend(r, names...)
	began := time.Now()
	var all sync.WaitGroup
	for i := range parallel {
		all.Go(func() {
			for ; i < n; i += parallel {
				until := time.Now().Add(time.Minute)
				reg, outcome, err := r.Claim(b.Context(), registry.Key{User: names[i], Server: "main"}, names[i], until, until)
				if err != nil || outcome != registry.Taken {
					b.Error(outcome, err)
				}
				now := time.Now()
				if _, err := r.Record(b.Context(), names[i], registry.Result{Key: reg.Key(), Revision: reg.Revision, State: registry.Registered,
					WrittenAt: now, VerifiedAt: now, NextAt: now.Add(verifyEvery), Written: []string{reg.Value}}); err != nil {
					b.Error(err)
				}
			}
		})
	}
	all.Wait()
	return time.Since(began)
}
