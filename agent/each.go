package agent

import (
	"context"
	"fmt"
	"iter"
	"sync"

	"dovepush/imapmeta"
)

// Each carries out requests, up to parallel at once, and yields their results
// in the order of the requests.
//
// The first request to a server goes alone. If the server fails for everybody
// (wrong credentials, no METADATA, TLS not trusted), nobody else is tried
// there: what they should be is in the registry, and their results are
// Deferred with ErrStopped. When the caller stops, or ctx is over, what has
// begun is finished or cancelled, and recorded, before Each returns; requests
// must not block for ever then.
func (a *Agent) Each(ctx context.Context, requests iter.Seq[Request], parallel int) iter.Seq[Result] {
	return func(yield func(Result) bool) {
		ctx, cancel := context.WithCancel(ctx)
		g := newGates()
		results := make(chan chan Result, max(parallel, 1)-1) // in order; one more is in the consumer's hand
		var all sync.WaitGroup
		defer all.Wait()
		defer cancel()
		all.Go(func() {
			defer close(results)
			for r := range requests {
				result := make(chan Result, 1)
				select {
				case results <- result:
				case <-ctx.Done():
					return
				}
				// In the order of the requests: of two for one user the later
				// is what should be.
				key, err := a.accept(ctx, r)
				work := func() { result <- a.carryOut(ctx, r, key, err, g) }
				if err == nil && !r.NoWait && !g.known(key.Server) {
					work()
					continue
				}
				all.Go(work)
			}
		})
		for result := range results {
			if !yield(<-result) {
				return
			}
		}
	}
}

// gates keep many workers from repeating a failure that concerns everybody.
type gates struct {
	mu      sync.Mutex
	servers map[string]error // those that have been tried; why they fail for everybody, or nil
}

func newGates() *gates { return &gates{servers: make(map[string]error)} }

// pass waits for a turn on the server. It looks at the gate before, for there
// is nothing to wait for if it is closed, and after, as it may have been closed
// meanwhile.
func (g *gates) pass(ctx context.Context, server pacedServer) error {
	if err := g.closed(server.Name); err != nil {
		return err
	}
	if err := server.pace.Wait(ctx); err != nil {
		return err
	}
	return g.closed(server.Name)
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
