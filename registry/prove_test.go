package registry

import (
	"slices"
	"testing"
	"time"
)

// proven proves what must not fail.
func proven(t testing.TB, r *Registry, proofs ...Proof) (known []bool) {
	t.Helper()
	known, err := r.Prove(t.Context(), proofs...)
	if err != nil || len(known) != len(proofs) {
		t.Fatalf("%d of %d, error %v", len(known), len(proofs), err)
	}
	return known
}

func proof(at time.Time, names ...string) Proof { return Proof{Names: names, At: at} }

func TestProveFindsRowsByIdentityAndOnlyMovesForward(t *testing.T) {
	r, _ := fresh(t)
	ox := Intent{Key: Key{User: "bob", Server: "main"}, Identity: "alice", Value: "user=alice", Wanted: Present}
	hidden := Intent{Key: Key{User: "alice", Server: "second"}, Identity: "3@7", Value: "user=3@7", Wanted: Present}
	named := Intent{Key: Key{User: "alice", Server: "third"}, Identity: "alice", Value: "user=alice", Wanted: Present}
	intend(t, r, present(alice, "user=alice"), ox, hidden, named)
	for _, step := range []struct{ at, want time.Time }{
		{noon, noon},
		{noon.Add(-time.Hour), noon},
		{noon.Add(time.Hour), noon.Add(time.Hour)},
	} {
		if known := proven(t, r, proof(step.at, "alice")); !known[0] {
			t.Errorf("at %v: unknown", step.at)
		}
		for key, want := range map[Key]time.Time{alice: step.want, ox.Key: step.want, hidden.Key: {}, named.Key: step.want} {
			if reg := get(t, r, key); !reg.ProvenAt.Equal(want) {
				t.Errorf("at %v: %v proven at %v, want %v", step.at, key, reg.ProvenAt, want)
			}
		}
	}
}

func TestProveGoesByTheFirstNameByWhichSomebodyIsRegistered(t *testing.T) {
	r, _ := fresh(t)
	for _, user := range []string{"alice", "bob"} {
		intend(t, r, present(Key{User: user, Server: "main"}, "user="+user))
	}
	intend(t, r, Intent{Key: Key{User: "carol", Server: "main"}, Identity: "3@7", Value: "user=3@7", Wanted: Present},
		Intent{Key: Key{User: "dave", Server: "main"}, Identity: "erin", Value: "user=erin", Wanted: Present},
		Intent{Key: Key{User: "erin", Server: "main"}, Identity: "4@7", Value: "user=4@7", Wanted: Present})
	at := func(minutes int) time.Time { return noon.Add(time.Duration(minutes) * time.Minute) }
	known := proven(t, r,
		proof(at(1), "nobody", "bob", "alice"),
		proof(at(2), "nobody"),
		proof(at(3)),
		proof(at(4), ""),
		proof(at(6), "", "3@7"),
		proof(at(0), "bob", "alice"),  // older, and his nevertheless
		proof(at(5), "dave", "carol"), // hers, though she is registered by another name
		proof(at(7), "carol", "3@7"),  // by the identity before the login
		proof(at(8), "erin"),          // the identity of another goes before her name
	)
	if want := []bool{true, false, false, false, true, true, true, true, true}; !slices.Equal(known, want) {
		t.Errorf("known %v, want %v", known, want)
	}
	for user, want := range map[string]time.Time{"alice": {}, "bob": at(1), "carol": at(7), "dave": at(8), "erin": {}} {
		if got := get(t, r, Key{User: user, Server: "main"}).ProvenAt; !got.Equal(want) {
			t.Errorf("%s proven at %v, want %v", user, got, want)
		}
	}
}

func TestProveRefusesAProofWithoutATime(t *testing.T) {
	r, _ := fresh(t)
	intend(t, r, present(alice, "user=alice"))
	proven(t, r, proof(noon, "alice"))
	if known, err := r.Prove(t.Context(), proof(noon.Add(1), "alice"), Proof{Names: []string{"alice"}}); err == nil || known != nil {
		t.Errorf("%v, error %v", known, err)
	}
	if got := get(t, r, alice).ProvenAt; !got.Equal(noon) {
		t.Errorf("proven at %v", got)
	}
}

func TestProveOfNothingIsNoTransaction(t *testing.T) {
	r, _ := fresh(t)
	if known := proven(t, r); len(known) != 0 {
		t.Error(known)
	}
}
