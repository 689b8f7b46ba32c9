package registry

import (
	"fmt"
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

func TestIntendOnlyIfOther(t *testing.T) {
	for name, tc := range map[string]struct {
		intent  func(in *Intent)
		prepare func(t *testing.T, r *Registry, c *clock)
		want    bool // the row is changed
	}{
		"the same":         {want: false},
		"another value":    {intent: func(in *Intent) { in.Value = "user=other" }, want: true},
		"another identity": {intent: func(in *Intent) { in.Identity = "3@8" }, want: true},
		"no identity":      {intent: func(in *Intent) { in.Identity = "" }, want: true},
		"absent":           {intent: func(in *Intent) { in.Wanted = Absent }, want: true},
		"another expiry":   {intent: func(in *Intent) { in.ExpiresAt = noon.Add(2 * time.Hour) }, want: false},
		"with force":       {intent: func(in *Intent) { in.Force = true }, want: false},
		"just not expired": {prepare: func(t *testing.T, r *Registry, c *clock) { c.advance(time.Hour - time.Millisecond) }, want: false},
		"just expired":     {prepare: func(t *testing.T, r *Registry, c *clock) { c.advance(time.Hour) }, want: true},
		"refused": {prepare: func(t *testing.T, r *Registry, c *clock) {
			exec1(t, r.writer.db, "UPDATE registrations SET state = 'failed'")
		}, want: false},
		"claimed": {prepare: func(t *testing.T, r *Registry, c *clock) { take(t, r, alice, "other") }, want: false},
		"never expires": {prepare: func(t *testing.T, r *Registry, c *clock) {
			exec1(t, r.writer.db, "UPDATE registrations SET expires_at = NULL")
		}, want: false},
		"should be removed": {prepare: func(t *testing.T, r *Registry, c *clock) {
			intend(t, r, Intent{Key: alice, Identity: "3@7", Value: "user=3@7", Wanted: Absent})
		}, want: true},
	} {
		t.Run(name, func(t *testing.T) {
			r, c := fresh(t)
			in := Intent{Key: alice, Identity: "3@7", Value: "user=3@7", Wanted: Present, ExpiresAt: noon.Add(time.Hour)}
			intend(t, r, in)
			if tc.prepare != nil {
				tc.prepare(t, r, c)
			}
			if tc.intent != nil {
				tc.intent(&in)
			}
			before := get(t, r, alice)
			in.OnlyIfOther = true
			intend(t, r, in)
			after := get(t, r, alice)
			if changed := after.Revision != before.Revision; changed != tc.want {
				t.Fatalf("changed: %v, want %v", changed, tc.want)
			}
			if diff := cmp.Diff(before, after); diff != "" && !tc.want {
				t.Error(diff)
			}
			if tc.want && (after.Value != in.Value || after.Identity != in.Identity || after.Wanted != in.Wanted || !after.NextAt.Equal(c.now())) {
				t.Errorf("%+v", after)
			}
		})
	}
}

func TestIntendOnlyIfOtherForRemovalsAndNewRows(t *testing.T) {
	r, c := fresh(t)
	bob := Key{"bob", "main"}
	wish := absent(alice)
	wish.OnlyIfOther = true
	made := present(bob, "v")
	made.OnlyIfOther = true
	intend(t, r, wish, made)
	if a, b := get(t, r, alice), get(t, r, bob); a.State != Removing || b.State != Pending {
		t.Errorf("%+v, %+v", a, b)
	}
	c.advance(time.Hour)
	intend(t, r, wish, made)
	for _, key := range []Key{alice, bob} {
		if reg := get(t, r, key); reg.Revision != 1 || !reg.NextAt.Equal(noon) {
			t.Errorf("changed again: %+v", reg)
		}
	}
}

func TestIntendForARevision(t *testing.T) {
	for name, tc := range map[string]struct {
		revision int64
		other    bool
		value    string
		want     bool
	}{
		"of now":                      {revision: 2, value: "user=new", want: true},
		"of now, the same":            {revision: 2, value: "user=alice", want: true},
		"of now, the same, if other":  {revision: 2, other: true, value: "user=alice", want: false},
		"of now, other, if other":     {revision: 2, other: true, value: "user=new", want: true},
		"older":                       {revision: 1, value: "user=new", want: false},
		"older, if other":             {revision: 1, other: true, value: "user=new", want: false},
		"of the future":               {revision: 3, value: "user=new", want: false},
		"of a row that was there not": {revision: -1, value: "user=new", want: false},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := fresh(t)
			intend(t, r, present(alice, "user=alice"), present(alice, "user=alice"))
			before := get(t, r, alice)
			in := present(alice, tc.value)
			in.Revision, in.OnlyIfOther = tc.revision, tc.other
			intend(t, r, in)
			after := get(t, r, alice)
			if diff := cmp.Diff(before, after); (diff != "") != tc.want {
				t.Errorf("changed: %v, want %v", diff, tc.want)
			}
			if tc.want && (after.Revision != 3 || after.Value != tc.value) {
				t.Errorf("%+v", after)
			}
		})
	}
}

