package agent

import "time"

// retryAfter is how long to wait before attempt number attempts+1: full jitter
// between RetryInitial and a ceiling that doubles with each attempt, up to
// RetryMax, so that users who failed together do not come back together.
func (a *Agent) retryAfter(attempts int) time.Duration {
	ceiling := a.options.RetryMax
	if shift := max(attempts, 1); a.options.RetryInitial <= a.options.RetryMax>>shift { // else it passes RetryMax, or overflows
		ceiling = a.options.RetryInitial << shift
	}
	return between(a.options.RetryInitial, ceiling, a.options.Random())
}

// probeAfter is how long to leave a server alone that failed for everybody so
// many times: it doubles each time, up to a bound, and is spread a little, so
// that it grows each time.
func (a *Agent) probeAfter(failures int, refused bool) time.Duration {
	most := maxProbeElse
	if refused {
		most = maxProbe
	}
	most = max(min(most, a.options.RetryMax), a.options.RetryInitial)
	wait := most
	if shift := max(failures, 1) - 1; a.options.RetryInitial <= most>>shift {
		wait = a.options.RetryInitial << shift
	}
	return between(wait, wait+wait/2, a.options.Random())
}

// verifyAfter is how long a registration that is as it should be is left
// alone: at most VerifyEvery, and spread, so that users who were registered
// together do not stay together.
func (a *Agent) verifyAfter() time.Duration {
	return between(a.options.VerifyEvery-a.options.VerifyEvery/4, a.options.VerifyEvery, a.options.Random())
}

func between(least, most time.Duration, random float64) time.Duration {
	return least + time.Duration(random*float64(most-least))
}
