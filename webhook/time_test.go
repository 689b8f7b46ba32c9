package webhook

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dovepush/registry/spool"
)

func half() float64 { return 0.5 }

func TestATargetThatIsDownIsProbedLessAndLessAndCatchesUpInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const users, each = 50, 10
		var down atomic.Bool
		down.Store(true)
		target := &answers{answer: func(call) (int, string) {
			if down.Load() {
				return 503, ""
			}
			return 204, ""
		}}
		h := open(t, Options{Random: half}, Target{Name: "hook", Transport: target})
		for n := range each {
			for u := range users {
				h.add(fmt.Sprint("user", u), n)
			}
		}
		h.start()
		began := time.Now()
		time.Sleep(2 * time.Hour)
		calls := target.all()
		// At once 4; then probes after 2.5 s, 5 s, 10 s ... 30 min.
		if n := len(calls); n < 10 || n > 25 {
			t.Errorf("%d calls in two hours", n)
		}
		tried := make(map[string]int)
		last, gap := began, time.Duration(0)
		for _, c := range calls {
			tried[c.id]++
			if d := c.at.Sub(last); d < gap && d > 0 {
				t.Errorf("a wait of %v after one of %v", d, gap)
			} else {
				last, gap = c.at, max(gap, min(d, 29*time.Minute))
			}
		}
		for id, n := range tried {
			if n > 2 {
				t.Errorf("%s was tried %d times, while others were not", id, n)
			}
		}
		if st := h.f.States()[0]; st.Since.IsZero() || !strings.Contains(st.Reason, "503") || !st.Until.After(time.Now()) {
			t.Errorf("%+v", st)
		}
		if n := h.log.count("is set aside"); n != 1 {
			t.Errorf("said %d times that the target is set aside", n)
		}
		down.Store(false)
		time.Sleep(31 * time.Minute)
		if st := h.stats("hook"); st.Waiting != 0 || st.Dead != 0 || st.Delivered != users*each {
			t.Errorf("%+v", st)
		}
		if st := h.f.States()[0]; !st.Since.IsZero() || st.UnderWay != 0 {
			t.Errorf("%+v", st)
		}
		if n := h.log.count("works again"); n != 1 {
			t.Errorf("said %d times that the target works again", n)
		}
		ordered(t, target.all())
	})
}

func TestRetryAfterIsHeededWithinReason(t *testing.T) {
	for after, want := range map[string]time.Duration{"600": 10 * time.Minute, "86400": time.Hour, "nonsense": 0} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			target := &answers{answer: func(c call) (int, string) {
				if time.Since(began) < time.Second {
					return 429, after
				}
				return 200, ""
			}}
			h := open(t, Options{Random: half}, Target{Name: "hook", Transport: target})
			h.add("alice", 0)
			h.start()
			time.Sleep(2 * time.Hour)
			calls := target.all()
			if len(calls) != 2 {
				t.Fatalf("%d calls", len(calls))
			}
			if gap := calls[1].at.Sub(calls[0].at); gap < want || gap > want+6*time.Second {
				t.Errorf("Retry-After %s: came again after %v", after, gap)
			}
		})
	}
}

func TestARefusedEventIsGivenUpAndTheUsersNextGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := &answers{answer: func(c call) (int, string) {
			if c.id == "alice-0" {
				return 422, ""
			}
			return 200, ""
		}}
		h := open(t, Options{Random: half}, Target{Name: "hook", Transport: target})
		h.add("alice", 0)
		h.add("alice", 1)
		h.add("bob", 0)
		h.start()
		time.Sleep(time.Second)
		if st := h.stats("hook"); st.Delivered != 1 {
			t.Errorf("bob waits for alice: %+v", st)
		}
		time.Sleep(time.Hour)
		refused := 0
		for _, c := range target.all() {
			if c.id == "alice-0" {
				refused++
			}
		}
		if st := h.stats("hook"); refused != 8 || st.Dead != 1 || st.Delivered != 2 {
			t.Errorf("refused %d times, %+v", refused, st)
		}
		for l, err := range h.spool.Dead(t.Context(), "hook") {
			if err != nil || l.Event != "alice-0" || l.Reason != "status 422 Unprocessable Entity" || l.Attempts != 8 {
				t.Errorf("%+v, error %v", l, err)
			}
		}
		if n := h.log.count("event is given up"); n != 1 || h.log.count("set aside") != 0 {
			t.Errorf("log:\n%s", h.log)
		}
		if n, err := h.spool.Revive(t.Context(), "hook"); n != 1 || err != nil {
			t.Errorf("revived %d, error %v", n, err)
		}
		time.Sleep(2 * look) // nobody kicked: it might have been another process
		if n := len(target.all()); n < 11 {
			t.Errorf("a revived event was not tried: %d calls", n)
		}
	})
}

