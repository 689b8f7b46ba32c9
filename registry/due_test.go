package registry

import (
	"context"
	"errors"
	"fmt"
	"strings"
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
	if got, err := r.Backlogs(t.Context()); err != nil || len(got) != 5 || got[2] != (Backlog{Server: "held only", Due: 1, Oldest: noon}) || got[3] != (Backlog{Server: "main", Due: 3, Oldest: noon, Retrying: 2}) {
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

// refusedRows makes rows in state failed, due at noon and each a second later
// than the one before.
func refusedRows(t *testing.T, r *Registry, server string, users ...string) {
	t.Helper()
	for i, user := range users {
		intoState(t, r, Key{user, server}, Failed, noon.Add(time.Duration(i)*time.Second))
	}
}

func TestRefusedUsersWaitInALaneOfTheirOwn(t *testing.T) {
	r, c := fresh(t)
	takeRefused := func(server, want string) {
		t.Helper()
		now := c.now()
		reg, found, err := r.TakeRefused(t.Context(), server, "agent", now.Add(time.Minute), now.Add(30*time.Second))
		if err != nil || found != (want != "") || reg.User != want || found && (reg.Server != server || reg.ClaimedBy != "agent") {
			t.Errorf("took %+v, %v, error %v; want %q", reg, found, err, want)
		}
	}
	next := func(what string, get func(context.Context, string) (time.Time, bool, error), server string, want time.Time) {
		t.Helper()
		if at, found, err := get(t.Context(), server); !at.Equal(want) || found == want.IsZero() || err != nil {
			t.Errorf("next %s: %v, %v, error %v; want %v", what, at, found, err, want)
		}
	}
	backlogs := func(want ...Backlog) {
		t.Helper()
		got, err := r.Backlogs(t.Context())
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Error(diff, err)
		}
	}
	none := time.Time{}
	takeRefused("main", "")
	next("refused", r.NextRefused, "main", none)
	refusedRows(t, r, "main", "b", "a", "held", "later")
	refusedRows(t, r, "hopeless", "z")
	intoState(t, r, Key{"never", "main"}, Failed, none)
	intoState(t, r, Key{"well", "main"}, Registered, noon.Add(time.Hour))
	claimUntil(t, r, Key{"held", "main"}, noon.Add(9*time.Minute), noon)
	c.advance(2 * time.Second)

	wantUsers(t, takeDue(t, r, "main", 9))
	next("due", r.NextDue, "main", noon.Add(time.Hour))
	next("refused", r.NextRefused, "main", noon)
	next("due", r.NextDue, "hopeless", none)
	next("refused", r.NextRefused, "far", none)
	backlogs(Backlog{Server: "hopeless", Refused: 1}, Backlog{Server: "main", Refused: 2})

	takeRefused("main", "b")
	next("refused", r.NextRefused, "main", noon.Add(time.Second))
	wantUsers(t, takeDue(t, r, "main", 9, "b", "later", "a", "never"), "a") // named, due and idle
	takeRefused("main", "")
	next("refused", r.NextRefused, "main", noon.Add(3*time.Second))
	backlogs(Backlog{Server: "hopeless", Refused: 1})
	takeRefused("hopeless", "z")
	backlogs()

	c.advance(time.Second)
	takeRefused("main", "later")
	intend(t, r, present(Key{"never", "main"}, "v")) // a new wish is not refused yet
	wantUsers(t, takeDue(t, r, "main", 9), "never")
}

func TestTakeRefusedClaimsAsClaimDoes(t *testing.T) {
	claiming, _ := fresh(t)
	taking, _ := fresh(t)
	for _, r := range []*Registry{claiming, taking} {
		refusedRows(t, r, "main", "alice")
	}
	until, retryAt := noon.Add(time.Hour), noon.Add(time.Second)
	want, _, err := claiming.Claim(t.Context(), alice, "agent", until, retryAt)
	if err != nil {
		t.Fatal(err)
	}
	got, found, err := taking.TakeRefused(t.Context(), "main", "agent", until, retryAt)
	if diff := cmp.Diff(want, got); diff != "" || !found || err != nil {
		t.Error(diff, found, err)
	}
	if diff := cmp.Diff(get(t, claiming, alice), get(t, taking, alice)); diff != "" {
		t.Error(diff)
	}
	if _, _, err := taking.TakeRefused(t.Context(), "main", "", until, retryAt); err == nil {
		t.Error("a claim for nobody was taken")
	}
}

func TestReclaimAndHastenOfTheRefusedLeaveThemInTheirLane(t *testing.T) {
	r, _ := fresh(t)
	for _, user := range []string{"alice", "bob"} {
		intoState(t, r, Key{user, "main"}, Failed, noon.Add(time.Hour))
	}
	claimUntil(t, r, alice, noon.Add(time.Minute), noon.Add(time.Hour))
	if n, err := r.Reclaim(t.Context(), noon, "other"); n != 1 || err != nil {
		t.Errorf("%d rows, error %v", n, err)
	}
	if _, found, err := r.Hasten(t.Context(), Key{"bob", "main"}); !found || err != nil {
		t.Errorf("found %v, error %v", found, err)
	}
	if got, err := r.Backlogs(t.Context()); err != nil || !cmp.Equal([]Backlog{{Server: "main", Refused: 2}}, got) {
		t.Errorf("%+v, error %v", got, err)
	}
	wantUsers(t, takeDue(t, r, "main", 9))
}
