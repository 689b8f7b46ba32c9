package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"dovepush/registry"
)

// Submit makes what should be out of a request, durably, before it returns, and
// has Run carry it out soon: before those who are merely due. It returns the
// row as it is then. NoWait is of no meaning here.
//
// It fails with ErrUser, ErrIdentity, ErrNoServer or ErrNotRegistered, or with
// what the registry says.
func (a *Agent) Submit(ctx context.Context, r Request) (registry.Registration, error) {
	intent, changes, err := a.intent(ctx, r)
	if err != nil {
		return registry.Registration{}, err
	}
	var reg registry.Registration
	if changes {
		reg, err = a.options.Registry.IntendOne(ctx, intent)
	} else {
		var found bool
		if reg, found, err = a.options.Registry.Hasten(ctx, intent.Key); err == nil && !found {
			err = ErrNotRegistered
		}
	}
	switch {
	case err == nil:
		a.registryWorks()
	case !errors.Is(err, ErrNotRegistered) && ctx.Err() == nil:
		a.registryFailed("submit", err)
		a.wakeKeepers() // should the registry be gone for good, they find that out
		fallthrough
	default:
		return registry.Registration{}, err
	}
	if s, ok := a.sites[intent.Server]; ok {
		select {
		case s.express <- r.User:
		default: // it is due, and has its turn among the others
		}
		s.wake()
	}
	return reg, nil
}

// Await waits until a submitted request has been worked on, by whomever, until
// its server's circuit is found open, or until ctx is over. It returns the row
// as it is then, and whether there still is one. An open circuit and the end
// of ctx are no errors: the row tells that it is still due.
func (a *Agent) Await(ctx context.Context, submitted registry.Registration) (reg registry.Registration, found bool, err error) {
	news, forget := a.waiting.add(submitted.Key())
	defer forget()
	for {
		// Looking may outlast ctx: the caller wants to know how it stands.
		look, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime)
		reg, found, err = a.options.Registry.Get(look, submitted.Key())
		cancel()
		switch {
		case err != nil, !found, ctx.Err() != nil:
			return reg, found, err
		case Worked(submitted, reg):
			return reg, true, nil
		}
		// Whoever opened the circuit with this row has yet to record why.
		if s, ok := a.sites[submitted.Server]; !ok || reg.ClaimedBy == "" && s.circuit.stopped() != nil {
			return reg, true, nil
		}
		select {
		case <-news:
		case <-ctx.Done():
		}
	}
}

// Worked reports whether a row, as it is now, has been worked on since it was
// submitted, or what it should be was changed again.
func Worked(submitted, now registry.Registration) bool {
	return now.Revision > submitted.Revision || now.ClaimedBy == "" && now.NextAt.After(submitted.NextAt)
}

// waiting is who waits for news of registrations.
type waiting struct {
	mu    sync.Mutex
	users map[registry.Key]map[chan struct{}]bool
}

// add returns a channel that has something when it is worth looking at the row.
func (w *waiting) add(key registry.Key) (news <-chan struct{}, forget func()) {
	c := make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.users == nil {
		w.users = make(map[registry.Key]map[chan struct{}]bool)
	}
	if w.users[key] == nil {
		w.users[key] = make(map[chan struct{}]bool)
	}
	w.users[key][c] = true
	return c, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if delete(w.users[key], c); len(w.users[key]) == 0 {
			delete(w.users, key)
		}
	}
}

// wakeWaitingFor tells those who wait for one row.
func (a *Agent) wakeWaitingFor(key registry.Key) {
	a.waiting.mu.Lock()
	defer a.waiting.mu.Unlock()
	wakeAll(a.waiting.users[key])
}

// wakeWaiting tells those who wait for any row of a server; of all if empty.
func (a *Agent) wakeWaiting(server string) {
	a.waiting.mu.Lock()
	defer a.waiting.mu.Unlock()
	for key, channels := range a.waiting.users {
		if server == "" || key.Server == server {
			wakeAll(channels)
		}
	}
}

func wakeAll(channels map[chan struct{}]bool) {
	for c := range channels {
		select {
		case c <- struct{}{}:
		default: // it will look, anyway
		}
	}
}

// registryFailed notes that the registry could not be used, and says so when
// that is new.
func (a *Agent) registryFailed(op string, err error) {
	if a.options.Observe != nil {
		a.options.Observe.RegistryFailed(op)
	}
	a.failed.Store(time.Now().UnixNano())
	if !a.ailing.Swap(true) {
		a.options.Log.Error("registry cannot be used, trying again", "op", op, "err", err)
	}
}

// Troubled reports whether the registry could not be used when it was last
// tried, within the last half minute: who asks may be the one who keeps new
// requests away, which alone would tell that it works again.
func (a *Agent) Troubled() bool {
	return a.ailing.Load() && time.Since(time.Unix(0, a.failed.Load())) < 30*time.Second
}

func (a *Agent) registryWorks() {
	if a.ailing.Swap(false) {
		a.options.Log.Info("registry works again")
	}
}
