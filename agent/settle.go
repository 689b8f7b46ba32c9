package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"dovepush/imapmeta"
	"dovepush/registry"
)

// settle claims a row and works on it. It does nothing on a server whose
// circuit is open, nor if somebody else has settled the row since it was asked
// for: a running service does what the command line has just written down.
func (a *Agent) settle(ctx context.Context, key registry.Key, asked time.Time, m manner) Result {
	owner := a.owner()
	s, ok := a.sites[key.Server]
	if !ok {
		return Result{User: key.User, Server: key.Server, Verdict: Failed, Err: fmt.Errorf("%w: server %q is not configured", ErrNoServer, key.Server)}
	}
	// Waiting for a turn comes before the claim, which the work must fit in.
	p, err := s.enter(ctx)
	if err != nil {
		return a.look(ctx, key, Result{User: key.User, Server: key.Server, Verdict: Deferred, Err: err})
	}
	defer p.exit()
	reg, claimed, err := a.claim(ctx, key, owner, s.Timeout, asked, m)
	switch {
	case err != nil && ctx.Err() != nil: // the claim may have been made nevertheless
		err = errors.Join(err, a.release(ctx, owner))
		fallthrough
	case err != nil:
		return a.look(ctx, key, Result{User: key.User, Server: key.Server, Verdict: Deferred, Err: err})
	case !claimed && reg.State == registry.Failed:
		return refusedMeanwhile(reg)
	case !claimed:
		return a.settled(reg, asked)
	}
	result, _ := a.work(ctx, p, owner, reg, m)
	return result
}

// work makes the entry of a claimed registration what it should be, by exchange,
// which is the only way to do so: it looks at the entry, does what decide says, and records
// what came of it. It also tells what that made of the server's circuit.
func (a *Agent) work(ctx context.Context, p *place, owner string, reg registry.Registration, m manner) (Result, turn) {
	record, result, turned := a.exchange(ctx, p, reg, m)
	return a.record(ctx, owner, record, result), turned
}

// manner is how work is done.
type manner struct {
	forget  bool // who is to be unregistered, and unknown to Dovecot, is forgotten
	share   bool // whom somebody else has tried in vain is not tried again
	patient bool // who is somebody else's is waited for without a word
}

// exchange is what of work is done with the server, for a sweep records many
// results at once. What it returns must be recorded.
func (a *Agent) exchange(ctx context.Context, p *place, reg registry.Registration, m manner) (registry.Result, Result, turn) {
	key, s := reg.Key(), p.site
	w := wish{
		present: reg.Wanted == registry.Present,
		value:   imapmeta.Value(reg.Value),
		known:   !reg.WrittenAt.IsZero() || !reg.VerifiedAt.IsZero(),
		replace: reg.Force || a.options.Replace && reg.Wanted == registry.Present,
	}
	for _, v := range reg.Written {
		w.written = append(w.written, imapmeta.Value(v))
	}
	var verdict Verdict
	var change imapmeta.Change
	// The claim outlasts the work, whatever the connector's own limit is.
	working, cancel := context.WithTimeout(ctx, s.Timeout+recordTime)
	began := time.Now()
	outcome, err := s.Entries.Update(working, key.User, func(have imapmeta.Value) imapmeta.Change {
		change, verdict = decide(w, have)
		return change
	})
	took := time.Since(began)
	turned, servers := a.tried(ctx, p, err)
	unknown, unfit := errors.Is(err, imapmeta.ErrNoUser), errors.Is(err, ErrUser)
	// A name that this connector cannot reach another may have reached before.
	forgotten := reg.Wanted == registry.Absent && (unknown && a.mayForget(reg, m) || unfit && a.mayForget(reg, manner{}))
	if forgotten && unknown {
		if doubt := s.confirmGone(working, key.User); doubt != nil {
			err, forgotten = doubt, false
		}
	}
	cancel()
	if err != nil {
		verdict = Failed
		if imapmeta.KindOf(err) != imapmeta.User {
			verdict = Deferred
		}
	}
	result := Result{User: key.User, Server: key.Server, Verdict: verdict, Err: err}
	if err == nil && verdict == Conflict {
		result.Conflict = foreign(outcome.Had)
	}
	a.observe(key.Server, verdict, err, took)
	a.notePenalty(ctx, s, took, err)
	record := a.conclude(reg, verdict, outcome, err)
	record.Gone = record.Gone || forgotten
	if forgotten && m.forget {
		result.Verdict, result.Err = Removed, nil
	}
	// A failure of the server's is not the registration's fault. It goes behind
	// those who are due, so that the next probe is another's. But if others got
	// through since this one failed in the same way, it is his after all.
	if odd := turned == opened && reg.Error != nil && reg.Error.Kind == string(imapmeta.Server); servers && !odd {
		record.Uncounted, record.NextAt = true, a.options.Now()
	}
	if stopped(ctx, err) { // nor is that we stop
		record.Uncounted, record.NextAt, record.Failure = true, a.options.Now(), reg.Error
	}
	if unanswered(change, outcome, err) {
		record.DoubtUntil = later(record.DoubtUntil, a.options.Now().Add(registry.Linger))
		if err == nil && len(reg.Written) == 1 { // twice, as registry.Claim has it: one of two writes is still to come
			record.Written = append(slices.Clone(reg.Written), reg.Value)
		}
	}
	if reg.Wanted == registry.Absent && err == nil && !record.Gone && verdict != Conflict {
		result.Verdict = Deferred
		after := record.DoubtUntil.Add(time.Second - 1) // the text has no fraction
		result.Err = fmt.Errorf("%w; look again after %s", ErrDoubt, after.Format(time.RFC3339))
		record.Failure = &registry.Failure{Kind: string(imapmeta.Retry), Message: result.Err.Error()}
	}
	record.NextAt = nextLook(reg, record.NextAt)
	return record, result, turned
}

