package agent

import (
	"context"
	"iter"
	"sync"
	"time"

	"dovepush/registry"
)

// Each carries out requests, up to parallel at once, and yields their results
// in the order of the requests.
//
// The first request to a server goes alone. If the server fails for everybody
// (wrong credentials, no METADATA, TLS not trusted, three in a row who did not
// reach it), nobody else is tried there until it is time for a probe: what they
// should be is in the registry, and their results are Deferred with ErrStopped.
// When the caller stops, or ctx is over, what has
// begun is finished or cancelled, and recorded, before Each returns. So
// requests must heed ctx itself, and must not block for ever when the caller
// stops: Each cannot interrupt it, and waits for it.
//
// Requests that are ready at the same time share a commit; none waits for
// another to come.
func (a *Agent) Each(ctx context.Context, requests iter.Seq[Request], parallel int) iter.Seq[Result] {
	return func(yield func(Result) bool) {
		ctx, cancel := context.WithCancel(ctx)
		results := make(chan chan Result, max(parallel, 1)-1) // in order; one more is in the consumer's hand
		// What has a place in results has one here: the puller never waits for
		// the feeder, and so no lone request waits for others.
		pulled := make(chan *task, max(parallel, 1))
		var all sync.WaitGroup
		defer all.Wait()
		defer cancel()
		all.Go(func() {
			defer close(results)
			defer close(pulled)
			for r := range requests {
				t := &task{Request: r, result: make(chan Result, 1)}
				select {
				case results <- t.result:
					pulled <- t
				case <-ctx.Done():
					return
				}
			}
		})
		all.Go(func() {
			for first := range pulled {
				for first != nil {
					var batch []*task
					batch, first = ready(first, pulled, maxBatch)
					a.accept(ctx, batch)
					a.start(ctx, batch, &all)
				}
			}
		})
		for result := range results {
			if !yield(<-result) {
				return
			}
		}
	}
}

// maxBatch bounds how many requests share a commit, and so how long others
// wait for the registry's lock.
const maxBatch = 500

// task is a request on its way through Each.
type task struct {
	Request
	key    registry.Key
	asked  time.Time   // when it was accepted
	err    error       // why it was not
	result chan Result // has room for the one result
}

// goesToServer reports whether an accepted request has anything to do there.
// To verify is to look, now or never.
func (t *task) goesToServer() bool { return t.err == nil && (!t.NoWait || t.Action == Verify) }

// ready adds to first what else is ready, in order, up to most tasks. A task
// of a user who is among them already is returned apart, for the next batch:
// it must find what the earlier one has made of the registry.
func ready(first *task, pulled <-chan *task, most int) (batch []*task, held *task) {
	batch = []*task{first}
	users := map[string]bool{first.User: true}
	for len(batch) < most {
		select {
		case t, open := <-pulled:
			if !open {
				return batch, nil
			}
			if users[t.User] {
				return batch, t
			}
			batch, users[t.User] = append(batch, t), true
		default:
			return batch, nil
		}
	}
	return batch, nil
}

// start sees to it that each of the batch gets its result. What needs no
// server does not wait for those that do; the first to a server goes alone.
func (a *Agent) start(ctx context.Context, batch []*task, all *sync.WaitGroup) {
	for _, t := range batch {
		if !t.goesToServer() {
			all.Go(func() { t.result <- a.carryOut(ctx, t) })
		}
	}
	for _, t := range batch {
		switch {
		case !t.goesToServer():
		case a.proven(t.key.Server):
			all.Go(func() { t.result <- a.carryOut(ctx, t) })
		default:
			t.result <- a.carryOut(ctx, t)
		}
	}
}

// proven reports whether nobody has to go first to a server. There is none if
// it is not configured.
func (a *Agent) proven(server string) bool {
	s, ok := a.sites[server]
	return !ok || s.circuit.proven() || s.circuit.stopped() != nil
}
