package webhook

import (
	"context"
	"fmt"
	"time"

	"dovepush/registry/spool"
)

// deliver sends one event and records what came of it.
func (l *lane) deliver(work context.Context, d spool.Delivery, s signer, probe bool) {
	defer func() { l.settled <- struct{}{} }()
	began := time.Now()
	v := l.send(work, d, s)
	if v.kind != arrived && work.Err() != nil {
		// Cut off: nobody knows whether it arrived, so it goes again, at once.
		l.giveBack([]spool.Delivery{d})
		return
	}
	l.settle(work, d, v, probe, time.Since(began))
}

// settle records what came of an attempt, also when ctx has ended, and says it.
func (l *lane) settle(ctx context.Context, d spool.Delivery, v verdict, probe bool, took time.Duration) {
	a := l.decide(d, v, probe)
	record, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime)
	defer cancel()
	var err error
	before := l.spoolFailures()
	switch a.result {
	case Delivered:
		err = l.options.Spool.Done(record, d.ID)
	case Failed:
		err = l.options.Spool.Retry(record, d.ID, a.at, a.reason)
	case Refused:
		err = l.options.Spool.Refuse(record, d.ID, a.at, a.reason)
	case Dead:
		err = l.options.Spool.Kill(record, d.ID, a.reason)
	}
	if err != nil {
		l.spoolFails(ctx, err)
	} else {
		l.spoolWorks(before)
	}
	l.options.Observe(l.target.Name, a.result, took)
	l.tell(d, v, a)
}

// decide changes the target's state by a verdict, and says what is to be done
// with the event. It waits for nothing.
func (l *lane) decide(d spool.Delivery, v verdict, probe bool) action {
	now := l.options.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	old := now.Sub(d.Queued) > l.target.GiveUpAfter
	a := action{reason: v.reason}
	if v.kind == eventFails && v.elsewhere() {
		if d.Refusals == 0 {
			l.streak++
		}
		if l.streak >= maxStreak {
			v.kind = targetFails
			a.reason += fmt.Sprintf(": so were the last %d events; see whether the URL is right", l.streak)
			l.pause.failures = min(l.pause.failures, maxRare) // it answers, so probes need not become rarer
		}
	}
	switch v.kind {
	case arrived:
		l.streak = 0
		a.result = Delivered
		a.ends = l.works(now)
	case eventFails:
		a.ends = l.works(now) // whoever refuses one is there for the others
		a.result = Refused
		a.at = now.Add(l.wait(d.Refusals+1, v.after))
		if old || d.Refusals+1 >= l.target.MaxRefusals {
			a.result = Dead
		}
	case targetFails, targetGone:
		a.begins = l.fails(now, v, a.reason, probe)
		a.result = Failed
		// The same event as a probe each time would let one that breaks its
		// target stand for all.
		a.at = now.Add(l.wait(d.Attempts, 0))
		if old && d.Attempts >= l.target.MaxRefusals {
			a.result = Dead
		}
	}
	return a
}

// wait is a random time that grows with each try, and is not shorter than the
// target asks for, within RetryMax.
func (l *lane) wait(try int, asked time.Duration) time.Duration {
	d := backOff(l.target.RetryInitial, l.target.RetryMax, try, l.options.Random())
	if asked > 0 { // random all the same, for others may have been asked, too
		d = asked + backOff(l.target.RetryInitial, l.target.RetryMax, 1, l.options.Random())
	}
	return min(d, l.target.RetryMax)
}

// works ends the pause and returns how long it was; 0 if there was none.
func (l *lane) works(now time.Time) time.Duration {
	if !l.pause.on() {
		return 0
	}
	lasted := max(1, now.Sub(l.pause.since))
	l.pause = pause{}
	return lasted
}

// fails begins a pause, or makes it longer if a probe failed: what was under
// way when the pause began is the same failure.
func (l *lane) fails(now time.Time, v verdict, reason string, probe bool) (begins bool) {
	if l.pause.on() && !probe {
		return false
	}
	if begins = !l.pause.on(); begins {
		l.pause.since = now
	}
	l.pause.failures++
	l.pause.reason = reason
	l.pause.until = now.Add(l.wait(l.pause.failures, v.after))
	return begins
}

// tell logs what somebody should know. It has nothing of the mail.
func (l *lane) tell(d spool.Delivery, v verdict, a action) {
	log := l.options.Log.With("target", l.target.Name, "url", l.shown)
	about := []any{"status", v.status, "user", d.User, "event", d.Event, "reason", a.reason}
	switch {
	case a.begins && v.kind == targetGone:
		log.Error("webhook: target is gone; events wait, and a probe goes now and then", about...)
	case a.begins:
		log.Warn("webhook: target fails and is set aside; events wait, and a probe goes now and then", about...)
	case a.ends > 0:
		log.Info("webhook: target works again", "after", a.ends.Round(time.Millisecond))
	}
	if a.result == Dead {
		log.Warn("webhook: event is given up; dovepush webhooks shows it", append(about, "attempts", d.Attempts)...)
	}
}

// spoolFails has the lane rest, and says why, once.
func (l *lane) spoolFails(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	l.mu.Lock()
	first := l.rest.IsZero()
	l.rest = l.options.Now().Add(spoolRest)
	l.failures++
	l.mu.Unlock()
	if first {
		l.options.Log.Error("webhook: the spool fails; nothing is forwarded meanwhile", "target", l.target.Name, "err", err)
	}
}

// spoolFailures counts, for spoolWorks.
func (l *lane) spoolFailures() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failures
}

// spoolWorks has the lane go on after what was asked of the spool succeeded. If
// it has failed since that began, it may still fail.
func (l *lane) spoolWorks(failures int) {
	l.mu.Lock()
	again := !l.rest.IsZero() && l.failures == failures
	if again {
		l.rest = time.Time{}
	}
	l.mu.Unlock()
	if again {
		l.options.Log.Info("webhook: the spool works again", "target", l.target.Name)
	}
}
