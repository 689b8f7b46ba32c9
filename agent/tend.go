package agent

import (
	"context"
	"errors"
	"time"

	"dovepush/registry"
)

// tend does what Run owes the registry as a whole, beside the keepers, for it
// may take minutes: it takes over from processes that were killed, brings
// forward what is due too late, and takes back notes that are out of date.
func (a *Agent) tend(ctx context.Context, setBack <-chan struct{}) {
	const every, seldom = 30 * time.Second, 24 * time.Hour
	ticks := time.NewTicker(every)
	defer ticks.Stop()
	late, back, failed := true, false, false
	var looked time.Time // for orphans
	for ctx.Err() == nil {
		errs := []error{a.reclaim(ctx), a.tidy(ctx)}
		if late {
			err := a.spread(ctx, back)
			late, back = err != nil, back && err != nil
			errs = append(errs, err)
		}
		if looked.IsZero() || time.Since(looked) >= seldom {
			looked = time.Now()
			errs = append(errs, a.findOrphans(ctx))
		}
		failed = a.noteTrouble(ctx, failed, errors.Join(errs...))
		select {
		case <-ticks.C:
		case <-setBack:
			late, back = true, true
		case <-ctx.Done():
		}
	}
}

// noteTrouble notes how a look at the registry went; failed is how the last one
// of the same loop went.
func (a *Agent) noteTrouble(ctx context.Context, failed bool, err error) bool {
	switch {
	case ctx.Err() != nil:
		return failed
	case err != nil:
		a.registryFailed("watch", err)
	case failed:
		a.registryWorks()
	}
	return err != nil
}

// reclaim gives back the claims of processes that have ended without doing so,
// and makes their registrations due.
func (a *Agent) reclaim(ctx context.Context) error {
	owners, err := a.options.Registry.Owners(ctx)
	if err != nil {
		return err
	}
	var dead []string
	for _, owner := range owners {
		if a.dead(owner) {
			dead = append(dead, owner)
		}
	}
	n, err := a.options.Registry.Reclaim(ctx, a.options.Now(), dead...)
	if n > 0 {
		a.wakeKeepers()
		a.options.Log.Info("took over from a dovepush that was killed", "users", n)
	}
	return err
}

// spread brings forward what is due later than it can rightly be: after
// verify_every or retry.max was shortened, or the clock set back. After that
// next_at does not tell any more when a retry was meant to be, so that all
// retries move to within retry.initial.
func (a *Agent) spread(ctx context.Context, setBack bool) error {
	now, o := a.options.Now(), a.options
	retryBy := now.Add(o.RetryMax)
	if setBack {
		retryBy = now.Add(o.RetryInitial)
	}
	verifyBy := now.Add(o.VerifyEvery)
	for name := range a.sites {
		retries, err := o.Registry.Spread(ctx, name, registry.Unsettled, retryBy, retryBy)
		if err != nil {
			return err
		}
		looks, err := o.Registry.Spread(ctx, name, registry.Settled, verifyBy, verifyBy)
		if err != nil {
			return err
		}
		if retries+looks > 0 {
			a.sites[name].wake()
			o.Log.Info("brought forward what was due too late", "server", name, "retries", retries, "verifications", looks)
		}
	}
	return nil
}

// findOrphans tells of registrations that nobody looks after.
func (a *Agent) findOrphans(ctx context.Context) error {
	servers, err := a.options.Registry.Servers(ctx)
	for _, server := range servers {
		if _, ok := a.sites[server]; !ok {
			a.options.Log.Warn("nobody looks after the users of a server that is not in the settings", "server", server)
		}
	}
	return err
}

// forgotten is how long nobody has tried a server before what was noted of it
// is of no interest any more: it has gone from everybody's settings.
const forgotten = 24 * time.Hour

// tidy takes back what processes have noted that have ended since: the server
// has worked here after they found it to fail, and nobody has probed it when it
// was time.
func (a *Agent) tidy(ctx context.Context) error {
	known, err := a.options.Registry.Circuits(ctx)
	errs := []error{err}
	now := a.options.Now()
	for _, c := range known {
		s, ours := a.sites[c.Server]
		if ours && now.After(c.ProbeAt) && s.circuit.workedSince(c.Since) || now.Sub(c.ProbeAt) > forgotten {
			errs = append(errs, a.options.Registry.CloseCircuit(ctx, c.Server))
		}
	}
	return errors.Join(errs...)
}
