package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"dovepush/registry"
)

const (
	// maxTake bounds how many registrations are claimed in one transaction.
	maxTake = 64
	// maxSleep bounds how long a server's keeper sleeps, whatever the registry
	// says: it does not say when a claim of a process ends that was killed.
	maxSleep = time.Minute
	// While the registry cannot be used, it is tried again at growing intervals.
	troubleInitial, troubleMax = time.Second, 30 * time.Second
)

// errStopping is why work is cancelled that Drain was too short for.
var errStopping = errors.New("dovepush is stopping")

// Run keeps every registration what it should be, until ctx is over: each is
// worked on when it is due, be it new, to be tried again, expired, or to be
// verified. Each server has a keeper of its own, so that none waits for
// another. Then what is under way is given Options.Drain to finish; it is
// recorded in any case. Run returns ctx's cause, or an error at once if the
// registry is gone for good. It must be called at most once.
//
// Registrations come from Submit, and from other processes: every Options.Poll
// Run looks whether the registry has changed.
func (a *Agent) Run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	a.known.Store(true)
	if err := a.remember(ctx); err != nil && ctx.Err() == nil {
		a.registryFailed("circuit", err)
	}
	working, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	var loops, work sync.WaitGroup
	for _, s := range a.sites {
		loops.Go(func() { a.keep(ctx, working, s, &work, stop) })
	}
	setBack := make(chan struct{}, 1)
	loops.Go(func() { a.watch(ctx, setBack) })
	loops.Go(func() { a.tend(ctx, setBack) })
	loops.Wait()
	defer time.AfterFunc(a.options.Drain, func() { cancel(errStopping) }).Stop()
	work.Wait()
	a.wakeWaiting("")
	return context.Cause(ctx)
}

// keep works on a server's registrations as they fall due. What it has begun
// goes on in work when it returns.
func (a *Agent) keep(ctx, working context.Context, s *site, work *sync.WaitGroup, stop context.CancelCauseFunc) {
	trouble := time.Duration(0)
	for ctx.Err() == nil {
		s.pulse.beat()
		rest, err := a.takeDue(ctx, working, s, work)
		if err == nil && rest > 0 {
			var slow time.Duration
			slow, err = a.takeRefused(ctx, working, s, work)
			rest = min(rest, slow)
		}
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, fs.ErrNotExist): // removed, or replaced: what is written now is lost
			stop(err)
			return
		case err != nil:
			a.registryFailed("take", err)
			trouble = min(max(2*trouble, troubleInitial), troubleMax)
			rest = trouble
		default:
			if trouble > 0 { // not for having merely read, while others cannot write
				a.registryWorks()
			}
			trouble = 0
		}
		if rest <= 0 {
			continue
		}
		_, changed := s.circuit.probeIn()
		s.pulse.wait(func() {
			timer := time.NewTimer(min(rest, maxSleep))
			defer timer.Stop()
			kick := s.kick
			if err != nil {
				kick = nil // rest, whatever others want
			}
			select {
			case <-kick:
			case <-changed:
			case <-timer.C:
			case <-ctx.Done():
			}
		})
	}
}

