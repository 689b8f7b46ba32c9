package registry

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

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
