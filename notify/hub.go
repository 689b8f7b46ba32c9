package notify

import (
	"errors"
	"sync"
	"sync/atomic"
)

const (
	maxSubscriptions = 256
	// defaultSize and maxSize are how many events a subscription may be behind.
	defaultSize, maxSize = 256, 1024
)

// Why a subscription has ended, or was not made.
var (
	ErrSlow   = errors.New("notify: the reader was too slow and was dropped")
	ErrClosed = errors.New("notify: the subscription is closed")
	ErrFull   = errors.New("notify: there are too many subscriptions")
)

// An Event is what watchers see: a notification, or a request that was refused.
// Exactly one is set. All subscriptions share it: do not change it.
type Event struct {
	Notification *Notification
	Refusal      *Refusal
}

// A Hub hands events to those who watch, and keeps none for those who come
// later. It may be used by many goroutines at once.
type Hub struct {
	watched atomic.Bool // there are subscriptions

	mu     sync.Mutex
	subs   map[*Subscription]struct{}
	closed bool
	stats  HubStats
}

// HubStats counts since the Hub was made.
type HubStats struct {
	Subscribers int   // now
	Slow        int64 // subscriptions that ended with ErrSlow
	Dropped     int64 // refusals that a subscription had no room for
}

// NewHub returns a Hub without subscriptions. Close ends it.
func NewHub() *Hub { return &Hub{subs: make(map[*Subscription]struct{})} }

// Publish hands the event to every subscription that it matches. It never
// waits: who is too far behind is dropped. Only a notification can do that; of
// refusals, which anybody can cause who can connect, half a buffer is filled
// at most.
func (h *Hub) Publish(e Event) {
	if !h.watched.Load() {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs {
		if s.match != nil && !s.match(e) {
			continue
		}
		if e.Refusal != nil && 2*len(s.events) >= cap(s.events) {
			h.stats.Dropped++
			continue
		}
		select {
		case s.events <- e:
		default:
			h.stats.Slow++
			h.end(s, ErrSlow)
		}
	}
}

// Subscribe returns a subscription to the events that match, all of them if
// match is nil. Match is called within Publish: it must be quick and must not
// use the Hub. Size is how many events the reader may be behind, at most 1,024;
// 0: 256. It fails with ErrFull beyond 256 subscriptions, and with ErrClosed.
func (h *Hub) Subscribe(match func(Event) bool, size int) (*Subscription, error) {
	if size <= 0 {
		size = defaultSize
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.closed:
		return nil, ErrClosed
	case len(h.subs) >= maxSubscriptions:
		return nil, ErrFull
	}
	s := &Subscription{hub: h, match: match, events: make(chan Event, min(size, maxSize))}
	h.subs[s] = struct{}{}
	h.watched.Store(true)
	return s, nil
}

// Close ends all subscriptions with ErrClosed. What is published afterwards is
// seen by nobody.
func (h *Hub) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for s := range h.subs {
		h.end(s, ErrClosed)
	}
}

// Stats returns the counters.
func (h *Hub) Stats() HubStats {
	h.mu.Lock()
	defer h.mu.Unlock()
	stats := h.stats
	stats.Subscribers = len(h.subs)
	return stats
}

// end ends a subscription, once.
func (h *Hub) end(s *Subscription, why error) {
	if _, open := h.subs[s]; !open {
		return
	}
	delete(h.subs, s)
	h.watched.Store(len(h.subs) > 0)
	s.err = why
	close(s.events)
}

// A Subscription is one watcher's. It must be closed.
type Subscription struct {
	hub    *Hub
	match  func(Event) bool
	events chan Event
	err    error // guarded by hub.mu
}

// Events returns the channel of events. It is closed when the subscription has
// ended; what was published before can still be read from it.
func (s *Subscription) Events() <-chan Event { return s.events }

// Err returns why the subscription has ended: ErrSlow or ErrClosed; nil if it
// has not.
func (s *Subscription) Err() error {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	return s.err
}

// Close ends the subscription. It may be called more than once.
func (s *Subscription) Close() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	s.hub.end(s, ErrClosed)
}