// mayForget reports whether nothing is left to be done for a user who is to be
// unregistered, if Dovecot does not know him: he has never been reached, or the
// admin says so.
func (a *Agent) mayForget(reg registry.Registration, m manner) bool {
	never := reg.WrittenAt.IsZero() && reg.VerifiedAt.IsZero() && doubtAt(reg, a.options.Now()).IsZero()
	return never || reg.Force || m.forget
}

// confirmGone looks whether Dovecot really does not have a user whom it refused.
// It returns why he is not forgotten.
func (s *site) confirmGone(ctx context.Context, user string) error {
	if s.Exists == nil {
		return nil
	}
	switch exists, err := s.Exists(ctx, user); {
	case err != nil:
		return fmt.Errorf("look whether Dovecot has the user: %w", err)
	case exists:
		return &imapmeta.Error{Kind: imapmeta.User, User: user, Err: ErrExists}
	}
	return nil
}

// stopped reports whether the work was cancelled because we are to stop.
func stopped(ctx context.Context, err error) bool {
	return err != nil && imapmeta.KindOf(err) == imapmeta.Retry && ctx.Err() == context.Canceled
}

// observe tells the observer, if there is one.
func (a *Agent) observe(server string, verdict Verdict, err error, took time.Duration) {
	if a.options.Observe == nil {
		return
	}
	kind := imapmeta.Kind("")
	if err != nil {
		kind = imapmeta.KindOf(err)
	}
	a.options.Observe.Updated(server, verdict, kind, took)
}

