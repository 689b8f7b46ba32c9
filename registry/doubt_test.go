package registry

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// claimAt claims alice's row for owner until a time and returns what the claim says.
func claimAt(t *testing.T, r *Registry, owner string, until time.Time) Registration {
	t.Helper()
	reg, claimed, err := r.Claim(t.Context(), alice, owner, until, until)
	if err != nil || claimed != Taken {
		t.Fatalf("%v, %v", claimed, err)
	}
	return reg
}

func TestClaimLeavesADoubtBehindAndTellsOfTheEarlierOne(t *testing.T) {
	r, c := fresh(t)
	intend(t, r, present(alice, "user=alice"))
	if reg := claimAt(t, r, "killed", noon.Add(time.Minute)); !reg.DoubtUntil.IsZero() {
		t.Errorf("the first claim tells of a doubt until %v", reg.DoubtUntil)
	}
	first := noon.Add(time.Minute + Linger)
	if reg := get(t, r, alice); !reg.DoubtUntil.Equal(first) {
		t.Errorf("stored %v, want %v", reg.DoubtUntil, first)
	}
	intend(t, r, present(alice, "user=alice")) // leaves it alone
	now := c.advance(time.Minute)
	if reg := claimAt(t, r, "second", now.Add(time.Second)); !reg.DoubtUntil.Equal(first) {
		t.Errorf("the second claim tells of a doubt until %v, want %v", reg.DoubtUntil, first)
	}
	second := now.Add(time.Second + Linger)
	if reg := get(t, r, alice); !reg.DoubtUntil.Equal(second) {
		t.Errorf("stored %v, want %v", reg.DoubtUntil, second)
	}
	if err := r.Release(t.Context(), "second"); err != nil {
		t.Fatal(err)
	}
	claimAt(t, r, "third", now) // ends before the one that is known
	if reg := get(t, r, alice); !reg.DoubtUntil.Equal(second) {
		t.Errorf("a shorter claim stored %v, want %v", reg.DoubtUntil, second)
	}
}

func TestClaimToRemoveAddsNoDoubt(t *testing.T) {
	r, _ := fresh(t)
	intend(t, r, absent(alice))
	claimAt(t, r, "agent", noon.Add(time.Minute))
	if reg := get(t, r, alice); !reg.DoubtUntil.IsZero() {
		t.Errorf("stored %v", reg.DoubtUntil)
	}
}

func TestRecordWritesTheDoubtAsGiven(t *testing.T) {
	r, _ := fresh(t)
	reg := claimed(t, r)
	for _, want := range []time.Time{noon.Add(time.Hour), {}} {
		record(t, r, "agent", Result{Key: alice, Revision: reg.Revision, State: Registered, DoubtUntil: want})
		if got := get(t, r, alice).DoubtUntil; !got.Equal(want) {
			t.Errorf("%v, want %v", got, want)
		}
		take(t, r, alice, "agent")
	}
}

// A value that was sent twice may come through twice.
func TestClaimInDoubtCountsTheSameValueTwice(t *testing.T) {
	r, c := fresh(t)
	intend(t, r, present(alice, "user=alice"))
	for i, want := range [][]string{{"user=alice"}, {"user=alice", "user=alice"}, {"user=alice", "user=alice"}} {
		if diff := cmp.Diff(want, claimAt(t, r, fmt.Sprint(i), c.now().Add(time.Second)).Written); diff != "" {
			t.Errorf("claim %d: %s", i, diff)
		}
		c.advance(time.Second)
	}
}

func TestWrittenValuesAreBoundedAndTheFirstAndTheNewestStay(t *testing.T) {
	r, _ := fresh(t)
	var want []string
	for i := range maxWritten + 5 {
		value := fmt.Sprint("user=", i)
		intend(t, r, present(alice, value))
		take(t, r, alice, "agent")
		if i == 0 || i > 5 {
			want = append(want, value)
		}
	}
	if diff := cmp.Diff(want, get(t, r, alice).Written); diff != "" || len(want) != maxWritten {
		t.Error(diff)
	}
}
