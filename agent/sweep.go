package agent

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"

	"dovepush/imapmeta"
	"dovepush/registry"
)

const (
	// maxClaims bounds how many users a sweep claims at once, and maxFinished
	// how many it has worked on, or is about to, that are not recorded.
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
// with the registry, or a SweepError of ErrStopped, ErrStrained and the like. What has begun is recorded
// when it returns. The next sweep goes on with the rest.
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
		return intent, a.complete(&intent)
	}
	if err := imapmeta.CheckUser(st.user); err != nil {
		return intent, err
	}
	if _, ok := a.options.Route(st.user); !ok {
		return intent, ErrNoServer
	}
	return intent, a.complete(&intent)
}

// serverSweep is what a sweep has to do on one server.
type serverSweep struct {
	*sweep
	site     *site
	owner    string // one for all claims: no user comes twice
	strain   *strain
	holding  sync.Mutex
	held     *spool // whom others are at work on
	room     chan struct{}
	finished chan finished
}

// finished is a claimed user whom nothing more is done for now.
type finished struct {
	record registry.Result
	result Result
	silent bool // he was not tried
	room   bool // he has taken room
}

func (w *sweep) server(ctx context.Context, s *site, l *lanes) (err error) {
	v := &serverSweep{sweep: w, site: s, owner: w.owner(), room: make(chan struct{}, maxFinished), finished: make(chan finished, maxFinished)}
	v.strain = newStrain(func(n int) time.Duration { return w.probeAfter(n, false) }, func(pause time.Duration) {
		w.options.Log.Warn("half of the users fail, pausing", "server", s.Name, "of the last", strainWindow, "pause", pause.Round(time.Second).String())
	})
	if v.held, err = newSpool(w.dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.held.close()) }()
	var recording sync.WaitGroup
	recording.Go(func() { v.recordAll(ctx) })
	working, stop := drained(ctx)
	defer stop()
	for _, lane := range []int{known, fresh, leaving} {
		if err == nil && l[lane] != nil {
			err = v.work(ctx, working, l[lane].turned(w.options.Random()))
		}
	}
	close(v.finished)
	recording.Wait()
	if err == nil {
		err = v.wait(ctx, working)
	}
	if err == nil && l[slow] != nil {
		err = v.slowly(ctx, working, l[slow])
	}
	if err != nil { // a claim that failed may have been made nevertheless
		err = errors.Join(err, v.release(ctx, v.owner))
	}
	return err
}

// drained returns a context for what is under way: it ends a while after ctx.
func drained(ctx context.Context) (working context.Context, stop func()) {
	working, cancel := context.WithCancel(context.WithoutCancel(ctx))
	unhook := context.AfterFunc(ctx, func() {
		if sleep(working, sweepDrain) == nil {
			cancel()
		}
	})
	return working, func() { unhook(); cancel() }
}

// claimed is a batch of users, and until when they are ours.
type claimed struct {
	regs  []registry.Registration
	until time.Time
}

// work works on the users of a plan. While one batch of them is worked on, the
// next is being claimed.
func (v *serverSweep) work(ctx, working context.Context, steps iter.Seq2[step, error]) error {
	claiming, stop := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	batches := make(chan claimed)
	var failed error // read when batches is closed
	all.Go(func() {
		defer close(batches)
		failed = v.claimAll(claiming, steps, batches)
	})
	var err error
	for batch := range batches {
		for i, reg := range batch.regs {
			if err == nil {
				err = v.start(ctx, working, &all, reg, batch.until)
			}
			if err != nil {
				stop()
				v.giveBackAll(batch.regs[i:])
				break
			}
		}
	}
	stop()
	if err == nil {
		err = failed
	}
	return err
}

// start has a claimed user worked on in working as soon as there is a place for
// him.
func (v *serverSweep) start(ctx, working context.Context, all *sync.WaitGroup, reg registry.Registration, until time.Time) error {
	if err := v.strain.admit(ctx); err != nil {
		return err
	}
	select {
	case v.room <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	p, err := v.site.enter(ctx)
	if err != nil {
		<-v.room
		return err
	}
	if v.options.Now().Add(v.site.Timeout + recordTime).After(until) { // others have kept us waiting
		p.exit()
		<-v.room
		v.strain.giveBack()
		v.giveBackAll([]registry.Registration{reg})
		kind := Look
		if reg.Wanted == registry.Absent {
			kind = Remove
		}
		return v.hold(step{kind: kind, user: reg.User})
	}
	all.Go(func() {
		record, result, _ := v.exchange(working, p, reg, manner{forget: v.forget})
		p.exit() // the server need not wait for the registry
		v.strain.done(isFailure(result))
		v.finished <- finished{record: record, result: result, room: true}
	})
	return nil
}

// isFailure reports whether a result is one of those that too many must not have.
func isFailure(r Result) bool {
	return r.Err != nil && (r.Verdict == Failed || r.Verdict == Deferred) && !errors.Is(r.Err, ErrDoubt)
}

// claimAll claims the users of a plan, batch by batch: few at first, for the
// server may fail for everybody, then as many as are worked on in a moment.
func (v *serverSweep) claimAll(ctx context.Context, steps iter.Seq2[step, error], batches chan<- claimed) error {
	size, since := 1, time.Now()
	var users []step
	pass := func() error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		batch, err := v.claimSome(ctx, users)
		users = users[:0]
		if err != nil {
			return err
		}
		select {
		case batches <- batch:
		case <-ctx.Done():
			v.giveBackAll(batch.regs)
			return context.Cause(ctx)
		}
		switch took := time.Since(since); {
		case took < 200*time.Millisecond && len(batch.regs) == size: // the work is fast, not the claiming of what others work on
			size = min(2*size, maxClaims)
		case took > time.Second:
			size = max(size/2, 1)
		}
		since = time.Now()
		return nil
	}
	for st, err := range steps {
		if err != nil {
			return err
		}
		if users = append(users, st); len(users) >= size {
			if err := pass(); err != nil {
				return err
			}
		}
	}
	if len(users) > 0 {
		return pass()
	}
	return nil
}

