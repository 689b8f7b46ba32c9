package notify

import (
	"context"
	"sync"
)

// maxSeen bounds how many accepted notifications are remembered: some 4 MiB.
const maxSeen = 65_536

// seen remembers the newest accepted notifications, so that one which comes
// again is handed on once: the ox driver sends twice if it has no answer within
// 2 s (http_client_request_timeout and _max_attempts; Dovecot 2.4.0 to 2.4.3
// had lost these defaults, and wait for a minute, once).
type seen struct {
	mu    sync.Mutex
	known map[key]struct{}
	order []key // oldest at next, once it is full
	next  int
	// underWay are those of which nobody knows yet whether they are accepted;
	// closed when that is known.
	underWay map[key]chan struct{}
}

func newSeen() *seen {
	return &seen{known: make(map[key]struct{}), underWay: make(map[key]chan struct{})}
}

// begin tells whether k is new; then the caller must call done. It waits while
// somebody else has it under way. The only error is ctx's.
func (s *seen) begin(ctx context.Context, k key) (fresh bool, err error) {
	for {
		s.mu.Lock()
		if _, ok := s.known[k]; ok {
			s.mu.Unlock()
			return false, nil
		}
		other, busy := s.underWay[k]
		if !busy {
			s.underWay[k] = make(chan struct{})
			s.mu.Unlock()
			return true, nil
		}
		s.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// done ends what begin began. What was not accepted is new the next time.
func (s *seen) done(k key, accepted bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.underWay[k])
	delete(s.underWay, k)
	if accepted {
		s.add(k)
	}
}

// note is begin and done at once, where nothing can fail in between.
func (s *seen) note(k key) (fresh bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.known[k]; ok {
		return false
	}
	s.add(k)
	return true
}

func (s *seen) add(k key) {
	s.known[k] = struct{}{}
	if len(s.order) < maxSeen {
		s.order = append(s.order, k)
		return
	}
	delete(s.known, s.order[s.next])
	s.order[s.next] = k
	s.next = (s.next + 1) % maxSeen
}
