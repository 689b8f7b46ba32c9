package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"dovepush/imapmeta"
	"dovepush/registry"
)

// Entries reads and changes users' http-notify entries on one server.
type Entries interface {
	// Update reads the user's entry, lets decide look at it, and carries out
	// what decide answers. Errors carry an imapmeta.Kind.
	Update(ctx context.Context, user string, decide func(have imapmeta.Value) imapmeta.Change) (imapmeta.Outcome, error)
}

// Server is one Dovecot installation.
type Server struct {
	Name    string
	Entries Entries
	Timeout time.Duration // the longest that an Update may take; at most MaxTimeout
	// LoginsPerSecond spaces Updates out; 0: no limit.
	LoginsPerSecond int
}

// MaxTimeout bounds Server.Timeout: a claim on a registration outlasts the
// work on it, and cannot be longer than registry.MaxClaim.
const MaxTimeout = registry.MaxClaim - claimSlack

const (
	// recordTime is how long recording a result may take, also when the work
	// was cancelled.
	recordTime = 15 * time.Second
	// claimSlack is what a claim lasts beyond the work: time to record, and to
	// spare.
	claimSlack = 2 * recordTime
	// heldPoll is how often we look whether a claim of somebody else's is over.
	heldPoll = 100 * time.Millisecond
)

// Options says what an Agent works with. All but Dead and Log must be given.
type Options struct {
	Registry *registry.Registry
	Servers  []Server
	// Route names the server of a user; false: there is none for him.
	Route func(user string) (server string, ok bool)
	// Identity is what stands behind user= in a user's value by default.
	Identity func(user string) string
	// Replace lets a registration replace a foreign value
	// (on_conflict = "replace").
	Replace bool
	// VerifyEvery is the longest between two looks at a registration that is
	// as it should be.
	VerifyEvery time.Duration
	// RetryInitial and RetryMax bound the wait before another attempt.
	RetryInitial, RetryMax time.Duration
	// Owner names this process in the registry. Agents may share a name.
	Owner string
	// Dead reports whether the process of that name has certainly ended: its
	// claims need not be waited for. Optional.
	Dead   func(owner string) bool
	Now    func() time.Time
	Random func() float64 // in [0, 1)
	Log    *slog.Logger
}

// Agent carries out requests. It may be used by many goroutines at once.
type Agent struct {
	Options
	servers map[string]pacedServer
	nonce   string        // tells agents of one name apart: who has the name of a claim's owner gets the claim
	work    atomic.Uint64 // numbers the claims: two of one agent must not share one
}

// pacedServer is a server with what spaces its logins out.
type pacedServer struct {
	Server
	pace *rate.Limiter
}

// New returns an Agent. It does nothing until it is asked.
func New(o Options) (*Agent, error) {
	a := &Agent{Options: o, servers: make(map[string]pacedServer), nonce: rand.Text()[:8]}
	switch {
	case o.VerifyEvery <= 0:
		return nil, fmt.Errorf("verify every %s: must be more than 0", o.VerifyEvery)
	case o.RetryInitial <= 0 || o.RetryMax < o.RetryInitial:
		return nil, fmt.Errorf("retry between %s and %s: must be more than 0, and in this order", o.RetryInitial, o.RetryMax)
	}
	if a.Log == nil {
		a.Log = slog.New(slog.DiscardHandler)
	}
	for _, s := range o.Servers {
		if s.Timeout <= 0 || s.Timeout > MaxTimeout {
			return nil, fmt.Errorf("server %q: timeout %s must be more than 0 and at most %s", s.Name, s.Timeout, MaxTimeout)
		}
		pace := rate.NewLimiter(rate.Inf, 1)
		if s.LoginsPerSecond > 0 {
			pace.SetLimit(rate.Limit(s.LoginsPerSecond))
		}
		a.servers[s.Name] = pacedServer{s, pace}
	}
	return a, nil
}

// Action is what a Request asks for.
type Action int

// The actions.
const (
	Register   Action = iota // the entry should be there
	Unregister               // the entry should be gone
	Verify                   // look whether it is as it should be, and mend it
)

