package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"dovepush/agent"
	"dovepush/api"
	"dovepush/config"
	"dovepush/metrics"
	"dovepush/notify"
	"dovepush/registry"
	"dovepush/registry/spool"
	"dovepush/webhook"
)

const (
	// drainTime is how long the service lets what is under way finish. What is
	// recorded then may take agent's own time.
	drainTime = 20 * time.Second
	// closeTime is how long the API has to answer what it has begun to read.
	closeTime = 5 * time.Second
)

// errReplaced: the registry's file is another one than when we started.
var errReplaced = errors.New("stopped")

// errReloaded ends a generation for the next.
var errReloaded = errors.New("settings were read again")

// service is a running "dovepush serve".
type service struct {
	log      *slog.Logger
	registry *registry.Registry
	metrics  *metrics.Metrics
	receiver *receiver // nil: the settings have no notify.listen
	now      atomic.Pointer[generation]
	ready    atomic.Bool
	deaf     atomic.Bool // systemd does not listen, which was said
	refused  atomic.Bool // the newest settings
}

// generation is what a reload replaces: the settings and what was made of them.
type generation struct {
	config *config.Config
	*crew
	token          string // of the API; empty: none
	tls            *tls.Config
	notifyPassword string
	notifyTLS      *tls.Config
	spool          *spool.Spool       // nil: there are no webhooks, nor were there any
	targets        []spool.Target     // the webhooks
	strips         bool               // one of them is not to see what is in a mail
	forwarder      *webhook.Forwarder // nil: there are no webhooks
	end            context.CancelCauseFunc
	ended          context.Context
}

// serve runs the service until ctx is over.
func (a *app) serve(ctx context.Context) (err error) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP) // from the start: a SIGHUP before we are ready must not end us
	defer signal.Stop(hup)

	c, err := a.load()
	if err != nil {
		return err
	}
	r, err := a.openRegistry(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	s := &service{log: a.log, registry: r}
	s.metrics = s.newMetrics(c)
	if c.Notify.Listen != "" {
		s.receiver = s.newReceiver(c)
		defer func() { err = errors.Join(err, s.receiver.close()) }()
	}
	first, err := a.newGeneration(ctx, s, c)
	if err != nil {
		return err
	}
	s.now.Store(first)
	doors, err := s.open(c)
	if err != nil {
		return err
	}
	defer doors.close()
	if s.receiver != nil {
		if err := s.receiver.opened(ctx, doors.notify); err != nil {
			return err
		}
	}
	return s.run(ctx, a, hup, doors)
}

// run serves until ctx is over or something fails for good.
func (s *service) run(ctx context.Context, a *app, hup <-chan os.Signal, doors *doors) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	stopping, stop := context.WithCancel(context.Background())
	defer stop()

	proving, proved := context.WithCancel(context.Background()) // until nothing is received any more
	defer proved()

	var all sync.WaitGroup
	all.Go(func() { fail(s.keep(ctx)) })
	servers := s.servers(stopping, doors)
	for _, server := range servers {
		all.Go(func() {
			if err := server.Serve(server.listener); !errors.Is(err, http.ErrServerClosed) {
				fail(fmt.Errorf("listener %s: %w", server.listener.Addr(), err))
			}
		})
	}
	all.Go(func() { s.report(ctx) })
	if s.receiver != nil {
		all.Go(func() { _ = s.receiver.prover.Run(proving) }) // fails with what ends it
		all.Go(func() { s.receiver.tidy(ctx, s.log) })
	}

	s.ready.Store(true)
	s.tell("READY=1")
	s.log.Info("serving", "version", cmp.Or(version, built()), "pid", os.Getpid())
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-hup:
			s.reload(ctx, a)
		}
	}
	s.ready.Store(false)
	s.tell("STOPPING=1")
	s.log.Info("stopping", "drain", drainTime.String())
	stop() // who waits for an outcome is answered now
	closing, cancel := context.WithTimeout(context.Background(), closeTime)
	defer cancel()
	var shutting sync.WaitGroup
	for _, server := range servers { // at once: who keeps one waiting takes nothing from the others
		shutting.Go(func() {
			if err := server.Shutdown(closing); err != nil {
				server.Close()
			}
		})
	}
	shutting.Wait()
	proved()
	all.Wait()
	switch err := context.Cause(ctx); {
	case errors.Is(err, fs.ErrNotExist): // nothing is wrong with the settings: a restart uses the new file
		return fmt.Errorf("%w: %w", errReplaced, err)
	case !errors.Is(err, context.Canceled):
		return err
	}
	s.log.Info("stopped")
	return nil
}

