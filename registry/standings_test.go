package registry

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func standings(t testing.TB, r *Registry) []Standing {
	t.Helper()
	var list []Standing
	for s, err := range r.Standings(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, s)
	}
	return list
}

func TestStandingsTellWhatListTells(t *testing.T) {
	r, c := fresh(t)
	seed(t, r, standingsPage) // what follows is after the first page: its server was guessed
	later := noon.Add(time.Hour)
	for user, at := range map[string]time.Time{"z expires now": noon.Add(time.Second), "z expires later": later} {
		intend(t, r, Intent{Key: Key{user, "main"}, Identity: user, Value: "v", Wanted: Present, ExpiresAt: at})
		reg := take(t, r, Key{user, "main"}, "agent")
		record(t, r, "agent", Result{Key: reg.Key(), Revision: 1, State: Registered, NextAt: later})
	}
	intend(t, r, Intent{Key: Key{"z gone", "main"}, Wanted: Absent, ExpiresAt: noon})
	for _, state := range []State{Pending, Registered, Removing, Conflict, Failed} {
		for name, next := range map[string]time.Time{"never": {}, "past": noon, "now": noon.Add(time.Second), "soon": noon.Add(time.Second + time.Millisecond)} {
			for _, server := range []string{"main", "far"} {
				for _, identity := range []string{"", "3@7", "same"} {
					key := Key{fmt.Sprintf("z %s %s %q", state, name, identity), server}
					if identity == "same" {
						identity = key.User
					}
					in := Intent{Key: key, Identity: identity, Value: "v", Wanted: Present}
					if state == Removing {
						in.Wanted = Absent
					}
					intend(t, r, in)
					for range len(key.User) % 3 { // other revisions
						intend(t, r, in)
					}
					reg := take(t, r, key, "agent")
					record(t, r, "agent", Result{Key: key, Revision: reg.Revision, State: state, NextAt: next})
				}
			}
		}
	}
	now := c.advance(time.Second)
	exec1(t, r.writer.db, "UPDATE registrations SET revision = 1 << 40 WHERE username = 'z expires later'")
	var want []Standing
	for _, reg := range all(t, r, Filter{}) {
		want = append(want, Standing{Key: reg.Key(), Identity: reg.Identity, Revision: reg.Revision, Wanted: reg.Wanted, State: reg.State,
			Due:     !reg.NextAt.IsZero() && !reg.NextAt.After(now),
			Expired: reg.Wanted == Present && !reg.ExpiresAt.IsZero() && !reg.ExpiresAt.After(now),
			Refused: reg.State == Failed})
	}
	if diff := cmp.Diff(want, standings(t, r)); diff != "" || len(want) != standingsPage+5*4*2*3+3 {
		t.Error(len(want), diff)
	}
}

func TestStandingsGoOnFromPageToPage(t *testing.T) {
	for _, n := range []int{0, 1, standingsPage, standingsPage + 1} {
		r, _ := fresh(t)
		if n > 0 {
			seed(t, r, n)
		}
		list := standings(t, r)
		if len(list) != n {
			t.Errorf("%d rows, want %d", len(list), n)
		}
		for i, s := range list {
			if s.Key != rowKey(i) {
				t.Fatalf("row %d is %v", i, s.Key)
			}
		}
	}
}

func TestStandingsOfOneUserOnManyServersAreCutBetweenThem(t *testing.T) {
	r, _ := fresh(t)
	var intents []Intent
	for i := range standingsPage + 2 {
		intents = append(intents, present(Key{"alice", fmt.Sprintf("server-%06d", i)}, "v"))
	}
	intend(t, r, intents...)
	list := standings(t, r)
	if len(list) != len(intents) {
		t.Fatalf("%d rows", len(list))
	}
	for i, s := range list {
		if s.Key != intents[i].Key {
			t.Fatalf("row %d is %v", i, s.Key)
		}
	}
}

func TestStandingsStopWithTheirContextAndWithTheirCaller(t *testing.T) {
	r, _ := fresh(t)
	seed(t, r, 2*standingsPage)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var n int
	var last error
	for _, err := range r.Standings(ctx) {
		n++
		last = err
		cancel()
	}
	if n != 2 || !errors.Is(last, context.Canceled) {
		t.Errorf("%d steps, last error %v", n, last)
	}
	for range 20 {
		for range r.Standings(t.Context()) {
			for spins := 0; r.readers.Stats().InUse == 0 && spins < 10_000; spins++ {
				runtime.Gosched() // the next page is about to be read
			}
			break
		}
		if busy := r.readers.Stats().InUse; busy != 0 {
			t.Fatalf("%d readers are still at work", busy)
		}
	}
}

func TestStandingsHoldNoTransactionWhileTheirCallerWorks(t *testing.T) {
	r, _ := fresh(t)
	seed(t, r, standingsPage-1) // one page: nothing is read ahead
	for s, err := range r.Standings(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		take(t, r, s.Key, "agent")
		// A checkpoint of all, with nobody in the way, is possible only then.
		var busy, log, done int
		if err := r.writer.db.QueryRowContext(t.Context(), "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &log, &done); err != nil || busy != 0 {
			t.Fatalf("busy %d, error %v", busy, err)
		}
		break
	}
}

func TestStandingsOfADamagedRowSayWhoseItIs(t *testing.T) {
	r, _ := fresh(t)
	intend(t, r, present(alice, "v"))
	exec1(t, r.writer.db, "PRAGMA ignore_check_constraints = ON")
	exec1(t, r.writer.db, "UPDATE registrations SET state = 'odd'")
	for _, err := range r.Standings(t.Context()) {
		if !errors.Is(err, ErrCorrupt) || !errors.Is(err, errUnreadable) {
			t.Errorf("error %v", err)
		}
	}
}
