package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
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
	added, err := g.spool.Add(ctx, e, g.targets)
	if added {
		g.forwarder.Kick()
	}
	full := errors.Is(err, spool.ErrFull)
	if err == nil || full {
		switch was := r.full.Swap(full); {
		case full && !was:
			r.log.Warn("webhooks miss notifications: spool.max_events wait for them; dovepush webhooks tells why", "err", err)
		case was && !full:
			r.log.Info("webhooks miss no notifications any more")
		}
	}
	if full { // Dovecot cannot help it, and would send it again
		return nil
	}
	return err
}

// openSpool opens the spool, once, if there are webhooks, or is something left
// of those that there were.
func (r *receiver) openSpool(ctx context.Context, c *config.Config) error {
	if r.spool != nil {
		return nil
	}
	if _, err := os.Stat(c.SpoolPath()); err != nil && len(c.Webhooks) == 0 {
		return nil
	}
	opened, err := spool.Open(ctx, c.SpoolPath(), spool.Options{Most: int64(c.Spool.MaxEvents)})
	if err == nil && r.open {
		if _, err = opened.Recover(ctx); err != nil {
			err = errors.Join(err, opened.Close())
		}
	}
	if err != nil {
		return err
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
		g := r.now()
		if g.spool != nil {
			before := time.Now().Add(-time.Duration(g.config.Spool.KeepDead))
			n, err := g.spool.Prune(ctx, spool.Limits{DeadSince: before, Dead: mostDead})
			if err == nil {
				err = g.dropUnconfigured(ctx, before, log)
			}
			switch {
			case err != nil && ctx.Err() == nil:
				log.Error("the spool cannot be tidied", "err", err)
			case n > 0:
				log.Info("old dead letters are gone", "letters", n)
			}
		}
		select {
		case <-time.After(tidyEvery):
		case <-g.ended.Done(): // other webhooks may be configured now
		case <-ctx.Done():
			return
		}
	}
}

// dropUnconfigured says for which webhooks something is kept that are not
// configured, and drops it once it is older than keep_dead: it is mail.
func (g *generation) dropUnconfigured(ctx context.Context, before time.Time, log *slog.Logger) error {
	stats, err := g.spool.Stats(ctx)
	if err != nil {
		return err
	}
	for _, s := range stats {
		if s.Waiting+s.Dead == 0 || slices.ContainsFunc(g.targets, func(t spool.Target) bool { return t.Name == s.Target }) {
			continue
		}
		// It gets nothing any more: all is about as old as the oldest.
		if s.Waiting > 0 && s.Oldest.Before(before) {
			n, err := g.spool.Drop(ctx, s.Target)
			if err != nil {
				return err
			}
			log.Warn("what waited for a webhook that is not configured any more is gone", "webhook", s.Target, "notifications", n)
			continue
		}
		log.Warn("notifications are kept for a webhook that is not configured any more; dovepush webhooks NAME --drop deletes them",
			"webhook", s.Target, "waiting", s.Waiting, "dead", s.Dead)
	}
	return nil
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
			text, err := readWebhookSecret(ctx, s)
			if err != nil {
				return nil, err
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

func readWebhookSecret(ctx context.Context, s config.Secret) (string, error) {
	text, err := s.Read(ctx)
	if err != nil {
		return "", err
	}
	if err := webhook.CheckSecret(text); err != nil {
		return "", fmt.Errorf("%w: %s: %w", errConfig, s.Key(), err)
	}
	return text, nil
}

// checkKeys says what is wrong with the form of identity keys and webhooks'
// secrets, as serve would. It runs commands only if it is told to.
func checkKeys(ctx context.Context, c *config.Config, commands bool) error {
	var errs []error
	if may := func(s config.Secret) bool { return commands || !s.IsCommand() }; may(c.IdentityKey) && may(c.IdentityOldKey) {
		_, err := newSigner(ctx, c)
		errs = append(errs, err)
	}
	for i := range c.Webhooks {
		for _, s := range []config.Secret{c.Webhooks[i].Secret, c.Webhooks[i].OldSecret} {
			if s.IsSet() && (commands || !s.IsCommand()) {
				_, err := readWebhookSecret(ctx, s)
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
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
	stats, err := g.spool.Stats(ctx)
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
