package agent

import (
	"context"
	"errors"
	"iter"
	"sync"
	"time"

	"dovepush/registry"
)

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

func (w *sweep) server(ctx context.Context, s *site, l *lanes) (err error) {
	room := max(maxFinished, 2*s.MaxConnections)
	v := &serverSweep{sweep: w, site: s, owner: w.owner(), room: make(chan struct{}, room), finished: make(chan finished, room)}
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

// wait sees to the users whom others were at work on: it waits for what becomes
// of them, and does what is left.
func (v *serverSweep) wait(ctx, working context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	if v.held.n > 0 {
		v.options.Log.Info("others are at work on some users, waiting for what comes of them", "server", v.site.Name, "users", v.held.n)
	}
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
	result := v.settle(ctx, registry.Key{User: st.user, Server: v.site.Name}, v.began, manner{forget: v.forget, share: share, patient: true})
	switch {
	case errors.Is(result.Err, ErrNotRegistered):
		result = v.missing(st)
	case errors.Is(result.Err, ErrStopped), ctx.Err() != nil && result.Err != nil:
		return result // not tried, or not to its end
	}
	v.report(result)
	return result
}