// claimSome claims users, and sorts out those who are not ours to work on.
func (v *serverSweep) claimSome(ctx context.Context, users []step) (claimed, error) {
	names := make([]string, len(users))
	for i, st := range users {
		names[i] = st.user
	}
	now := v.options.Now()
	until := now.Add(min(v.site.Timeout+claimSlack+claimAhead, registry.MaxClaim))
	// To break this off would leave open who is claimed.
	claiming, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime)
	defer cancel()
	claims, err := v.options.Registry.ClaimEach(claiming, v.site.Name, v.owner, until, later(until, now.Add(v.options.RetryInitial)), names)
	if err != nil {
		return claimed{}, err
	}
	batch := claimed{until: until}
	for i, c := range claims {
		switch {
		case c.Outcome == registry.Missing:
			v.report(v.missing(users[i]))
		case c.Outcome == registry.Held:
			if err := v.hold(users[i]); err != nil {
				v.giveBackAll(batch.regs)
				return claimed{}, err
			}
		case settledSince(unclaimed(c.Registration), v.began, v.options.Now()):
			result := v.settled(c.Registration, v.began)
			result.Registration = nil
			v.finished <- finished{record: v.untouched(c.Registration), result: result}
		case c.State == registry.Failed: // since the plan was made, or he would be in the slow lane
			v.finished <- finished{record: v.untouched(c.Registration), result: refusedMeanwhile(c.Registration)}
		default:
			batch.regs = append(batch.regs, c.Registration)
		}
	}
	return batch, nil
}

// hold keeps a user for later.
func (v *serverSweep) hold(st step) error {
	v.holding.Lock()
	defer v.holding.Unlock()
	return v.held.add(st)
}

// missing is the result for a user whose row is gone: others did what was to be
// done, or have unregistered him.
func (v *serverSweep) missing(st step) Result {
	result := Result{User: st.user, Server: v.site.Name, Verdict: Deferred, Err: ErrOvertaken}
	if st.kind == Remove {
		result.Verdict, result.Err = Removed, nil
	}
	return result
}

// giveBackAll gives claims back of users who were not tried, so that they are
// due at once.
func (v *serverSweep) giveBackAll(regs []registry.Registration) {
	for _, reg := range regs {
		v.finished <- finished{silent: true, record: registry.Result{Key: reg.Key(), Revision: reg.Revision, State: reg.State,
			Unsettled: true, Uncounted: true, DoubtUntil: reg.DoubtUntil, NextAt: v.options.Now(), Failure: reg.Error}}
	}
}

// recordAll records what is finished, as much as possible in one commit, and
// reports it.
func (v *serverSweep) recordAll(ctx context.Context) {
	for first := range v.finished {
		batch := []finished{first}
		timer := time.NewTimer(gatherTime)
	gather:
		for len(batch) < maxClaims {
			select {
			case f, more := <-v.finished:
				if !more {
					break gather
				}
				batch = append(batch, f)
			case <-timer.C:
				break gather
			}
		}
		timer.Stop()
		v.recordSome(ctx, batch)
	}
}

func (v *serverSweep) recordSome(ctx context.Context, batch []finished) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime)
	defer cancel()
	records := make([]registry.Result, len(batch))
	for i, f := range batch {
		records[i] = f.record
	}
	lost, err := v.options.Registry.Record(ctx, v.owner, records...)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("%w: %w", ErrLate, err)
	}
	late := make(map[registry.Key]bool, len(lost))
	for _, key := range lost {
		late[key] = true
	}
	for _, f := range batch {
		if f.room {
			<-v.room
		}
		if f.silent {
			continue
		}
		failure := err
		if late[f.record.Key] {
			failure = ErrLate
		}
		if failure != nil {
			f.result.Verdict, f.result.Err = Deferred, errors.Join(f.result.Err, failure)
		} else if v.Rows && f.result.Verdict != Unchanged {
			f.result = v.look(ctx, f.record.Key, f.result)
		}
		v.report(f.result)
	}
}

// wait sees to the users whom others were at work on: it waits for what becomes
// of them, and does what is left.
func (v *serverSweep) wait(ctx, working context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	busy := make(chan struct{}, max(v.site.MaxConnections, 1))
	for st, err := range v.held.steps() {
		if err != nil {
			return err
		}
		select {
		case busy <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := v.site.circuit.stopped(); err != nil {
			return err
		}
		if err := v.strain.admit(ctx); err != nil {
			return err
		}
		all.Go(func() {
			defer func() { <-busy }()
			v.strain.done(isFailure(v.one(working, st, true)))
		})
	}
	return nil
}

// one settles a single user in a context that ends a while after we are to
// stop, and returns what came of it.
func (v *serverSweep) one(ctx context.Context, st step, share bool) Result {
	result := v.settle(ctx, registry.Key{User: st.user, Server: v.site.Name}, v.began, manner{forget: v.forget, share: share})
	switch {
	case errors.Is(result.Err, ErrNotRegistered):
		result = v.missing(st)
	case errors.Is(result.Err, ErrStopped), ctx.Err() != nil && result.Err != nil:
		return result // not tried, or not to its end
	}
	v.report(result)
	return result
}
