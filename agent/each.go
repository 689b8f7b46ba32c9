package agent

import (
	"context"
	"fmt"
	"iter"
	"sync"

	"dovepush/imapmeta"
	"dovepush/registry"
)

// Each carries out requests, up to parallel at once, and yields their results
// in the order of the requests.
//
// The first request to a server goes alone. If the server fails for everybody
// (wrong credentials, no METADATA, TLS not trusted), nobody else is tried
// there: what they should be is in the registry, and their results are
// Deferred with ErrStopped. When the caller stops, or ctx is over, what has
// begun is finished or cancelled, and recorded, before Each returns. So
// requests must heed ctx itself, and must not block for ever when the caller
// stops: Each cannot interrupt it, and waits for it.
//
// Requests that are ready at the same time share a commit; none waits for
// another to come.
func (a *Agent) Each(ctx context.Context, requests iter.Seq[Request], parallel int) iter.Seq[Result] {
	return func(yield func(Result) bool) {
		ctx, cancel := context.WithCancel(ctx)
		g := newGates()
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
					a.start(ctx, batch, g, &all)
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
	err    error       // why it was not accepted
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
func (a *Agent) start(ctx context.Context, batch []*task, g *gates, all *sync.WaitGroup) {
	for _, t := range batch {
		if !t.goesToServer() {
			all.Go(func() { t.result <- a.carryOut(ctx, t, g) })
		}
	}
	for _, t := range batch {
		switch {
		case !t.goesToServer():
		case g.known(t.key.Server):
			all.Go(func() { t.result <- a.carryOut(ctx, t, g) })
		default:
			t.result <- a.carryOut(ctx, t, g)
		}
	}
}

// gates keep many workers from repeating a failure that concerns everybody.
type gates struct {
	mu      sync.Mutex
	servers map[string]error // those that have been tried; why they fail for everybody, or nil
}

func newGates() *gates { return &gates{servers: make(map[string]error)} }

// pass waits for a connection's place on the server, and then for a turn; leave
// gives the place back, whatever came of it. It looks at the gate before, for
// there is nothing to wait for if it is closed, and after each wait, as it may
// have been closed meanwhile.
func (g *gates) pass(ctx context.Context, server pacedServer) (leave func(), err error) {
	leave = func() {}
	if err := g.closed(server.Name); err != nil {
		return leave, err
	}
	if server.slots != nil {
		select {
		case server.slots <- struct{}{}:
			leave = func() { <-server.slots }
		case <-ctx.Done():
			return leave, context.Cause(ctx)
		}
		if err := g.closed(server.Name); err != nil {
			return leave, err
		}
	}
	if err := server.pace.Wait(ctx); err != nil {
		return leave, err
	}
	return leave, g.closed(server.Name)
}

// known reports whether the server has been tried.
func (g *gates) known(server string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, known := g.servers[server]
	return known
}

// closed returns why the server must not be tried again.
func (g *gates) closed(server string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.servers[server]; err != nil {
		return fmt.Errorf("%w, as server %q fails for everybody: %w", ErrStopped, server, err)
	}
	return nil
}

// tried notes what came of trying the server.
func (g *gates) tried(server string, err error) {
	if imapmeta.KindOf(err) != imapmeta.Server {
		err = nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.servers[server] == nil {
		g.servers[server] = err
	}
}
