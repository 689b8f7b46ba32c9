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
	"dovepush/imapmeta"
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

// newAgent makes the agent. With a password, users log in with it instead of
// what the settings say. observe may be nil.
func (a *app) newAgent(c *config.Config, r *registry.Registry, password *config.Secret, observe agent.Observer) (*agent.Agent, error) {
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
	for i := range c.Servers {
		s := &c.Servers[i]
		entries, err := newEntries(i, s, password)
		if err != nil {
			return nil, err
		}
		o.Servers = append(o.Servers, agent.Server{Name: s.Name, Entries: entries,
			Timeout: time.Duration(s.Timeout), LoginsPerSecond: s.MaxLoginsPerSecond, MaxConnections: s.MaxConnections})
	}
	made, err := agent.New(o)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errConfig, err)
	}
	return made, nil
}

func route(c *config.Config, user string) (string, bool) {
	s, ok := c.ServerFor(user)
	if !ok {
		return "", false
	}
	return s.Name, true
}

// newEntries makes a server's connector.
func newEntries(i int, s *config.Server, password *config.Secret) (agent.Entries, error) {
	if s.Connector != config.ConnectorIMAP {
		return nil, fmt.Errorf("%w: server[%d].connector: %q is not supported yet; set it to %q", errConfig, i, s.Connector, config.ConnectorIMAP)
	}
	tls, err := s.TLSConfig()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errConfig, err)
	}
	auth := imapmeta.Auth{
		Mechanism:       imapmeta.Mechanism(s.Auth.Mechanism),
		MasterUser:      s.Auth.MasterUser,
		MasterSeparator: s.Auth.MasterSeparator,
	}
	secret := s.Auth.Password
	if password != nil {
		secret = *password
		auth.MasterUser, auth.MasterSeparator = "", ""
		if auth.Mechanism == imapmeta.External {
			auth.Mechanism = imapmeta.Plain
		}
	}
	auth.Secret = func(ctx context.Context, user string) (string, error) {
		return secret.Read(ctx, "DOVEPUSH_USER="+user)
	}
	client, err := imapmeta.New(imapmeta.Options{
		Address:        s.Address,
		TLS:            imapmeta.TLSMode(s.TLS),
		TLSConfig:      tls,
		AllowPlaintext: s.AllowPlaintext,
		Auth:           auth,
		Timeout:        time.Duration(s.Timeout),
		MaxConnections: s.MaxConnections,
	})
	if err != nil {
		return nil, fmt.Errorf("%w: server[%d]: %w", errConfig, i, err)
	}
	return client, nil
}
