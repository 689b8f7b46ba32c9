package registry

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// claimed makes alice's row with force and claims it.
func claimed(t *testing.T, r *Registry) Registration {
	t.Helper()
	intend(t, r, Intent{Key: alice, Value: "user=alice", Wanted: Present, Force: true})
	return take(t, r, alice, "agent")
}

func TestRecordSettlesTheWish(t *testing.T) {
	r, c := fresh(t)
	want := claimed(t, r)
	later := c.advance(time.Second)
	lost := record(t, r, "agent", Result{Key: alice, Revision: want.Revision, State: Registered,
		Written: []string{"user=alice"}, WrittenAt: later, VerifiedAt: later, NextAt: later.Add(24 * time.Hour)})
	if len(lost) != 0 {
		t.Errorf("lost %v", lost)
	}
	want.State, want.WrittenAt, want.VerifiedAt, want.NextAt = Registered, later, later, later.Add(24*time.Hour)
	want.Force, want.Attempts, want.ClaimedBy, want.ClaimedUntil = false, 0, "", time.Time{}
	if diff := cmp.Diff(want, get(t, r, alice)); diff != "" {
		t.Error(diff)
	}
}

func TestRecordUnsettledKeepsForceAndAttempts(t *testing.T) {
	r, _ := fresh(t)
	want := claimed(t, r)
	record(t, r, "agent", Result{Key: alice, Revision: want.Revision, State: Pending, Unsettled: true,
		NextAt: noon.Add(time.Minute), Failure: &Failure{Kind: "retry", Message: "connection refused"}})
	want.NextAt, want.Error = noon.Add(time.Minute), &Failure{Kind: "retry", Message: "connection refused"}
	want.ClaimedBy, want.ClaimedUntil = "", time.Time{}
	if diff := cmp.Diff(want, get(t, r, alice)); diff != "" {
		t.Error(diff)
	}
}

func TestRecordUncountedTakesTheAttemptBack(t *testing.T) {
	for name, tc := range map[string]struct {
		claims               int
		unsettled, uncounted bool
		want                 int
	}{
		"the first":                     {1, true, true, 0},
		"the third":                     {3, true, true, 2},
		"no attempt is known":           {0, true, true, 0},
		"counted":                       {3, true, false, 3},
		"settled":                       {3, false, false, 0},
		"settled, for which it is vain": {3, false, true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := fresh(t)
			reg := claimed(t, r)
			for range tc.claims - 1 {
				take(t, r, alice, "agent")
			}
			if tc.claims == 0 { // cannot be, but must not stop the work
				exec1(t, r.writer.db, "UPDATE registrations SET attempts = 0")
			}
			record(t, r, "agent", Result{Key: alice, Revision: reg.Revision, State: Pending, Unsettled: tc.unsettled, Uncounted: tc.uncounted})
			if got := get(t, r, alice); got.Attempts != tc.want || got.Force != tc.unsettled {
				t.Errorf("%d attempts, want %d; force %v", got.Attempts, tc.want, got.Force)
			}
		})
	}
}

func TestRecordWithoutTimesAndWrittenLeavesThem(t *testing.T) {
	r, c := fresh(t)
	reg := claimed(t, r)
	record(t, r, "agent", Result{Key: alice, Revision: reg.Revision, State: Registered, WrittenAt: noon, VerifiedAt: noon,
		Failure: &Failure{Kind: "user", Message: "gone with the next"}})
	c.advance(time.Minute)
	take(t, r, alice, "agent")
	record(t, r, "agent", Result{Key: alice, Revision: reg.Revision, State: Registered})
	got := get(t, r, alice)
	if !got.WrittenAt.Equal(noon) || !got.VerifiedAt.Equal(noon) || len(got.Written) != 1 {
		t.Errorf("written %v at %v, verified at %v", got.Written, got.WrittenAt, got.VerifiedAt)
	}
	if got.Error != nil || !got.NextAt.IsZero() {
		t.Errorf("error %v, next at %v: both should be cleared", got.Error, got.NextAt)
	}
}

func TestRecordNothingWritten(t *testing.T) {
	r, _ := fresh(t)
	reg := claimed(t, r)
	record(t, r, "agent", Result{Key: alice, Revision: reg.Revision, State: Conflict, Written: []string{}})
	if got := get(t, r, alice); len(got.Written) != 0 {
		t.Errorf("written %q", got.Written)
	}
}

func TestRecordGoneDeletesTheRow(t *testing.T) {
	r, _ := fresh(t)
	intend(t, r, absent(alice))
	reg := take(t, r, alice, "agent")
	record(t, r, "agent", Result{Key: alice, Revision: reg.Revision, Gone: true})
	if _, found, err := r.Get(t.Context(), alice); found || err != nil {
		t.Errorf("found %v, error %v", found, err)
	}
}