func TestIntendForARevisionOfAMissingRow(t *testing.T) {
	r, _ := fresh(t)
	in := present(alice, "v")
	in.Revision = 1
	intend(t, r, in)
	if regs := all(t, r, Filter{}); len(regs) != 0 {
		t.Errorf("%+v", regs)
	}
	if reg, err := r.IntendOne(t.Context(), in); err != nil || !cmp.Equal(reg, Registration{}) {
		t.Errorf("%+v, error %v", reg, err)
	}
}

// Those of one kind are carried out together, but none overtakes another.
func TestIntendOfManyKindsKeepsTheirOrder(t *testing.T) {
	r, _ := fresh(t)
	var intents []Intent
	want := make(map[Key]Registration)
	for i := range 237 { // all sizes of statements
		key := rowKey(i)
		intents = append(intents, Intent{Key: key, Identity: key.User, Value: "user=" + key.User, Wanted: Present})
		want[key] = Registration{Identity: key.User, Value: "user=" + key.User, Wanted: Present, State: Pending, Revision: 1}
	}
	add := func(in Intent, state State, revision int64) {
		intents = append(intents, in)
		want[in.Key] = Registration{Identity: in.Identity, Value: in.Value, Wanted: in.Wanted, State: state, Revision: revision,
			ExpiresAt: in.ExpiresAt, Force: in.Force}
	}
	add(present(rowKey(5), "a"), Pending, 2)                                                          // again
	add(present(rowKey(5), "b"), Pending, 3)                                                          // and again
	intents = append(intents, Intent{Key: rowKey(7), Value: "x", Wanted: Present, Revision: 9})       // never was
	add(Intent{Key: rowKey(5), Value: "c", Wanted: Present, OnlyIfOther: true}, Pending, 4)           // other than just before
	intents = append(intents, Intent{Key: rowKey(5), Value: "c", Wanted: Present, OnlyIfOther: true}) // the same as just before
	add(Intent{Key: rowKey(5), Value: "d", Wanted: Present, Revision: 4}, Pending, 5)                 // as it is by now
	intents = append(intents, Intent{Key: rowKey(5), Value: "e", Wanted: Present, Revision: 4})       // and was
	add(absent(rowKey(6)), Removing, 2)                                                               //
	for i, in := range []Intent{{Force: true}, {}, {ExpiresAt: noon.Add(time.Hour)}, {ExpiresAt: noon.Add(2 * time.Hour)}, {Key: Key{Server: "far"}}, {Key: Key{Server: "further"}}} {
		in.User, in.Value, in.Wanted = fmt.Sprint("with ", i), "v", Present
		if in.Server == "" {
			in.Server = "main"
		}
		add(in, Pending, 1)
	}
	add(Intent{Key: Key{"new", "main"}, Value: "v", Wanted: Present, OnlyIfOther: true}, Pending, 1)      // is not there
	intents = append(intents, Intent{Key: Key{"none", "main"}, Value: "v", Wanted: Present, Revision: 1}) // is not there
	intend(t, r, intents...)

	regs := all(t, r, Filter{})
	if len(regs) != len(want) {
		t.Errorf("%d rows, want %d", len(regs), len(want))
	}
	for _, reg := range regs {
		w := want[reg.Key()]
		if got := (Registration{Identity: reg.Identity, Value: reg.Value, Wanted: reg.Wanted, State: reg.State, Revision: reg.Revision,
			ExpiresAt: reg.ExpiresAt, Force: reg.Force}); !cmp.Equal(w, got) {
			t.Errorf("%v: %s", reg.Key(), cmp.Diff(w, got))
		}
	}
}

func TestIntendOfManyIsAllOrNothing(t *testing.T) {
	r, _ := fresh(t)
	exec1(t, r.writer.db, `CREATE TRIGGER odd BEFORE INSERT ON registrations WHEN new.username = 'odd' BEGIN SELECT RAISE(FAIL, 'odd'); END`)
	var intents []Intent
	for i := range 150 {
		intents = append(intents, present(rowKey(i), "v"))
	}
	intents = append(intents, present(Key{"odd", "main"}, "v"))
	if err := r.Intend(t.Context(), intents...); err == nil {
		t.Error("no error")
	}
	if regs := all(t, r, Filter{}); len(regs) != 0 {
		t.Errorf("%d rows were made", len(regs))
	}
}

func TestIntendEachSizeOfBatch(t *testing.T) {
	r, _ := fresh(t)
	for _, n := range []int{1, 2, 9, 10, 11, 99, 100, 101, 110, 500, 1234} {
		var intents []Intent
		for i := range n {
			intents = append(intents, present(Key{fmt.Sprintf("%d of %d", i, n), "main"}, "v"))
		}
		intend(t, r, intents...)
	}
	if got := len(all(t, r, Filter{})); got != 1+2+9+10+11+99+100+101+110+500+1234 {
		t.Errorf("%d rows", got)
	}
}
