package registry

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// takeDue takes what is due for a minute, to be looked at again in half a
// minute, and returns the users.
func takeDue(t testing.TB, r *Registry, server string, limit int, first ...string) []string {
	t.Helper()
	regs, err := r.Take(t.Context(), server, "agent", r.now().Add(time.Minute), r.now().Add(30*time.Second), limit, first...)
	if err != nil {
		t.Fatal(err)
	}
	var users []string
	for _, reg := range regs {
		if reg.Server != server || reg.ClaimedBy != "agent" {
			t.Errorf("took %+v", reg)
		}
		users = append(users, reg.User)
	}
	return users
}

// claimUntil claims a row for somebody else.
func claimUntil(t testing.TB, r *Registry, key Key, until, retryAt time.Time) {
	t.Helper()
	if _, claimed, err := r.Claim(t.Context(), key, "other", until, retryAt); claimed != Taken || err != nil {
		t.Fatalf("claim %v: %v, error %v", key, claimed, err)
	}
}

func wantUsers(t *testing.T, got []string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestTakeGivesWhatNobodyWorksOnLongestDueFirst(t *testing.T) {
	r, c := fresh(t)
	for i, user := range []string{"z-late", "y-later", "claimed", "settled", "x-last"} {
		intend(t, r, present(Key{user, "main"}, "v"), present(Key{fmt.Sprint("far", i), "far"}, "v"))
		c.advance(time.Minute)
	}
	far := all(t, r, Filter{Server: "far"})
	claimUntil(t, r, Key{"claimed", "main"}, c.now().Add(time.Minute), noon)
	reg := take(t, r, Key{"settled", "main"}, "agent")
	record(t, r, "agent", Result{Key: reg.Key(), Revision: 1, State: Registered})

	wantUsers(t, takeDue(t, r, "main", 0))
	wantUsers(t, takeDue(t, r, "main", -1))
	wantUsers(t, takeDue(t, r, "main", -1, "z-late"))
	wantUsers(t, takeDue(t, r, "main", 2), "z-late", "y-later")
	wantUsers(t, takeDue(t, r, "main", 9), "x-last")
	wantUsers(t, takeDue(t, r, "main", 9))
	c.advance(time.Minute - time.Millisecond)
	wantUsers(t, takeDue(t, r, "main", 1))
	c.advance(time.Millisecond) // the claims end
	wantUsers(t, takeDue(t, r, "main", 1), "claimed")

	if diff := cmp.Diff(far, all(t, r, Filter{Server: "far"})); diff != "" {
		t.Error("another server's rows changed:", diff)
	}
	c.advance(-time.Hour)
	wantUsers(t, takeDue(t, r, "far", 9)) // not before their time
}

func TestTakeDoesNotWaitForAClaimFromBeforeTheClockWasSetBack(t *testing.T) {
	r, c := fresh(t)
	intend(t, r, present(alice, "v"))
	long := noon.Add(-2 * time.Hour)
	claimUntil(t, r, alice, noon.Add(MaxClaim), long)
	if _, ok, err := r.NextDue(t.Context(), "main"); ok || err != nil {
		t.Errorf("found %v while it is held, error %v", ok, err)
	}
	wantUsers(t, takeDue(t, r, "main", 9, "alice"))
	c.advance(-time.Hour)
	if at, ok, err := r.NextDue(t.Context(), "main"); !at.Equal(long) || !ok || err != nil {
		t.Errorf("next due at %v, %v, error %v", at, ok, err)
	}
	if list, err := r.Backlogs(t.Context()); len(list) != 1 || list[0].Due != 1 || err != nil {
		t.Errorf("%+v, error %v", list, err)
	}
	wantUsers(t, takeDue(t, r, "main", 9), "alice")
}

func TestTakeGivesThoseNamedFirstIfTheyAreDue(t *testing.T) {
	r, c := fresh(t)
	for _, user := range []string{"a", "b", "c", "held", "settled"} {
		intend(t, r, present(Key{user, "main"}, "v"))
		c.advance(time.Second)
	}
	settled := take(t, r, Key{"settled", "main"}, "agent")
	record(t, r, "agent", Result{Key: settled.Key(), Revision: 1, State: Registered})
	claimUntil(t, r, Key{"held", "main"}, c.now().Add(time.Minute), noon)
	intend(t, r, present(Key{"elsewhere", "far"}, "v"), present(Key{"not due", "main"}, "v"))
	reg := take(t, r, Key{"not due", "main"}, "agent")
	record(t, r, "agent", Result{Key: reg.Key(), Revision: 1, State: Registered, NextAt: c.now().Add(time.Millisecond)})

	first := []string{"missing", "not due", "held", "settled", "elsewhere", "c", "c"}
	wantUsers(t, takeDue(t, r, "main", 2, first...), "c", "a")
	wantUsers(t, takeDue(t, r, "main", 9, first...), "b")
	wantUsers(t, takeDue(t, r, "far", 9, first...), "elsewhere")
	for _, user := range []string{"not due", "settled"} {
		if got := get(t, r, Key{user, "main"}); got.ClaimedBy != "" || got.Attempts != 0 {
			t.Errorf("%s was claimed: %+v", user, got)
		}
	}
	intend(t, r, present(Key{"b", "main"}, "w")) // due, but the caller's own work is not done
	wantUsers(t, takeDue(t, r, "main", 9, "b"))
	c.advance(time.Millisecond)
	intend(t, r, present(Key{"d", "main"}, "v"), present(Key{"e", "main"}, "v"))
	wantUsers(t, takeDue(t, r, "main", 2, "e", "d", "not due"), "e", "d")
}

// A claim may be over before it is made: who waits for another process's lock
// waits long.
func TestTakeGivesNoRowTwice(t *testing.T) {
	r, _ := fresh(t)
	intend(t, r, present(alice, "v"))
	regs, err := r.Take(t.Context(), "main", "agent", noon, noon, 9, "alice", "alice")
	if len(regs) != 1 || err != nil {
		t.Errorf("%d rows, error %v", len(regs), err)
	}
	if got := get(t, r, alice); got.Attempts != 1 {
		t.Errorf("%d attempts", got.Attempts)
	}
}

func TestTakeClaimsAsClaimDoes(t *testing.T) {
	wish := Intent{Key: alice, Value: "user=alice", Wanted: Present, Force: true}
	expiring := wish
	expiring.ExpiresAt = noon.Add(time.Hour)
	for name, prepare := range map[string]func(t *testing.T, r *Registry, c *clock){
		"new":     func(t *testing.T, r *Registry, c *clock) { intend(t, r, wish) },
		"removal": func(t *testing.T, r *Registry, c *clock) { intend(t, r, absent(alice)) },
		"expired": func(t *testing.T, r *Registry, c *clock) { intend(t, r, expiring); c.advance(time.Hour) },
		"tried before, in doubt": func(t *testing.T, r *Registry, c *clock) {
			intend(t, r, wish)
			take(t, r, alice, "killed")
			c.advance(time.Minute)
		},
		"tried before, another value": func(t *testing.T, r *Registry, c *clock) {
			intend(t, r, wish)
			take(t, r, alice, "killed")
			c.advance(time.Hour)
			intend(t, r, present(alice, "user=other"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			claiming, c1 := fresh(t)
			prepare(t, claiming, c1)
			taking, c2 := fresh(t)
			prepare(t, taking, c2)
			now := c1.now()
			want, claimed, err := claiming.Claim(t.Context(), alice, "agent", now.Add(time.Hour), now.Add(time.Second))
			if claimed != Taken || err != nil {
				t.Fatal(claimed, err)
			}
			got, err := taking.Take(t.Context(), "main", "agent", now.Add(time.Hour), now.Add(time.Second), 1)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]Registration{want}, got); diff != "" {
				t.Error("returned:", diff)
			}
			if diff := cmp.Diff(get(t, claiming, alice), get(t, taking, alice)); diff != "" {
				t.Error("stored:", diff)
			}
			if name == "expired" && got[0].Wanted != Absent {
				t.Errorf("expired, but wanted %q", got[0].Wanted)
			}
		})
	}
}

