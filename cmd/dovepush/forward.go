package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"dovepush/config"
	"dovepush/metrics"
	"dovepush/notify"
	"dovepush/registry/spool"
	"dovepush/webhook"
)

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