func TestATargetThatRefusesEverythingIsSetAside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const users = 500
		var wrong atomic.Bool
		wrong.Store(true)
		target := &answers{answer: func(c call) (int, string) {
			if wrong.Load() {
				return 404, ""
			}
			return 200, ""
		}}
		h := open(t, Options{Random: half}, Target{Name: "hook", Transport: target})
		for u := range users {
			h.add(fmt.Sprint("user", u), 0)
		}
		h.start()
		time.Sleep(time.Hour)
		if st := h.stats("hook"); st.Dead != 0 || len(target.all()) > 240 { // one each 20 s
			t.Errorf("%d calls, %+v", len(target.all()), st)
		}
		if h.log.count("see whether the URL is right") != 1 {
			t.Errorf("log:\n%s", h.log)
		}
		wrong.Store(false)
		time.Sleep(2 * time.Hour)
		if st := h.stats("hook"); st.Delivered != users {
			t.Errorf("%+v", st)
		}
	})
}

func TestAnEventThatBreaksItsTargetDoesNotStandForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const events = 10 * 6
		target := &answers{answer: func(c call) (int, string) {
			if c.user == "poison" {
				return 500, ""
			}
			return 200, ""
		}}
		h := open(t, Options{Random: half}, Target{Name: "hook", Transport: target, GiveUpAfter: 2 * time.Hour})
		h.start()
		h.add("poison", 0)
		h.add("poison", 1)
		for n := range events { // for ten hours
			h.add("alice", n)
			time.Sleep(10 * time.Minute)
		}
		st := h.stats("hook")
		if st.Delivered < events-1 {
			t.Errorf("the others wait: %+v", st)
		}
		if st.Dead != 2 {
			t.Errorf("it is tried for ever: %+v", st)
		}
		ordered(t, target.all())
	})
}

func TestWhatWaitedTooLongInAnOutageIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := &answers{answer: func(c call) (int, string) { return 0, "" }}
		h := open(t, Options{Random: half}, Target{Name: "hook", Transport: target})
		h.start()
		for n := range 200 {
			h.add(fmt.Sprint("user", n), 0)
		}
		time.Sleep(23 * time.Hour)
		h.add("late", 0)
		if st := h.stats("hook"); st.Dead != 0 {
			t.Errorf("before its time: %+v", st)
		}
		time.Sleep(2 * time.Hour)
		if st := h.stats("hook"); st.Dead != 200 || st.Waiting != 1 {
			t.Errorf("%+v", st)
		}
		if n := h.log.count("are given up"); n != 1 {
			t.Errorf("log:\n%s", h.log)
		}
	})
}

func TestWhatIsOldBecauseNobodyTriedIsTried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		target := &answers{answer: func(c call) (int, string) {
			if time.Since(began) < 72*time.Hour+time.Minute {
				return 503, ""
			}
			return 200, ""
		}}
		h := open(t, Options{Random: half}, Target{Name: "hook", Transport: target})
		for n := range 20 {
			h.add("alice", n)
		}
		time.Sleep(72 * time.Hour)
		h.start()
		time.Sleep(time.Hour)
		if st := h.stats("hook"); st.Delivered != 20 {
			t.Errorf("%+v", st)
		}
	})
}

func TestATargetThatIsGoneIsSaidLoudly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := &answers{answer: func(c call) (int, string) { return 410, "" }}
		h := open(t, Options{Random: half}, Target{Name: "hook", Transport: target})
		h.add("alice", 0)
		h.start()
		time.Sleep(time.Hour)
		if h.log.count("level=ERROR") != 1 || h.log.count("user=alice event=alice-0") != 1 || h.stats("hook").Dead != 0 {
			t.Errorf("log:\n%s", h.log)
		}
	})
}

func TestSecretsAreReadAgainForEachBurstAndMissingOnesSetTheTargetAside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var current atomic.Value
		current.Store([]string{secretA})
		target := &answers{answer: func(c call) (int, string) { return 200, "" }}
		h := open(t, Options{Random: half}, Target{Name: "hook", Transport: target, Secrets: func(context.Context) ([]string, error) {
			list := current.Load().([]string)
			if len(list) == 1 && list[0] == "broken" {
				return nil, errors.New("no such file")
			}
			return list, nil
		}})
		h.start()
		for n, list := range [][]string{{secretA}, {secretB, secretA}, {secretB}} {
			current.Store(list)
			h.add("alice", n)
			time.Sleep(time.Second)
			calls := target.all()
			if len(calls) != n+1 {
				t.Fatalf("%d calls", len(calls))
			}
			hasA, hasB := verified(secretA, calls[n]), verified(secretB, calls[n])
			if want := strings.Join(list, " "); hasA != strings.Contains(want, secretA) || hasB != strings.Contains(want, secretB) {
				t.Errorf("secrets %d: signed with the first %v, with the second %v", n, hasA, hasB)
			}
		}
		for n, list := range [][]string{{"broken"}, {}, {"whsec_short"}} {
			current.Store(list)
			h.add("alice", 3+n)
			time.Sleep(time.Minute)
			if len(target.all()) != 3+n || h.f.States()[0].Since.IsZero() {
				t.Errorf("%q: sent without a signature, or the target is not set aside", list)
			}
			current.Store([]string{secretA})
			time.Sleep(2 * time.Minute)
			if len(target.all()) != 4+n || !h.f.States()[0].Since.IsZero() {
				t.Errorf("%q: not sent when there was a secret again: %+v", list, h.f.States())
			}
		}
		if strings.Contains(h.log.String(), "short") {
			t.Errorf("log:\n%s", h.log)
		}
	})
}

