package registry

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func wantProven(t *testing.T, r *Registry, since time.Time, want ...ProvenCount) {
	t.Helper()
	got, err := r.Proven(t.Context(), since)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("since %v, error %v:\n%s", since, err, diff)
	}
}

// worked makes what is wanted of a row so, as if the entry had been seen.
func worked(t *testing.T, r *Registry, key Key) {
	t.Helper()
	reg := take(t, r, key, "agent")
	record(t, r, "agent", Result{Key: key, Revision: reg.Revision, State: Registered, Gone: reg.Wanted == Absent})
}

func TestProvenCountsByServerAndDayWhoeverIsRegistered(t *testing.T) {
	r, _ := fresh(t)
	bob, far := Key{User: "bob", Server: "main"}, Key{User: "alice", Server: "far"}
	for _, key := range []Key{alice, bob, far} {
		intend(t, r, Intent{Key: key, Identity: key.User + "@" + key.Server, Value: "user=" + key.User + "@" + key.Server, Wanted: Present})
		worked(t, r, key)
	}
	day := func(n int) time.Time { return noon.AddDate(0, 0, n) }
	wantProven(t, r, day(0))

	proven(t, r, proof(day(0), "alice@main"), proof(day(0), "alice@main"), proof(day(0).Add(time.Hour), "alice@main"))
	wantProven(t, r, day(0), ProvenCount{"main", 1, 1})
	proven(t, r, proof(day(1), "bob@main"), proof(day(0), "bob@main"), proof(day(2), "alice@far"))
	wantProven(t, r, day(0), ProvenCount{"far", 1, 1}, ProvenCount{"main", 2, 2})
	wantProven(t, r, day(1).Add(11*time.Hour), ProvenCount{"far", 1, 1}, ProvenCount{"main", 2, 1})
	wantProven(t, r, day(2), ProvenCount{"far", 1, 1}, ProvenCount{"main", 2, 0})
	proven(t, r, proof(day(2), "alice@main"))
	wantProven(t, r, day(2), ProvenCount{"far", 1, 1}, ProvenCount{"main", 2, 1})

	// Who is not registered (any more) does not count until he is again.
	intend(t, r, absent(alice), present(bob, "user=other"))
	wantProven(t, r, day(1), ProvenCount{"far", 1, 1})
	worked(t, r, bob)
	wantProven(t, r, day(1), ProvenCount{"far", 1, 1}, ProvenCount{"main", 1, 1})
	wantProven(t, r, day(2), ProvenCount{"far", 1, 1}, ProvenCount{"main", 1, 0})
	worked(t, r, alice) // gone
	wantProven(t, r, day(2), ProvenCount{"far", 1, 1}, ProvenCount{"main", 1, 0})
	intend(t, r, absent(far))
	worked(t, r, far)
	wantProven(t, r, day(2), ProvenCount{"main", 1, 0})

	// What takes off who has gone looks at his day, too.
	carol := Key{User: "carol", Server: "main"}
	intend(t, r, present(carol, "user=carol"))
	worked(t, r, carol)
	proven(t, r, proof(day(1), "carol"))
	intend(t, r, present(bob, "user=yet another"))
	proven(t, r, proof(day(0), "yet another"))
	wantProven(t, r, day(1), ProvenCount{"main", 1, 1})
	proven(t, r, proof(day(2), "carol"))
	wantProven(t, r, day(2), ProvenCount{"main", 1, 1})
	intend(t, r, absent(carol))
	worked(t, r, carol)

	// Days that count nobody are not kept.
	var days int
	if err := plain(t, r.path).QueryRowContext(t.Context(), "SELECT count(*) FROM proven_days").Scan(&days); err != nil || days != 1 {
		t.Errorf("%d days, error %v", days, err)
	}
}