// claim waits until the row is ours, or somebody else has settled it since it
// was asked for: then claimed is false.
func (a *Agent) claim(ctx context.Context, key registry.Key, owner string, timeout time.Duration, asked time.Time, m manner) (reg registry.Registration, claimed bool, err error) {
	began, warned := time.Now(), false
	for {
		before, found, err := a.options.Registry.Get(ctx, key)
		if err != nil {
			return before, false, err
		}
		if found && settledSince(before, asked, a.options.Now()) {
			return before, false, nil
		}
		if found && m.share && before.State == registry.Failed && before.ClaimedBy == "" && before.NextAt.After(a.options.Now()) {
			return before, false, nil
		}
		until, retryAt := a.claimTimes(timeout)
		reg, outcome, err := a.options.Registry.Claim(ctx, key, owner, until, retryAt)
		if err != nil {
			return reg, false, err
		}
		switch outcome {
		case registry.Missing:
			return reg, false, ErrNotRegistered
		case registry.Taken:
			tried := before.ClaimedBy != "" || reg.Attempts > before.Attempts+1
			failed := m.share && found && reg.State == registry.Failed && tried
			if failed || settledSince(unclaimed(reg), asked, a.options.Now()) { // between our look and our claim
				return reg, false, a.giveBack(ctx, owner, reg)
			}
			signed, lost, err := a.signAnew(ctx, owner, key.Server, until, retryAt, reg)
			if err != nil {
				return reg, false, errors.Join(err, a.release(ctx, owner))
			}
			if len(lost) > 0 {
				continue
			}
			return signed[0], true, nil
		}
		if a.dead(reg.ClaimedBy) {
			if err := a.options.Registry.Release(ctx, reg.ClaimedBy); err != nil {
				return reg, false, err
			}
			continue
		}
		if !m.patient && !warned && time.Since(began) > heldQuiet {
			warned = true
			a.options.Log.Warn("another dovepush is at work on this user, waiting", "user", key.User, "server", key.Server,
				"owner", reg.ClaimedBy, "until", reg.ClaimedUntil)
		}
		if err := sleep(ctx, heldPoll); err != nil {
			return reg, false, err
		}
	}
}

// claimTimes returns until when to claim for work that takes so long, and when
// to look again should we die before recording: not before the claim is over,
// nor sooner than after any other failure.
func (a *Agent) claimTimes(work time.Duration) (until, retryAt time.Time) {
	now := a.options.Now()
	until = now.Add(min(work+claimSlack, registry.MaxClaim))
	return until, later(until, now.Add(a.options.RetryInitial))
}

// settled is the result for a row that somebody else has settled since it was
// asked for.
func (a *Agent) settled(reg registry.Registration, asked time.Time) Result {
	verdict := Unchanged
	if !reg.WrittenAt.Before(asked) {
		verdict = Added
	}
	return Result{User: reg.User, Server: reg.Server, Verdict: verdict, Registration: &reg}
}

// giveBack ends a claim that there was nothing to do for.
func (a *Agent) giveBack(ctx context.Context, owner string, reg registry.Registration) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime)
	defer cancel()
	_, err := a.options.Registry.Record(ctx, owner, a.untouched(reg))
	return err
}

// refusedMeanwhile is the result for a row that somebody else has found to fail.
func refusedMeanwhile(reg registry.Registration) Result {
	err := ErrRefused
	if reg.Error != nil {
		err = fmt.Errorf("%w: %s", ErrRefused, reg.Error.Message)
	}
	return Result{User: reg.User, Server: reg.Server, Verdict: Failed, Registration: &reg, Err: err}
}

// untouched is what to record of a row as whoever settled it, or failed to, has
// left it.
func (a *Agent) untouched(reg registry.Registration) registry.Result {
	failed := reg.State == registry.Failed
	return registry.Result{Key: reg.Key(), Revision: reg.Revision, State: reg.State, DoubtUntil: reg.DoubtUntil,
		Unsettled: failed, Uncounted: failed, Failure: reg.Error, NextAt: nextLook(reg, a.options.Now().Add(a.verifyAfter()))}
}

// nextLook is when to look again, if not at a time: whatever became of it, a
// registration expires in time.
func nextLook(reg registry.Registration, at time.Time) time.Time {
	if !reg.ExpiresAt.IsZero() && reg.ExpiresAt.Before(at) {
		return reg.ExpiresAt
	}
	return at
}

// unclaimed is the row as if we had not claimed it.
func unclaimed(reg registry.Registration) registry.Registration {
	reg.ClaimedBy = ""
	return reg
}

// settledSince reports whether the entry was found or made what it should be
// between asked and now, and nothing is left to be done. A later time is from
// before the clock was set back.
func settledSince(reg registry.Registration, asked, now time.Time) bool {
	return reg.State == registry.Registered && reg.Wanted == registry.Present && reg.Error == nil && reg.ClaimedBy == "" &&
		reg.VerifiedAt.After(asked) && !reg.VerifiedAt.After(now)
}