func TestRecordGoneIsRefusedForAnEntryThatShouldBePresent(t *testing.T) {
	r, _ := fresh(t)
	reg := claimed(t, r)
	if _, err := r.Record(t.Context(), "agent", Result{Key: alice, Revision: reg.Revision, Gone: true}); err == nil {
		t.Error("no error")
	}
	get(t, r, alice)
}

func TestRecordAfterTheWishChangedKeepsOnlyWhatWasLearnt(t *testing.T) {
	for name, change := range map[string]Intent{
		"another value": {Key: alice, Value: "user=new", Wanted: Present, Force: true},
		"removal":       {Key: alice, Wanted: Absent, Force: true},
	} {
		t.Run(name, func(t *testing.T) {
			r, c := fresh(t)
			old := claimed(t, r)
			later := c.advance(time.Second)
			intend(t, r, change)
			want := get(t, r, alice)

			lost := record(t, r, "agent", Result{Key: alice, Revision: old.Revision, State: Registered,
				Written: []string{"user=alice"}, DoubtUntil: later.Add(Linger), WrittenAt: later, VerifiedAt: later,
				NextAt: later.Add(24 * time.Hour), Failure: &Failure{Kind: "user", Message: "of the old wish"}})
			if len(lost) != 0 {
				t.Errorf("lost %v", lost)
			}
			want.WrittenAt, want.VerifiedAt, want.DoubtUntil, want.ClaimedBy, want.ClaimedUntil = later, later, later.Add(Linger), "", time.Time{}
			if diff := cmp.Diff(want, get(t, r, alice)); diff != "" {
				t.Error(diff)
			}
			if want.NextAt != later || !want.Force {
				t.Errorf("the newer wish is due at %v with force %v", want.NextAt, want.Force)
			}
		})
	}
}

func TestRecordGoneAfterTheWishChangedDeletesNothing(t *testing.T) {
	for name, tc := range map[string]struct {
		change Intent
		want   State
	}{
		"to be registered":    {present(alice, "user=alice"), Pending},
		"to be removed again": {Intent{Key: alice, Wanted: Absent, Force: true}, Removing},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := fresh(t)
			intend(t, r, absent(alice))
			old := take(t, r, alice, "agent")
			intend(t, r, tc.change)
			record(t, r, "agent", Result{Key: alice, Revision: old.Revision, Gone: true, Written: []string{}})
			got := get(t, r, alice)
			if got.Wanted != tc.change.Wanted || got.State != tc.want || got.ClaimedBy != "" || !got.NextAt.Equal(noon) || got.Force != tc.change.Force {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestRecordWithoutTheClaimIsLostAndTheRestIsKept(t *testing.T) {
	r, c := fresh(t)
	bob, gone := Key{User: "bob", Server: "main"}, Key{User: "gone", Server: "main"}
	intend(t, r, present(alice, "user=alice"), present(bob, "user=bob"))
	take(t, r, alice, "agent")
	take(t, r, bob, "agent")
	c.advance(2 * time.Minute)
	take(t, r, alice, "other")
	want := get(t, r, alice)

	result := func(key Key) Result { return Result{Key: key, Revision: 1, State: Registered} }
	lost := record(t, r, "agent", result(alice), result(bob), result(gone))
	if diff := cmp.Diff([]Key{alice, gone}, lost); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(want, get(t, r, alice)); diff != "" {
		t.Error("the other's row changed:", diff)
	}
	// An expired claim that nobody took over is as good as a running one.
	if got := get(t, r, bob); got.State != Registered {
		t.Errorf("bob is %q", got.State)
	}
	if lost := record(t, r, "", result(bob)); len(lost) != 1 {
		t.Error("nobody recorded for a row that nobody claimed")
	}
}

func TestRecordIsAllOrNothing(t *testing.T) {
	r, _ := fresh(t)
	reg := claimed(t, r)
	if _, err := r.Record(t.Context(), "agent", Result{Key: alice, Revision: reg.Revision, State: Registered}, Result{Key: alice, State: "odd"}); err == nil {
		t.Fatal("an unknown state was taken")
	}
	if got := get(t, r, alice); got.State != Pending || got.ClaimedBy != "agent" {
		t.Errorf("state %q, claimed by %q", got.State, got.ClaimedBy)
	}
}

func TestRecordCutsAStrangersWords(t *testing.T) {
	r, _ := fresh(t)
	reg := claimed(t, r)
	record(t, r, "agent", Result{Key: alice, Revision: reg.Revision, State: Failed,
		Failure: &Failure{Kind: "user", Message: "NO\x00 \xff" + strings.Repeat("ä", maxMessage)}})
	got := get(t, r, alice).Error.Message
	if want := "NO " + strings.Repeat("ä", (maxMessage-5)/2); got != want {
		t.Errorf("%d bytes: %.20q", len(got), got)
	}
}
