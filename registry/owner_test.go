package registry

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func wantOwners(t *testing.T, r *Registry, want ...string) {
	t.Helper()
	got, err := r.Owners(t.Context())
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

func TestOwnersAreThoseWithClaimsInTimeOrNot(t *testing.T) {
	r, c := fresh(t)
	wantOwners(t, r)
	owners := []string{"second", "first", "second", "third", ""}
	for i, owner := range owners {
		intend(t, r, present(rowKey(i), "v"))
		if owner != "" {
			take(t, r, rowKey(i), owner)
		}
	}
	c.advance(time.Hour)
	wantOwners(t, r, "first", "second", "third")
	record(t, r, "first", Result{Key: rowKey(1), Revision: 1, State: Registered})
	if err := r.Release(t.Context(), "third"); err != nil {
		t.Fatal(err)
	}
	wantOwners(t, r, "second")
}

func TestReclaimGivesBackTheClaimsOfThoseNamed(t *testing.T) {
	at, early, late := noon.Add(time.Minute), noon.Add(time.Second), noon.Add(time.Hour)
	rows := []struct {
		owner      string
		next, want time.Time
	}{
		{"dead", late, at},
		{"dead", early, early}, // due earlier already
		{"dead", at, at},
		{"dead", time.Time{}, at}, // would never be looked at again
		{"dead too", late, at},
		{"alive", late, late},
		{"", late, late},
	}
	r, _ := fresh(t)
	var want []Registration
	for i, row := range rows {
		key := rowKey(i)
		intend(t, r, present(key, "v"))
		owner := row.owner
		if owner == "" {
			owner = "gone"
		}
		if _, claimed, err := r.Claim(t.Context(), key, owner, noon.Add(time.Minute), row.next); claimed != Taken || err != nil {
			t.Fatal(claimed, err)
		}
		if err := r.Release(t.Context(), "gone"); err != nil {
			t.Fatal(err)
		}
		reg := get(t, r, key)
		reg.NextAt = row.want
		if row.owner != "alive" {
			reg.ClaimedBy, reg.ClaimedUntil = "", time.Time{}
		}
		want = append(want, reg)
	}
	reclaim := func(want int64, owners ...string) {
		t.Helper()
		if n, err := r.Reclaim(t.Context(), at, owners...); n != want || err != nil {
			t.Errorf("%q: %d rows, want %d, error %v", owners, n, want, err)
		}
	}
	reclaim(0)
	reclaim(0, "", "unknown", "dea")
	reclaim(5, "dead", "dead too", "dead")
	if diff := cmp.Diff(want, all(t, r, Filter{})); diff != "" {
		t.Error(diff)
	}
	reclaim(0, "dead", "dead too")
	wantOwners(t, r, "alive")
}

func TestReclaimThatIsCancelledCountsNothing(t *testing.T) {
	r, _ := fresh(t)
	intend(t, r, present(alice, "v"))
	take(t, r, alice, "dead")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err := r.Reclaim(ctx, noon, "dead"); n != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("%d rows, error %v", n, err)
	}
	wantOwners(t, r, "dead")
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
