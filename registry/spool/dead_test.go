package spool

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestAKilledEventIsADeadLetterAndTheNextIsDue(t *testing.T) {
	s, c := fresh(t)
	add(t, s, mail("alice", 1), hook)
	add(t, s, mail("alice", 2), hook)
	d := takes(t, s, "hook", "alice-1")[0]
	c.advance(time.Minute)
	must(t, s.Kill(t.Context(), d.ID, "status 400 "+strings.Repeat("x", 2000)))
	takes(t, s, "hook", "alice-2")
	list := letters(t, s, "hook")
	if len(list) != 1 {
		t.Fatalf("%+v", list)
	}
	l := list[0]
	if len(l.Reason) != maxReason || !strings.HasPrefix(l.Reason, "status 400 x") {
		t.Errorf("reason of %d bytes", len(l.Reason))
	}
	l.Reason = ""
	if want := (DeadLetter{ID: d.ID, Event: "alice-1", Target: "hook", User: "alice", Received: noon, Died: c.now(), Attempts: 1, Size: len(d.Body)}); l != want {
		t.Errorf("%+v, want %+v", l, want)
	}
	// Who settles it late, after its lease, changes nothing.
	must(t, s.Done(t.Context(), d.ID))
	must(t, s.Retry(t.Context(), d.ID, c.now(), "late"))
	must(t, s.Kill(t.Context(), d.ID, "late"))
	if st := stats(t, s, "hook"); st.Dead != 1 || st.Waiting != 1 || st.Delivered != 0 || st.LastError == "late" {
		t.Errorf("%+v", st)
	}
}

func TestRevivedLettersComeAfterWhatWaits(t *testing.T) {
	s, c := fresh(t)
	for n := range 3 {
		add(t, s, mail("alice", n), hook)
	}
	for range 2 {
		must(t, s.Kill(t.Context(), take(t, s, "hook", 1)[0].ID, "status 400"))
	}
	under := takes(t, s, "hook", "alice-2")
	at := c.advance(time.Hour)
	must(t, s.Retry(t.Context(), under[0].ID, at.Add(time.Hour), "status 500"))
	if n, err := s.Revive(t.Context(), "hook"); n != 2 || err != nil {
		t.Errorf("revived %d, error %v", n, err)
	}
	takes(t, s, "hook")
	c.advance(time.Hour)
	var got []string
	for range 3 {
		d := take(t, s, "hook", 1)[0]
		if d.Event == "alice-0" && (!d.Queued.Equal(at) || !d.Received.Equal(noon) || d.Attempts != 1 || string(d.Body) != string(mail("alice", 0).Body)) {
			t.Errorf("%+v", d)
		}
		got = append(got, d.Event)
		must(t, s.Done(t.Context(), d.ID))
	}
	if strings.Join(got, " ") != "alice-2 alice-0 alice-1" {
		t.Errorf("came as %q", got)
	}
	if n, err := s.Revive(t.Context(), "hook"); n != 0 || err != nil {
		t.Errorf("revived %d, error %v", n, err)
	}
}

func TestManyLettersAreListedRevivedAndForgotten(t *testing.T) {
	const many = 2*step + 7
	s, c := fresh(t)
	for n := range many {
		add(t, s, mail("alice", n), hook, other)
	}
	c.advance(time.Hour)
	for _, target := range []string{"hook", "other"} {
		if n, err := s.Expire(t.Context(), target, c.now(), "too old"); n != many || err != nil {
			t.Errorf("expired %d, error %v", n, err)
		}
	}
	if list := letters(t, s, "hook"); len(list) != many || list[many-1].Event != mail("alice", many-1).ID {
		t.Errorf("%d letters", len(list))
	}
	if n, err := s.Forget(t.Context(), "hook"); n != many || err != nil {
		t.Errorf("forgot %d, error %v", n, err)
	}
	if n, err := s.Revive(t.Context(), "other"); n != many || err != nil {
		t.Errorf("revived %d, error %v", n, err)
	}
	if st := stats(t, s, "other"); st.Waiting != many || st.Dead != 0 {
		t.Errorf("%+v", st)
	}
	if n, err := s.Drop(t.Context(), "other"); n != many || err != nil {
		t.Errorf("dropped %d, error %v", n, err)
	}
	if st := stats(t, s, "other"); st != (TargetStats{}) {
		t.Errorf("%+v", st)
	}
}

