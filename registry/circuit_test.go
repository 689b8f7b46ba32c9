package registry

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func openCircuit(t *testing.T, r *Registry, c Circuit) {
	t.Helper()
	if err := r.OpenCircuit(t.Context(), c); err != nil {
		t.Fatal(err)
	}
}

func wantCircuits(t *testing.T, r *Registry, want ...Circuit) {
	t.Helper()
	got, err := r.Circuits(t.Context())
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

func TestCircuitsStayUntilTheyAreClosed(t *testing.T) {
	r, c := fresh(t)
	wantCircuits(t, r)
	main := Circuit{Server: "main", Since: noon, ProbeAt: noon.Add(time.Minute), Failures: 3, Failure: Failure{Kind: "server", Message: "refused"}}
	far := Circuit{Server: "far", Since: noon.Add(time.Hour), ProbeAt: noon.Add(2 * time.Hour), Failures: 1, Failure: Failure{Kind: "retry", Message: "timeout"}}
	openCircuit(t, r, main)
	openCircuit(t, r, far)
	wantCircuits(t, reopen(t, r.path, c.now), far, main)
	for range 2 { // the second finds nothing to close
		if err := r.CloseCircuit(t.Context(), "main"); err != nil {
			t.Fatal(err)
		}
		wantCircuits(t, r, far)
	}
}

func TestCircuitOpenedAgainKeepsTheEarlierTimeAndTakesTheRest(t *testing.T) {
	r, _ := fresh(t)
	circuit := Circuit{Server: "main", Since: noon, ProbeAt: noon.Add(time.Minute), Failures: 9, Failure: Failure{Kind: "retry", Message: "timeout"}}
	openCircuit(t, r, circuit)
	later := Circuit{Server: "main", Since: noon.Add(time.Hour), ProbeAt: noon.Add(time.Second), Failures: 2, Failure: Failure{Kind: "server", Message: "refused"}}
	openCircuit(t, r, later)
	want := later
	want.Since = noon
	wantCircuits(t, r, want)
	want.Since = noon.Add(-time.Hour)
	openCircuit(t, r, want)
	wantCircuits(t, r, want)
	// Once closed, nothing of it is known.
	if err := r.CloseCircuit(t.Context(), "main"); err != nil {
		t.Fatal(err)
	}
	openCircuit(t, r, later)
	wantCircuits(t, r, later)
}

func TestCircuitsMessageIsCut(t *testing.T) {
	r, _ := fresh(t)
	c := Circuit{Server: "main", Since: noon, ProbeAt: noon, Failures: 1, Failure: Failure{Kind: "server", Message: "NO\x00 \xff" + strings.Repeat("ä", maxMessage)}}
	openCircuit(t, r, c)
	c.Failure.Message = "NO " + strings.Repeat("ä", (maxMessage-5)/2)
	wantCircuits(t, r, c)
}

func TestCircuitOutOfBoundsIsRefused(t *testing.T) {
	r, _ := fresh(t)
	good := Circuit{Server: strings.Repeat("x", maxName), Since: noon, ProbeAt: noon, Failures: 1}
	openCircuit(t, r, good)
	for name, spoil := range map[string]func(c *Circuit){
		"no server":        func(c *Circuit) { c.Server = "" },
		"server too long":  func(c *Circuit) { c.Server += "x" },
		"server not UTF-8": func(c *Circuit) { c.Server = "a\xff" },
		"NUL in server":    func(c *Circuit) { c.Server = "a\x00b" },
		"no failures":      func(c *Circuit) { c.Failures = 0 },
		"no beginning":     func(c *Circuit) { c.Server, c.Since = "new", time.Time{} },
		"no probe":         func(c *Circuit) { c.Server, c.ProbeAt = "new", time.Time{} },
	} {
		bad := good
		spoil(&bad)
		if err := r.OpenCircuit(t.Context(), bad); err == nil || !strings.Contains(err.Error(), r.path) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	wantCircuits(t, r, good)
}