// Request asks for one user.
type Request struct {
	Action
	User     string
	Identity string        // Register: instead of the default one
	Expires  time.Duration // Register: unregister after this; 0: never
	Force    bool          // a foreign value may be replaced, or removed
	NoWait   bool          // only change what should be; the work is done later
}

// Result is what came of a request.
type Result struct {
	User    string
	Server  string // empty if there is none for the user
	Verdict Verdict
	// Registration is the row afterwards; nil if there is none (any more).
	Registration *registry.Registration
	Err          error
}

// Errors of requests that never reach a server. Bad names and identities are
// imapmeta.ErrUser and imapmeta.ErrIdentity.
var (
	// ErrNotRegistered: there is no registration of this user.
	ErrNotRegistered = errors.New("not registered")
	// ErrNoServer: no [[server]] has this user's domain.
	ErrNoServer = errors.New("no server for this user")
	// ErrStopped: the user was not tried, for the server fails for everybody.
	ErrStopped = errors.New("not tried")
	// ErrLate: the work took longer than the claim on the registration, so that
	// somebody else may have been at work meanwhile. The next look will tell.
	ErrLate = errors.New("took too long for its result to be recorded")
	// ErrIdentity: the identity cannot stand in a value.
	ErrIdentity = imapmeta.ErrIdentity
	// ErrUser: the user name must not be sent to Dovecot.
	ErrUser = imapmeta.ErrUser
)

// accept makes what should be out of the request, durably, before anything is
// sent. The registration's key is returned.
func (a *Agent) accept(ctx context.Context, r Request) (registry.Key, error) {
	if err := imapmeta.CheckUser(r.User); err != nil {
		return registry.Key{}, err
	}
	server, ok := a.Route(r.User)
	if !ok {
		return registry.Key{}, ErrNoServer
	}
	key := registry.Key{User: r.User, Server: server}
	if r.Action == Verify {
		_, found, err := a.Registry.Get(ctx, key)
		if err == nil && !found {
			err = ErrNotRegistered
		}
		return key, err
	}
	intent := registry.Intent{Key: key, Identity: r.Identity, Force: r.Force, Wanted: registry.Present}
	if r.Action == Unregister {
		// What we wrote stands in the row; the default value is for a registry
		// that was lost.
		intent.Wanted = registry.Absent
		if known, found, err := a.Registry.Get(ctx, key); err != nil {
			return key, err
		} else if found {
			intent.Identity = known.Identity
		}
	}
	if intent.Identity == "" {
		intent.Identity = a.Identity(r.User)
	}
	value, err := imapmeta.NewValue(intent.Identity)
	if err != nil {
		return key, err
	}
	intent.Value = string(value)
	if r.Expires > 0 {
		intent.ExpiresAt = a.Now().Add(r.Expires)
	}
	return key, a.Registry.Intend(ctx, intent)
}

// carryOut does what accept has taken down.
func (a *Agent) carryOut(ctx context.Context, r Request, key registry.Key, err error, g *gates) Result {
	result := Result{User: r.User, Server: key.Server, Verdict: Deferred, Err: err}
	switch {
	case errors.Is(err, ErrUser), errors.Is(err, ErrIdentity), errors.Is(err, ErrNoServer), errors.Is(err, ErrNotRegistered):
		result.Verdict = Failed
		return result
	case err != nil:
		return result
	case r.NoWait && r.Action != Verify:
		return a.look(ctx, key, result)
	}
	return a.settle(ctx, key, g)
}

// look adds the row as it is to the result.
func (a *Agent) look(ctx context.Context, key registry.Key, result Result) Result {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime)
	defer cancel()
	reg, found, err := a.Registry.Get(ctx, key)
	switch {
	case err != nil:
		result.Err = errors.Join(result.Err, err)
	case found:
		result.Registration = &reg
	}
	return result
}

// owner names one piece of work of this process.
func (a *Agent) owner() string {
	return fmt.Sprintf("%s#%s.%d", a.Owner, a.nonce, a.work.Add(1))
}

// dead reports whether whoever claimed under this name cannot finish any more.
func (a *Agent) dead(owner string) bool {
	process, _, _ := strings.Cut(owner, "#")
	return a.Dead != nil && a.Dead(process)
}
