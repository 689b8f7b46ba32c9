package spool

import (
	"fmt"
	"sync"
	"testing"
	"time"
)

func TestOnlyTheOldestEventOfAUserIsDue(t *testing.T) {
	s, c := fresh(t)
	add(t, s, mail("alice", 1), hook)
	add(t, s, mail("alice", 2), hook)
	c.advance(time.Second)
	add(t, s, mail("bob", 1), hook)
	list := takes(t, s, "hook", "alice-1", "bob-1")
	takes(t, s, "hook")
	must(t, s.Done(t.Context(), list[1].ID))
	takes(t, s, "hook")
	must(t, s.Done(t.Context(), list[0].ID))
	list = takes(t, s, "hook", "alice-2")
	must(t, s.Done(t.Context(), list[0].ID, list[0].ID))
	if st := stats(t, s, "hook"); st.Waiting != 0 || st.Delivered != 3 || !st.DeliveredAt.Equal(c.now()) || !st.Oldest.IsZero() {
		t.Errorf("%+v", st)
	}
}

func TestTargetsDoNotWaitForOneAnother(t *testing.T) {
	s, _ := fresh(t)
	add(t, s, mail("alice", 1), hook, other)
	add(t, s, mail("alice", 2), hook, other)
	first := takes(t, s, "hook", "alice-1")
	must(t, s.Done(t.Context(), first[0].ID))
	takes(t, s, "hook", "alice-2")
	takes(t, s, "other", "alice-1")
}

func TestATargetThatStripsHasNothingOfTheWholeBody(t *testing.T) {
	s, _ := fresh(t)
	e := mail("alice", 1)
	add(t, s, e, hook, other)
	if d := take(t, s, "hook", 1)[0]; string(d.Body) != string(e.Body) {
		t.Errorf("hook: %s", d.Body)
	}
	if d := take(t, s, "other", 1)[0]; string(d.Body) != `{}` {
		t.Errorf("other: %s", d.Body)
	}
	e.ID, e.Stripped = "2", nil
	if _, err := s.Add(t.Context(), e, []Target{other}); err == nil {
		t.Error("a body that was not stripped would be sent to a target that strips")
	}
}

func TestWhatWasTakenIsDueAgainWhenTheLeaseIsOver(t *testing.T) {
	s, c := fresh(t)
	add(t, s, mail("alice", 1), hook)
	if d := takes(t, s, "hook", "alice-1")[0]; d.Attempts != 1 || d.Refusals != 0 || !d.Received.Equal(noon) || !d.Queued.Equal(noon) || d.User != "alice" {
		t.Errorf("%+v", d)
	}
	c.advance(time.Minute - time.Millisecond)
	takes(t, s, "hook")
	if at, some, err := s.Next(t.Context(), "hook"); err != nil || !some || !at.Equal(noon.Add(time.Minute)) {
		t.Errorf("next at %v, %v, %v", at, some, err)
	}
	c.advance(time.Millisecond)
	if d := takes(t, s, "hook", "alice-1")[0]; d.Attempts != 2 {
		t.Errorf("%+v", d)
	}
}

func TestRetriesKeepTheOrderAndAreCounted(t *testing.T) {
	s, c := fresh(t)
	add(t, s, mail("alice", 1), hook)
	add(t, s, mail("alice", 2), hook)
	d := takes(t, s, "hook", "alice-1")[0]
	must(t, s.Retry(t.Context(), d.ID, noon.Add(time.Hour), "status 500"))
	takes(t, s, "hook")
	c.advance(time.Hour)
	d = takes(t, s, "hook", "alice-1")[0]
	must(t, s.Refuse(t.Context(), d.ID, c.now(), "status 400"))
	d = takes(t, s, "hook", "alice-1")[0]
	if d.Attempts != 3 || d.Refusals != 1 {
		t.Errorf("%+v", d)
	}
	if st := stats(t, s, "hook"); st.LastError != "status 400" || !st.LastErrorAt.Equal(c.now()) || st.Waiting != 2 || !st.Oldest.Equal(noon) {
		t.Errorf("%+v", st)
	}
}

func TestARecoveredSpoolHasEverythingThatWasUnderWay(t *testing.T) {
	s, c := fresh(t)
	add(t, s, mail("alice", 1), hook)
	add(t, s, mail("bob", 1), hook)
	for _, d := range takes(t, s, "hook", "alice-1", "bob-1") {
		if d.User == "bob" {
			must(t, s.Retry(t.Context(), d.ID, noon.Add(time.Hour), "status 500"))
		}
	}
	if n, err := s.Recover(t.Context()); n != 1 || err != nil {
		t.Errorf("recovered %d, error %v", n, err)
	}
	takes(t, s, "hook", "alice-1") // what backs off is not due
	_ = c
}

func TestAClockThatWasSetBackDelaysNothingForLong(t *testing.T) {
	s, c := fresh(t)
	add(t, s, mail("alice", 1), hook)
	add(t, s, mail("alice", 2), hook)
	c.advance(-24 * time.Hour)
	if n, err := s.Hasten(t.Context(), "hook", c.now().Add(time.Hour)); n != 1 || err != nil {
		t.Errorf("hastened %d, error %v", n, err)
	}
	d := takes(t, s, "hook", "alice-1")[0]
	must(t, s.Done(t.Context(), d.ID))
	takes(t, s, "hook", "alice-2")
}

func TestEachDeliveryIsTakenOnce(t *testing.T) {
	const users, each, takers = 40, 5, 8
	s, _ := fresh(t)
	var wg sync.WaitGroup
	for u := range users {
		wg.Go(func() {
			for n := range each {
				if _, err := s.Add(t.Context(), mail(fmt.Sprint("user", u), n), []Target{hook}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	var mu sync.Mutex
	last := make(map[string]int)
	total := 0
	for range takers {
		wg.Go(func() {
			for {
				list, err := s.Take(t.Context(), "hook", 3, time.Minute)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				over := total == users*each
				for _, d := range list {
					if d.Event != fmt.Sprintf("%s-%d", d.User, last[d.User]) {
						t.Errorf("took %s after %d of that user", d.Event, last[d.User])
					}
					last[d.User]++
					total++
				}
				mu.Unlock()
				for _, d := range list {
					if err := s.Done(t.Context(), d.ID); err != nil {
						t.Error(err)
					}
				}
				if over {
					return
				}
			}
		})
	}
	wg.Wait()
	if total != users*each {
		t.Errorf("%d of %d were taken", total, users*each)
	}
}
