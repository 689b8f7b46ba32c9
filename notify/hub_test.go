package notify

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
)

func told(user string) Event { return Event{Notification: &Notification{User: user}} }

func subscribe(t testing.TB, h *Hub, match func(Event) bool, size int) *Subscription {
	t.Helper()
	s, err := h.Subscribe(match, size)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestEverySubscriptionGetsWhatItMatches(t *testing.T) {
	h := NewHub()
	h.Publish(told("before")) // seen by nobody
	all := subscribe(t, h, nil, 0)
	alice := subscribe(t, h, func(e Event) bool { return e.Notification != nil && e.Notification.User == "alice" }, 0)
	h.Publish(told("bob"))
	h.Publish(Event{Refusal: &Refusal{Reason: WrongPath}})
	h.Publish(told("alice"))
	h.Close()
	h.Publish(told("after"))
	var got []string
	for e := range all.Events() {
		if e.Refusal != nil {
			got = append(got, string(e.Refusal.Reason))
		} else {
			got = append(got, e.Notification.User)
		}
	}
	if len(got) != 3 || got[0] != "bob" || got[1] != "path" || got[2] != "alice" {
		t.Errorf("all: %v", got)
	}
	if e, ok := <-alice.Events(); !ok || e.Notification.User != "alice" {
		t.Errorf("alice: %+v, %t", e, ok)
	}
	if _, ok := <-alice.Events(); ok || !errors.Is(alice.Err(), ErrClosed) || !errors.Is(all.Err(), ErrClosed) {
		t.Errorf("open %t, errors %v, %v", ok, alice.Err(), all.Err())
	}
	if _, err := h.Subscribe(nil, 0); !errors.Is(err, ErrClosed) {
		t.Errorf("subscribed to a closed hub: %v", err)
	}
}

func TestASlowReaderIsDroppedAndNobodyElse(t *testing.T) {
	h := NewHub()
	slow, other := subscribe(t, h, nil, 3), subscribe(t, h, nil, 0)
	for range 3 {
		h.Publish(told("a"))
	}
	if slow.Err() != nil {
		t.Fatal(slow.Err())
	}
	h.Publish(told("one too many"))
	h.Publish(told("later"))
	n := 0
	for range slow.Events() {
		n++
	}
	if n != 3 || !errors.Is(slow.Err(), ErrSlow) || other.Err() != nil || len(other.Events()) != 5 {
		t.Errorf("%d events, %v; the other %v, %d", n, slow.Err(), other.Err(), len(other.Events()))
	}
	slow.Close()
	if got := h.Stats(); !errors.Is(slow.Err(), ErrSlow) || got != (HubStats{Subscribers: 1, Slow: 1}) {
		t.Errorf("%v, %+v", slow.Err(), got)
	}
}

func TestStrangersCannotPushWatchersOut(t *testing.T) {
	h := NewHub()
	s := subscribe(t, h, nil, 10)
	for range 100 {
		h.Publish(Event{Refusal: &Refusal{Reason: WrongCredentials}})
	}
	for range 5 {
		h.Publish(told("a"))
	}
	if got := h.Stats(); s.Err() != nil || len(s.Events()) != 10 || got.Dropped != 95 {
		t.Errorf("%v, %d events, %+v", s.Err(), len(s.Events()), got)
	}
}

func TestSubscriptionsAreBounded(t *testing.T) {
	h := NewHub()
	var last *Subscription
	for range maxSubscriptions {
		last = subscribe(t, h, nil, 1<<30)
	}
	if cap(last.events) != maxSize {
		t.Errorf("room for %d events", cap(last.events))
	}
	if _, err := h.Subscribe(nil, 0); !errors.Is(err, ErrFull) {
		t.Errorf("one more: %v", err)
	}
	last.Close()
	last.Close()
	if !errors.Is(last.Err(), ErrClosed) {
		t.Error(last.Err())
	}
	subscribe(t, h, nil, 0)
}

func TestPublishingToNobodyCostsNothing(t *testing.T) {
	h := NewHub()
	e := told("a")
	subscribe(t, h, nil, 0).Close()
	if n := testing.AllocsPerRun(100, func() { h.Publish(e) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	h.mu.Lock() // which it does not take
	defer h.mu.Unlock()
	h.Publish(e)
}

func TestHubIsForManyAtOnce(t *testing.T) {
	h := NewHub()
	var group sync.WaitGroup
	var seen atomic.Int64
	for range 8 {
		group.Go(func() {
			for range 500 {
				h.Publish(told("a"))
			}
		})
		group.Go(func() {
			for range 50 {
				s, err := h.Subscribe(nil, 1)
				if err != nil {
					return
				}
				select {
				case <-s.Events():
					seen.Add(1)
				default:
				}
				s.Close()
				_ = s.Err()
			}
		})
	}
	group.Go(func() { _ = h.Stats() })
	group.Wait()
	h.Close()
	if got := h.Stats(); got.Subscribers != 0 {
		t.Errorf("%+v", got)
	}
}
