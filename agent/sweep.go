package agent

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"dovepush/registry"
)

const (
	// maxClaims bounds how many users a sweep claims at once, and maxFinished
	// how many it has worked on, or is about to, that are not recorded: twice as
	// many as may be worked on at once, if that is more.
	maxClaims, maxFinished = 256, 512
	// A result waits this long for others to share its commit.
	gatherTime = 20 * time.Millisecond
	// claimAhead is how long users may wait for their turn once they are
	// claimed, beyond the time that the work on one takes.
	claimAhead = time.Minute
	// sweepDrain is how long a sweep that is stopped lets what is under way
	// finish: a write that is broken off may come through later.
	sweepDrain = 3 * time.Second
)

// Sweeping says how a plan is to be carried out.
type Sweeping struct {
	NoWait bool // only change what should be; the work is done later
	Rows   bool // Results have their Registration, but for those that are Unchanged
	// Report is told of each user, one after the other, in no order. Optional.
	Report func(Result)
}

// Sweep carries out a plan, once: it changes what should be for all, and then
// makes the entries of each server's users what they should be, up to
// MaxConnections at once. Other processes may do the same beside it, for the
// same users too: each user is worked on by one of them.
//
// Users who are new come after those who have been there, for Dovecot may not
// know them, and users whom it refused when they were last tried come last, one
// at a time, with a pause after each: see refusalPause. A server that fails for
// everybody ends its part of the sweep; so does a server half of whose users
// fail even after pauses.
//
// It returns how many users were not tried, and why: ctx's cause, what is wrong
// with the registry, or a SweepError of ErrStopped, ErrStrained and the like.
// What has begun is recorded when it returns. The next sweep goes on with the
// rest.
func (a *Agent) Sweep(ctx context.Context, p *Plan, o Sweeping) (untried int64, err error) {
	w := &sweep{Agent: a, Sweeping: o, began: a.options.Now(), due: p.aim.Verify != All && !p.aim.Prune, dir: p.aim.Dir}
	w.forget = p.aim.Prune
	if !a.known.Swap(true) {
		_ = a.remember(ctx) // only so that a server that works again is known to
	}
	switch err := w.prepare(ctx, p); {
	case o.NoWait:
		return p.wishes + p.Invalid - w.reported, err
	case err != nil:
		return p.Steps() - w.reported, err
	}
	var all sync.WaitGroup
	errs := make([]error, len(p.lanes))
	for i, server := range slices.Sorted(maps.Keys(p.lanes)) {
		s := a.sites[server] // a plan has no others
		all.Go(func() { errs[i] = w.server(ctx, s, p.lanes[server]) })
	}
	all.Wait()
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case len(errs) > 0:
		err = &SweepError{errs}
	}
	return p.Steps() - w.reported, err
}

// SweepError is why a sweep ended early on servers.
type SweepError struct{ Servers []error }

func (e *SweepError) Error() string   { return errors.Join(e.Servers...).Error() }
func (e *SweepError) Unwrap() []error { return e.Servers }

// sweep is a plan being carried out.
type sweep struct {
	*Agent
	Sweeping
	began  time.Time
	forget bool   // see manner
	due    bool   // the plan's slow lanes have those only who were due
	dir    string // for temporary files

	mu       sync.Mutex
	reported int64
}

func (w *sweep) report(result Result) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reported++
	if w.Report != nil {
		w.Report(result)
	}
}

// prepare reports whom nothing can be done for, changes what should be of all
// others, and takes over from sweeps that were killed.
func (w *sweep) prepare(ctx context.Context, p *Plan) error {
	if err := w.reclaim(ctx); err != nil {
		return err
	}
	if p.broken != nil {
		for st, err := range p.broken.steps() {
			if err != nil {
				return err
			}
			_, err := w.wished("", st)
			w.report(Result{User: st.user, Verdict: Failed, Err: err})
		}
	}
	for _, server := range slices.Sorted(maps.Keys(p.lanes)) {
		for _, lane := range p.lanes[server] {
			if err := w.intend(ctx, server, lane); err != nil {
				return err
			}
		}
	}
	return nil
}

// intend changes what should be of a server's users, in batches that share a
// commit. Whoever changed a row since the plan looked at it has the last word
// on whom the list does not know; who is listed already as he should be by now
// is left alone.
func (w *sweep) intend(ctx context.Context, server string, steps *spool) error {
	var intents []registry.Intent
	commit := func() error {
		err := w.options.Registry.Intend(ctx, intents...)
		for _, in := range intents {
			if w.NoWait && err == nil {
				w.report(Result{User: in.User, Server: in.Server, Verdict: Deferred})
			}
		}
		intents = intents[:0]
		return err
	}
	if steps == nil {
		return nil
	}
	for st, err := range steps.steps() {
		if err != nil {
			return err
		}
		if !st.intend {
			continue
		}
		intent, err := w.wished(server, st)
		if err != nil {
			return err // the plan found it good
		}
		if intents = append(intents, intent); len(intents) == maxBatch {
			if err := commit(); err != nil {
				return err
			}
		}
	}
	return commit()
}

// wished is what should be of a step's user. Without a server it is the one
// that the user has by the settings.
func (a *Agent) wished(server string, st step) (registry.Intent, error) {
	intent := registry.Intent{Key: registry.Key{User: st.user, Server: server}, Identity: st.identity, Wanted: registry.Present, OnlyIfOther: true}
	if st.kind == Remove {
		intent.Wanted, intent.Revision, intent.OnlyIfOther = registry.Absent, st.revision, false
		if st.identity != "" {
			return intent, completeStored(&intent)
		}
		return intent, a.complete(&intent)
	}
	if _, err := a.serverOf(st.user); err != nil {
		return intent, err
	}
	return intent, a.complete(&intent)
}
