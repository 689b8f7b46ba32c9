package registry

import (
	"testing"
	"time"
)

func TestProveFindsRowsByIdentityAndOnlyMovesForward(t *testing.T) {
	r, _ := fresh(t)
	ox := Intent{Key: Key{User: "bob", Server: "main"}, Identity: "alice", Value: "user=alice", Wanted: Present}
	hidden := Intent{Key: Key{User: "alice", Server: "second"}, Identity: "3@7", Value: "user=3@7", Wanted: Present}
	named := Intent{Key: Key{User: "alice", Server: "third"}, Identity: "alice", Value: "user=alice", Wanted: Present}
	intend(t, r, present(alice, "user=alice"), ox, hidden, named)
	for _, step := range []struct {
		at   time.Time
		want int64
	}{{noon, 3}, {noon.Add(-time.Hour), 0}, {noon.Add(time.Hour), 3}} {
		if n, err := r.Prove(t.Context(), "alice", step.at); err != nil || n != step.want {
			t.Errorf("at %v: %d rows, error %v", step.at, n, err)
		}
	}
	for key, want := range map[Key]time.Time{alice: noon.Add(time.Hour), ox.Key: noon.Add(time.Hour), hidden.Key: {}, named.Key: noon.Add(time.Hour)} {
		if reg := get(t, r, key); !reg.ProvenAt.Equal(want) {
			t.Errorf("%v proven at %v, want %v", key, reg.ProvenAt, want)
		}
	}
	if n, err := r.Prove(t.Context(), "", noon); n != 0 || err != nil {
		t.Errorf("nobody was proven %d times, error %v", n, err)
	}
}