func TestTakeIsAllOrNothing(t *testing.T) {
	r, c := fresh(t)
	intend(t, r, present(alice, "v"))
	c.advance(time.Second)
	intend(t, r, present(Key{"damaged", "main"}, "v"))
	exec1(t, r.writer.db, `UPDATE registrations SET written = '{"' WHERE username = 'damaged'`)
	if regs, err := r.Take(t.Context(), "main", "agent", c.now().Add(time.Minute), c.now(), 9); !errors.Is(err, ErrCorrupt) || regs != nil {
		t.Errorf("%d rows, error %v", len(regs), err)
	}
	if reg := get(t, r, alice); reg.ClaimedBy != "" || reg.Attempts != 0 {
		t.Errorf("%+v", reg)
	}
}

func TestTakeNeedsAnOwner(t *testing.T) {
	r, _ := fresh(t)
	intend(t, r, present(alice, "v"))
	for _, owner := range []string{"", strings.Repeat("x", maxName+1)} {
		if _, err := r.Take(t.Context(), "main", owner, noon.Add(time.Minute), noon, 9); err == nil || !strings.Contains(err.Error(), r.path) {
			t.Errorf("owner of %d bytes: error %v", len(owner), err)
		}
	}
}

func TestNextDueIsTheServersAndOfARowThatNobodyWorksOn(t *testing.T) {
	r, c := fresh(t)
	next := func(server string, want time.Time) {
		t.Helper()
		at, ok, err := r.NextDue(t.Context(), server)
		if !at.Equal(want) || ok == want.IsZero() || err != nil {
			t.Errorf("%q: %v, %v, error %v; want %v", server, at, ok, err, want)
		}
	}
	none := time.Time{}
	next("main", none)
	intend(t, r, present(Key{"bob", "far"}, "v"))
	next("main", none)
	c.advance(time.Hour)
	intend(t, r, present(alice, "v"))
	now := c.now()
	next("main", now)
	next("far", noon)

	take(t, r, alice, "agent")
	next("main", none)
	intend(t, r, present(alice, "w")) // due, but held
	next("main", none)
	if err := r.Release(t.Context(), "agent"); err != nil {
		t.Fatal(err)
	}
	next("main", now)

	reg := take(t, r, alice, "agent")
	record(t, r, "agent", Result{Key: alice, Revision: reg.Revision, State: Registered, NextAt: now.Add(time.Hour)})
	next("main", now.Add(time.Hour))
	reg = take(t, r, alice, "agent")
	c.advance(time.Minute) // a claim that is over holds nothing
	next("main", reg.NextAt)
	record(t, r, "agent", Result{Key: alice, Revision: reg.Revision, State: Registered})
	next("main", none)
}

