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
	// MaxConnections bounds how many Updates an Agent has under way at once,
	// in all its Each together; 0: no bound. Who waits within Entries holds a
	// claim, and the time that he waits is part of Timeout: this must not be much
	// greater than a bound that Entries has of its own.
	MaxConnections int
	// LogsNobodyIn says that Entries reaches users without a login of theirs:
	// then a refused one delays nobody.
	LogsNobodyIn bool
	// Exists reports whether Dovecot has a user at all. It is asked before a
	// registration is forgotten because Dovecot does not know the user. nil: a
	// refusal is enough.
	Exists func(ctx context.Context, user string) (bool, error)
}

// MaxTimeout bounds Server.Timeout: a claim on a registration outlasts the
// work on it, and cannot be longer than registry.MaxClaim.
const MaxTimeout = registry.MaxClaim - claimSlack

const (
	// recordTime is how long recording a result may take, also when the work
	// was cancelled. It must be longer than the registry's busy timeout (20 s):
	// a lock that is granted in time must not find that nobody waits any more.
	recordTime = 30 * time.Second
	// claimSlack is what a claim lasts beyond the work: time to record, and to
	// spare.
	claimSlack = 2 * recordTime
	// heldPoll is how often we look whether a claim of somebody else's is over.
	heldPoll = 100 * time.Millisecond
	// heldQuiet is how long we wait for somebody else's work without a word.
	heldQuiet = 5 * time.Second
)

// Options says what an Agent works with. All but Sign, Plain, Dead, Drain,
// Poll, RefusalPause, Observe and Log must be given.
type Options struct {
	Registry *registry.Registry
	Servers  []Server
	// Route names the server of a user; false: there is none for him.
	Route func(user string) (server string, ok bool)
	// Identity is what stands behind user= in a user's value by default.
	Identity func(user string) string
	// Sign returns an identity as it stands behind user= in a value, and in the
	// registry, and Plain takes off what Sign, or an earlier one, has added. Both
	// are given, or neither: then identities are as they are, and what stands in
	// the registry stays until somebody asks for another.
	Sign, Plain func(identity string) string
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
	Dead func(owner string) bool
	// Drain is how long Run lets what is under way finish when it ends.
	Drain time.Duration
	// Poll is how often Run looks whether another process has changed the
	// registry, or the clock was set; 0: every 250 ms.
	Poll time.Duration
	// RefusalPause is how long a server is left alone after it refused a user,
	// before another one is tried whom it has refused before; 0: 16 s.
	RefusalPause time.Duration
	Observe      Observer // optional
	Now          func() time.Time
	Random       func() float64 // in [0, 1)
	Log          *slog.Logger
}

// Observer is told what an Agent does, for metrics. Its methods are called by
// many goroutines at once, and must not block.
type Observer interface {
	// Updated tells of an exchange with a server: how it ended, the kind of its
	// failure if it failed, and how long it took.
	Updated(server string, verdict Verdict, kind imapmeta.Kind, took time.Duration)
	// RegistryFailed tells that the registry could not be used for op.
	RegistryFailed(op string)
}

// Agent carries out requests. It may be used by many goroutines at once.
type Agent struct {
	options Options
	sites   map[string]*site
	nonce   string        // tells agents of one name apart: who has the name of a claim's owner gets the claim
	claims  atomic.Uint64 // numbers the claims: two of one agent must not share one
	known   atomic.Bool   // what earlier processes have noted of the circuits was taken over
	ailing  atomic.Bool   // the registry failed when it was last used by Run or Submit
	failed  atomic.Int64  // when it did, in Unix nanoseconds
	watcher pulse
	waiting waiting
}

