package registry

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestIntendMakesANewRowThatIsDueNow(t *testing.T) {
	r, _ := fresh(t)
	intend(t, r, Intent{Key: alice, Identity: "3@7", Value: "user=3@7", Wanted: Present, ExpiresAt: noon.Add(time.Hour), Force: true})
	want := Registration{
		User: "alice", Server: "main", Identity: "3@7", Value: "user=3@7", Wanted: Present, State: Pending,
		ExpiresAt: noon.Add(time.Hour), NextAt: noon, Force: true, Written: []string{}, Revision: 1,
	}
	if diff := cmp.Diff(want, get(t, r, alice)); diff != "" {
		t.Error(diff)
	}
}

func TestIntendRemovalOfAnUnknownUserMakesARow(t *testing.T) {
	r, _ := fresh(t)
	intend(t, r, absent(alice))
	if reg := get(t, r, alice); reg.State != Removing || reg.Wanted != Absent {
		t.Errorf("state %q, wanted %q", reg.State, reg.Wanted)
	}
}

func TestIntendOneReturnsTheRowAsItIsThen(t *testing.T) {
	r, c := fresh(t)
	intend(t, r, present(alice, "user=alice"))
	take(t, r, alice, "agent")
	now := c.advance(time.Hour)
	got, err := r.IntendOne(t.Context(), Intent{Key: alice, Identity: "3@7", Value: "user=3@7", Wanted: Present, Force: true})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(get(t, r, alice), got); diff != "" {
		t.Error(diff)
	}
	if got.Value != "user=3@7" || got.Revision != 2 || !got.NextAt.Equal(now) || got.Attempts != 0 {
		t.Errorf("%+v", got)
	}
	if _, err := r.IntendOne(t.Context(), present(alice, "")); err == nil || !strings.Contains(err.Error(), r.path) {
		t.Errorf("a wish without a value: error %v", err)
	}
}

// settle brings alice's row into a state, as an agent would.
func settle(t *testing.T, r *Registry, first Intent, state State) {
	t.Helper()
	intend(t, r, first)
	reg := take(t, r, alice, "agent")
	record(t, r, "agent", Result{Key: alice, Revision: reg.Revision, State: state, NextAt: noon.Add(24 * time.Hour),
		Failure: &Failure{Kind: "user", Message: "old"}, Unsettled: true, WrittenAt: noon, VerifiedAt: noon})
}

