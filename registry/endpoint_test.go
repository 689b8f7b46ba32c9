package registry

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	urlA = "https://a.example:8080/doveadm/v1"
	urlB = "https://b.example:8080/doveadm/v1"
)

func setAside(t *testing.T, r *Registry, e Endpoint) {
	t.Helper()
	if err := r.SetAside(t.Context(), e); err != nil {
		t.Fatal(err)
	}
}

func works(t *testing.T, r *Registry, server, url string) {
	t.Helper()
	if err := r.EndpointWorks(t.Context(), server, url); err != nil {
		t.Fatal(err)
	}
}

func wantEndpoints(t *testing.T, r *Registry, want ...Endpoint) {
	t.Helper()
	got, err := r.Endpoints(t.Context())
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

// wantRows expects that the notes of these URLs are in the file, whether they
// count or not.
func wantRows(t *testing.T, r *Registry, want ...string) {
	t.Helper()
	got, err := r.names(t.Context(), "test", "SELECT url FROM endpoints ORDER BY url")
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

// outAt is an endpoint that was set aside at a time and is looked at again a
// minute later.
func outAt(url string, at time.Time) Endpoint {
	return Endpoint{Server: "main", URL: url, Since: at, CheckAt: at.Add(time.Minute), Reason: "refused",
		Failure: Failure{Kind: "retry", Message: "connection refused"}}
}

func TestEndpointsStayUntilTheyWork(t *testing.T) {
	r, c := fresh(t)
	wantEndpoints(t, r)
	a, b, far := outAt(urlA, noon), outAt(urlB, noon.Add(-time.Hour)), outAt(urlB, noon)
	b.CheckAt = noon.Add(time.Hour)
	far.Server, far.Reason, far.Failure = "far", "key", Failure{Kind: "server", Message: "401 Unauthorized"}
	for _, e := range []Endpoint{b, a, far} {
		setAside(t, r, e)
	}
	wantEndpoints(t, reopen(t, r.path, c.now), far, a, b)
	for range 2 { // the second finds nothing
		works(t, r, "main", urlB)
		wantEndpoints(t, r, far, a)
	}
}

func TestEndpointSetAsideAgainKeepsTheEarlierTimeAndTakesTheRest(t *testing.T) {
	r, _ := fresh(t)
	setAside(t, r, outAt(urlA, noon))
	later := Endpoint{Server: "main", URL: urlA, Since: noon.Add(time.Hour), CheckAt: noon.Add(time.Second), Reason: "key", Failure: Failure{Kind: "server", Message: "401"}}
	setAside(t, r, later)
	want := later
	want.Since = noon
	wantEndpoints(t, r, want)
	want.Since = noon.Add(-time.Hour)
	setAside(t, r, want)
	wantEndpoints(t, r, want)
	// Once it works, nothing of it is known.
	works(t, r, "main", urlA)
	setAside(t, r, later)
	wantEndpoints(t, r, later)
}

func TestNoteCountsWhileItsMakerMayLookAgain(t *testing.T) {
	const far = MaxCheckInterval + EndpointGrace
	for name, tc := range map[string]struct {
		check  time.Duration // how far ahead the next look is
		passes time.Duration
		counts bool
	}{
		"until the next look":             {time.Minute, time.Minute, true},
		"while that look may take":        {time.Minute, time.Minute + EndpointGrace - time.Millisecond, true},
		"not longer":                      {time.Minute, time.Minute + EndpointGrace, false},
		"as long as looks may be apart":   {MaxCheckInterval, MaxCheckInterval, true},
		"if it came late":                 {-EndpointGrace + time.Millisecond, 0, true},
		"not if it came too late":         {-EndpointGrace, 0, false},
		"clock put right by a little":     {MaxCheckInterval, -EndpointGrace, true},
		"clock set back":                  {MaxCheckInterval, -EndpointGrace - time.Millisecond, false},
		"clock set back, looks are often": {time.Minute, time.Minute - far - time.Millisecond, false},
	} {
		t.Run(name, func(t *testing.T) {
			r, c := fresh(t)
			e := outAt(urlA, noon)
			e.CheckAt = noon.Add(tc.check)
			setAside(t, r, e)
			now := c.advance(tc.passes)
			var want []Endpoint
			if tc.counts {
				want = []Endpoint{e}
			}
			wantEndpoints(t, r, want...)
			// Whether it counts decides whether its beginning stands, too.
			again := outAt(urlA, now)
			again.Since = noon.Add(time.Hour)
			setAside(t, r, again)
			if tc.counts {
				again.Since = noon
			}
			wantEndpoints(t, r, again)
		})
	}
}

func TestNextLookIsAtMostTheLongestIntervalAhead(t *testing.T) {
	r, c := fresh(t)
	e := outAt(urlA, noon)
	e.CheckAt = noon.AddDate(10, 0, 0)
	setAside(t, r, e)
	e.CheckAt = noon.Add(MaxCheckInterval)
	wantEndpoints(t, r, e)
	c.advance(MaxCheckInterval + EndpointGrace)
	wantEndpoints(t, r)
}

func TestNotesThatDoNotCountAreSweptAway(t *testing.T) {
	r, c := fresh(t)
	for url, check := range map[string]time.Duration{"over": time.Minute, "still": time.Hour, "before the clock was set back": MaxCheckInterval} {
		e := outAt(url, noon)
		e.CheckAt = noon.Add(check)
		setAside(t, r, e)
	}
	c.advance(time.Minute + EndpointGrace)
	setAside(t, r, outAt("new", c.now()))
	wantRows(t, r, "before the clock was set back", "new", "still")
	c.advance(-10 * time.Minute)
	works(t, r, "main", "before the clock was set back") // though it does not count
	wantRows(t, r, "new", "still")
	c.advance(-MaxCheckInterval)
	works(t, r, "main", "unknown")
	wantRows(t, r, "new", "still")
	setAside(t, r, outAt("newer", c.now()))
	wantRows(t, r, "newer")
}

// It is told with the first answer of each process, which may be a cron job's.
func TestWorkOfWhatIsNotSetAsideNeedsNoLock(t *testing.T) {
	r, _ := fresh(t)
	setAside(t, r, outAt(urlA, noon))
	if _, err := r.writer.db.ExecContext(t.Context(), "PRAGMA busy_timeout = 10"); err != nil {
		t.Fatal(err)
	}
	lock(t, r)
	works(t, r, "main", urlB)
	works(t, r, "far", urlA)
	if err := r.EndpointWorks(t.Context(), "main", urlA); !errors.Is(err, ErrBusy) {
		t.Errorf("error %v: this test cannot fail", err)
	}
}

func TestEndpointsMessageIsCut(t *testing.T) {
	r, _ := fresh(t)
	e := outAt(urlA, noon)
	e.Failure.Message = "500\x00 \xff" + strings.Repeat("ä", maxMessage)
	setAside(t, r, e)
	e.Failure.Message = "500 " + strings.Repeat("ä", (maxMessage-6)/2)
	wantEndpoints(t, r, e)
}

func TestEndpointOutOfBoundsIsRefused(t *testing.T) {
	r, _ := fresh(t)
	good := Endpoint{Server: strings.Repeat("x", maxName), URL: strings.Repeat("u", maxURL), Since: noon, CheckAt: noon, Reason: strings.Repeat("r", maxReason)}
	setAside(t, r, good)
	for name, spoil := range map[string]func(e *Endpoint){
		"no server":        func(e *Endpoint) { e.Server = "" },
		"server too long":  func(e *Endpoint) { e.Server += "x" },
		"server not UTF-8": func(e *Endpoint) { e.Server = "a\xff" },
		"NUL in server":    func(e *Endpoint) { e.Server = "a\x00b" },
		"no URL":           func(e *Endpoint) { e.URL = "" },
		"URL too long":     func(e *Endpoint) { e.URL += "u" },
		"URL not UTF-8":    func(e *Endpoint) { e.URL = "a\xff" },
		"NUL in URL":       func(e *Endpoint) { e.URL = "a\x00b" },
		"no reason":        func(e *Endpoint) { e.Reason = "" },
		"reason too long":  func(e *Endpoint) { e.Reason += "r" },
		"reason not UTF-8": func(e *Endpoint) { e.Reason = "a\xff" },
		"NUL in reason":    func(e *Endpoint) { e.Reason = "a\x00b" },
		"no beginning":     func(e *Endpoint) { e.URL, e.Since = "new", time.Time{} },
		"no next look":     func(e *Endpoint) { e.URL, e.CheckAt = "new", time.Time{} },
	} {
		bad := good
		spoil(&bad)
		if err := r.SetAside(t.Context(), bad); err == nil || !strings.Contains(err.Error(), r.path) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	wantEndpoints(t, r, good)
}
