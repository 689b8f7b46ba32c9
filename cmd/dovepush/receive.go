package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"dovepush/config"
	"dovepush/identity"
	"dovepush/metrics"
	"dovepush/notify"
	"dovepush/registry/spool"
	"dovepush/webhook"
)

// newSigner makes what signs identities, or nil if the settings have no key.
func newSigner(ctx context.Context, c *config.Config) (*identity.Signer, error) {
	if !c.IdentityKey.IsSet() {
		return nil, nil
	}
	key, err := readIdentityKey(ctx, c.IdentityKey)
	if err != nil {
		return nil, err
	}
	old := ""
	if c.IdentityOldKey.IsSet() {
		if old, err = readIdentityKey(ctx, c.IdentityOldKey); err != nil {
			return nil, err
		}
	}
	signer, err := identity.New(key, old, c.IdentityAcceptUnsigned)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errConfig, err)
	}
	return signer, nil
}

func readIdentityKey(ctx context.Context, s config.Secret) (string, error) {
	text, err := s.Read(ctx)
	if err != nil {
		return "", err
	}
	if err := identity.CheckKey(text); err != nil {
		return "", fmt.Errorf("%w: %s: %w", errConfig, s.Key(), err)
	}
	return text, nil
}

// receiver takes what Dovecot notifies of, and hands it on: to the registry as
// a proof, to who watches, and to the webhooks' spool.
type receiver struct {
	now     func() *generation
	metrics *metrics.Metrics
	log     *slog.Logger
	hub     *notify.Hub
	prover  *notify.Prover
	handler *notify.Handler
	spool   *spool.Spool // nil: no settings had a webhook yet
	full    atomic.Bool  // a webhook's share of the spool, which was said

	// Once the listeners are open:
	open    bool
	exposed bool // one of them can be reached from other machines
}

// newReceiver makes the receiver of a service whose settings have notify.listen.
func (s *service) newReceiver(c *config.Config) *receiver {
	r := &receiver{now: s.now.Load, metrics: s.metrics, log: s.log, hub: notify.NewHub()}
	r.prover = notify.NewProver(notify.ProverOptions{
		Prove:   s.registry.Prove,
		Names:   r.names,
		Observe: s.metrics.Proved,
		Log:     s.log,
	})
	r.handler = notify.New(notify.Options{
		Path:        c.Notify.Path,
		Credentials: r.credentials,
		Verify:      r.verify,
		Accept:      r.accept,
		Publish: func(n notify.Notification) {
			r.prover.Add(n)
			r.hub.Publish(notify.Event{Notification: &n})
		},
		Refused: func(refusal notify.Refusal) { r.hub.Publish(notify.Event{Refusal: &refusal}) },
		Observe: func(result notify.Result, took time.Duration) { s.metrics.Notified(string(result), took) },
		Log:     s.log,
	})
	return r
}

// credentials are those of the newest settings. The listeners stay what they
// were at the start: what other machines reach never does without.
func (r *receiver) credentials() (username, password string, required bool) {
	g := r.now()
	return g.config.Notify.Username, g.notifyPassword, g.config.Notify.Password.IsSet() || r.exposed
}

// opened tells the receiver that the listeners are open: no other service uses
// the spool.
func (r *receiver) opened(ctx context.Context, listeners []net.Listener) error {
	r.open = true
	r.exposed = slices.ContainsFunc(listeners, func(l net.Listener) bool { return !isUnix(l) && !isLoopback(l) })
	if r.spool == nil {
		return nil
	}
	_, err := r.spool.Recover(ctx)
	return err
}

// verify takes the signature off a name.
func (r *receiver) verify(sent string) (string, error) {
	if signer := r.now().signer; signer != nil {
		return signer.Verify(sent)
	}
	return sent, nil
}

// names are those by which somebody may be registered whom Dovecot names so.
func (r *receiver) names(n notify.Notification) []string {
	list := []string{n.Sent}
	if signer := r.now().signer; signer != nil {
		list = append(list, signer.Forms(n.User)...)
	}
	return list
}

// close ends what watches, and gives the spool back. Nothing may be received
// any more.
func (r *receiver) close() error {
	r.hub.Close()
	if r.spool == nil {
		return nil
	}
	return r.spool.Close()
}

// receive reads what of the settings is about notifications.
func (g *generation) receive(ctx context.Context, r *receiver) (err error) {
	c := g.config
	if r == nil {
		return nil
	}
	if c.Notify.Password.IsSet() {
		if g.notifyPassword, err = c.Notify.Password.Read(ctx); err != nil {
			return err
		}
	}
	if g.notifyTLS, err = c.Notify.TLSConfig(); err != nil {
		return fmt.Errorf("%w: %w", errConfig, err)
	}
	if r.exposed && !c.Notify.Password.IsSet() {
		return fmt.Errorf("%w: notify.password_file: missing, and other machines reach the listener that is open until a restart", errConfig)
	}
	if err := r.openSpool(ctx, c); err != nil {
		return err
	}
	if g.spool = r.spool; len(c.Webhooks) == 0 {
		return nil
	}
	o := webhook.Options{
		Spool:   r.spool,
		Version: cmp.Or(version, built()),
		Observe: func(target string, result webhook.Result, took time.Duration) {
			r.metrics.Delivered(target, string(result), took)
		},
		Log: r.log,
	}
	for i := range c.Webhooks {
		w := &c.Webhooks[i]
		target, err := newTarget(ctx, w)
		if err != nil {
			return err
		}
		o.Targets = append(o.Targets, target)
		g.targets = append(g.targets, spool.Target{Name: w.Name, Strip: w.Strip})
		g.strips = g.strips || w.Strip
	}
	if g.forwarder, err = webhook.New(o); err != nil {
		return fmt.Errorf("%w: %w", errConfig, err)
	}
	return nil
}

// receiving is where the metrics about notifications come from.
func (s *service) receiving() *metrics.Receiving {
	r := &metrics.Receiving{
		Proven: s.registry.Proven,
		Watchers: func() (now int, dropped int64) {
			stats := s.receiver.hub.Stats()
			return stats.Subscribers, stats.Slow
		},
		Webhooks: s.webhooks,
	}
	for _, result := range notify.Results() {
		r.Results = append(r.Results, string(result))
	}
	return r
}
