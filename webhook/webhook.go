// Package webhook forwards the events of a spool to webhooks, signed after the
// Standard Webhooks convention (https://www.standardwebhooks.com).
//
// Each target has a goroutine of its own, which takes what is due from the
// spool, at most as many events as it has connections, and has each sent. An
// event is deleted once its target answered 2xx; killed at any moment before,
// the process sends it again. So a target gets each event at least once, and
// those of one user in order; webhook-id tells it what it has had already.
//
// The usual order of calls is
//
//	f, err := webhook.New(webhook.Options{...})
//	go f.Run(ctx)
//	f.Kick() // after each Add to the spool
//
// A target that fails for everybody is set aside: one event at a time goes as
// a probe, at growing intervals, so that the outage is nobody's fault and the
// target is not hammered. An event that a target does not want is tried a few
// times, and then is a dead letter in the spool.
package webhook

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"time"

	"dovepush/registry/spool"
)

// Spool is what is needed of one. [*spool.Spool] is one.
type Spool interface {
	Take(ctx context.Context, target string, n int, lease time.Duration) ([]spool.Delivery, error)
	Next(ctx context.Context, target string) (at time.Time, some bool, err error)
	GiveBack(ctx context.Context, ids ...int64) error
	Done(ctx context.Context, ids ...int64) error
	Retry(ctx context.Context, id int64, at time.Time, reason string) error
	Refuse(ctx context.Context, id int64, at time.Time, reason string) error
	Kill(ctx context.Context, id int64, reason string) error
	Expire(ctx context.Context, target string, before time.Time, reason string) (int64, error)
	Hasten(ctx context.Context, target string, latest time.Time) (int64, error)
}

// Target is a webhook. Name, URL and Secrets must be given; a zero elsewhere
// means the default.
type Target struct {
	Name string // in the spool, the log and metrics
	// URL is where events are sent by POST, http or https. User information in
	// it is sent as Basic auth. Redirects are not followed.
	URL string
	// Secrets returns the secrets to sign with, see CheckSecret, at least one;
	// several while one takes another's place. It is asked when a burst of
	// deliveries begins, and every minute while it lasts.
	Secrets func(ctx context.Context) ([]string, error)
	// TLSConfig is for https. Optional.
	TLSConfig *tls.Config
	// Transport replaces the HTTP client's. Optional; by default it has
	// TLSConfig, and takes proxies from the environment.
	Transport http.RoundTripper

	Timeout        time.Duration // for an attempt, from name resolution to the end of the answer; default 10 s
	MaxConnections int           // at the same time, and events in memory; default 4
	RetryInitial   time.Duration // the first wait is random and at most this long; default 5 s
	RetryMax       time.Duration // and later ones double, up to this; default 1 h
	// GiveUpAfter is how old an event is when it becomes a dead letter instead
	// of being tried again; default 24 h. What is old because nobody tried
	// (dovepush did not run) has its chance before that.
	GiveUpAfter time.Duration
	MaxRefusals int // that make a dead letter of an event; default 8
}

// Options says what a Forwarder works with. Targets and Spool must be given.
type Options struct {
	Targets []Target
	Spool   Spool
	// Version is that of dovepush, for User-Agent.
	Version string
	// Grace is how long deliveries under way may go on when Run's context has
	// ended. Default: 5 s.
	Grace time.Duration
	// Now is the clock, Random returns numbers from 0 up to 1. Optional.
	Now    func() time.Time
	Random func() float64
	// Observe is told what came of each attempt. Optional.
	Observe func(target string, result Result, took time.Duration)
	// Log gets dead letters, and targets that fail and work again. Optional.
	Log *slog.Logger
}

// Result is what came of an attempt.
type Result string

// The results.
const (
	Delivered Result = "delivered"
	Failed    Result = "failed"  // the target was not reached, or fails for everybody
	Refused   Result = "refused" // the target did not want this event
	Dead      Result = "dead"    // Failed or Refused once too often
)

// Forwarder forwards events.
type Forwarder struct {
	options Options
	lanes   []*lane
}

// New checks the options. It sends nothing.
func New(o Options) (*Forwarder, error) {
	if o.Grace <= 0 {
		o.Grace = 5 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Random == nil {
		o.Random = rand.Float64
	}
	if o.Observe == nil {
		o.Observe = func(string, Result, time.Duration) {}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	f := &Forwarder{options: o}
	names := make(map[string]bool)
	for _, t := range o.Targets {
		if names[t.Name] {
			return nil, fmt.Errorf("webhook %q: there are two of this name", t.Name)
		}
		names[t.Name] = true
		l, err := newLane(&f.options, t)
		if err != nil {
			return nil, fmt.Errorf("webhook %q: %w", t.Name, err)
		}
		f.lanes = append(f.lanes, l)
	}
	return f, nil
}

// Run forwards until ctx ends, and a little longer: see Options.Grace. What is
// cut off then is due again, for the next Forwarder. Run is called once. Another Forwarder may run beside
// it on the same spool, in the same process.
func (f *Forwarder) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, l := range f.lanes {
		wg.Go(func() { l.run(ctx) })
	}
	wg.Wait()
	return nil
}

// Kick has all targets look into the spool. It does not wait.
func (f *Forwarder) Kick() {
	for _, l := range f.lanes {
		select {
		case l.kicked <- struct{}{}:
		default: // it has not looked since the last kick
		}
	}
}

// State is how a target is doing.
type State struct {
	Target   string
	URL      string // without what may be secret in it
	UnderWay int    // events that are being sent
	// Since is since when the target is set aside, Until when the next event
	// goes as a probe, and Reason why. Zero: it works, or has not been tried.
	Since, Until time.Time
	Reason       string
}

// States returns the state of each target, in the order of Options.Targets.
func (f *Forwarder) States() []State {
	var list []State
	for _, l := range f.lanes {
		list = append(list, l.state())
	}
	return list
}

func (t *Target) setDefaults() {
	t.Timeout = cmp.Or(t.Timeout, 10*time.Second)
	t.MaxConnections = cmp.Or(t.MaxConnections, 4)
	t.RetryInitial = cmp.Or(t.RetryInitial, 5*time.Second)
	t.RetryMax = cmp.Or(t.RetryMax, time.Hour)
	t.GiveUpAfter = cmp.Or(t.GiveUpAfter, 24*time.Hour)
	t.MaxRefusals = cmp.Or(t.MaxRefusals, 8)
}

func (t Target) check() error {
	if t.Name == "" {
		return errors.New("it has no name")
	}
	if t.Secrets == nil {
		return errors.New("it has no secret to sign with")
	}
	if min(t.Timeout, t.RetryInitial, t.RetryMax, t.GiveUpAfter) < 0 || min(t.MaxConnections, t.MaxRefusals) < 0 {
		return errors.New("a time or number is below 0")
	}
	return checkURL(t.URL)
}

// checkURL says what is wrong with a target's URL, without showing it.
func checkURL(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return errors.New("its URL cannot be parsed") // the cause would show it
	case u.Scheme != "http" && u.Scheme != "https":
		return errors.New("its URL does not begin with https:// or http://")
	case u.Hostname() == "":
		return errors.New("its URL names no host")
	case u.Fragment != "":
		return errors.New("its URL has a fragment (#), which is never sent")
	}
	return nil
}

// shown is a URL without user information and query, which may be secret.
func shown(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}