func TestHastenMakesARowDueNowAndChangesNothingElse(t *testing.T) {
	for name, tc := range map[string]struct{ next, want time.Time }{
		"later":   {noon.Add(time.Hour), noon},
		"never":   {time.Time{}, noon},
		"now":     {noon, noon},
		"earlier": {noon.Add(-time.Hour), noon.Add(-time.Hour)},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := fresh(t)
			far := Key{"alice", "far"}
			for _, key := range []Key{alice, far} {
				intend(t, r, Intent{Key: key, Value: "v", Wanted: Present, Force: true})
				reg := take(t, r, key, "agent")
				record(t, r, "agent", Result{Key: key, Revision: reg.Revision, State: Pending, Unsettled: true,
					NextAt: tc.next, Failure: &Failure{Kind: "retry", Message: "refused"}})
			}
			want, other := get(t, r, alice), get(t, r, far)
			want.NextAt = tc.want
			got, found, err := r.Hasten(t.Context(), alice)
			if !found || err != nil {
				t.Fatalf("found %v, error %v", found, err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error("returned:", diff)
			}
			if diff := cmp.Diff(want, get(t, r, alice)); diff != "" {
				t.Error("stored:", diff)
			}
			if diff := cmp.Diff(other, get(t, r, far)); diff != "" {
				t.Error("on another server:", diff)
			}
		})
	}
}

