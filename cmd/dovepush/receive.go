package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
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
	key, err := c.IdentityKey.Read(ctx)
	if err != nil {
		return nil, err
	}
	old := ""
	if c.IdentityOldKey.IsSet() {
		if old, err = c.IdentityOldKey.Read(ctx); err != nil {
			return nil, err
		}
	}
	signer, err := identity.New(key, old, c.IdentityAcceptUnsigned)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errConfig, err)
	}
	return signer, nil
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

// credentials are those of the newest settings.
func (r *receiver) credentials() (username, password string, required bool) {
	g := r.now()
	return g.config.Notify.Username, g.notifyPassword, g.config.Notify.Password.IsSet()
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

// accept keeps a notification for the webhooks.
func (r *receiver) accept(ctx context.Context, n notify.Notification) error {
	g := r.now()
	if len(g.targets) == 0 {
		return nil
	}
	body, err := json.Marshal(n)
	if err != nil {
		return err
	}
	// The same notification has the same ID, so that a webhook recognises it
	// however late it comes again.
	key := n.Key()
	e := spool.Event{ID: "msg_" + cmp.Or(key, rand.Text()), Key: key, User: n.User, Body: body, Received: n.Received}
	if g.strips {
		if e.Stripped, err = json.Marshal(n.Stripped()); err != nil {
			return err
		}
	}
	added, err := r.spool.Add(ctx, e, g.targets)
	if added {
		g.forwarder.Kick()
	}
	if errors.Is(err, spool.ErrFull) { // somebody misses it, which is counted and said; Dovecot cannot help it
		return nil
	}
	return err
}

// openSpool opens the spool if there are webhooks, once.
func (r *receiver) openSpool(ctx context.Context, c *config.Config) (err error) {
	if len(c.Webhooks) == 0 || r.spool != nil {
		return nil
	}
	opened, err := spool.Open(ctx, c.SpoolPath(), spool.Options{Most: int64(c.Spool.MaxEvents)})
	if err != nil {
		return err
	}
	if _, err := opened.Recover(ctx); err != nil {
		return errors.Join(err, opened.Close())
	}
	r.spool = opened
	return nil
}

const (
	// tidyEvery is how often the spool is rid of what is too old.
	tidyEvery = time.Hour
	// mostDead bounds the dead letters of a webhook.
	mostDead = 100_000
)

// tidy keeps the spool within its bounds until ctx is over.
func (r *receiver) tidy(ctx context.Context, log *slog.Logger) {
	for {
		if g := r.now(); len(g.targets) > 0 {
			before := time.Now().Add(-time.Duration(g.config.Spool.KeepDead))
			n, err := r.spool.Prune(ctx, spool.Limits{DeadSince: before, Dead: mostDead})
			switch {
			case err != nil && ctx.Err() == nil:
				log.Error("the spool cannot be tidied", "err", err)
			case n > 0:
				log.Info("old dead letters are gone", "letters", n)
			}
		}
		select {
		case <-time.After(tidyEvery):
		case <-ctx.Done():
			return
		}
	}
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
	if err := r.openSpool(ctx, c); err != nil || len(c.Webhooks) == 0 {
		return err
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

// newTarget makes a webhook's target. It reads its secrets, so that what is
// wrong with one is said now.
func newTarget(ctx context.Context, w *config.Webhook) (webhook.Target, error) {
	tls, err := w.TLSConfig()
	if err != nil {
		return webhook.Target{}, fmt.Errorf("%w: %w", errConfig, err)
	}
	secrets := func(ctx context.Context) (list []string, err error) {
		for _, s := range []config.Secret{w.Secret, w.OldSecret} {
			if !s.IsSet() {
				continue
			}
			text, err := s.Read(ctx)
			if err != nil {
				return nil, err
			}
			if err := webhook.CheckSecret(text); err != nil {
				return nil, fmt.Errorf("%w: %s: %w", errConfig, s.Key(), err)
			}
			list = append(list, text)
		}
		return list, nil
	}
	if _, err := secrets(ctx); err != nil {
		return webhook.Target{}, err
	}
	return webhook.Target{
		Name:           w.Name,
		URL:            w.URL.Reveal(),
		Secrets:        secrets,
		TLSConfig:      tls,
		Timeout:        time.Duration(w.Timeout),
		MaxConnections: w.MaxConnections,
		RetryInitial:   time.Duration(w.RetryInitial),
		RetryMax:       time.Duration(w.RetryMax),
		GiveUpAfter:    time.Duration(w.GiveUpAfter),
	}, nil
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

// webhooks tells how things stand with those of the newest settings.
func (s *service) webhooks(ctx context.Context) (list []metrics.Webhook, err error) {
	g := s.now.Load()
	if g == nil || len(g.targets) == 0 {
		return nil, nil
	}
	stats, err := s.receiver.spool.Stats(ctx)
	for _, t := range g.targets {
		w := metrics.Webhook{Name: t.Name}
		for _, st := range stats {
			if st.Target == t.Name {
				w.Waiting, w.Dead, w.Skipped, w.Oldest = st.Waiting, st.Dead, st.Skipped, st.Oldest
			}
		}
		list = append(list, w)
	}
	for i, state := range g.forwarder.States() {
		list[i].Down = !state.Since.IsZero()
	}
	return list, err
}
