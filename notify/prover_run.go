package notify

import (
	"context"
	"fmt"
	"time"

	"dovepush/registry"
)

const (
	// proveTime is how long one call of Prove may take, flushTime how long the
	// last ones together, when the service stops.
	proveTime = 30 * time.Second
	flushTime = 5 * time.Second
	// While the registry fails, it is tried again at growing intervals.
	troubleInitial, troubleMax = time.Second, 30 * time.Second
)

// Run writes the proofs until ctx is over. Then it writes what there still is,
// within 5 seconds, and returns ctx's cause. It must be called at most once.
func (p *Prover) Run(ctx context.Context) error {
	trouble := time.Duration(0)
	for ctx.Err() == nil {
		if !p.wait(ctx, trouble) {
			break
		}
		err := p.flush(ctx, p.options.Pause)
		switch {
		case err != nil && ctx.Err() == nil:
			if trouble == 0 {
				p.options.Log.Error("notify: the registry does not take the time of notifications; they are tried again", "error", err)
			}
			trouble = min(max(2*trouble, troubleInitial), troubleMax)
		case err == nil && trouble > 0:
			p.options.Log.Info("notify: the registry takes the time of notifications again")
			trouble = 0
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
	defer cancel()
	p.wakeAll()
	if err := p.flush(last, 0); err != nil {
		p.options.Log.Error("notify: the time of the last notifications is not in the registry", "error", err)
	}
	p.mu.Lock()
	left := len(p.ready)
	p.mu.Unlock()
	if left > 0 {
		p.options.Observe("dropped", left)
	}
	return context.Cause(ctx)
}

// wait waits until there is something to prove, and then to gather more, or
// for the trouble to pass. It returns false if ctx is over.
func (p *Prover) wait(ctx context.Context, trouble time.Duration) bool {
	for trouble == 0 {
		rest, ready := p.wakeDue()
		if ready {
			break
		}
		timer := time.NewTimer(rest)
		select {
		case <-p.kick:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return false
		}
	}
	return pause(ctx, max(p.options.Every, trouble))
}

// wakeDue wakes those whose quiet time is over. It tells whether somebody is
// ready, and if not, when to look again.
func (p *Prover) wakeDue() (rest time.Duration, ready bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.options.Now()
	for len(p.quiet) > 0 {
		// A clock that was set back makes nobody wait for longer than usual.
		if since := now.Sub(p.quiet[0].last); since >= 0 && since < p.options.Again {
			rest = p.options.Again - since
			break
		}
		p.wake(p.quiet[0])
		p.quiet = p.quiet[1:]
	}
	if rest == 0 {
		rest = time.Hour // until somebody comes
	}
	return rest, len(p.ready) > 0
}

func (p *Prover) wakeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, u := range p.quiet {
		p.wake(u)
	}
	p.quiet = nil
}

// flush proves those who are ready now, with a pause after each full batch. Who
// becomes ready meanwhile waits for the next time, or somebody unknown who is
// notified all the time would have the registry asked all the time.
func (p *Prover) flush(ctx context.Context, between time.Duration) error {
	p.mu.Lock()
	left := len(p.ready)
	p.mu.Unlock()
	for left > 0 {
		batch, proofs := p.take(min(left, p.options.Batch))
		left -= len(batch)
		if err := p.prove(ctx, batch, proofs); err != nil {
			return err
		}
		if len(batch) == p.options.Batch && !pause(ctx, between) {
			return ctx.Err()
		}
	}
	return nil
}

// take takes n users off those who are ready. Nobody else takes any.
func (p *Prover) take(n int) ([]*proof, []registry.Proof) {
	p.mu.Lock()
	defer p.mu.Unlock()
	batch := p.ready[:n]
	p.ready = p.ready[len(batch):]
	proofs := make([]registry.Proof, len(batch))
	for i, u := range batch {
		proofs[i] = registry.Proof{Names: p.options.Names(Notification{User: u.user, Sent: u.sent}), At: u.at}
		u.at = time.Time{}
	}
	return batch, proofs
}

func (p *Prover) prove(ctx context.Context, batch []*proof, proofs []registry.Proof) error {
	ctx, cancel := context.WithTimeout(ctx, proveTime)
	defer cancel()
	known, err := p.options.Prove(ctx, proofs...)
	if err == nil && len(known) != len(proofs) {
		err = fmt.Errorf("%d answers to %d proofs", len(known), len(proofs))
	}
	proven := p.settle(batch, proofs, known, err)
	switch {
	case err != nil:
		p.options.Observe("failed", len(batch))
		return fmt.Errorf("notify: prove: %w", err)
	case proven > 0:
		p.options.Observe("proven", proven)
	}
	if proven < len(batch) {
		p.options.Observe("unknown", len(batch)-proven)
	}
	return nil
}

// settle puts each user of a batch where he belongs now, and returns how many
// were proven.
func (p *Prover) settle(batch []*proof, proofs []registry.Proof, known []bool, err error) (proven int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.options.Now()
	for i, u := range batch {
		switch {
		case err != nil:
			if u.at.IsZero() {
				u.at = proofs[i].At
			}
			p.enqueue(u)
		case known[i]:
			proven++
			u.last = now
			p.quiet = append(p.quiet, u)
		default: // he may be registered the next moment: no quiet time
			p.wake(u)
		}
	}
	return proven
}

// pause waits for d. It returns false if ctx is over.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}
