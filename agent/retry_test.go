package agent

import (
	"math"
	"testing"
	"testing/quick"
	"time"
)

const nearlyOne = 1 - 1.0/(1<<53) // the largest number below 1

func waits(initial, most, verify time.Duration, random float64) *Agent {
	return &Agent{options: Options{RetryInitial: initial, RetryMax: most, VerifyEvery: verify, Random: func() float64 { return random }}}
}

func TestRetryCeilingDoubles(t *testing.T) {
	for attempts, ceiling := range []time.Duration{
		time.Minute, time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 16 * time.Minute, 32 * time.Minute,
		64 * time.Minute, 128 * time.Minute, 256 * time.Minute, 6 * time.Hour, 6 * time.Hour,
	} {
		if least := waits(retryInitial, retryMax, 0, 0).retryAfter(attempts); least != retryInitial {
			t.Errorf("after %d attempts: at least %v, want %v", attempts, least, retryInitial)
		}
		if most := waits(retryInitial, retryMax, 0, nearlyOne).retryAfter(attempts); most > ceiling || most < ceiling-time.Microsecond {
			t.Errorf("after %d attempts: at most %v, want %v", attempts, most, ceiling)
		}
	}
}

// Whatever the attempts and settings, a wait is within its bounds, and the
// ceiling never falls.
func TestRetryStaysWithinItsBounds(t *testing.T) {
	check := func(initial, most time.Duration, attempts int) bool {
		initial, most = positive(initial), positive(most)
		initial, most = min(initial, most), max(initial, most)
		low, high := waits(initial, most, 0, 0), waits(initial, most, 0, nearlyOne)
		wait := high.retryAfter(attempts)
		return low.retryAfter(attempts) == initial && initial <= wait && wait <= most &&
			(attempts == math.MaxInt || wait <= high.retryAfter(attempts+1))
	}
	for _, attempts := range []int{math.MinInt, -1, 0, 1, 2, 10, 23, 24, 30, 31, 32, 62, 63, 64, 65, math.MaxInt - 1, math.MaxInt} {
		if err := quick.Check(func(initial, most time.Duration) bool { return check(initial, most, attempts) }, nil); err != nil {
			t.Errorf("after %d attempts: %v", attempts, err)
		}
		for _, initial := range []time.Duration{1, retryInitial, 1<<40 + 1, math.MaxInt64} {
			if !check(initial, math.MaxInt64, attempts) {
				t.Errorf("between %v and the longest of all, after %d attempts", initial, attempts)
			}
		}
	}
	if err := quick.Check(func(initial, most uint32, attempts uint8) bool { // settings and attempts that occur
		return check(time.Duration(initial), time.Duration(most)*time.Second, int(attempts))
	}, nil); err != nil {
		t.Error(err)
	}
}

func TestVerifyStaysWithinItsBounds(t *testing.T) {
	check := func(every time.Duration) bool {
		every = positive(every)
		least, most := waits(0, 0, every, 0).verifyAfter(), waits(0, 0, every, nearlyOne).verifyAfter()
		return 0 < least && least >= every/4*3 && least <= every/4*3+3 && least <= most && most <= every
	}
	if err := quick.Check(check, nil); err != nil {
		t.Error(err)
	}
	for _, every := range []time.Duration{1, 3, 4, time.Second, verifyEvery, math.MaxInt64} {
		if !check(every) {
			t.Errorf("with verify_every %v", every)
		}
	}
	if most := waits(0, 0, verifyEvery, nearlyOne).verifyAfter(); most < verifyEvery-time.Microsecond {
		t.Errorf("at most %v: they are not spread up to %v", most, verifyEvery)
	}
}

// positive makes a setting that could be.
func positive(d time.Duration) time.Duration { return max(1, d&math.MaxInt64) }
