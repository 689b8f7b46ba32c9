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
