package webhook

import (
	"context"
	"net/http"
	"net/url"
	"sync"
	"time"

	"dovepush/registry/spool"
)

const (
	// look is how often the spool is looked at without a kick: another process
	// may have revived dead letters.
	look = 15 * time.Second
	// tendEvery is how often what lies too far in the future is brought
	// forward, and how old secrets may be during a burst.
	tendEvery = time.Minute
	// recordTime is for recording what came of an attempt.
	recordTime = 25 * time.Second
	// spoolRest is the wait after the spool failed.
	spoolRest = 5 * time.Second
)

// lane is the way to one target.
type lane struct {
	options *Options
	target  Target
	shown   string // the URL
	client  *http.Client
	lease   time.Duration
	kicked  chan struct{}
	settled chan struct{} // gets one for each delivery that has ended

	// Of the lane's goroutine alone.
	signer   signer
	signedAt time.Time
	tendedAt time.Time

	mu       sync.Mutex
	underWay int
	pause    pause
	streak   int       // events refused in a row
	rest     time.Time // the spool fails: nothing is taken before
	failures int       // of the spool, so far
}

func newLane(o *Options, t Target) (*lane, error) {
	t.setDefaults()
	if err := t.check(); err != nil {
		return nil, err
	}
	u, err := url.Parse(t.URL)
	if err != nil {
		return nil, err // check has seen it already
	}
	return &lane{
		options: o,
		target:  t,
		shown:   shown(u),
		client:  newClient(t),
		lease:   2*t.Timeout + recordTime + 10*time.Second, // for the secrets, and the attempt
		kicked:  make(chan struct{}, 1),
		settled: make(chan struct{}),
	}, nil
}

func (l *lane) state() State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return State{Target: l.target.Name, URL: l.shown, UnderWay: l.underWay, Since: l.pause.since, Until: l.pause.until, Reason: l.pause.reason}
}

// run starts deliveries until ctx ends, and awaits them.
func (l *lane) run(ctx context.Context) {
	defer l.client.CloseIdleConnections()
	// Deliveries under way outlive ctx by a grace.
	work, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		timer.Reset(l.work(ctx, work))
		select {
		case <-ctx.Done():
		case <-l.kicked:
		case <-timer.C:
		case <-l.settled:
			l.ended(ctx)
		}
	}
	timer.Reset(l.options.Grace)
	for l.busy() {
		select {
		case <-l.settled:
			l.ended(work)
		case <-timer.C:
			cut()
		}
	}
}

func (l *lane) busy() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.underWay > 0
}

// work starts what can be started, and returns when to look again if nothing
// else happens.
func (l *lane) work(ctx, work context.Context) time.Duration {
	l.tend(ctx)
	free, probe, wait := l.room()
	if free == 0 {
		return wait
	}
	before := l.spoolFailures()
	list, err := l.take(ctx, free)
	if err != nil {
		l.spoolFails(ctx, err)
		return spoolRest
	}
	l.spoolWorks(before)
	if len(list) > 0 && !l.sign(ctx, list) {
		return 0
	}
	if ctx.Err() != nil { // the next one shall not have to wait for the leases
		l.giveBack(list)
		return 0
	}
	l.mu.Lock()
	l.underWay += len(list)
	l.mu.Unlock()
	for _, d := range list {
		go l.deliver(work, d, l.signer, probe)
	}
	if len(list) == free {
		return look // until one of them has ended
	}
	next, some, err := l.options.Spool.Next(ctx, l.target.Name)
	if err != nil {
		l.spoolFails(ctx, err)
		return spoolRest
	}
	if !some {
		return look
	}
	return max(time.Millisecond, min(look, next.Sub(l.options.Now())))
}

// take takes what is due, also if ctx ends meanwhile: what a commit has leased
// must not be forgotten.
func (l *lane) take(ctx context.Context, n int) ([]spool.Delivery, error) {
	taking, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime)
	defer cancel()
	return l.options.Spool.Take(taking, l.target.Name, n, l.lease)
}

// giveBack makes due again what was taken and not tried.
func (l *lane) giveBack(list []spool.Delivery) {
	ids := make([]int64, len(list))
	for i, d := range list {
		ids[i] = d.ID
	}
	ctx, cancel := context.WithTimeout(context.Background(), recordTime)
	defer cancel()
	if err := l.options.Spool.GiveBack(ctx, ids...); err != nil {
		l.spoolFails(ctx, err)
	}
}

// room tells how many deliveries may start, whether as a probe, and if none,
// how long to wait.
func (l *lane) room() (free int, probe bool, wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.options.Now()
	if left := l.rest.Sub(now); left > 0 && left <= spoolRest {
		return 0, false, left
	}
	if !l.pause.on() {
		return l.target.MaxConnections - l.underWay, false, look
	}
	left := l.pause.until.Sub(now)
	switch {
	case left > l.target.RetryMax: // the clock was set back
		l.pause.until = now
		return 0, true, 0
	case left > 0:
		return 0, true, min(look, left)
	case l.underWay > 0:
		return 0, true, look
	}
	return 1, true, 0
}

// sign sees to it that there are secrets to sign the list with. If there are
// none, it gives the list back and sets the target aside.
func (l *lane) sign(ctx context.Context, list []spool.Delivery) bool {
	now := l.options.Now()
	if l.signer != nil && l.busy() && now.Sub(l.signedAt) < tendEvery {
		return true
	}
	reading, cancel := context.WithTimeout(ctx, l.target.Timeout)
	defer cancel()
	s, err := newSigner(reading, l.target.Secrets)
	switch {
	case err == nil:
		l.signer, l.signedAt = s, now
		return true
	case ctx.Err() != nil: // which is nobody's failure
		l.giveBack(list)
		return false
	}
	l.signer = nil
	for i, d := range list {
		// All of one take are one failure.
		l.settle(ctx, d, verdict{kind: targetFails, reason: "no secret to sign with: " + err.Error()}, i == 0, 0)
	}
	return false
}

// tend does what is to be done now and then.
func (l *lane) tend(ctx context.Context) {
	now := l.options.Now()
	if since := now.Sub(l.tendedAt); since >= 0 && since < tendEvery {
		return
	}
	l.tendedAt = now
	if _, err := l.options.Spool.Hasten(ctx, l.target.Name, now.Add(l.target.RetryMax+l.lease)); err != nil {
		l.spoolFails(ctx, err)
	}
}

// ended counts a delivery that has ended. After a long outage, what has waited
// too long is given up, whether it was tried or not.
func (l *lane) ended(ctx context.Context) {
	now := l.options.Now()
	l.mu.Lock()
	l.underWay--
	p := l.pause
	l.mu.Unlock()
	if !p.on() || now.Sub(p.since) < min(l.target.RetryMax, l.target.GiveUpAfter) {
		return
	}
	n, err := l.options.Spool.Expire(ctx, l.target.Name, now.Add(-l.target.GiveUpAfter), "waited too long: "+p.reason)
	if err != nil {
		l.spoolFails(ctx, err)
	}
	if n > 0 {
		l.options.Log.Warn("webhook: events are given up, for they waited too long; dovepush webhooks shows them",
			"target", l.target.Name, "url", l.shown, "events", n, "reason", p.reason)
	}
}
