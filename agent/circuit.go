package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"

	"dovepush/imapmeta"
	"dovepush/registry"
)

const (
	// trusted is how long a server counts as working after it did. Then the
	// next user goes alone again: were the master password changed overnight,
	// every connection would get a refused login otherwise.
	trusted = time.Minute
	// maxUnreached is how many users in a row find no server there before
	// nobody else is sent.
	maxUnreached = 3
	// maxProbe bounds the wait between two tries of a server that refuses
	// everybody: whoever has mended it should not wait for long, and one refused
	// login now and then does no harm. Merely to connect does none at all.
	maxProbe     = 15 * time.Minute
	maxProbeElse = time.Minute
)

// circuit keeps a server that fails for everybody from being asked on behalf
// of each. While it is closed everybody may go. It opens at once when the
// server fails for everybody, and when several in a row did not reach it; then
// nobody may go until it is time for a probe, at growing intervals. A probe
// goes alone; so does the first user of all, and the first after a pause.
type circuit struct {
	server string
	delay  func(failures int, refused bool) time.Duration

	mu        sync.Mutex
	breaker   circuitbreaker.CircuitBreaker[any]
	changed   chan struct{} // closed, and made anew, when who waits should look again
	epoch     int           // grows when the circuit turns: what began before tells nothing new
	cause     error         // why it is open, or was
	failures  int           // since the server last worked
	unreached int           // in a row
	since     time.Time     // of the first of the failures
	worked    time.Time     // when the server last did
	noted     bool          // the registry has it as open
	cued      time.Time     // when somebody else was last found to have reached it
}

func newCircuit(server string, delay func(failures int, refused bool) time.Duration) *circuit {
	c := &circuit{server: server, delay: delay, changed: make(chan struct{})}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.halfOpenLocked()
	return c
}

// leave is permission to ask the server.
type leave struct{ epoch int }

// admit waits until the server may be asked, unless the circuit is open: then
// it fails with ErrStopped at once.
func (c *circuit) admit(ctx context.Context) (leave, error) {
	for {
		c.mu.Lock()
		if c.breaker.IsClosed() && time.Since(c.worked) > trusted {
			c.halfOpenLocked()
		}
		admitted := c.breaker.TryAcquirePermit()
		l, changed, stopped := leave{c.epoch}, c.changed, c.stoppedLocked()
		c.mu.Unlock()
		switch {
		case admitted:
			return l, nil
		case stopped != nil:
			return l, stopped
		}
		select {
		case <-changed: // whoever went alone is back
		case <-ctx.Done():
			return l, context.Cause(ctx)
		}
	}
}

// proven reports whether any number of users may go.
func (c *circuit) proven() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.breaker.IsClosed() && time.Since(c.worked) <= trusted
}

// stopped returns ErrStopped with the reason while the circuit is open.
func (c *circuit) stopped() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stoppedLocked()
}

func (c *circuit) stoppedLocked() error {
	if !c.breaker.IsOpen() || c.breaker.RemainingDelay() <= 0 {
		return nil
	}
	return fmt.Errorf("%w, as server %q fails for everybody: %w", ErrStopped, c.server, c.cause)
}

// probeIn returns how long it is until the server may be tried again, and what
// is closed should that change; 0 if it may be now.
func (c *circuit) probeIn() (time.Duration, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.breaker.RemainingDelay(), c.changed
}

// turn is what a result made of a circuit.
type turn int

const (
	stayed   turn = iota
	opened        // it was not open before
	reopened      // a probe failed
	closed        // the server works again
)