// takeDue takes what is due, as much as there are free connections, and has it
// worked on. It returns how long there is nothing to do; 0: look again at once.
func (a *Agent) takeDue(ctx, working context.Context, s *site, work *sync.WaitGroup) (rest time.Duration, err error) {
	if wait, _ := s.circuit.probeIn(); wait > 0 {
		return wait, nil
	}
	next, some, err := a.options.Registry.NextDue(ctx, s.Name)
	switch {
	case err != nil:
		return 0, err
	case len(s.express) > 0: // they may be in the slow lane, which NextDue passes over
	case !some:
		return maxSleep, nil
	case next.After(a.options.Now()):
		return next.Sub(a.options.Now()), nil
	}
	var first *place
	s.pulse.wait(func() { first, err = s.enter(ctx) })
	if errors.Is(err, ErrStopped) {
		return 0, nil // probeIn tells for how long
	}
	if err != nil {
		return 0, err
	}
	places := []*place{first}
	for len(places) < maxTake {
		p, ok := s.enterToo(ctx)
		if !ok {
			break
		}
		places = append(places, p)
	}
	defer func() {
		for _, p := range places {
			p.exit()
		}
	}()
	owner := a.owner()
	until, retryAt := a.claimTimes(s.Timeout)
	regs, err := a.options.Registry.Take(ctx, s.Name, owner, until, retryAt, len(places), s.hurried(len(places))...)
	if err != nil {
		if ctx.Err() != nil { // the claims may have been made nevertheless
			err = errors.Join(err, a.release(ctx, owner))
		}
		return 0, err
	}
	if len(regs) > 0 {
		a.registryWorks()
	}
	if regs, _, err = a.signAnew(ctx, owner, s.Name, until, retryAt, regs...); err != nil {
		return 0, errors.Join(err, a.release(ctx, owner))
	}
	for _, reg := range regs {
		a.workOn(working, work, places[0], owner, reg)
		places = places[1:]
	}
	return 0, nil
}

// workOn has a claimed registration worked on at a place, which it leaves.
func (a *Agent) workOn(working context.Context, work *sync.WaitGroup, p *place, owner string, reg registry.Registration) {
	work.Go(func() {
		defer p.site.wake()
		defer p.exit()
		result, turned := a.work(working, p, owner, reg, manner{})
		a.tell(working, p.site, reg, result, turned)
		a.wakeWaitingFor(reg.Key())
	})
}

// hurried returns up to n users whom somebody waits for. At every fourth call
// there are none: whoever is merely due has his turn, too.
func (s *site) hurried(n int) (users []string) {
	if s.takes++; s.takes%4 == 0 {
		return nil
	}
	for len(users) < n {
		select {
		case user := <-s.express:
			users = append(users, user)
		default:
			return users
		}
	}
	return users
}

// watch wakes the keepers when the registry was changed by another process, or
// the clock was set, and tells when it was set back.
func (a *Agent) watch(ctx context.Context, setBack chan<- struct{}) {
	ticks := time.NewTicker(a.options.Poll)
	defer ticks.Stop()
	began, clock := time.Now(), a.options.Now().Round(0)
	var offset time.Duration // of the clock, from where it should be
	var version int64
	failed := false
	for {
		a.watcher.wait(func() {
			select {
			case <-ticks.C:
			case <-ctx.Done():
			}
		})
		if ctx.Err() != nil {
			return
		}
		now, err := a.options.Registry.Version(ctx)
		if err == nil && now != version {
			version = now
			err = a.follow(ctx)
			a.wakeWaiting("")
			a.wakeKeepers()
		}
		failed = a.noteTrouble(ctx, failed, err)
		// Sleeping goes by a clock that nobody sets.
		is := a.options.Now().Round(0).Sub(clock) - time.Since(began)
		if step := is - offset; step > clockStep || step < -clockStep {
			a.options.Log.Warn("the clock was set", "by", step.Round(time.Second).String())
			if step < 0 {
				select {
				case setBack <- struct{}{}:
				default: // said already
				}
			}
			a.wakeKeepers()
		}
		offset = is
	}
}

// clockStep is what the clock may go wrong by between two looks before it
// counts as set; slewing does not come near it.
const clockStep = 2 * time.Second

func (a *Agent) wakeKeepers() {
	for _, s := range a.sites {
		s.wake()
	}
}

// maxStill is how long a loop of Run may be at work without turning: longer
// than the registry waits for a lock, and for a slow disk.
const maxStill = 90 * time.Second

// Healthy fails if a loop of Run has stopped turning. That is a defect, or the
// disk of the registry hangs; trouble with servers is none.
func (a *Agent) Healthy() error {
	if d := a.watcher.still(); d > maxStill {
		return fmt.Errorf("the watch of the registry has not turned for %s", d.Round(time.Second))
	}
	for name, s := range a.sites {
		if d := s.pulse.still(); d > maxStill {
			return fmt.Errorf("the keeper of server %q has not turned for %s", name, d.Round(time.Second))
		}
	}
	return nil
}
