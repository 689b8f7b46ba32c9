package webhook

import "time"

// pause is that of a target which is set aside.
type pause struct {
	since    time.Time // zero: the target is not set aside
	until    time.Time // when the next probe goes
	failures int       // in a row
	reason   string
}

func (p pause) on() bool { return !p.since.IsZero() }

// backOff is a random time of up to initial, doubled with each try after the
// first, at most the longest.
func backOff(initial, longest time.Duration, try int, random float64) time.Duration {
	d := initial
	for ; try > 1 && d < longest; try-- {
		d *= 2
	}
	return time.Duration(random * float64(min(d, longest)))
}

// maxStreak is how many events may be refused in a row, with 404 or 405, before
// the target is thought to refuse everything, as a wrong path does.
const maxStreak = 20

// maxRare is after how many failed probes a target that answers, but refuses
// everything, is not probed less often any more: with a retry_initial of 5 s
// that is every 40 s at least.
const maxRare = 3

// action is what is to be done with an event, and what is to be said.
type action struct {
	result Result
	at     time.Time // when to try again
	reason string
	begins bool          // the target is set aside from now on
	ends   time.Duration // above 0: it is not any more, and was for so long
}
