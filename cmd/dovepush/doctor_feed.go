package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"

	"golang.org/x/net/netutil"

	"dovepush/config"
	"dovepush/doctor"
	"dovepush/notify"
)

// serviceFeed shows doctor what the running service is told.
func serviceFeed(ctx context.Context, c *config.Config) (*doctor.Feed, error) {
	service, err := newServiceClient(ctx, c)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	events := make(chan notify.Event)
	ready, failed := make(chan struct{}), make(chan error, 1)
	var reading sync.WaitGroup
	reading.Go(func() {
		defer close(events)
		w := watched{refusals: true, ready: sync.OnceFunc(func() { close(ready) })}
		for event, err := range service.events(ctx, w) {
			if err != nil {
				failed <- err
				return
			}
			select {
			case events <- event:
			case <-ctx.Done():
				return
			}
		}
	})
	feed := &doctor.Feed{Events: events, Proves: true, Where: "the running service", Close: func() {
		stop()
		reading.Wait()
		service.close()
	}}
	select {
	case <-ready:
		return feed, nil
	case err := <-failed:
		feed.Close()
		return nil, err
	case <-ctx.Done():
		feed.Close()
		return nil, ctx.Err()
	}
}

// feedClients bounds the connections to doctor's own listeners.
const feedClients = 64

// ownFeed listens in the place of a service that does not run. Nothing that
// comes is kept.
func (a *app) ownFeed(ctx context.Context, c *config.Config) (*doctor.Feed, error) {
	password := ""
	if c.Notify.Password.IsSet() {
		var err error
		if password, err = c.Notify.Password.Read(ctx); err != nil {
			return nil, err
		}
	}
	guard, err := c.Notify.TLSConfig()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errConfig, err)
	}
	signer, err := newSigner(ctx, c)
	if err != nil {
		return nil, err
	}
	hub := notify.NewHub()
	o := notify.Options{
		Path:        c.Notify.Path,
		Credentials: func() (string, string, bool) { return c.Notify.Username, password, c.Notify.Password.IsSet() },
		Publish:     func(n notify.Notification) { hub.Publish(notify.Event{Notification: &n}) },
		Refused:     func(r notify.Refusal) { hub.Publish(notify.Event{Refusal: &r}) },
		Log:         a.log,
	}
	if signer != nil {
		o.Verify = signer.Verify
	}
	listeners, err := listenForFeed(ctx, c, guard)
	if err != nil {
		return nil, err
	}
	seen, err := hub.Subscribe(nil, 0)
	if err != nil {
		return nil, errors.Join(err, closeAll(listeners))
	}
	server := notify.Server(notify.New(o), a.log)
	var serving sync.WaitGroup
	for _, l := range listeners {
		serving.Go(func() { _ = server.Serve(l) }) // until Close
	}
	where := fmt.Sprintf("no service runs: doctor listens at %s meanwhile", c.Notify.Listen)
	return &doctor.Feed{Events: seen.Events(), Where: where, Close: func() {
		server.Close()
		serving.Wait()
		seen.Close()
		hub.Close()
	}}, nil
}

// listenForFeed opens the TCP listeners of [notify]: Dovecot calls no others.
func listenForFeed(ctx context.Context, c *config.Config, guard *tls.Config) (list []net.Listener, err error) {
	for _, listen := range c.Notify.Listeners() {
		network, address := config.ListenAddress(listen)
		if network != "tcp" {
			continue
		}
		l, err := (&net.ListenConfig{}).Listen(ctx, network, address)
		if err != nil {
			err = errors.Join(err, closeAll(list))
			if errors.Is(err, syscall.EADDRINUSE) {
				return nil, fmt.Errorf("%w: no dovepush serve answers, yet a program listens at %s", errUnavailable, address)
			}
			return nil, err
		}
		l = netutil.LimitListener(l, feedClients)
		if guard != nil {
			l = tls.NewListener(l, guard)
		}
		list = append(list, l)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%w: notify.listen has no TCP address", errConfig)
	}
	return list, nil
}

func closeAll(listeners []net.Listener) error {
	var errs []error
	for _, l := range listeners {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}
