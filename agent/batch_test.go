package agent

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dovepush/registry"
)

// The clock goes on with every look at it, so that each commit has its own time.
func TestRequestsThatAreReadyShareACommit(t *testing.T) {
	c := &clock{at: noon}
	h := newHouse(t, func() time.Time { c.advance(time.Millisecond); return c.now() })
	a := h.agent()
	var requests []Request
	for _, user := range users("a.test", 200) {
		requests = append(requests, Request{User: user, NoWait: true}, Request{User: user + "\n", NoWait: true})
	}
	for i, result := range each(t.Context(), a, 100, requests...) {
		if i%2 == 0 && (result.Err != nil || result.Verdict != Deferred || result.Registration == nil || result.User != requests[i].User) ||
			i%2 == 1 && (!errors.Is(result.Err, ErrUser) || result.Verdict != Failed) {
			t.Errorf("%d: %+v", i, result)
		}
	}
	commits := make(map[time.Time]int)
	for reg, err := range a.options.Registry.List(t.Context(), registry.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		commits[reg.NextAt]++
	}
	if len(commits) == 0 || len(commits) > 100 {
		t.Errorf("%d commits for 200 users", len(commits))
	}
}

func TestLoneRequestDoesNotWaitForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newHouse(t, time.Now).agent()
		answered := make(chan bool)
		requests := func(yield func(Request) bool) {
			for _, user := range users("a.test", 3) {
				if !yield(register(user)) {
					return
				}
				<-answered // an interactive caller
			}
		}
		n := 0
		for result := range a.Each(t.Context(), requests, 8) {
			if n++; result.Verdict != Added {
				t.Errorf("%+v", result)
			}
			answered <- true
		}
		if n != 3 {
			t.Errorf("%d results", n)
		}
	})
}

func TestLaterRequestForAUserFindsWhatTheEarlierMade(t *testing.T) {
	h, _ := still(t)
	a := h.agent()
	must(t, a, register("warm-up"), Added)
	later := Request{Action: Unregister, User: "alice", NoWait: true}
	results := each(t.Context(), a, 8, Request{User: "alice", Identity: "7@1", NoWait: true}, later, verify("stranger"))
	if reg := results[1].Registration; reg == nil || reg.Identity != "7@1" || reg.Wanted != registry.Absent || reg.Revision != 2 {
		t.Errorf("%+v", reg)
	}
}

func TestEachOfABatchGetsTheErrorOfTheWhole(t *testing.T) {
	h, _ := still(t)
	a := h.agent()
	a.options.Registry.Close()
	for _, result := range each(t.Context(), a, 8, registerAll(users("a.test", 20)...)...) {
		if !errors.Is(result.Err, fs.ErrClosed) || !strings.Contains(result.Err.Error(), "intend") || result.Verdict != Deferred {
			t.Errorf("%+v", result)
		}
	}
}

func TestConnectionsOfAServerAreBoundedBeforeTheClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		b := newMailbox()
		h.box.reading, b.reading = takes(20*time.Second), takes(time.Second)
		a := h.agent(twoServers(b), func(o *Options) { o.Servers[0].MaxConnections = 1 })
		other := h.open()
		h.box.wrote = func(context.Context, string) error {
			held := 0
			for reg, err := range other.List(t.Context(), registry.Filter{Server: "main"}) {
				if err != nil || reg.ClaimedBy != "" {
					held++
				}
			}
			if held != 1 {
				t.Errorf("%d rows are claimed", held)
			}
			return nil
		}
		// Two Each of one agent share the bound.
		var all sync.WaitGroup
		for _, names := range [][]string{users("a.test", 5), users("c.test", 5), users("b.test", 20)} {
			all.Go(func() {
				for _, result := range each(t.Context(), a, 8, registerAll(names...)...) {
					if result.Verdict != Added || result.Err != nil {
						t.Errorf("%s: %s, %v", result.User, result.Verdict, result.Err)
					}
				}
			})
		}
		all.Wait()
		if h.box.most != 1 || b.most < 4 {
			t.Errorf("%d at once on the bounded server, %d on the other", h.box.most, b.most)
		}
	})
}

func TestWaitingForAConnectionEndsWithContextAndKeepsNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		a := h.agent(func(o *Options) { o.Servers[0].MaxConnections = 1 })
		entered, goOn := pausing(h.box, false)
		first := begin(t.Context(), a, register("alice"))
		<-entered

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		second := begin(ctx, a, register("bob"))
		time.Sleep(2 * time.Second)
		select {
		case result := <-second:
			if !errors.Is(result.Err, context.DeadlineExceeded) || result.Registration == nil || result.Registration.Attempts != 0 {
				t.Errorf("%+v", result)
			}
		default:
			t.Error("it still waits")
		}
		close(goOn)
		if result := <-first; result.Verdict != Added {
			t.Errorf("%+v", result)
		}
		h.unclaimed(a.options.Registry)
		if n := len(a.sites["main"].slots); n != 0 {
			t.Errorf("%d places are still taken", n)
		}
	})
}
