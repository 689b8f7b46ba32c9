package doctor

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"dovepush/internal/dovecot"
	"dovepush/notify"
	"dovepush/registry"
)

// Between the view's opening and the canary doctor looks at the endpoint and
// the webhooks; a busy server sends more meanwhile than a view holds.
func TestABusyServerDoesNotEndTheView(t *testing.T) {
	c := newChain(t)
	c.start(t, dovecot.V24, dovecot.Options{})
	c.register(t, "alice")
	c.write(t, "spool.db", "")
	o := c.options(t, c.byIMAP()+c.rest())
	o.LMTP = c.server.LMTP
	var sub *notify.Subscription
	o.Watch = func(context.Context, bool) (*Feed, error) {
		var err error
		if sub, err = c.endpoint.hub.Subscribe(nil, 0); err != nil {
			return nil, err
		}
		return &Feed{Events: sub.Events(), Where: "a busy server", Close: sub.Close}, nil
	}
	o.Spool = func(context.Context, string) ([]Waiting, error) {
		patience := 1000
		for i := range 1000 { // at the pace of a reader
			c.endpoint.hub.Publish(notify.Event{Notification: &notify.Notification{User: "bob", Subject: fmt.Sprint(i)}})
			for ; patience > 0 && len(sub.Events()) > 100; patience-- {
				time.Sleep(time.Millisecond)
			}
		}
		return nil, sub.Err()
	}
	w := run(t, o)
	w.has(t, "spool", OK)
	w.has(t, "notification", OK, "came for alice")
}

// What cannot be seen is no fault of Dovecot's.
func TestAViewThatBrokeOffIsNoFaultOfDovecot(t *testing.T) {
	c := newChain(t)
	c.start(t, dovecot.V24, dovecot.Options{})
	c.register(t, "alice")
	broken := func(o Options) walk {
		w := run(t, o)
		w.has(t, "watch", Fail, "broke off", "run doctor again")
		w.has(t, "notification", Skip)
		w.has(t, "proof", Skip)
		if w.Failed != 1 || w.Verdict.Fault != Transient {
			t.Errorf("verdict %+v", w.Verdict)
		}
		return w
	}
	options := func() Options {
		o := c.options(t, c.byIMAP()+c.rest())
		o.LMTP = c.server.LMTP
		return o
	}

	before := options()
	before.Watch = func(context.Context, bool) (*Feed, error) {
		events := make(chan notify.Event)
		close(events)
		return &Feed{Events: events, Where: "here"}, nil
	}
	w := broken(before)
	w.has(t, "canary", Skip, "watch failed")

	after := options()
	after.Watch = func(context.Context, bool) (*Feed, error) {
		sub, err := c.endpoint.hub.Subscribe(func(e notify.Event) bool { return e.Notification != nil }, 0)
		if err != nil {
			return nil, err
		}
		events := make(chan notify.Event)
		go func() { // ends when sub does
			<-sub.Events()
			close(events)
		}()
		return &Feed{Events: events, Where: "here", Close: sub.Close}, nil
	}
	w = broken(after)
	w.has(t, "canary", OK)
	w.has(t, "notification", Skip, "watch failed")
}

// A user's proof is written once a minute: soon after another one there is none
// of the canary.
func TestAProofOlderThanTheTestIsSaidToBe(t *testing.T) {
	for _, test := range []struct {
		name    string
		before  time.Duration // how long before the test alice was proven; 0: never
		renewed bool          // while doctor waits
		status  Status
		words   []string
	}{
		{"of the test", 0, true, OK, []string{"the registry has it"}},
		{"none", 0, false, Fail, []string{"still does not say so"}},
		{"not due yet", 40 * time.Second, false, OK, []string{"is 40 s older than the test", "once a minute"}},
		{"due and renewed", noteEvery - 100*time.Millisecond, true, OK, []string{"the registry has it"}},
		{"due and not renewed", noteEvery - 100*time.Millisecond, false, Fail, []string{"still does not say so"}},
		{"old", time.Hour, false, Fail, []string{"still does not say so"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := newChain(t)
			c.row(t, "alice", "user=alice")
			prove := func(at time.Time) {
				if _, err := c.registry.Prove(context.Background(), registry.Proof{Names: []string{"alice"}, At: at}); err != nil {
					t.Error(err)
				}
			}
			began := time.Now()
			if test.before > 0 {
				prove(began.Add(-test.before))
			}
			d := &doctor{Options: Options{User: "alice", Wait: Wait{Proof: 500 * time.Millisecond}, Now: time.Now}, registry: c.registry, feed: &Feed{Proves: true}}
			if test.renewed {
				done := make(chan struct{})
				defer func() { <-done }()
				go func() {
					defer close(done)
					prove(began)
				}()
			}
			f := d.proof(t.Context(), "main", began)
			if f.status != test.status {
				t.Errorf("%+v", f)
			}
			for _, word := range test.words {
				if !strings.Contains(f.detail, word) {
					t.Errorf("%q is not in %q", word, f.detail)
				}
			}
		})
	}
}
