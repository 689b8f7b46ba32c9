package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"
)

const (
	// Of the last strainWindow users half may fail before a sweep pauses; then
	// it tries strainTrial, of whom more than half must succeed.
	strainWindow, strainTrial = 50, 10
	// maxStrains bounds the pauses that follow one another, and maxPauses all.
	maxStrains, maxPauses = 4, 20
)

// ErrStrained: the user was not tried, for too many before him failed.
var ErrStrained = errors.New("not tried, as too many users fail")

// strain pauses a sweep in which ever more users fail, each for a reason that
// is his own as far as anybody can tell: the disk of the mailboxes is full, or
// the list is another system's. It pauses at growing intervals, and gives up.
type strain struct {
	breaker circuitbreaker.CircuitBreaker[any]
	delay   func(n int) time.Duration
	opened  func(pause time.Duration)
	news    chan struct{} // has room for one: look again

	mu     sync.Mutex
	paused int       // times in a row
	pauses int       // in all
	spare  int       // who was admitted in vain
	until  time.Time // when the last pause is over
}

// newStrain takes the length of pause number n, and what is to be called when
// one begins.
func newStrain(delay func(n int) time.Duration, opened func(pause time.Duration)) *strain {
	s := &strain{delay: delay, opened: opened, news: make(chan struct{}, 1)}
	// The breaker counts. Its own delay cannot grow, for a result that is
	// recorded by hand: failsafe-go asks a DelayFunc for executions only.
	s.breaker = circuitbreaker.NewBuilder[any]().
		WithFailureThresholdRatio(strainWindow/2, strainWindow).
		WithSuccessThresholdRatio(strainTrial/2+1, strainTrial).
		WithDelay(0).
		OnOpen(func(circuitbreaker.StateChangedEvent) { s.pause() }).
		OnClose(func(circuitbreaker.StateChangedEvent) { s.relax() }).
		Build()
	return s
}

func (s *strain) pause() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pauses++
	if s.paused++; s.paused > maxStrains || s.pauses > maxPauses {
		return
	}
	wait := s.delay(s.paused)
	s.until = time.Now().Add(wait)
	s.opened(wait)
}

func (s *strain) relax() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paused = 0
}

// left returns how long the pause goes on, and whether there is no use in
// going on at all.
func (s *strain) left() (pause time.Duration, hopeless bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Until(s.until), s.paused > maxStrains || s.pauses > maxPauses
}

// admit waits until another user may be tried. It fails with ErrStrained when
// there is no use in going on.
func (s *strain) admit(ctx context.Context) error {
	for {
		pause, hopeless := s.left()
		switch {
		case hopeless:
			return ErrStrained
		case pause > 0:
			if err := sleep(ctx, pause); err != nil {
				return err
			}
			continue
		case s.takeSpare() || s.breaker.TryAcquirePermit():
			return nil
		}
		select {
		case <-s.news: // a trial is back
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// giveBack takes back an admission that was not used: another may have it, for
// a breaker's permit only ends with a result.
func (s *strain) giveBack() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spare++
}

func (s *strain) takeSpare() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.spare == 0 {
		return false
	}
	s.spare--
	return true
}

// done takes the result of who was admitted.
func (s *strain) done(failed bool) {
	if failed {
		s.breaker.RecordFailure()
	} else {
		s.breaker.RecordSuccess()
	}
	select {
	case s.news <- struct{}{}:
	default:
	}
}