// keep runs one generation's agent after the other's. What the old one has
// under way goes on beside the new one: it may hang, and that may be what the
// new settings mend.
func (s *service) keep(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	for {
		g := s.now.Load()
		failed := make(chan error, 1)
		all.Go(func() {
			running, end := context.WithCancelCause(ctx)
			defer end(nil)
			defer context.AfterFunc(g.ended, func() { end(errReloaded) })()
			var forwarding sync.WaitGroup
			if g.forwarder != nil {
				forwarding.Go(func() { _ = g.forwarder.Run(running) }) // ends with running
			}
			err := g.Run(running)
			end(nil)
			forwarding.Wait()
			g.close()
			failed <- err
		})
		select {
		case err := <-failed:
			if !errors.Is(err, errReloaded) {
				return err
			}
		case <-g.ended.Done():
		}
	}
}

// reload replaces the generation, unless something is wrong with the settings.
func (s *service) reload(ctx context.Context, a *app) {
	s.tell(reloading())
	defer s.tell("READY=1")
	defer func() { s.tell("STATUS=" + s.line(ctx)) }() // else it would go on telling of settings that are mended
	old := s.now.Load()
	spooling := s.receiver != nil && s.receiver.spool != nil
	next, err := func() (*generation, error) {
		c, err := a.load()
		if err != nil {
			return nil, err
		}
		return a.newGeneration(ctx, s, c)
	}()
	if err != nil {
		s.log.Error("the old settings stay, the new ones are wrong", "err", err)
		s.refused.Store(true)
		return
	}
	for key, differs := range map[string]bool{
		"registry.path":        next.config.Registry.Path != old.config.Registry.Path,
		"api.listen":           next.config.API.Listen != old.config.API.Listen,
		"api.mode":             next.config.API.SocketMode() != old.config.API.SocketMode(),
		"metrics.listen":       next.config.Metrics.Listen != old.config.Metrics.Listen,
		"api.tls_cert_file":    (next.tls == nil) != (old.tls == nil),
		"notify.listen":        !slices.Equal(next.config.Notify.Listeners(), old.config.Notify.Listeners()),
		"notify.path":          next.config.Notify.Path != old.config.Notify.Path,
		"notify.tls_cert_file": (next.notifyTLS == nil) != (old.notifyTLS == nil),
		"spool": spooling &&
			(next.config.SpoolPath() != old.config.SpoolPath() || next.config.Spool.MaxEvents != old.config.Spool.MaxEvents),
	} {
		if differs {
			s.log.Warn("a changed setting needs a restart", "key", key)
		}
	}
	s.refused.Store(false)
	s.now.Store(next)
	old.end(errReloaded)
	s.log.Info("settings read again")
}

// newGeneration makes what follows from settings. It reads the secrets and
// certificates that they name, so that what is wrong with one is said now.
func (a *app) newGeneration(ctx context.Context, s *service, c *config.Config) (*generation, error) {
	if err := c.Check(); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", errConfig, a.path(), err)
	}
	for _, warning := range c.Warnings() {
		s.log.Warn("settings", "warning", warning)
	}
	g := &generation{config: c}
	var err error
	if g.crew, err = a.newCrew(ctx, c, s.registry, nil, s.metrics); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			g.close()
		}
	}()
	if c.API.Token.IsSet() {
		if g.token, err = c.API.Token.Read(ctx); err != nil {
			return nil, err
		}
	}
	if g.tls, err = c.API.TLSConfig(); err != nil {
		return nil, fmt.Errorf("%w: %w", errConfig, err)
	}
	if err = g.receive(ctx, s.receiver); err != nil {
		return nil, err
	}
	ended, end := context.WithCancelCause(context.Background())
	g.ended, g.end = ended, end
	return g, nil
}

// The API's agent: whichever is running.

// Submit hands a request to the agent of these settings.
func (s *service) Submit(ctx context.Context, r agent.Request) (registry.Registration, error) {
	return s.now.Load().Submit(ctx, r)
}

