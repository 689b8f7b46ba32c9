package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"dovepush/imapmeta"
	"dovepush/registry"
)

// Dovecot answers each login that it refuses late, and holds up those that
// follow from the same address, whoever they are for: by 4 s after one refused
// login, by 15 s after some, until one succeeds or 15 s have passed without
// another (AUTH_PENALTY_MAX_SECS, auth/auth-penalty.c). So users whom it has
// refused are in a slow lane: they are tried after all others, one at a time,
// and refusalPause after the last one who was refused.
//
// A connector that logs nobody in has the lane, too, but no pauses: nobody is
// held up, but users who fail should not make a sweep give up before it has seen
// to the others.
const (
	refusalPause = 16 * time.Second
	// A refusal that comes sooner than this tells that Dovecot does not delay
	// any: auth_failure_delay is 2 s by default.
	quickRefusal = time.Second
	// slowTime bounds how long a sweep has users of the slow lane tried: the
	// next one sees to the others.
	slowTime = 30 * time.Minute
	// heldUp is the shortest delay that the penalty makes.
	heldUp = 4 * time.Second
)

const hintPenalty = "a list without users whom Dovecot does not know; or, in Dovecot, auth_failure_delay = 0 (2.4), " +
	"or service anvil { unix_listener anvil-auth-penalty { mode = 0 } } (2.3), which ends its penalty for everybody"

// refusal is when a server refused a user, if it delays that.
type refusal struct {
	mu   sync.Mutex
	last time.Time
	said bool
}

// notePenalty notes a refusal, and says once that logins are held up by one.
func (a *Agent) notePenalty(ctx context.Context, s *site, took time.Duration, err error) {
	if s.LogsNobodyIn {
		return
	}
	s.refusal.mu.Lock()
	defer s.refusal.mu.Unlock()
	switch now := time.Now(); {
	case errors.Is(err, imapmeta.ErrNoUser) && took >= quickRefusal:
		s.refusal.last = now
	case err == nil && took >= heldUp && !s.refusal.said && !s.refusal.last.IsZero() && now.Sub(s.refusal.last) < took+refusalPause:
		s.refusal.said = true
		a.options.Log.WarnContext(ctx, "Dovecot holds logins up, as it has refused users that it does not know", "server", s.Name,
			"by", took.Round(time.Second).String(), "hint", hintPenalty)
	}
}

// slowIn returns how long it is until a user in the slow lane may be tried.
func (a *Agent) slowIn(s *site) time.Duration {
	s.refusal.mu.Lock()
	defer s.refusal.mu.Unlock()
	if s.refusal.last.IsZero() {
		return 0
	}
	return a.options.RefusalPause - time.Since(s.refusal.last)
}

// slowly sees to the users in the slow lane, as many as there is time for. Whom
// another sweep, or the service, has seen to since the plan was made is told of
// only.
func (v *serverSweep) slowly(ctx, working context.Context, steps *spool) error {
	began := time.Now()
	for st, err := range steps.steps() {
		if err != nil || time.Since(began) > slowTime {
			return err
		}
		reg, found, err := v.options.Registry.Get(ctx, registry.Key{User: st.user, Server: v.site.Name})
		if err != nil {
			return err
		}
		if found && reg.State == registry.Failed && v.due && reg.NextAt.After(v.options.Now()) {
			v.report(refusedMeanwhile(reg))
			continue
		}
		if err := sleep(ctx, v.slowIn(v.site)); err != nil {
			return err
		}
		if err := v.site.circuit.stopped(); err != nil {
			return err
		}
		v.one(working, st, v.due)
	}
	return nil
}

// takeRefused works on a user in the slow lane, if it is time for one. It
// returns how long there is nothing to do for them.
func (a *Agent) takeRefused(ctx, working context.Context, s *site, work *sync.WaitGroup) (rest time.Duration, err error) {
	next, some, err := a.options.Registry.NextRefused(ctx, s.Name)
	switch {
	case err != nil:
		return 0, err
	case !some:
		return maxSleep, nil
	}
	if wait := max(next.Sub(a.options.Now()), a.slowIn(s)); wait > 0 {
		return wait, nil
	}
	if s.busy.Load() > 0 {
		return maxSleep, nil // after everybody else: whoever is there wakes the keeper when he leaves
	}
	var p *place
	s.pulse.wait(func() { p, err = s.enter(ctx) })
	if errors.Is(err, ErrStopped) {
		return maxSleep, nil
	}
	if err != nil {
		return 0, err
	}
	owner := a.owner()
	until, retryAt := a.claimTimes(s.Timeout)
	reg, taken, err := a.options.Registry.TakeRefused(ctx, s.Name, owner, until, retryAt)
	if err != nil || !taken {
		p.exit()
		if ctx.Err() != nil { // the claim may have been made nevertheless
			err = errors.Join(err, a.release(ctx, owner))
		}
		return maxSleep, err
	}
	signed, _, err := a.signAnew(ctx, owner, s.Name, until, retryAt, reg)
	if err != nil || len(signed) == 0 {
		p.exit()
		return maxSleep, errors.Join(err, a.release(ctx, owner))
	}
	a.workOn(working, work, p, owner, signed[0])
	return maxSleep, nil
}
