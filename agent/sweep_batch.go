package agent

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"dovepush/registry"
)

// claimed is a batch of users, and until when they are ours.
type claimed struct {
	regs  []registry.Registration
	until time.Time
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
	until, retryAt := v.claimTimes(v.site.Timeout + claimAhead)
	// To break this off would leave open who is claimed.
	claiming, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime)
	defer cancel()
	claims, err := v.options.Registry.ClaimEach(claiming, v.site.Name, v.owner, until, retryAt, names)
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
	signed, lost, err := v.signAnew(claiming, v.owner, v.site.Name, until, retryAt, batch.regs...)
	for _, reg := range lost {
		err = errors.Join(err, v.hold(step{kind: Look, user: reg.User}))
	}
	if err != nil {
		v.giveBackAll(batch.regs)
		return claimed{}, err
	}
	batch.regs = signed
	return batch, nil
}

// finished is a claimed user whom nothing more is done for now.
type finished struct {
	record registry.Result
	result Result
	silent bool // he was not tried
	room   bool // he has taken room
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