// sickSpool takes and settles nothing while it is sick.
type sickSpool struct {
	Spool
	sick  atomic.Bool
	takes atomic.Int64 // while it was sick
}

var errSick = errors.New("disk full")

func (s *sickSpool) Take(ctx context.Context, target string, n int, lease time.Duration) ([]spool.Delivery, error) {
	if s.sick.Load() {
		s.takes.Add(1)
		return nil, errSick
	}
	return s.Spool.Take(ctx, target, n, lease)
}

func (s *sickSpool) Done(ctx context.Context, ids ...int64) error {
	if s.sick.Load() {
		return errSick
	}
	return s.Spool.Done(ctx, ids...)
}

func TestASpoolThatFailsIsSaidOnceAndTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := new(sickSpool)
		var once sync.Once
		target := &answers{answer: func(c call) (int, string) {
			once.Do(func() { s.sick.Store(true) }) // before it is recorded
			return 200, ""
		}}
		h := open(t, Options{}, Target{Name: "hook", Transport: target})
		s.Spool = h.spool
		h.f.options.Spool = s
		h.start()
		h.add("alice", 0)
		h.add("bob", 0)
		for range 60 {
			h.f.Kick()
			time.Sleep(time.Second)
		}
		if n := len(target.all()); n > 2 || h.stats("hook").Waiting == 0 {
			t.Errorf("%d calls, %+v", n, h.stats("hook"))
		}
		if n := s.takes.Load(); n < 5 || n > 20 {
			t.Errorf("the spool was asked %d times in a minute", n)
		}
		s.sick.Store(false)
		time.Sleep(time.Minute)
		if st := h.stats("hook"); st.Waiting != 0 {
			t.Errorf("%+v", st)
		}
		if h.log.count("the spool fails") != 1 || h.log.count("spool works again") != 1 || h.log.count("disk full") != 1 {
			t.Errorf("log:\n%s", h.log)
		}
	})
}

// A stop while secrets are read is nobody's failure, and costs no time.
func TestAStopWhileSecretsAreReadSettlesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := &answers{answer: func(c call) (int, string) { return 200, "" }}
		slow := Target{Name: "hook", Transport: target, Secrets: func(ctx context.Context) ([]string, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		h := open(t, Options{Random: half}, slow)
		h.add("alice", 0)
		stop := h.start()
		time.Sleep(time.Second)
		stop()
		if st := h.stats("hook"); st.LastError != "" || st.Waiting != 1 || h.log.count("set aside") != 0 {
			t.Errorf("%+v, log:\n%s", st, h.log)
		}
		quick := slow
		quick.Secrets, quick.URL = secrets(secretA), "http://target.test/hook"
		f, err := New(Options{Targets: []Target{quick}, Spool: h.spool})
		if err != nil {
			t.Fatal(err)
		}
		h.f = f
		h.start()
		time.Sleep(time.Second)
		if st := h.stats("hook"); st.Delivered != 1 {
			t.Errorf("%+v", st)
		}
	})
}

// Who refuses what concerns one event refuses that, however many there are.
func TestRefusalsOtherThanNotFoundNeverSetATargetAside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := &answers{answer: func(c call) (int, string) {
			if c.user == "good" {
				return 200, ""
			}
			return 422, ""
		}}
		h := open(t, Options{Random: half}, Target{Name: "hook", Transport: target, MaxConnections: 4})
		for n := range 3 * maxStreak {
			h.add(fmt.Sprint("bad", n), 0)
		}
		h.add("good", 0)
		h.start()
		time.Sleep(time.Minute)
		if st := h.stats("hook"); st.Delivered != 1 || h.log.count("set aside") != 0 {
			t.Errorf("%+v, log:\n%s", st, h.log)
		}
	})
}

// A reload must not have a user wait until the lease of what it cut off ends.
func TestWhatAStopCutsOffIsDueAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, Options{Random: half}, Target{Name: "hook", Transport: hanging{}})
		h.add("alice", 0)
		stop := h.start()
		time.Sleep(time.Second)
		stop()
		target := &answers{answer: func(c call) (int, string) { return 200, "" }}
		f, err := New(Options{Spool: h.spool, Targets: []Target{{Name: "hook", URL: "http://target.test/hook", Secrets: secrets(secretA), Transport: target}}})
		if err != nil {
			t.Fatal(err)
		}
		h.f = f
		h.start()
		time.Sleep(time.Second)
		if st := h.stats("hook"); st.Delivered != 1 {
			t.Errorf("%+v", st)
		}
	})
}

// hanging is a target that never answers.
type hanging struct{}

func (hanging) RoundTrip(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}
