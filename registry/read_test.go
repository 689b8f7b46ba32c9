package registry

import (
	"context"
	"encoding/json"
	"errors"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRegistrationInJSON(t *testing.T) {
	full := Registration{
		User: "alice", Server: "main", Identity: "3@7", Value: "user=3@7", Wanted: Present, State: Failed,
		ExpiresAt: noon, Attempts: 2, NextAt: noon, WrittenAt: noon, VerifiedAt: noon, ProvenAt: noon.Add(time.Millisecond),
		Error: &Failure{Kind: "user", Message: "no such user"},
		Force: true, Written: []string{"x"}, Revision: 9, ClaimedBy: "agent", ClaimedUntil: noon,
	}
	for want, reg := range map[string]Registration{
		`{"user":"alice","server":"main","identity":"3@7","value":"user=3@7","wanted":"present","state":"failed",` +
			`"expires_at":"2026-03-01T12:00:00Z","attempts":2,"next_at":"2026-03-01T12:00:00Z","written_at":"2026-03-01T12:00:00Z",` +
			`"verified_at":"2026-03-01T12:00:00Z","proven_at":"2026-03-01T12:00:00.001Z","error":{"kind":"user","message":"no such user"}}`: full,
		`{"user":"bob","server":"main","wanted":"absent","state":"removing","attempts":0}`: {User: "bob", Server: "main", Wanted: Absent, State: Removing},
	} {
		got, err := json.Marshal(reg)
		if err != nil || string(got) != want {
			t.Errorf("got  %s, error %v\nwant %s", got, err, want)
		}
	}
}

func TestWrittenValuesComeBackAsTheyWent(t *testing.T) {
	r, _ := fresh(t)
	for _, value := range []string{`a`, `a"b`, `a\b`, `a\"`, `","`, "a\tb", "<&>", "ä", `["a"]`, `\u0041`, "\u2028", `a","b`, `\t`} {
		intend(t, r, present(alice, value))
		reg := take(t, r, alice, "agent")
		for _, written := range [][]string{{value}, {value, "x"}, {"x", value}, {"x"}, {"a", "b"}, {"\t"}} {
			record(t, r, "agent", Result{Key: alice, Revision: reg.Revision, State: Registered, Written: written})
			if diff := cmp.Diff(written, get(t, r, alice).Written); diff != "" {
				t.Errorf("%q: %s", value, diff)
			}
			take(t, r, alice, "agent")
		}
	}
}

func TestTimesComeBackInUTCToTheMillisecond(t *testing.T) {
	r, _ := fresh(t)
	at := time.Date(2027, 7, 1, 9, 30, 0, 123_456_789, time.FixedZone("CEST", 2*3600))
	intend(t, r, Intent{Key: alice, Value: "user=alice", Wanted: Present, ExpiresAt: at})
	got := get(t, r, alice).ExpiresAt
	if want := at.Truncate(time.Millisecond).UTC(); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestParseState(t *testing.T) {
	for _, s := range []State{Pending, Registered, Removing, Conflict, Failed} {
		if got, err := ParseState(string(s)); got != s || err != nil {
			t.Errorf("%q: %q, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "Pending", "pending ", "absent"} {
		if _, err := ParseState(s); err == nil {
			t.Errorf("%q was taken", s)
		}
	}
}

// seed fills in n rows user-0000000 and so on, quickly.
func seed(t testing.TB, r *Registry, n int) {
	t.Helper()
	_, err := r.writer.db.ExecContext(t.Context(), `
		WITH RECURSIVE seq(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM seq WHERE i + 1 < $1)
		INSERT INTO registrations (`+columns+`)
		SELECT u, 'main', '', 'user=' || u, 'present', 'registered', NULL, 0,
			1000 * i, 0, 0, NULL, '', '', 0, '["user=' || u || '"]', NULL, 1, '', NULL
		FROM (SELECT i, printf('user-%07d', i) AS u FROM seq)`, n)
	if err != nil {
		t.Fatal(err)
	}
}

func TestListStreamsInByteOrderOverManyPages(t *testing.T) {
	r, _ := fresh(t)
	seed(t, r, 2*pageSize) // the last page is empty
	for _, user := range []string{"Zoe", "user-0000999!", "ä"} {
		intend(t, r, present(Key{User: user, Server: "b"}, "v"), present(Key{User: user, Server: "a"}, "v"))
	}
	regs := all(t, r, Filter{})
	if len(regs) != 2*pageSize+6 {
		t.Errorf("%d rows", len(regs))
	}
	if !slices.IsSortedFunc(regs, func(a, b Registration) int {
		return slices.Compare([]string{a.User, a.Server}, []string{b.User, b.Server})
	}) {
		t.Error("not in byte order")
	}
	if regs[0].User != "Zoe" || regs[len(regs)-1].Key() != (Key{"ä", "b"}) {
		t.Errorf("from %v to %v", regs[0].Key(), regs[len(regs)-1].Key())
	}
}

func TestListFilters(t *testing.T) {
	r, _ := fresh(t)
	for _, user := range []string{"a", "b", "c"} {
		intend(t, r, present(Key{user, "one"}, "v"), present(Key{user, "two"}, "v"))
	}
	intend(t, r, absent(Key{"b", "two"}))
	for name, tc := range map[string]struct {
		f    Filter
		want []Key
	}{
		"server":              {Filter{Server: "two"}, []Key{{"a", "two"}, {"b", "two"}, {"c", "two"}}},
		"state":               {Filter{State: Removing}, []Key{{"b", "two"}}},
		"both":                {Filter{Server: "one", State: Removing}, nil},
		"after a row":         {Filter{After: Key{"b", "one"}}, []Key{{"b", "two"}, {"c", "one"}, {"c", "two"}}},
		"after a missing row": {Filter{After: Key{"bb", ""}}, []Key{{"c", "one"}, {"c", "two"}}},
		"after the last":      {Filter{After: Key{"c", "two"}}, nil},
	} {
		var got []Key
		for _, reg := range all(t, r, tc.f) {
			got = append(got, reg.Key())
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestListEndsAtItsLimitAndReadsNoFurther(t *testing.T) {
	r, _ := fresh(t)
	seed(t, r, pageSize+3)
	for limit, want := range map[int]int{0: pageSize + 3, -1: pageSize + 3, 1: 1, 100: 100, pageSize: pageSize, pageSize + 1: pageSize + 1, 2 * pageSize: pageSize + 3} {
		if n := len(all(t, r, Filter{Limit: limit})); n != want {
			t.Errorf("limit %d: %d rows, want %d", limit, n, want)
		}
	}
	after := rowKey(pageSize)
	if regs := all(t, r, Filter{After: after, Limit: 1}); len(regs) != 1 || regs[0].Key() != rowKey(pageSize+1) {
		t.Errorf("after %v: %v", after, regs)
	}
	exec1(t, r.writer.db, `UPDATE registrations SET written = '{"' WHERE username = '`+rowKey(100).User+`'`)
	if n := len(all(t, r, Filter{Limit: 100})); n != 100 {
		t.Errorf("%d rows", n)
	}
}

func TestListStopsWithItsContextAndWithItsCaller(t *testing.T) {
	r, _ := fresh(t)
	seed(t, r, 10)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var n int
	var last error
	for _, err := range r.List(ctx, Filter{}) {
		n++
		last = err
		cancel()
	}
	if n != 2 || !errors.Is(last, context.Canceled) {
		t.Errorf("%d steps, last error %v", n, last)
	}
	for range r.List(t.Context(), Filter{}) {
		break
	}
}

func TestListHoldsNoTransactionWhileItsCallerWorks(t *testing.T) {
	r, _ := fresh(t)
	seed(t, r, 10)
	for reg, err := range r.List(t.Context(), Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		take(t, r, reg.Key(), "agent")
		// A checkpoint of all, with nobody in the way, is possible only then.
		var busy, log, done int
		if err := r.writer.db.QueryRowContext(t.Context(), "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &log, &done); err != nil || busy != 0 {
			t.Fatalf("busy %d, error %v", busy, err)
		}
	}
}

func TestListsOf200000RowsTakeTheMemoryOfAPage(t *testing.T) {
	const bound = 16 << 20 // all rows would take about 100 MiB, all standings 30 MiB
	rows := 200_000
	if testing.Short() {
		rows = 60_000
	}
	r, _ := fresh(t)
	// Only to fill it faster: under -race each row takes its time.
	for _, index := range []string{"due", "claimed", "identity", "state", "failing"} {
		exec1(t, r.writer.db, "DROP INDEX registrations_"+index)
	}
	exec1(t, r.writer.db, "PRAGMA ignore_check_constraints = ON")
	seed(t, r, rows)
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for name, list := range map[string]func(yield func() bool) error{
		"List": func(yield func() bool) error {
			for _, err := range r.List(t.Context(), Filter{}) {
				if err != nil || !yield() {
					return err
				}
			}
			return nil
		},
		"Standings": func(yield func() bool) error {
			for _, err := range r.Standings(t.Context()) {
				if err != nil || !yield() {
					return err
				}
			}
			return nil
		},
	} {
		before, most, n := heap(), uint64(0), 0
		err := list(func() bool {
			if n++; n%10_000 == 0 {
				most = max(most, heap())
			}
			return true
		})
		if n != rows || err != nil {
			t.Errorf("%s: %d rows, error %v", name, n, err)
		}
		if most > before+bound {
			t.Errorf("%s: the heap grew by %d MiB", name, (most-before)>>20)
		}
	}
}

func TestLookupFindsTheUserOnAllServers(t *testing.T) {
	r, _ := fresh(t)
	intend(t, r, present(Key{"alice", "two"}, "v"), present(Key{"alice", "one"}, "v"), present(Key{"alicf", "one"}, "v"))
	regs, err := r.Lookup(t.Context(), "alice")
	if err != nil || len(regs) != 2 || regs[0].Server != "one" || regs[1].Server != "two" {
		t.Errorf("%+v, %v", regs, err)
	}
}

func TestCounts(t *testing.T) {
	r, _ := fresh(t)
	seed(t, r, 3)
	intend(t, r, absent(Key{"user-0000001", "main"}), present(Key{"x", "far"}, "v"))
	intoState(t, r, Key{"never looked at again", "main"}, Registered, time.Time{})
	intoState(t, r, Key{"also never", "hopeless"}, Failed, time.Time{})
	intoState(t, r, Key{"refused", "main"}, Failed, noon)
	intoState(t, r, Key{"foreign", "far"}, Conflict, noon)
	intoState(t, r, Key{"fine", "fine"}, Registered, noon)
	got, err := r.Counts(t.Context())
	want := []Count{{"far", Conflict, 1}, {"far", Pending, 1}, {"fine", Registered, 1}, {"hopeless", Failed, 1},
		{"main", Failed, 1}, {"main", Registered, 3}, {"main", Removing, 1}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

// intoState makes a row that is in a state and is looked at next at a time.
func intoState(t testing.TB, r *Registry, key Key, state State, next time.Time) {
	t.Helper()
	intend(t, r, present(key, "v"))
	reg := take(t, r, key, "agent")
	record(t, r, "agent", Result{Key: key, Revision: reg.Revision, State: state, NextAt: next})
}

func version(t testing.TB, r *Registry) int64 {
	t.Helper()
	n, err := r.Version(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestVersionChangesWithEveryChangeByWhomever(t *testing.T) {
	r, c := fresh(t)
	other := reopen(t, r.path, c.now)
	last := version(t, r)
	for name, change := range map[string]func(r *Registry) error{
		"intend": func(r *Registry) error { return r.Intend(t.Context(), present(alice, "v")) },
		"circuit": func(r *Registry) error {
			return r.OpenCircuit(t.Context(), Circuit{Server: "main", Since: noon, ProbeAt: c.advance(time.Second), Failures: 1})
		},
		"endpoint": func(r *Registry) error {
			return r.SetAside(t.Context(), Endpoint{Server: "main", URL: urlA, Since: noon, CheckAt: c.advance(time.Second), Reason: "refused"})
		},
	} {
		for _, by := range []*Registry{r, other, r, other} {
			if err := change(by); err != nil {
				t.Fatal(err)
			}
			now := version(t, r)
			if now == last {
				t.Errorf("%s: still %d", name, now)
			}
			last = now
		}
	}
}

func TestVersionStaysWhileNothingChanges(t *testing.T) {
	r, c := fresh(t)
	other := reopen(t, r.path, c.now)
	intend(t, r, present(alice, "v"))
	proven(t, r, proof(noon, "alice"))
	for name, call := range map[string]func(r *Registry) error{
		"nothing":  func(*Registry) error { return nil },
		"get":      func(r *Registry) error { _, _, err := r.Get(t.Context(), alice); return err },
		"list":     func(r *Registry) error { all(t, r, Filter{}); return nil },
		"check":    func(r *Registry) error { return r.Check(t.Context()) },
		"backlogs": func(r *Registry) error { _, err := r.Backlogs(t.Context()); return err },
		"next due": func(r *Registry) error { _, _, err := r.NextDue(t.Context(), "main"); return err },
		// Were these changes, processes that look for work whenever something
		// changes would keep each other awake.
		"take where nothing is due": func(r *Registry) error { return errOf(r.Take(t.Context(), "far", "agent", noon, noon, 9, "alice")) },
		"hasten of what is due":     func(r *Registry) error { _, _, err := r.Hasten(t.Context(), alice); return err },
		"hasten of a missing row":   func(r *Registry) error { _, _, err := r.Hasten(t.Context(), Key{"bob", "main"}); return err },
		"spread of nothing":         func(r *Registry) error { return errOf(r.Spread(t.Context(), "main", Unsettled, noon, noon)) },
		"claim of a missing row": func(r *Registry) error {
			_, _, err := r.Claim(t.Context(), Key{"bob", "main"}, "agent", noon, noon)
			return err
		},
		"release of no claim":          func(r *Registry) error { return r.Release(t.Context(), "agent") },
		"reclaim of no claim":          func(r *Registry) error { return errOf(r.Reclaim(t.Context(), noon, "agent")) },
		"proof for nobody":             func(r *Registry) error { return errOf(r.Prove(t.Context(), proof(noon, "nobody"))) },
		"proof that is no news":        func(r *Registry) error { return errOf(r.Prove(t.Context(), proof(noon, "alice"))) },
		"closing of what is not open":  func(r *Registry) error { return r.CloseCircuit(t.Context(), "main") },
		"work of what was not aside":   func(r *Registry) error { return r.EndpointWorks(t.Context(), "main", urlA) },
		"opening and closing the file": func(r *Registry) error { return reopenAndClose(t, r.path) },
	} {
		for by, r2 := range map[string]*Registry{"itself": r, "another": other} {
			before := version(t, r)
			if err := call(r2); err != nil {
				t.Fatal(err)
			}
			if after := version(t, r); after != before {
				t.Errorf("%s by %s: %d after %d", name, by, after, before)
			}
		}
	}
}

func errOf[T any](_ T, err error) error { return err }

func reopenAndClose(t *testing.T, path string) error {
	r, err := Open(t.Context(), path, nil)
	if err != nil {
		return err
	}
	return r.Close()
}

// An interrupted connection is discarded, and a new one counts from the start.
func TestVersionSeesTheChangeThoughAnotherCallerGaveUp(t *testing.T) {
	for range 30 {
		r, _ := fresh(t)
		other := reopen(t, r.path, nil)
		before := version(t, r)
		intend(t, other, present(alice, "v"))
		for range 20 {
			ctx, cancel := context.WithCancel(t.Context())
			go cancel()
			r.Version(ctx) // may fail or not
		}
		if after := version(t, r); after == before {
			t.Fatalf("still %d", after)
		}
	}
}

func TestServersAreThoseThatHaveRows(t *testing.T) {
	r, _ := fresh(t)
	if got, err := r.Servers(t.Context()); len(got) > 0 || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	for _, server := range []string{"two", "one", "two", "ä"} {
		for _, user := range []string{"a", "b"} {
			intend(t, r, present(Key{user, server}, "v"))
		}
	}
	intoState(t, r, Key{"a", "never"}, Registered, time.Time{})
	intoState(t, r, Key{"a", "refuses"}, Failed, noon)
	got, err := r.Servers(t.Context())
	if diff := cmp.Diff([]string{"never", "one", "refuses", "two", "ä"}, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
}
