package notify

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"dovepush/registry"
)

// Defaults of ProverOptions.
const (
	defaultEvery = time.Second
	defaultAgain = time.Minute
	defaultMost  = 100_000
	defaultBatch = 500
	defaultPause = 250 * time.Millisecond // with 500 a batch: at most 2,000 users a second
)

// ProverOptions says what a Prover works with. Prove must be given; what is
// zero has the default.
type ProverOptions struct {
	// Prove notes that notifications came, and tells for each proof whether
	// anybody is registered under one of its names. [*registry.Registry] has it.
	Prove func(ctx context.Context, proofs ...registry.Proof) (known []bool, err error)
	// Names returns the names under which the user of a notification may be
	// registered, of which it is given User and Sent. It must be quick; it is
	// asked whenever he is to be proven, for keys change. Optional: Sent is the
	// only one.
	Names func(n Notification) []string
	Every time.Duration // how long notifications are gathered: 1s
	Again time.Duration // how long a user who was proven waits for the next time: 1m
	Most  int           // users remembered at the same time: 100,000
	Batch int           // proofs in one call: 500
	Pause time.Duration // between two calls: 250ms
	// Observe is told what became of n users' proofs: "proven", "unknown" (nobody
	// is registered by that name), "failed" (the registry did not take them;
	// they are tried again), "dropped" (too many users at once, or the service
	// has stopped). It may be called by several goroutines at once. Optional.
	Observe func(result string, n int)
	// Now is the clock. Optional: time.Now.
	Now func() time.Time
	// Log gets, once, that the registry fails, and that it works again. Optional.
	Log *slog.Logger
}

// A Prover writes to the registry for whom notifications came, in groups, off
// the way of the answers, and at a bounded rate. How often somebody is notified
// does not matter: he is proven within a second or so, and then once a minute
// at most, with the newest time.
type Prover struct {
	options ProverOptions
	kick    chan struct{} // holds one if there is something to do

	mu    sync.Mutex
	users map[string]*proof // by what was sent; each stands in one of ready and quiet, or is under way
	ready []*proof          // to be proven, oldest first
	quiet []*proof          // proven less than Again ago, oldest first
}

// A proof is what is known of one user.
type proof struct {
	sent string
	user string
	at   time.Time // when his newest notification came that is not proven; zero: none
	last time.Time // when he was last proven
}

// NewProver returns a Prover. Nothing is written before Run.
func NewProver(o ProverOptions) *Prover {
	if o.Every == 0 {
		o.Every = defaultEvery
	}
	if o.Again == 0 {
		o.Again = defaultAgain
	}
	if o.Most == 0 {
		o.Most = defaultMost
	}
	if o.Batch == 0 {
		o.Batch = defaultBatch
	}
	if o.Pause == 0 {
		o.Pause = defaultPause
	}
	if o.Names == nil {
		o.Names = func(n Notification) []string { return []string{n.Sent} }
	}
	if o.Observe == nil {
		o.Observe = func(string, int) {}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Prover{options: o, kick: make(chan struct{}, 1), users: make(map[string]*proof)}
}

// Add notes that a notification came. It never waits for the registry.
func (p *Prover) Add(n Notification) {
	if !p.add(n) {
		p.options.Observe("dropped", 1)
	}
}

func (p *Prover) add(n Notification) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	u := p.users[n.Sent]
	if u == nil {
		if !p.makeRoom() {
			return false
		}
		u = &proof{sent: n.Sent, user: n.User}
		p.users[u.sent] = u
		p.enqueue(u)
	}
	if n.Received.After(u.at) {
		u.at = n.Received
	}
	return true
}

// enqueue makes a user ready, and Run look.
func (p *Prover) enqueue(u *proof) {
	p.ready = append(p.ready, u)
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// makeRoom tells whether there is room for one more user. Who was proven
// longest ago goes for it, if he has had no notification since.
func (p *Prover) makeRoom() bool {
	for len(p.users) >= p.options.Most {
		if len(p.quiet) == 0 {
			return false
		}
		p.wake(p.quiet[0])
		p.quiet = p.quiet[1:]
	}
	return true
}

// wake ends a user's quiet time.
func (p *Prover) wake(u *proof) {
	if u.at.IsZero() {
		delete(p.users, u.sent)
		return
	}
	p.enqueue(u)
}
