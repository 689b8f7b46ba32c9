package spool

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func addAgain(t *testing.T, s *Spool, e Event, targets ...Target) bool {
	t.Helper()
	added, err := s.Add(t.Context(), e, targets)
	must(t, err)
	return added
}

func TestADuplicateIsRecognisedBeforeAndAfterDelivery(t *testing.T) {
	s, c := fresh(t, func(o *Options) { o.SeenFor = time.Hour })
	e := mail("alice", 1)
	add(t, s, e, hook)
	again := e
	again.ID = "another"
	if addAgain(t, s, again, hook) {
		t.Error("a duplicate was added while the first waits")
	}
	must(t, s.Done(t.Context(), takes(t, s, "hook", "alice-1")[0].ID))
	c.advance(time.Hour)
	if addAgain(t, s, again, hook) {
		t.Error("a duplicate was added after the first was delivered")
	}
	c.advance(time.Millisecond)
	if !addAgain(t, s, again, hook) {
		t.Error("a key is known for longer than it should be")
	}
	c.advance(-3 * time.Hour)
	if !addAgain(t, s, again, hook) {
		t.Error("a key from the future is known for longer than it should be")
	}
	none := mail("bob", 1)
	none.Key = ""
	for range 2 {
		if !addAgain(t, s, none, hook) {
			t.Error("an event without a key was taken for a duplicate")
		}
	}
}

func TestKeysAreBoundedAndPruned(t *testing.T) {
	s, c := fresh(t, func(o *Options) { o.SeenFor, o.MostSeen = time.Hour, 10 })
	keys := func() (n int) {
		must(t, s.readers.QueryRowContext(t.Context(), "SELECT count(*) FROM seen").Scan(&n))
		return n
	}
	for n := range 25 {
		add(t, s, mail("alice", n), hook)
	}
	if n := keys(); n != 10 {
		t.Errorf("%d keys", n)
	}
	if addAgain(t, s, mail("alice", 24), hook) || !addAgain(t, s, mail("alice", 14), hook) {
		t.Error("not the oldest keys were forgotten")
	}
	c.advance(time.Hour + time.Second)
	add(t, s, mail("bob", 1), hook)
	if _, err := s.Prune(t.Context(), Limits{}); err != nil || keys() != 1 {
		t.Errorf("%d keys are left, error %v", keys(), err)
	}
}

func TestAFullTargetIsPassedOverAndTheOthersGetTheEvent(t *testing.T) {
	s, _ := fresh(t, func(o *Options) { o.Most = 2 })
	add(t, s, mail("alice", 1), hook)
	add(t, s, mail("alice", 2), hook)
	added, err := s.Add(t.Context(), mail("alice", 3), []Target{hook, other})
	if !added || !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "hook") || strings.Contains(err.Error(), "other") {
		t.Errorf("added %v, error %v", added, err)
	}
	takes(t, s, "other", "alice-3")
	added, err = s.Add(t.Context(), mail("alice", 4), []Target{hook})
	if added || !errors.Is(err, ErrFull) {
		t.Errorf("added %v, error %v", added, err)
	}
	if st := stats(t, s, "hook"); st.Skipped != 2 || st.Waiting != 2 {
		t.Errorf("%+v", st)
	}
	must(t, s.Done(t.Context(), takes(t, s, "hook", "alice-1")[0].ID))
	add(t, s, mail("alice", 4), hook) // nobody had got it, so it is no duplicate
}

func TestEventsThatCannotBeSentAreRefused(t *testing.T) {
	s, _ := fresh(t)
	for name, change := range map[string]func(*Event){
		"no id":           func(e *Event) { e.ID = "" },
		"long id":         func(e *Event) { e.ID = strings.Repeat("x", maxID+1) },
		"id with a stop":  func(e *Event) { e.ID = "a.b" },
		"id with a break": func(e *Event) { e.ID = "a\r\nX: y" },
		"id not ASCII":    func(e *Event) { e.ID = "ä" },
		"no user":         func(e *Event) { e.User = "" },
		"user not UTF-8":  func(e *Event) { e.User = "\xff" },
		"user with NUL":   func(e *Event) { e.User = "a\x00b" },
		"long user":       func(e *Event) { e.User = strings.Repeat("x", maxName+1) },
		"no body":         func(e *Event) { e.Body = nil },
		"long body":       func(e *Event) { e.Body = make([]byte, MaxBody+1) },
		"no time":         func(e *Event) { e.Received = time.Time{} },
	} {
		e := mail("alice", 1)
		change(&e)
		if added, err := s.Add(t.Context(), e, []Target{hook}); err == nil || added {
			t.Errorf("%s: added", name)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the message has the body: %v", name, err)
		}
	}
	if _, err := s.Add(t.Context(), mail("alice", 1), []Target{hook, hook}); err == nil {
		t.Error("a target was named twice")
	}
	if st := stats(t, s, "hook"); st != (TargetStats{}) {
		t.Errorf("%+v", st)
	}
	largest := mail("alice", 1)
	largest.Body = make([]byte, MaxBody)
	add(t, s, largest, hook)
	if d := take(t, s, "hook", 1)[0]; len(d.Body) != MaxBody {
		t.Errorf("%d bytes came back", len(d.Body))
	}
}

func TestUsersMayHaveAnyName(t *testing.T) {
	s, _ := fresh(t)
	for i, user := range []string{"a\nb", "'; DROP TABLE deliveries; --", "ä@ö", "a b", "%s", "Alice", "alice"} {
		e := mail("x", i)
		e.User = user
		add(t, s, e, hook)
	}
	if n := len(take(t, s, "hook", 100)); n != 7 {
		t.Errorf("%d users", n)
	}
}
