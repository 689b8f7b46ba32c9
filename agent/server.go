package agent

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"dovepush/registry"
)

// site is a server with all that bounds how it is asked: its connections, its
// logins a second, and its circuit.
type site struct {
	Server
	pace    *rate.Limiter
	slots   chan struct{} // holds one for each connection; nil: no bound
	busy    atomic.Int64  // connections in use
	circuit *circuit

	kick    chan struct{} // has room for one: look again what is due
	express chan string   // users whom somebody waits for
	takes   int           // the keeper's
	refusal refusal
	pulse   pulse
}

// maxExpress bounds how many users whom somebody waits for go before those who
// are due for longer. The others wait among them.
const maxExpress = 1024

func (a *Agent) newSite(s Server) *site {
	made := &site{Server: s, pace: rate.NewLimiter(rate.Inf, 1), circuit: newCircuit(s.Name, a.probeAfter),
		kick: make(chan struct{}, 1), express: make(chan string, maxExpress)}
	if s.LoginsPerSecond > 0 {
		made.pace.SetLimit(rate.Limit(s.LoginsPerSecond))
	}
	if s.MaxConnections > 0 {
		made.slots = make(chan struct{}, s.MaxConnections)
	}
	return made
}

// place is a connection's place on a server, and permission to use it.
type place struct {
	site  *site
	leave leave
	used  bool
}

// enter waits for a place, and then for a turn. It looks at the circuit before,
// for there is nothing to wait for if it is open, and after each wait, as it
// may have opened meanwhile.
func (s *site) enter(ctx context.Context) (*place, error) {
	if err := s.circuit.stopped(); err != nil {
		return nil, err
	}
	if s.slots != nil {
		select {
		case s.slots <- struct{}{}:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	s.busy.Add(1)
	p := &place{site: s}
	err := s.circuit.stopped()
	if err == nil {
		err = s.pace.Wait(ctx)
	}
	if err == nil {
		p.leave, err = s.circuit.admit(ctx)
	}
	if err != nil {
		p.free()
		return nil, err
	}
	return p, nil
}

// enterToo returns another place if there is one at once.
func (s *site) enterToo(ctx context.Context) (*place, bool) {
	if !s.circuit.proven() || s.slots == nil {
		return nil, false
	}
	select {
	case s.slots <- struct{}{}:
	default:
		return nil, false
	}
	s.busy.Add(1)
	p := &place{site: s}
	if s.pace.Allow() {
		var err error
		if p.leave, err = s.circuit.admit(ctx); err == nil { // does not wait, or hardly: it was proven a moment ago
			return p, true
		}
	}
	p.free()
	return nil, false
}

// exit frees the connection, and returns the leave unless its result was told.
func (p *place) exit() {
	if !p.used {
		p.site.circuit.takeBack(p.leave)
	}
	p.free()
}

func (p *place) free() {
	p.site.busy.Add(-1)
	if p.site.slots != nil {
		<-p.site.slots
	}
}

// wake has the server's keeper look again what is due.
func (s *site) wake() {
	select {
	case s.kick <- struct{}{}:
	default: // it will, anyway
	}
}

// Load is how a server is being used.
type Load struct {
	Server         string
	InUse          int  // connections in use
	MaxConnections int  // how many may be in use at once; 0: no bound
	CircuitOpen    bool // it fails for everybody, and nobody else is tried there
}

// Loads tells how the servers are being used, in the order of the options.
func (a *Agent) Loads() []Load {
	var list []Load
	for _, s := range a.options.Servers {
		site := a.sites[s.Name]
		list = append(list, Load{Server: s.Name, InUse: int(site.busy.Load()), MaxConnections: s.MaxConnections,
			CircuitOpen: site.circuit.failing()})
	}
	return list
}

// tried notes what came of asking a server, in its circuit and, if that turned,
// in the registry. It reports whether a failure is the server's. The registry's
// note is for status and other processes: nothing here depends on it.
func (a *Agent) tried(ctx context.Context, p *place, failure error) (t turn, servers bool) {
	now := a.options.Now()
	p.used = true
	t, servers = p.site.circuit.done(ctx, p.leave, now, failure)
	if t == stayed {
		return t, servers
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime)
	defer cancel()
	var err error
	if t != closed {
		err = a.options.Registry.OpenCircuit(ctx, p.site.circuit.entry(now))
	} else if p.site.circuit.isNoted() {
		err = a.options.Registry.CloseCircuit(ctx, p.site.Name)
	}
	if err != nil {
		a.registryFailed("circuit", err)
	} else {
		p.site.circuit.setNoted(t != closed)
	}
	a.wakeWaiting(p.site.Name)
	p.site.wake()
	return t, servers
}

// remember takes over what earlier processes have noted of the circuits.
func (a *Agent) remember(ctx context.Context) error {
	known, err := a.options.Registry.Circuits(ctx)
	for _, c := range known {
		if s, ok := a.sites[c.Server]; ok {
			s.circuit.remember(c)
		}
	}
	return err
}

// follow probes a server at once if our note of its open circuit is gone:
// another process has found it to work.
func (a *Agent) follow(ctx context.Context) error {
	var noted []*site
	for _, s := range a.sites {
		if s.circuit.isNoted() {
			noted = append(noted, s)
		}
	}
	if len(noted) == 0 {
		return nil
	}
	known, err := a.options.Registry.Circuits(ctx)
	if err != nil {
		return err
	}
	for _, s := range noted {
		if !slices.ContainsFunc(known, func(c registry.Circuit) bool { return c.Server == s.Name }) {
			s.circuit.probe(a.options.RetryInitial)
			s.wake()
		}
	}
	return nil
}

// pulse tells whether a loop is turning.
type pulse struct {
	waiting atomic.Bool  // for something that may take its time
	last    atomic.Int64 // when it turned last, in Unix nanoseconds
}

func (p *pulse) beat() { p.last.Store(time.Now().UnixNano()) }

// wait says that what do does may take any time.
func (p *pulse) wait(do func()) {
	p.waiting.Store(true)
	do()
	p.beat()
	p.waiting.Store(false)
}

// still returns for how long the loop has been at work without turning.
func (p *pulse) still() time.Duration {
	last := p.last.Load()
	if p.waiting.Load() || last == 0 {
		return 0
	}
	return time.Since(time.Unix(0, last))
}