// Await waits for what comes of a request, also when the settings are read
// again meanwhile.
func (s *service) Await(ctx context.Context, submitted registry.Registration) (registry.Registration, bool, error) {
	for {
		g := s.now.Load()
		waiting, cancel := context.WithCancel(ctx)
		stop := context.AfterFunc(g.ended, cancel)
		reg, found, err := g.Await(waiting, submitted)
		stop()
		cancel()
		if g.ended.Err() == nil || ctx.Err() != nil || err != nil || !found || agent.Worked(submitted, reg) {
			return reg, found, err
		}
	}
}

// servers makes the HTTP servers for what is open.
func (s *service) servers(stopping context.Context, doors *doors) []door {
	var list []door
	if doors.api != nil {
		o := api.Options{
			Agent:    s,
			Registry: s.registry,
			Route:    func(user string) (string, bool) { return route(s.now.Load().config, user) },
			Token:    func() (string, bool) { return s.now.Load().token, !isUnix(doors.api) },
			Healthy:  s.healthy,
			Ready:    s.isReady,
			Metrics:  s.metrics.Handler(),
			Stopping: stopping,
			Observe:  s.metrics.Requested,
			Log:      s.log,
			Plain: func(identity string) string {
				if signer := s.now.Load().signer; signer != nil {
					return signer.Plain(identity)
				}
				return identity
			},
		}
		if s.receiver != nil {
			o.Notifications = s.receiver.hub
		}
		handler := api.New(o)
		list = append(list, door{api.Server(handler, s.log), s.guard(doors.api, func(g *generation) *tls.Config { return g.tls })})
	}
	for _, l := range doors.notify {
		list = append(list, door{notify.Server(s.receiver.handler, s.log), s.guard(l, func(g *generation) *tls.Config { return g.notifyTLS })})
	}
	if doors.metrics != nil {
		list = append(list, door{api.Server(s.metricsPages(), s.log), doors.metrics})
	}
	return list
}

// metricsPages are what the metrics listener shows, to everybody who reaches it.
func (s *service) metricsPages() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", s.metrics.Handler())
	probes := api.New(api.Options{Agent: s, Registry: s.registry, Healthy: s.healthy, Ready: s.isReady, Log: s.log})
	mux.Handle("GET /healthz", probes)
	mux.Handle("GET /readyz", probes)
	return mux
}

// door is an HTTP server and where it listens.
type door struct {
	*http.Server
	listener net.Listener
}

// healthy fails if the agent has stopped turning.
func (s *service) healthy() error { return s.now.Load().Healthy() }

// isReady fails while registrations cannot be taken down.
func (s *service) isReady(ctx context.Context) error {
	if !s.ready.Load() {
		return errors.New("starting or stopping")
	}
	if _, err := s.registry.Version(ctx); err != nil {
		s.log.Debug("not ready", "err", err)
		return errors.New("the registry cannot be read")
	}
	if s.now.Load().Troubled() {
		return errors.New("the registry cannot be written")
	}
	return nil
}

// endpoints tells how things stand with the servers' DoveAdm endpoints.
func (w *crew) endpoints() (list []metrics.Endpoint) {
	for _, c := range w.clients {
		for _, e := range c.Endpoints() {
			list = append(list, metrics.Endpoint{Server: c.server.Name, URL: e.URL, Out: e.Out, Since: e.Since, Reason: string(e.Reason),
				Connections: e.Connections, MaxConnections: c.server.Doveadm.MaxConnections})
		}
	}
	return list
}

func (s *service) newMetrics(c *config.Config) *metrics.Metrics {
	o := metrics.Options{
		Counts:     s.registry.Counts,
		Changed:    s.registry.Version,
		Backlog:    s.registry.Backlogs,
		Loads:      func() []agent.Load { return s.now.Load().Loads() }, // of whichever is running
		Endpoints:  func() []metrics.Endpoint { return s.now.Load().endpoints() },
		Now:        time.Now,
		Version:    cmp.Or(version, built()),
		Operations: api.Operations(),
		Log:        s.log,
	}
	if c.Notify.Listen != "" {
		o.Receiving = s.receiving()
	}
	return metrics.New(o)
}