// New returns an Agent. It does nothing until it is asked.
func New(o Options) (*Agent, error) {
	a := &Agent{options: o, sites: make(map[string]*site), nonce: rand.Text()[:8]}
	switch {
	case o.VerifyEvery <= 0:
		return nil, fmt.Errorf("verify every %s: must be more than 0", o.VerifyEvery)
	case o.RetryInitial <= 0 || o.RetryMax < o.RetryInitial:
		return nil, fmt.Errorf("retry between %s and %s: must be more than 0, and in this order", o.RetryInitial, o.RetryMax)
	case (o.Sign == nil) != (o.Plain == nil):
		return nil, errors.New("identities are signed, but cannot be made plain, or the other way about")
	}
	if o.Log == nil {
		a.options.Log = slog.New(slog.DiscardHandler)
	}
	if o.Poll == 0 {
		a.options.Poll = 250 * time.Millisecond
	}
	if o.RefusalPause == 0 {
		a.options.RefusalPause = refusalPause
	}
	for _, s := range o.Servers {
		if s.Timeout <= 0 || s.Timeout > MaxTimeout {
			return nil, fmt.Errorf("server %q: timeout %s must be more than 0 and at most %s", s.Name, s.Timeout, MaxTimeout)
		}
		a.sites[s.Name] = a.newSite(s)
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
	Identity string        // Register: instead of the default one; plain
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
	// Conflict describes what the entry held if the verdict is Conflict.
	Conflict string
	Err      error
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
	// ErrOvertaken: somebody else unregistered the user meanwhile.
	ErrOvertaken = errors.New("unregistered by somebody else meanwhile")
	// ErrDoubt: the registration stays until its entry is certain to remain
	// absent, and is looked at again then.
	ErrDoubt = errors.New("the entry is absent now, but an earlier write that was not answered may still come through")
	// ErrExists: Dovecot refused the user as unknown, but has him.
	ErrExists = errors.New("not forgotten: Dovecot refuses this user, but its userdb has him")
	// ErrRefused: somebody else has just tried the user, in vain.
	ErrRefused = errors.New("refused a moment ago")
	// ErrIdentity: the identity cannot stand in a value.
	ErrIdentity = imapmeta.ErrIdentity
	// ErrUser: the user name must not be sent to Dovecot.
	ErrUser = imapmeta.ErrUser
)

// accept makes what should be out of requests for different users, durably,
// before anything is sent: all in one commit, for each costs a sync to disk.
// What is wrong with one request is that one's error alone.
func (a *Agent) accept(ctx context.Context, batch []*task) {
	var intents []registry.Intent
	var waiting []*task
	if !a.known.Swap(true) {
		_ = a.remember(ctx) // only so that a server that works again is known to
	}
	for _, t := range batch {
		t.asked = a.options.Now()
		intent, changes := registry.Intent{}, false
		if intent, changes, t.err = a.intent(ctx, t.Request); changes {
			intents, waiting = append(intents, intent), append(waiting, t)
		}
		t.key = intent.Key
	}
	err := a.options.Registry.Intend(ctx, intents...)
	for _, t := range waiting {
		t.err = err
	}
}

// intent is what the request makes of what should be, and whether that is a
// change. The key of the registration is set as soon as it is known.
func (a *Agent) intent(ctx context.Context, r Request) (intent registry.Intent, changes bool, err error) {
	server, err := a.serverOf(r.User)
	if err != nil {
		return intent, false, err
	}
	intent = registry.Intent{Key: registry.Key{User: r.User, Server: server}, Identity: r.Identity, Force: r.Force, Wanted: registry.Present}
	if r.Action != Register {
		known, found, err := a.options.Registry.Get(ctx, intent.Key)
		switch {
		case err != nil:
			return intent, false, err
		case r.Action == Verify && !found:
			return intent, false, ErrNotRegistered
		case r.Action == Verify:
			return intent, false, nil
		}
		// What we wrote stands in the row; the default value is for a registry
		// that was lost.
		intent.Wanted = registry.Absent
		if found && known.Identity != "" {
			intent.Identity = known.Identity
			return intent, true, completeStored(&intent)
		}
	}
	if err := a.complete(&intent); err != nil {
		return intent, false, err
	}
	if r.Expires > 0 {
		intent.ExpiresAt = a.options.Now().Add(r.Expires)
	}
	return intent, true, nil
}

// serverOf returns the server of a user who may be sent to one.
func (a *Agent) serverOf(user string) (string, error) {
	if err := imapmeta.CheckUser(user); err != nil {
		return "", err
	}
	server, ok := a.options.Route(user)
	if !ok {
		return "", ErrNoServer
	}
	return server, nil
}

// carryOut does what accept has taken down.
func (a *Agent) carryOut(ctx context.Context, t *task) Result {
	result := Result{User: t.User, Server: t.key.Server, Verdict: Deferred, Err: t.err}
	switch {
	case errors.Is(t.err, ErrUser), errors.Is(t.err, ErrIdentity), errors.Is(t.err, ErrNoServer), errors.Is(t.err, ErrNotRegistered):
		result.Verdict = Failed
		return result
	case t.err != nil:
		return result
	case !t.goesToServer():
		return a.look(ctx, t.key, result)
	}
	result = a.settle(ctx, t.key, t.asked, manner{})
	if errors.Is(result.Err, ErrNotRegistered) { // the row was there when the request was accepted
		if result.Err = ErrOvertaken; t.Action == Unregister {
			result.Verdict, result.Err = Removed, nil // that is what was asked for: a running service has done it
		}
	}
	return result
}

// look adds the row as it is to the result.
func (a *Agent) look(ctx context.Context, key registry.Key, result Result) Result {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime)
	defer cancel()
	reg, found, err := a.options.Registry.Get(ctx, key)
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
	return fmt.Sprintf("%s#%s.%d", a.options.Owner, a.nonce, a.claims.Add(1))
}

// dead reports whether whoever claimed under this name cannot finish any more.
func (a *Agent) dead(owner string) bool {
	process, _, _ := strings.Cut(owner, "#")
	return a.options.Dead != nil && a.options.Dead(process)
}