func TestHastenLeavesTheClaimAlone(t *testing.T) {
	r, _ := fresh(t)
	intend(t, r, present(alice, "v"))
	take(t, r, alice, "agent")
	want := get(t, r, alice)
	want.NextAt = noon
	want.Revision++ // so that its result does not take the row off
	if got, found, err := r.Hasten(t.Context(), alice); !found || err != nil || !cmp.Equal(want, got) {
		t.Errorf("found %v, error %v: %s", found, err, cmp.Diff(want, got))
	}
}

func TestHastenOfAMissingRow(t *testing.T) {
	r, _ := fresh(t)
	if reg, found, err := r.Hasten(t.Context(), alice); found || err != nil || !cmp.Equal(reg, Registration{}) {
		t.Errorf("%+v, %v, error %v", reg, found, err)
	}
}

// dueAt makes n rows of a server that are due at a time.
func dueAt(t *testing.T, r *Registry, server, prefix string, n int, at time.Time) {
	t.Helper()
	var intents []Intent
	for i := range n {
		intents = append(intents, present(Key{fmt.Sprintf("%s-%05d", prefix, i), server}, "v"))
	}
	intend(t, r, intents...)
	exec1(t, r.writer.db, fmt.Sprintf("UPDATE registrations SET next_at = %d WHERE server = '%s' AND username LIKE '%s-%%'", at.UnixMilli(), server, prefix))
}

func TestSpreadGivesRowsThatAreDueTooLateNewTimesEvenly(t *testing.T) {
	const n = 2*maxBatch + 200
	latest, by := noon.Add(2*time.Hour), noon.Add(time.Hour)
	r, _ := fresh(t)
	dueAt(t, r, "main", "late", n, latest.Add(time.Millisecond))
	dueAt(t, r, "main", "right", 3, latest)
	dueAt(t, r, "main", "soon", 3, noon.Add(time.Second))
	dueAt(t, r, "far", "late", 3, latest.Add(time.Hour))
	intend(t, r, present(Key{"settled", "main"}, "v"))
	exec1(t, r.writer.db, "UPDATE registrations SET next_at = NULL WHERE username = 'settled'")
	before := all(t, r, Filter{})

	if got, err := r.Spread(t.Context(), "main", Unsettled, latest, by); got != n || err != nil {
		t.Fatalf("%d rows, error %v", got, err)
	}
	var quarters [4]int
	for i, reg := range all(t, r, Filter{}) {
		want := before[i]
		if strings.HasPrefix(reg.User, "late") && reg.Server == "main" {
			if reg.NextAt.Before(noon) || reg.NextAt.After(by) {
				t.Fatalf("%s is due at %v", reg.User, reg.NextAt)
			}
			quarters[min(int(reg.NextAt.Sub(noon)/(15*time.Minute)), 3)]++
			want.NextAt = reg.NextAt
		}
		if diff := cmp.Diff(want, reg); diff != "" {
			t.Fatal(reg.User, diff)
		}
	}
	for q, got := range quarters { // 300 and a standard deviation of 15
		if got < n/8 {
			t.Errorf("%d of %d rows are due in quarter %d", got, n, q+1)
		}
	}
	if got, err := r.Spread(t.Context(), "main", Unsettled, latest, by); got != 0 || err != nil {
		t.Errorf("again: %d rows, error %v", got, err)
	}
}