// done takes back a leave with what came of it. It reports what that made of
// the circuit, and whether the failure is the server's, not the user's. ctx is
// that of the exchange: if it is over, the failure tells nothing.
func (c *circuit) done(ctx context.Context, l leave, now time.Time, err error) (t turn, servers bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	unreached := isUnreached(err) || isHung(err)
	if ctx.Err() != nil && imapmeta.KindOf(err) == imapmeta.Retry {
		c.returnLocked(l)
		return stayed, false
	}
	if l.epoch != c.epoch {
		return stayed, imapmeta.KindOf(err) == imapmeta.Server || unreached && c.breaker.IsOpen()
	}
	switch {
	case err != nil && imapmeta.KindOf(err) == imapmeta.Server:
	case unreached:
		if c.unreached++; c.unreached < maxUnreached && c.failures == 0 {
			c.returnLocked(l)
			return stayed, false
		}
	case isLogin(err):
		// Who did not get past the login has not shown that others would: were
		// it taken for a success, an outage of Dovecot's authentication would
		// hide a wrong password, and everybody be sent against it.
		if c.unreached = 0; c.failures == 0 { // it was reached
			c.returnLocked(l)
			return stayed, false
		}
	default:
		c.unreached, c.worked = 0, time.Now()
		wasClosed, failed := c.breaker.IsClosed(), c.failures > 0
		c.failures, c.since = 0, time.Time{}
		c.breaker.RecordSuccess()
		if wasClosed {
			return stayed, false
		}
		c.turnLocked()
		if failed {
			return closed, false
		}
		return stayed, false
	}
	if t = reopened; c.failures == 0 {
		t, c.since = opened, now
	}
	c.failures++
	c.cause = err
	c.openLocked(c.delay(c.failures, imapmeta.KindOf(err) == imapmeta.Server))
	return t, true
}

// isUnreached reports whether a failure is that nobody answers at the server's
// address.
func isUnreached(err error) bool {
	var e *imapmeta.Error
	return errors.As(err, &e) && e.Unreached
}

// isLogin reports whether the exchange came to nothing before the user was
// logged in.
func isLogin(err error) bool {
	var e *imapmeta.Error
	return errors.As(err, &e) && e.Kind == imapmeta.Retry && slices.Contains([]string{"connect", "starttls", "login"}, e.Op)
}

// isHung reports whether there was no answer to the login. Dovecot's penalty
// for refused logins may last longer than we wait.
func isHung(err error) bool { return isLogin(err) && errors.Is(err, context.DeadlineExceeded) }

// takeBack takes back a leave that was not used.
func (c *circuit) takeBack(l leave) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.returnLocked(l)
}

// returnLocked takes back a leave of which nothing was learnt: if it was the
// only one, somebody else may have it.
func (c *circuit) returnLocked(l leave) {
	if l.epoch == c.epoch && c.breaker.IsHalfOpen() {
		c.halfOpenLocked()
	}
}

// halfOpenLocked lets the next user go alone. A permit cannot be taken back
// without a result, nor the delay of a breaker be changed: it begins anew.
func (c *circuit) halfOpenLocked() {
	c.breaker = circuitbreaker.NewWithDefaults[any]() // one result turns it
	c.breaker.HalfOpen()
	c.turnLocked()
}

// openLocked lets nobody go for a while, and then one alone.
func (c *circuit) openLocked(wait time.Duration) {
	c.breaker = circuitbreaker.NewBuilder[any]().WithDelay(wait).Build()
	c.breaker.Open()
	c.turnLocked()
}

func (c *circuit) turnLocked() {
	c.epoch++
	close(c.changed)
	c.changed = make(chan struct{})
}

// probe lets the next user go alone at once, as somebody else has found the
// server to work; but not more often than each so often: our secret may be
// another than his.
func (c *circuit) probe(each time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.cued.IsZero() && time.Since(c.cued) < each {
		return
	}
	c.cued, c.noted = time.Now(), false
	if c.breaker.IsOpen() {
		c.halfOpenLocked()
	}
}

// remember takes over what an earlier process has noted, so that the intervals
// go on growing. The first user goes at once all the same.
func (c *circuit) remember(known registry.Circuit) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failures, c.since, c.noted = known.Failures, known.Since, true
}

// entry is what the registry should say of a circuit that is open.
func (c *circuit) entry(now time.Time) registry.Circuit {
	c.mu.Lock()
	defer c.mu.Unlock()
	return registry.Circuit{Server: c.server, Since: c.since, ProbeAt: now.Add(c.breaker.RemainingDelay()), Failures: max(c.failures, 1),
		Failure: registry.Failure{Kind: string(imapmeta.KindOf(c.cause)), Message: fmt.Sprint(c.cause)}}
}

// setNoted says whether the registry has the circuit as open.
func (c *circuit) setNoted(noted bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.noted = noted
}

func (c *circuit) isNoted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.noted
}

// workedSince reports whether the server works, and has done so since a time.
func (c *circuit) workedSince(t time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failures == 0 && c.worked.After(t)
}

// failing reports whether the server failed when it was last tried.
func (c *circuit) failing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failures > 0
}