func TestIntendStateAfterward(t *testing.T) {
	same, other := present(alice, "user=alice"), present(alice, "user=other")
	for _, tc := range []struct {
		name   string
		first  Intent
		state  State
		second Intent
		want   State
	}{
		{"registered stays registered with the same value", same, Registered, same, Registered},
		{"registered with another value is pending", same, Registered, other, Pending},
		{"registered and unwanted is removing", same, Registered, absent(alice), Removing},
		{"failed is pending again", same, Failed, same, Pending},
		{"conflict is pending again", same, Conflict, same, Pending},
		{"conflict and unwanted is removing", same, Conflict, absent(alice), Removing},
		{"removing and wanted again is pending", absent(alice), Removing, same, Pending},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, c := fresh(t)
			settle(t, r, tc.first, tc.state)
			before := get(t, r, alice)
			now := c.advance(time.Hour)
			intend(t, r, tc.second)

			want := before // what was learnt stays
			want.Value, want.Wanted, want.State = tc.second.Value, tc.second.Wanted, tc.want
			want.Revision, want.NextAt, want.Attempts, want.Error = before.Revision+1, now, 0, nil
			if diff := cmp.Diff(want, get(t, r, alice)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestIntendLeavesTheClaimAlone(t *testing.T) {
	r, _ := fresh(t)
	intend(t, r, present(alice, "user=alice"))
	before := take(t, r, alice, "agent")
	intend(t, r, present(alice, "user=other"))
	after := get(t, r, alice)
	if after.ClaimedBy != "agent" || !after.ClaimedUntil.Equal(before.ClaimedUntil) {
		t.Errorf("claimed by %q until %v", after.ClaimedBy, after.ClaimedUntil)
	}
	if diff := cmp.Diff([]string{"user=alice"}, after.Written); diff != "" {
		t.Error(diff)
	}
}

func TestIntendIsAllOrNothing(t *testing.T) {
	r, _ := fresh(t)
	bad := present(Key{User: "bob", Server: "main"}, "")
	if err := r.Intend(t.Context(), present(alice, "user=alice"), bad); err == nil {
		t.Fatal("a wish without a value was taken")
	}
	if regs := all(t, r, Filter{}); len(regs) != 0 {
		t.Errorf("%d rows were made", len(regs))
	}
}

func TestIntendRefusesWhatWouldNotComeBackUnchanged(t *testing.T) {
	r, _ := fresh(t)
	for name, in := range map[string]Intent{
		"no user":           present(Key{Server: "main"}, "v"),
		"no server":         present(Key{User: "alice"}, "v"),
		"unknown wish":      {Key: alice, Value: "v", Wanted: "maybe"},
		"NUL in user":       present(Key{User: "a\x00b", Server: "main"}, "v"),
		"user not UTF-8":    present(Key{User: "a\xff", Server: "main"}, "v"),
		"value not UTF-8":   present(alice, "user=\xff"),
		"user too long":     present(Key{User: strings.Repeat("a", maxName+1), Server: "main"}, "v"),
		"value too long":    present(alice, strings.Repeat("a", maxValue+1)),
		"identity with NUL": {Key: alice, Identity: "\x00", Value: "v", Wanted: Present},
	} {
		if err := r.Intend(t.Context(), in); err == nil || !strings.Contains(err.Error(), r.path) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestHostileNamesComeBackAsTheyWent(t *testing.T) {
	r, _ := fresh(t)
	for _, user := range []string{`'; DROP TABLE registrations; --`, `"`, "a\tb\r\n", "ä€😀", "%s%d", "$1", " ", "\u202e", strings.Repeat("x", maxName)} {
		key := Key{User: user, Server: "main"}
		intend(t, r, present(key, "user="+user[:min(len(user), 900)]))
		take(t, r, key, user)
		if reg := get(t, r, key); reg.User != user || reg.ClaimedBy != user || reg.Written[0] != reg.Value {
			t.Errorf("user %q came back as %q, claimed by %q, written %q", user, reg.User, reg.ClaimedBy, reg.Written)
		}
	}
}

func TestClaimTakesTheRowAndCountsTheAttempt(t *testing.T) {
	r, _ := fresh(t)
	intend(t, r, present(alice, "user=alice"))
	want := get(t, r, alice)
	want.Attempts, want.NextAt = 1, noon.Add(30*time.Second)
	want.ClaimedBy, want.ClaimedUntil = "agent", noon.Add(time.Minute)
	want.Written = []string{"user=alice"}
	if diff := cmp.Diff(want, take(t, r, alice, "agent")); diff != "" {
		t.Error("returned:", diff)
	}
	want.DoubtUntil = noon.Add(time.Minute + Linger)
	if diff := cmp.Diff(want, get(t, r, alice)); diff != "" {
		t.Error("stored:", diff)
	}
}

func TestClaimOfAMissingRow(t *testing.T) {
	r, _ := fresh(t)
	reg, claimed, err := r.Claim(t.Context(), alice, "agent", noon, noon)
	if claimed != Missing || err != nil || reg.User != "" {
		t.Errorf("%+v, %v, %v", reg, claimed, err)
	}
}

func TestClaimNeedsAnOwner(t *testing.T) {
	r, _ := fresh(t)
	intend(t, r, present(alice, "user=alice"))
	if _, _, err := r.Claim(t.Context(), alice, "", noon, noon); err == nil {
		t.Error("a claim for nobody was taken")
	}
}

func TestClaimedRowIsHeldUntilTheClaimEnds(t *testing.T) {
	r, c := fresh(t)
	intend(t, r, present(alice, "user=alice"))
	take(t, r, alice, "agent")
	held := get(t, r, alice)

	c.advance(time.Minute - time.Millisecond)
	reg, claimed, err := r.Claim(t.Context(), alice, "other", c.now().Add(time.Minute), c.now())
	if err != nil || claimed != Held {
		t.Fatalf("%v, %v", claimed, err)
	}
	if diff := cmp.Diff(held, reg); diff != "" {
		t.Error("the row changed:", diff)
	}
	c.advance(time.Millisecond)
	if reg := take(t, r, alice, "other"); reg.ClaimedBy != "other" || reg.Attempts != 2 {
		t.Errorf("claimed by %q, attempts %d", reg.ClaimedBy, reg.Attempts)
	}
}

func TestClaimMayBeRenewedByItsOwner(t *testing.T) {
	r, c := fresh(t)
	intend(t, r, present(alice, "user=alice"))
	take(t, r, alice, "agent")
	now := c.advance(10 * time.Second)
	reg := take(t, r, alice, "agent")
	if reg.Attempts != 2 || !reg.ClaimedUntil.Equal(now.Add(time.Minute)) || len(reg.Written) != 1 {
		t.Errorf("%+v", reg)
	}
}

func TestClaimIsCutAtMaxClaim(t *testing.T) {
	r, _ := fresh(t)
	intend(t, r, present(alice, "user=alice"))
	reg, claimed, err := r.Claim(t.Context(), alice, "agent", noon.Add(time.Hour), noon)
	if err != nil || claimed != Taken || !reg.ClaimedUntil.Equal(noon.Add(MaxClaim)) {
		t.Fatalf("%v until %v, error %v", claimed, reg.ClaimedUntil, err)
	}
	if _, claimed, _ = r.Claim(t.Context(), alice, "other", noon.Add(time.Minute), noon); claimed != Held {
		t.Errorf("the longest claim does not hold: %v", claimed)
	}
}

func TestClaimFromBeforeTheClockWasSetBackHasExpired(t *testing.T) {
	r, c := fresh(t)
	intend(t, r, present(alice, "user=alice"))
	take(t, r, alice, "agent")
	c.advance(-24 * time.Hour)
	if reg := take(t, r, alice, "other"); reg.ClaimedBy != "other" {
		t.Errorf("claimed by %q", reg.ClaimedBy)
	}
}

func TestClaimRemembersEachValueThatMayHaveBeenWritten(t *testing.T) {
	r, _ := fresh(t)
	for _, value := range []string{"user=1", "user=2", "user=1"} {
		intend(t, r, present(alice, value))
		take(t, r, alice, "agent")
	}
	intend(t, r, absent(alice))
	if diff := cmp.Diff([]string{"user=1", "user=2"}, take(t, r, alice, "agent").Written); diff != "" {
		t.Error(diff)
	}
}

func TestReleaseGivesBackOnlyTheOwnersClaims(t *testing.T) {
	r, _ := fresh(t)
	bob := Key{User: "bob", Server: "main"}
	intend(t, r, present(alice, "user=alice"), present(bob, "user=bob"))
	take(t, r, alice, "agent")
	take(t, r, bob, "other")
	if err := r.Release(t.Context(), "agent"); err != nil {
		t.Fatal(err)
	}
	if reg := get(t, r, alice); reg.ClaimedBy != "" || !reg.ClaimedUntil.IsZero() {
		t.Errorf("alice is claimed by %q until %v", reg.ClaimedBy, reg.ClaimedUntil)
	}
	if reg := get(t, r, bob); reg.ClaimedBy != "other" {
		t.Errorf("bob is claimed by %q", reg.ClaimedBy)
	}
}

func TestProveFindsRowsByIdentityAndOnlyMovesForward(t *testing.T) {
	r, _ := fresh(t)
	ox := Intent{Key: Key{User: "bob", Server: "main"}, Identity: "alice", Value: "user=alice", Wanted: Present}
	hidden := Intent{Key: Key{User: "alice", Server: "second"}, Identity: "3@7", Value: "user=3@7", Wanted: Present}
	intend(t, r, present(alice, "user=alice"), ox, hidden)
	for _, step := range []struct {
		at   time.Time
		want int64
	}{{noon, 2}, {noon.Add(-time.Hour), 0}, {noon.Add(time.Hour), 2}} {
		if n, err := r.Prove(t.Context(), "alice", step.at); err != nil || n != step.want {
			t.Errorf("at %v: %d rows, error %v", step.at, n, err)
		}
	}
	for key, want := range map[Key]time.Time{alice: noon.Add(time.Hour), ox.Key: noon.Add(time.Hour), hidden.Key: {}} {
		if reg := get(t, r, key); !reg.ProvenAt.Equal(want) {
			t.Errorf("%v proven at %v, want %v", key, reg.ProvenAt, want)
		}
	}
	if n, err := r.Prove(t.Context(), "", noon); n != 0 || err != nil {
		t.Errorf("nobody was proven %d times, error %v", n, err)
	}
}

func TestCancelledCallChangesNothing(t *testing.T) {
	r, _ := fresh(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Intend(ctx, present(alice, "user=alice")); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if _, found, err := r.Get(t.Context(), alice); found || err != nil {
		t.Errorf("found %v, error %v", found, err)
	}
	if _, _, err := r.Get(ctx, alice); !errors.Is(err, context.Canceled) {
		t.Errorf("get: error %v", err)
	}
}

func TestClaimTurnsAnExpiredRegistrationIntoOneToRemove(t *testing.T) {
	r, c := fresh(t)
	until := c.now().Add(time.Hour)
	in := present(alice, "user=alice")
	in.ExpiresAt = until
	intend(t, r, in)
	before := take(t, r, alice, "agent")
	if before.Wanted != Present || !before.ExpiresAt.Equal(until) {
		t.Fatalf("claimed before it expires: %+v", before)
	}
	record(t, r, "agent", Result{Key: alice, Revision: before.Revision, State: Registered, NextAt: until})
	c.advance(time.Hour)
	after := take(t, r, alice, "agent")
	if after.Wanted != Absent || after.State != Removing || !after.ExpiresAt.IsZero() || after.Revision <= before.Revision || after.Value != before.Value {
		t.Errorf("claimed once it has expired: %+v", after)
	}
	// Renewed before the claim is recorded, it stays.
	in.ExpiresAt = c.now().Add(time.Hour)
	intend(t, r, in)
	record(t, r, "agent", Result{Key: alice, Revision: after.Revision, Gone: true})
	if reg := get(t, r, alice); reg.Wanted != Present || reg.State != Pending {
		t.Errorf("renewed meanwhile: %+v", reg)
	}
}