func TestSpreadOfTheUnsettled(t *testing.T) {
	r, _ := fresh(t)
	latest, late := noon.Add(time.Hour), noon.Add(2*time.Hour)
	rows := []struct {
		user  string
		state State
		kind  string
		want  bool
	}{
		{"pending", Pending, "", true},
		{"removing", Removing, "", true},
		{"registered", Registered, "", false},
		{"conflict", Conflict, "user", false},
		{"failed", Failed, "user", false},
		{"look failed", Registered, "retry", true},
		{"server failed", Registered, "server", true},
	}
	for _, row := range rows {
		key := Key{row.user, "main"}
		intend(t, r, present(key, "v"))
		reg := take(t, r, key, "agent")
		res := Result{Key: key, Revision: reg.Revision, State: row.state, NextAt: late}
		if row.kind != "" {
			res.Failure = &Failure{Kind: row.kind, Message: "m"}
		}
		record(t, r, "agent", res)
	}
	n, err := r.Spread(t.Context(), "main", Unsettled, latest, latest)
	if n != 4 || err != nil {
		t.Errorf("%d rows, error %v", n, err)
	}
	for _, row := range rows {
		if got := get(t, r, Key{row.user, "main"}).NextAt; got.Equal(late) == row.want {
			t.Errorf("%s is due at %v", row.user, got)
		}
	}
	if n, err := r.Spread(t.Context(), "main", Settled, latest, latest); n != 3 || err != nil {
		t.Errorf("%d settled rows, error %v", n, err)
	}
	for _, row := range rows {
		if got := get(t, r, Key{row.user, "main"}).NextAt; got.After(latest) {
			t.Errorf("%s is due at %v", row.user, got)
		}
	}
}

func TestSpreadOfManySettled(t *testing.T) {
	const n = 2*maxBatch + 7
	r, _ := fresh(t)
	dueAt(t, r, "main", "late", n, noon.Add(3*time.Hour)) // all at the same time: the pages go by user
	dueAt(t, r, "main", "pending", 3, noon.Add(3*time.Hour))
	exec1(t, r.writer.db, "UPDATE registrations SET state = 'registered' WHERE username LIKE 'late-%'")
	if got, err := r.Spread(t.Context(), "main", Settled, noon.Add(time.Hour), noon.Add(time.Hour)); got != n || err != nil {
		t.Errorf("%d rows, error %v", got, err)
	}
	for _, reg := range all(t, r, Filter{State: Registered}) {
		if reg.NextAt.After(noon.Add(time.Hour)) {
			t.Fatalf("%s is due at %v", reg.User, reg.NextAt)
		}
	}
}

func TestSpreadEndsWhateverTheTimes(t *testing.T) {
	const n = maxBatch + 1
	hour := time.Hour
	for name, tc := range map[string]struct {
		late, latest, by time.Time
		want             int64
		most             time.Time
	}{
		"by after latest":           {noon.Add(3 * hour), noon.Add(hour), noon.Add(2 * hour), n, noon.Add(hour)},
		"by is latest":              {noon.Add(3 * hour), noon.Add(hour), noon.Add(hour), n, noon.Add(hour)},
		"by has passed":             {noon.Add(3 * hour), noon.Add(hour), noon.Add(-hour), n, noon},
		"latest is now":             {noon.Add(3 * hour), noon, noon.Add(hour), n, noon},
		"latest has passed":         {noon.Add(3 * hour), noon.Add(-hour), noon.Add(hour), n, noon},
		"latest passed, due before": {noon.Add(-time.Minute), noon.Add(-hour), noon.Add(hour), 0, noon},
		"no times":                  {noon.Add(3 * hour), time.Time{}, time.Time{}, n, noon},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := fresh(t)
			dueAt(t, r, "main", "late", n, tc.late)
			var calls atomic.Int64 // the clock goes on
			r.now = func() time.Time { return noon.Add(time.Duration(calls.Add(1)-1) * time.Millisecond) }
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if got, err := r.Spread(ctx, "main", Unsettled, tc.latest, tc.by); got != tc.want || err != nil {
				t.Errorf("%d rows, want %d, error %v", got, tc.want, err)
			}
			for _, reg := range all(t, r, Filter{}) {
				if reg.NextAt.After(tc.most) || tc.want > 0 && reg.NextAt.Before(noon) {
					t.Fatalf("%s is due at %v", reg.User, reg.NextAt)
				}
			}
		})
	}
}