// conclude says what shall be recorded of a look at reg.
func (a *Agent) conclude(reg registry.Registration, verdict Verdict, outcome imapmeta.Outcome, failure error) registry.Result {
	now := a.options.Now()
	doubt := doubtAt(reg, now)
	res := registry.Result{Key: reg.Key(), Revision: reg.Revision, State: reg.State, DoubtUntil: doubt}
	if failure != nil {
		res.Failure = &registry.Failure{Kind: string(imapmeta.KindOf(failure)), Message: failure.Error()}
		res.Unsettled = true
		res.NextAt = now.Add(a.retryAfter(reg.Attempts))
		if imapmeta.KindOf(failure) == imapmeta.User {
			res.State = registry.Failed
			res.NextAt = now.Add(a.verifyAfter())
		}
		return res
	}
	res.VerifiedAt = now
	res.NextAt = now.Add(a.verifyAfter())
	if !outcome.Did.Keeps() {
		res.WrittenAt = now
	}
	if reg.Wanted == registry.Absent && verdict == Removed && len(reg.Written) == 1 && reg.Written[0] == string(outcome.Had) {
		doubt = time.Time{} // what could still come has come, and was removed
		res.DoubtUntil = doubt
	}
	switch {
	case reg.Wanted == registry.Absent && doubt.IsZero():
		// Also if the entry holds somebody else's value: nothing of ours is
		// left to look after.
		res.Gone = true
		if verdict != Conflict {
			res.Written = []string{}
		}
	case verdict == Conflict:
		// What is there is not ours, yet a write of ours whose answer was lost
		// may still come through: what was written stays known.
		res.State = registry.Conflict
		res.Failure = &registry.Failure{Kind: string(imapmeta.User), Message: foreign(outcome.Had)}
		res.Unsettled = true
	case reg.Wanted == registry.Absent:
		res.State = registry.Removing
		res.Unsettled = true
	default:
		res.State = registry.Registered
		if doubt.IsZero() {
			res.Written = []string{reg.Value}
		}
	}
	if !doubt.IsZero() && doubt.Before(res.NextAt) {
		res.NextAt = doubt
	}
	return res
}

// doubtAt is until when a value that was sent without an answer may still turn
// up, as of now; zero if none will. A time further ahead than any claim sets
// was set before the clock was set back.
func doubtAt(reg registry.Registration, now time.Time) time.Time {
	doubt := reg.DoubtUntil
	if !doubt.After(now) {
		return time.Time{}
	}
	if most := now.Add(registry.MaxClaim + registry.Linger); doubt.After(most) {
		return most
	}
	return doubt
}

// unanswered reports whether a value was sent, or may have been, and Dovecot
// did not say what became of it. A BYE is no answer to what was sent.
func unanswered(change imapmeta.Change, outcome imapmeta.Outcome, failure error) bool {
	if value, changes := change.Value(); !changes || value == imapmeta.Absent {
		return false
	}
	if failure == nil {
		return outcome.Resent
	}
	var e *imapmeta.Error
	return !errors.As(failure, &e) || e.Status == "" || e.Status == "BYE"
}

// foreign describes a value that is not ours.
func foreign(v imapmeta.Value) string {
	if identity, ok := v.Identity(); ok {
		return fmt.Sprintf("the entry notifies for user=%.200q, which dovepush did not write", identity)
	}
	return fmt.Sprintf("the entry holds %.200q, which dovepush did not write", string(v))
}

// record writes the result down even if ctx is over: the exchange took place.
func (a *Agent) record(ctx context.Context, owner string, res registry.Result, result Result) Result {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime)
	defer cancel()
	lost, err := a.options.Registry.Record(ctx, owner, res)
	switch {
	case err == nil && len(lost) > 0:
		err = ErrLate
	case errors.Is(err, context.DeadlineExceeded):
		err = fmt.Errorf("%w: %w", ErrLate, err)
	}
	if err != nil {
		result.Verdict = Deferred
		result.Err = errors.Join(result.Err, err)
		return result
	}
	return a.look(ctx, res.Key, result)
}

// release gives a claim back even if ctx is over.
func (a *Agent) release(ctx context.Context, owner string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime)
	defer cancel()
	return a.options.Registry.Release(ctx, owner)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