func TestExpiryLeavesAloneWhatIsUnderWayOrYoung(t *testing.T) {
	s, c := fresh(t)
	add(t, s, mail("alice", 1), hook)
	add(t, s, mail("alice", 2), hook)
	add(t, s, mail("bob", 1), hook)
	first, err := s.Take(t.Context(), "hook", 1, 3*time.Hour)
	must(t, err)
	young := mail("carol", 1)
	young.Received = c.advance(time.Hour)
	add(t, s, young, hook)
	if n, err := s.Expire(t.Context(), "hook", noon.Add(time.Minute), "too old"); n != 2 || err != nil {
		t.Errorf("expired %d, error %v", n, err)
	}
	takes(t, s, "hook", "carol-1") // and not alice-1, whose lease goes on
	must(t, s.Done(t.Context(), first[0].ID))
}

func TestPruneKeepsTheYoungest(t *testing.T) {
	s, c := fresh(t)
	for n := range 10 {
		add(t, s, mail("alice", n), hook, other)
		must(t, s.Kill(t.Context(), take(t, s, "hook", 1)[0].ID, "status 400"))
		c.advance(time.Minute)
	}
	if n, err := s.Prune(t.Context(), Limits{DeadSince: noon.Add(3 * time.Minute)}); n != 3 || err != nil {
		t.Errorf("pruned %d, error %v", n, err)
	}
	if n, err := s.Prune(t.Context(), Limits{Dead: 5}); n != 2 || err != nil {
		t.Errorf("pruned %d, error %v", n, err)
	}
	if list := letters(t, s, "hook"); len(list) != 5 || list[0].Event != "alice-5" {
		t.Errorf("%+v", list)
	}
	if st := stats(t, s, "other"); st.Waiting != 10 {
		t.Errorf("%+v", st)
	}
}

func TestCheckFindsRowsThatContradictOneAnother(t *testing.T) {
	for name, damage := range map[string]string{
		"count":    "UPDATE targets SET waiting = waiting + 1",
		"no head":  "UPDATE deliveries SET head = 0",
		"two head": "UPDATE deliveries SET head = 1",
		"wrong":    "UPDATE deliveries SET head = 1 - head",
	} {
		s, _ := fresh(t)
		add(t, s, mail("alice", 1), hook)
		add(t, s, mail("alice", 2), hook)
		must(t, s.Check(t.Context()))
		tx, err := s.writer.db.BeginTx(t.Context(), nil)
		must(t, err)
		_, err = tx.ExecContext(t.Context(), damage)
		must(t, errors.Join(err, tx.Commit()))
		if err := s.Check(t.Context()); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: error %v", name, err)
		}
		_, err = s.Drop(t.Context(), "hook")
		must(t, err)
	}
}

// Whatever an interrupted Drop has left behind is forwarded in order.
func TestAnInterruptedDropLeavesNobodyWaitingForEver(t *testing.T) {
	s, c := fresh(t)
	const users, each = 40, 50
	for n := range each {
		for user := range users {
			add(t, s, mail(fmt.Sprint("u", user), n), hook)
		}
	}
	partly := 0
	for limit := 200 * time.Microsecond; ; limit += 200 * time.Microsecond {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		_, err := s.Drop(ctx, "hook")
		cancel()
		must(t, s.Check(t.Context()))
		if err == nil {
			break
		}
		waiting := stats(t, s, "hook").Waiting
		if waiting == users*each || waiting == 0 {
			continue
		}
		partly++
		c.advance(2 * time.Minute) // the leases of the last time
		var got, queued int64
		for _, d := range take(t, s, "hook", 10*users) {
			got++
			if n := strings.TrimPrefix(d.Event, d.User+"-"); n != "0" {
				t.Fatalf("the first of %s is %s", d.User, d.Event)
			}
		}
		if queued = min(users, waiting); got != queued {
			t.Fatalf("%d of %d users can be taken", got, queued)
		}
	}
	if partly == 0 {
		t.Error("no Drop was interrupted in the middle")
	}
	if st := stats(t, s, "hook"); st != (TargetStats{}) {
		t.Errorf("%+v", st)
	}
}

func TestWhatIsGivenBackIsAsIfItHadNotBeenTaken(t *testing.T) {
	s, c := fresh(t)
	add(t, s, mail("alice", 1), hook)
	add(t, s, mail("alice", 2), hook)
	d := takes(t, s, "hook", "alice-1")[0]
	must(t, s.GiveBack(t.Context(), d.ID, d.ID, 999))
	if d = takes(t, s, "hook", "alice-1")[0]; d.Attempts != 1 {
		t.Errorf("%d attempts", d.Attempts)
	}
	must(t, s.Retry(t.Context(), d.ID, c.now().Add(time.Hour), "status 500"))
	must(t, s.GiveBack(t.Context(), d.ID)) // is settled already
	takes(t, s, "hook")
	must(t, s.Check(t.Context()))
}