func TestSpreadStopsWithItsContext(t *testing.T) {
	r, _ := fresh(t)
	dueAt(t, r, "main", "late", 3, noon.Add(time.Hour))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err := r.Spread(ctx, "main", Unsettled, noon, noon); n != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("%d rows, error %v", n, err)
	}
}

func TestBacklogsTellWhatWaitsServerByServer(t *testing.T) {
	r, c := fresh(t)
	backlogs := func(want ...Backlog) {
		t.Helper()
		got, err := r.Backlogs(t.Context())
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Error(diff, err)
		}
	}
	backlogs()
	failing := func(key Key, kind string, next time.Time) {
		intend(t, r, present(key, "v"))
		reg := take(t, r, key, "agent")
		record(t, r, "agent", Result{Key: key, Revision: reg.Revision, State: Pending, Unsettled: true, NextAt: next, Failure: &Failure{Kind: kind, Message: "m"}})
	}
	later := noon.Add(time.Hour)
	// The longest due of all is worked on.
	intend(t, r, present(Key{"held", "main"}, "v"), present(Key{"held", "held only"}, "v"))
	c.advance(time.Minute)
	oldest := c.now()
	intend(t, r, present(Key{"old", "main"}, "v"))
	c.advance(time.Minute)
	intend(t, r, present(Key{"new", "main"}, "v"), present(Key{"now", "young"}, "v"))
	claimUntil(t, r, Key{"held", "main"}, c.now().Add(time.Minute), noon)
	claimUntil(t, r, Key{"held", "held only"}, c.now().Add(time.Minute), noon)
	intend(t, r, present(Key{"worked on", "main"}, "v"))
	claimUntil(t, r, Key{"worked on", "main"}, c.now().Add(MaxClaim), later)
	failing(Key{"refused", "main"}, "retry", later)
	failing(Key{"tls", "main"}, "server", later)
	failing(Key{"unknown", "main"}, "user", later)
	failing(Key{"refused", "failing"}, "retry", later)
	failing(Key{"unknown", "hopeless"}, "user", later)
	intend(t, r, present(Key{"settled", "calm"}, "v"))
	reg := take(t, r, Key{"settled", "calm"}, "agent")
	record(t, r, "agent", Result{Key: reg.Key(), Revision: 1, State: Registered, NextAt: c.now().Add(time.Millisecond)})

	backlogs(Backlog{Server: "failing", Retrying: 1}, Backlog{Server: "main", Due: 2, Oldest: oldest, Retrying: 2},
		Backlog{Server: "young", Due: 1, Oldest: c.now()})
	c.advance(time.Millisecond)
	backlogs(Backlog{Server: "calm", Due: 1, Oldest: c.now()}, Backlog{Server: "failing", Retrying: 1},
		Backlog{Server: "main", Due: 2, Oldest: oldest, Retrying: 2}, Backlog{Server: "young", Due: 1, Oldest: c.now().Add(-time.Millisecond)})
	c.advance(time.Minute) // the claims end
	if got, err := r.Backlogs(t.Context()); err != nil || len(got) != 5 || got[2] != (Backlog{"held only", 1, noon, 0}) || got[3] != (Backlog{"main", 3, noon, 2}) {
		t.Errorf("%+v, error %v", got, err)
	}
}

// Who holds the row may have looked already: his result must not take it off.
func TestHastenedRowStaysDueWhenItsHolderHasFinished(t *testing.T) {
	r, _ := fresh(t)
	intend(t, r, present(alice, "v"))
	reg := take(t, r, alice, "agent")
	hastened, found, err := r.Hasten(t.Context(), alice)
	if err != nil || !found || hastened.Revision != reg.Revision+1 {
		t.Fatalf("%+v, %v, %v", hastened, found, err)
	}
	record(t, r, "agent", Result{Key: alice, Revision: reg.Revision, State: Registered, VerifiedAt: noon, NextAt: noon.Add(time.Hour)})
	if got := get(t, r, alice); !got.NextAt.Equal(noon) || got.ClaimedBy != "" || !got.VerifiedAt.Equal(noon) {
		t.Errorf("%+v", got)
	}
}
