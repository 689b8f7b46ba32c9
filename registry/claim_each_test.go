package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// situations are rows in all conditions that a claim may find. Each has a
// registry like the others' but for them.
var situations = []string{"new", "odd value", "held", "ours", "long over", "removal", "expired", "expired, held", "missing",
	"in doubt", "in doubt, other value", "in doubt for longer", "written before", "written before, other value",
	"two written before", "registered"}

func makeSituations(t *testing.T, r *Registry, c *clock, suffix string) (users []string) {
	t.Helper()
	key := func(what string) Key {
		users = append(users, what+suffix)
		return Key{what + suffix, "main"}
	}
	claim := func(key Key, owner string, until time.Time) Registration {
		reg, claimed, err := r.Claim(t.Context(), key, owner, until, noon)
		if claimed != Taken || err != nil {
			t.Fatal(claimed, err)
		}
		return reg
	}
	soon, long := noon.Add(time.Minute), noon.Add(9*time.Minute)
	for _, what := range situations {
		k := key(what)
		in := present(k, "user="+k.User)
		switch what {
		case "missing":
			continue
		case "odd value":
			in.Value = "a\"b\\c<&>\u2028\tä\x01"
		case "expired", "expired, held":
			in.ExpiresAt = noon.Add(2 * time.Minute)
		case "removal":
			in = absent(k)
		}
		intend(t, r, in)
		switch what {
		case "held", "expired, held":
			claim(k, "other", long)
		case "ours":
			claim(k, "agent", long)
		case "long over", "in doubt", "in doubt, other value":
			claim(k, "other", soon)
		case "in doubt for longer":
			claim(k, "other", long)
			record(t, r, "other", Result{Key: k, Revision: 1, State: Pending, Unsettled: true, DoubtUntil: noon.Add(time.Hour), NextAt: noon})
		case "written before", "written before, other value":
			claim(k, "other", soon)
			record(t, r, "other", Result{Key: k, Revision: 1, State: Registered, Written: []string{in.Value}, NextAt: noon})
		case "two written before":
			claim(k, "other", soon)
			record(t, r, "other", Result{Key: k, Revision: 1, State: Registered, Written: []string{"user=old", in.Value}, NextAt: noon})
		case "registered":
			claim(k, "other", soon)
			record(t, r, "other", Result{Key: k, Revision: 1, State: Registered})
		}
		if what == "in doubt, other value" || what == "written before, other value" {
			intend(t, r, present(k, "user=new"))
		}
	}
	return users
}

func TestClaimEachDoesAsClaimDoesForEachInItsOrder(t *testing.T) {
	one, c1 := fresh(t)
	each, c2 := fresh(t)
	var users []string
	for i := range 8 { // 128 users: all sizes of statements
		suffix := fmt.Sprintf(" %d", i)
		makeSituations(t, one, c1, suffix)
		users = append(users, makeSituations(t, each, c2, suffix)...)
	}
	slices.Reverse(users)
	c1.advance(2 * time.Minute)
	now := c2.advance(2 * time.Minute)
	until, retryAt := now.Add(time.Minute), now.Add(30*time.Second)
	var want []Claim
	for _, user := range users {
		reg, claimed, err := one.Claim(t.Context(), Key{user, "main"}, "agent", until, retryAt)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, Claim{reg, claimed})
	}
	got, err := each.ClaimEach(t.Context(), "main", "agent", until, retryAt, users)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error("returned:", diff, err)
	}
	if diff := cmp.Diff(all(t, one, Filter{}), all(t, each, Filter{})); diff != "" {
		t.Error("stored:", diff)
	}
	for _, claim := range got { // what is stored is what was returned
		if claim.Outcome != Taken {
			continue
		}
		stored := get(t, each, claim.Key())
		stored.DoubtUntil = claim.DoubtUntil
		if diff := cmp.Diff(claim.Registration, stored); diff != "" {
			t.Errorf("%s: %s", claim.User, diff)
		}
	}
	outcomes := make(map[Claimed]int)
	for _, claim := range got {
		outcomes[claim.Outcome]++
	}
	if diff := cmp.Diff(map[Claimed]int{Missing: 8, Held: 16, Taken: 104}, outcomes); diff != "" {
		t.Error(diff)
	}
}

func TestClaimEachOfAUserWhoIsNamedTwice(t *testing.T) {
	one, c1 := fresh(t)
	each, c2 := fresh(t)
	users := makeSituations(t, one, c1, "")
	makeSituations(t, each, c2, "")
	now := c1.advance(2 * time.Minute)
	c2.advance(2 * time.Minute)
	twice := append(slices.Clone(users), users...)
	var want []Claim
	for _, user := range twice {
		reg, claimed, err := one.Claim(t.Context(), Key{user, "main"}, "agent", now.Add(time.Minute), now)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, Claim{reg, claimed})
	}
	got, err := each.ClaimEach(t.Context(), "main", "agent", now.Add(time.Minute), now, twice)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error("returned:", diff, err)
	}
	if diff := cmp.Diff(all(t, one, Filter{}), all(t, each, Filter{})); diff != "" {
		t.Error("stored:", diff)
	}
}

func TestClaimEachIsOfOneServerAndAllOrNothing(t *testing.T) {
	r, _ := fresh(t)
	far := Key{"alice", "far"}
	intend(t, r, present(alice, "v"), present(far, "v"), present(Key{"damaged", "main"}, "v"))
	exec1(t, r.writer.db, `UPDATE registrations SET written = '{"' WHERE username = 'damaged'`)
	before := get(t, r, far)
	if claims, err := r.ClaimEach(t.Context(), "main", "agent", noon.Add(time.Minute), noon, []string{"alice", "damaged"}); !errors.Is(err, ErrCorrupt) || claims != nil {
		t.Errorf("%d claims, error %v", len(claims), err)
	}
	if got := get(t, r, alice); got.ClaimedBy != "" {
		t.Errorf("%+v", got)
	}
	claims, err := r.ClaimEach(t.Context(), "main", "agent", noon.Add(time.Minute), noon, []string{"alice"})
	if len(claims) != 1 || claims[0].Server != "main" || err != nil {
		t.Errorf("%+v, error %v", claims, err)
	}
	if diff := cmp.Diff(before, get(t, r, far)); diff != "" {
		t.Error("on another server:", diff)
	}
}

func TestClaimEachOfNobodyAndForNobody(t *testing.T) {
	r, _ := fresh(t)
	intend(t, r, present(alice, "v"))
	if claims, err := r.ClaimEach(t.Context(), "main", "agent", noon, noon, nil); len(claims) != 0 || err != nil {
		t.Errorf("%+v, error %v", claims, err)
	}
	if _, err := r.ClaimEach(t.Context(), "main", "", noon, noon, []string{"alice"}); err == nil {
		t.Error("a claim for nobody was taken")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if claims, err := r.ClaimEach(ctx, "main", "agent", noon, noon, []string{"alice"}); claims != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("%+v, error %v", claims, err)
	}
}
