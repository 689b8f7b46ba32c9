package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"dovepush/agent"
	"dovepush/config"
	"dovepush/identity"
	"dovepush/registry"
)

var (
	// errConfig marks what only a change of settings can mend.
	errConfig = errors.New("configuration")
	// errNoConfig: there are no settings.
	errNoConfig = fmt.Errorf("%w: no settings", errConfig)
	// errUnavailable: something that must be there, or free, is not.
	errUnavailable = errors.New("not available")
)

// load reads the settings.
func (a *app) load() (*config.Config, error) {
	c, err := config.Load(a.path())
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("%w: %w", errNoConfig, err)
		}
		return nil, fmt.Errorf("%w: %w", errConfig, err)
	}
	return c, nil
}

// warn says what works but should not stay, such as a secret that others can
// read.
func (a *app) warn(c *config.Config) {
	for _, warning := range c.Warnings() {
		fmt.Fprintf(a.stderr, "dovepush: warning: %s\n", warning)
	}
}

// openRegistry opens the registry that the settings name.
func (a *app) openRegistry(ctx context.Context, c *config.Config) (*registry.Registry, error) {
	return registry.Open(ctx, c.Registry.Path, time.Now)
}

// crew is an agent and the DoveAdm clients that work for it.
type crew struct {
	*agent.Agent
	clients []client
	signer  *identity.Signer // nil: identities are not signed
}

// close ends what the clients do by themselves. The agent must be done.
func (w *crew) close() {
	for _, c := range w.clients {
		c.Close()
	}
}

// newCrew makes the agent and its connectors. With a password, users log in with
// it instead of what the settings say. observe may be nil.
func (a *app) newCrew(ctx context.Context, c *config.Config, r *registry.Registry, password *config.Secret, observe agent.Observer) (made *crew, err error) {
	w := &crew{}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if w.signer, err = newSigner(ctx, c); err != nil {
		return nil, err
	}
	self := thisProcess()
	o := agent.Options{
		Registry:     r,
		Route:        func(user string) (string, bool) { return route(c, user) },
		Identity:     c.IdentityFor,
		Replace:      c.OnConflict == config.ConflictReplace,
		VerifyEvery:  time.Duration(c.VerifyEvery),
		RetryInitial: time.Duration(c.Retry.Initial),
		RetryMax:     time.Duration(c.Retry.Max),
		Owner:        self.String(),
		Dead:         self.knowsDead,
		Drain:        drainTime,
		Observe:      observe,
		Now:          time.Now,
		Random:       rand.Float64,
		Log:          a.log,
	}
	if w.signer != nil {
		o.Sign, o.Plain = w.signer.Sign, w.signer.Plain
	}
	for i := range c.Servers {
		server, err := a.connect(c, i, r, password, observe, w)
		if err != nil {
			return nil, err
		}
		o.Servers = append(o.Servers, server)
	}
	if w.Agent, err = agent.New(o); err != nil {
		return nil, fmt.Errorf("%w: %w", errConfig, err)
	}
	return w, nil
}

func route(c *config.Config, user string) (string, bool) {
	s, ok := c.ServerFor(user)
	if !ok {
		return "", false
	}
	return s.Name, true
}
