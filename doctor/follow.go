package doctor

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"dovepush/notify"
)

// watch opens the view of what Dovecot sends, before the endpoint is looked at:
// it may be what listens there. From then on it is read: who does not keep up
// with a busy server is dropped.
func (d *doctor) watch(ctx context.Context) {
	if !d.Deliver || d.Watch == nil || d.config.Notify.Listen == "" || ctx.Err() != nil {
		return
	}
	feed, err := d.Watch(ctx, d.serving)
	if err != nil {
		d.tell(step{link: "watch"}, fail(Unavailable, err.Error(), "without it what Dovecot sends cannot be seen: start the service, or end the program that has the port of notify.listen"))
		return
	}
	d.feed = feed
	d.seen = follow(ctx, feed.Events, newCanary(d.User, d.Random(), d.Now()), d.Now)
	d.tell(step{link: "watch"}, ok(feed.Where))
}

// follower reads a Feed, and keeps what concerns the canary.
type follower struct {
	canary canary
	now    func() time.Time
	end    context.CancelFunc
	done   chan struct{} // closed when nothing more is read
	found  chan arrival  // holds the canary's notification

	mu       sync.Mutex
	began    time.Time // when the canary was sent; zero: not yet
	refusals []notify.Refusal
	early    bool // the Feed has ended before we did
}

type arrival struct {
	*notify.Notification
	after time.Duration
}

// maxRefusals bounds what strangers can make us keep.
const maxRefusals = 64

// follow reads events until stop.
func follow(ctx context.Context, events <-chan notify.Event, c canary, now func() time.Time) *follower {
	ctx, end := context.WithCancel(ctx)
	f := &follower{canary: c, now: now, end: end, done: make(chan struct{}), found: make(chan arrival, 1)}
	go func() {
		defer close(f.done)
		for {
			select {
			case <-ctx.Done():
				return
			case e, open := <-events:
				if !open {
					f.mu.Lock()
					f.early = ctx.Err() == nil
					f.mu.Unlock()
					return
				}
				f.take(e)
			}
		}
	}()
	return f
}

func (f *follower) take(e notify.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.began.IsZero() {
		return
	}
	if n := e.Notification; n != nil && strings.Contains(n.Subject, f.canary.subject) {
		select {
		case f.found <- arrival{n, f.now().Sub(f.began)}:
		default: // another one of the same
		}
	}
	if r := e.Refusal; r != nil && !r.At.Before(f.began) && len(f.refusals) < maxRefusals {
		f.refusals = append(f.refusals, *r)
	}
}

// begin says that the canary is about to be sent. What came before is another's,
// or what we were refused ourselves.
func (f *follower) begin(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.began = now
}

// wait waits for the notification; nil: it did not come in time, or the view has
// ended. Has Dovecot been refused, a second will do: LMTP answers when the
// driver is done.
func (f *follower) wait(ctx context.Context, limit time.Duration) (n *notify.Notification, after time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	look := time.NewTimer(min(limit, time.Second))
	defer look.Stop()
	for {
		select {
		case a := <-f.found:
			return a.Notification, a.after
		case <-f.done:
			select {
			case a := <-f.found:
				return a.Notification, a.after
			default:
				return nil, 0
			}
		case <-ctx.Done():
			return nil, 0
		case <-look.C:
			if len(f.refused()) > 0 {
				return nil, 0
			}
		}
	}
}

// refused returns the refusals until now.
func (f *follower) refused() []notify.Refusal {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.refusals)
}

// broken tells whether the Feed has ended by itself.
func (f *follower) broken() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.early
}

// stop ends the reading and waits for that.
func (f *follower) stop() {
	f.end()
	<-f.done
}

// brokeOff says that what came, and what did not, cannot be told.
func brokeOff() cause {
	return cause{causeBrokeOff, Fail, Transient, "the view of notifications broke off: whether one came cannot be told", "run doctor again"}
}
