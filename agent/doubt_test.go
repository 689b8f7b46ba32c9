package agent

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	_ "modernc.org/sqlite"

	"dovepush/imapmeta"
	"dovepush/registry"
)

// errSilent is what a SETMETADATA without a reply ends in.
var errSilent = &imapmeta.Error{Kind: imapmeta.Retry, Op: "setmetadata", Err: context.DeadlineExceeded}

// lateWrite lets Dovecot carry out what the next Update writes only when come
// is called; the Update itself gets no reply.
func lateWrite(m *mailbox) (come func()) {
	var user string
	var before, late imapmeta.Value
	m.reading = func(_ context.Context, u string) error { user, before = u, m.get(u); return nil }
	m.wrote = func(_ context.Context, u string) error {
		late = m.get(u)
		m.set(u, before)
		m.reading, m.wrote = nil, nil
		return errSilent
	}
	return func() { m.set(user, late) }
}

// doubted expects that a removal is not certain, and when it is looked at again.
func doubted(t *testing.T, h *house, a *Agent, result Result, until time.Time) {
	t.Helper()
	reg, found := h.row(a.options.Registry, result.User)
	if result.Verdict != Deferred || !errors.Is(result.Err, ErrDoubt) || !strings.Contains(result.Err.Error(), until.Format("15:04:05")) ||
		!found || result.Registration == nil {
		t.Fatalf("%+v; row (%t) %+v", result, found, reg)
	}
	if reg.State != registry.Removing || !reg.NextAt.Equal(until) || !reg.DoubtUntil.Equal(until) || reg.Attempts == 0 || len(reg.Written) == 0 || reg.Error == nil {
		t.Errorf("row %+v, want a look at %v", reg, until)
	}
}

func TestWriteThatComesThroughAfterUnregisteringIsRemoved(t *testing.T) {
	h, clock := still(t)
	a := h.agent()
	come := lateWrite(h.box)
	if result := one(t.Context(), a, register("dave")); !errors.Is(result.Err, errSilent) {
		t.Fatalf("%+v", result)
	}
	end := noon.Add(registry.Linger)
	clock.advance(time.Second)
	doubted(t, h, a, one(t.Context(), a, unregister("dave")), end)
	clock.advance(66 * time.Second)
	come()
	// It was the only one that could come.
	if result := must(t, a, verify("dave"), Removed); result.Registration != nil {
		t.Errorf("row %+v", result.Registration)
	}
	h.box.holds(t, "dave", imapmeta.Absent)
}

func TestRemovalIsCertainWhenTheDoubtIsOver(t *testing.T) {
	h, clock := still(t)
	a := h.agent()
	lateWrite(h.box)
	one(t.Context(), a, register("dave"))
	one(t.Context(), a, unregister("dave"))
	clock.advance(registry.Linger - time.Millisecond)
	doubted(t, h, a, one(t.Context(), a, verify("dave")), noon.Add(registry.Linger))
	clock.advance(time.Millisecond)
	if result := must(t, a, verify("dave"), Unchanged); result.Registration != nil {
		t.Errorf("row %+v", result.Registration)
	}
}

// Only what was sent and not answered leaves a doubt.
func TestFailuresThatLeaveADoubt(t *testing.T) {
	reply := func(status string) error {
		return &imapmeta.Error{Kind: imapmeta.Retry, Op: "setmetadata", Status: status}
	}
	for _, row := range []struct {
		name    string
		reading error
		wrote   error
		doubt   bool
	}{
		{"refused connection", errRefused, nil, false},
		{"NO", nil, reply("NO"), false},
		{"BAD", nil, reply("BAD"), false},
		{"BYE", nil, reply("BYE"), true},
		{"silence", nil, errSilent, true},
		{"unclassified", nil, errors.New("odd"), true},
	} {
		t.Run(row.name, func(t *testing.T) {
			h, _ := still(t)
			a := h.agent()
			h.box.reading, h.box.wrote = fails(row.reading), fails(row.wrote)
			one(t.Context(), a, register("dave"))
			want := time.Time{}
			if row.doubt {
				want = noon.Add(registry.Linger)
			}
			if reg, _ := h.row(a.options.Registry, "dave"); !reg.DoubtUntil.Equal(want) {
				t.Errorf("doubt until %v, want %v", reg.DoubtUntil, want)
			}
		})
	}
}

// What is there when the user is unregistered is what was written the second
// time: the first write may still come.
func TestWriteThatComesThroughAfterAnotherIsRemovedToo(t *testing.T) {
	h, clock := still(t)
	a := h.agent()
	come := lateWrite(h.box)
	one(t.Context(), a, register("dave"))
	clock.advance(30 * time.Second)
	must(t, a, verify("dave"), Added)
	clock.advance(time.Second)
	end := noon.Add(registry.Linger)
	doubted(t, h, a, one(t.Context(), a, unregister("dave")), end)
	come()
	clock.advance(registry.Linger)
	if result := must(t, a, verify("dave"), Removed); result.Registration != nil {
		t.Errorf("row %+v", result.Registration)
	}
	h.box.holds(t, "dave", imapmeta.Absent)
}

// A connector that sent a write twice got one answer: the other may come late.
func TestWriteThatWasSentTwiceLeavesADoubt(t *testing.T) {
	h, clock := still(t)
	a := h.agent()
	h.box.resends = true
	must(t, a, register("dave"), Added)
	end := noon.Add(registry.Linger)
	if reg, _ := h.row(a.options.Registry, "dave"); reg.State != registry.Registered || !reg.DoubtUntil.Equal(end) {
		t.Errorf("%+v", reg)
	}
	clock.advance(time.Second)
	doubted(t, h, a, one(t.Context(), a, unregister("dave")), end) // a removal that was sent twice adds none
	clock.advance(50 * time.Second)
	h.box.set("dave", "user=dave") // it comes
	doubted(t, h, a, one(t.Context(), a, verify("dave")), end)
	h.box.holds(t, "dave", imapmeta.Absent)
	clock.advance(registry.Linger)
	must(t, a, verify("dave"), Unchanged)
}

func TestSilenceAtRemovingOrKeepingLeavesNoDoubt(t *testing.T) {
	h, _ := still(t)
	a := h.agent()
	must(t, a, register("dave"), Added)
	h.box.wrote = fails(errSilent)
	for _, r := range []Request{verify("dave"), unregister("dave")} {
		one(t.Context(), a, r)
		if reg, _ := h.row(a.options.Registry, "dave"); !reg.DoubtUntil.IsZero() {
			t.Errorf("%+v: doubt until %v", r, reg.DoubtUntil)
		}
	}
}

// The late value of an earlier identity stays known as ours although a later
// identity was written and confirmed meanwhile.
func TestLateValueOfAnEarlierIdentityIsKnownAfterALaterSuccess(t *testing.T) {
	h, clock := still(t)
	a := h.agent()
	come := lateWrite(h.box)
	one(t.Context(), a, registerAs("dave", "old"))
	must(t, a, registerAs("dave", "new"), Added)
	must(t, a, verify("dave"), Unchanged)
	end := noon.Add(registry.Linger)
	if reg, _ := h.row(a.options.Registry, "dave"); reg.State != registry.Registered || !reg.NextAt.Equal(end) || !slices.Equal(reg.Written, []string{"user=old", "user=new"}) {
		t.Errorf("row %+v", reg)
	}
	clock.advance(66 * time.Second)
	come()
	clock.advance(registry.Linger - 66*time.Second)
	must(t, a, verify("dave"), Changed)
	h.box.holds(t, "dave", "user=new")
	if reg, _ := h.row(a.options.Registry, "dave"); !slices.Equal(reg.Written, []string{"user=new"}) || !reg.DoubtUntil.IsZero() || reg.NextAt.Before(clock.now().Add(verifyEvery/2)) {
		t.Errorf("row %+v", reg)
	}
}

func TestRemovedValueDoesNotSettleADoubtOfAnother(t *testing.T) {
	for name, second := range map[string]Request{"another identity": registerAs("dave", "new"), "the same, sent twice": registerAs("dave", "old")} {
		t.Run(name, func(t *testing.T) {
			h, _ := still(t)
			a := h.agent()
			lateWrite(h.box)
			one(t.Context(), a, registerAs("dave", "old"))
			must(t, a, second, Added)
			doubted(t, h, a, one(t.Context(), a, unregister("dave")), noon.Add(registry.Linger))
			h.box.holds(t, "dave", imapmeta.Absent)
		})
	}
}

func TestKilledProcessLeavesADoubt(t *testing.T) {
	h, clock := still(t)
	dying := h.agent()
	h.box.wrote = func(ctx context.Context, user string) error {
		h.box.set(user, imapmeta.Absent) // it comes late
		return died(dying)(ctx, user)
	}
	one(t.Context(), dying, register("dave"))
	h.box.wrote = nil
	clock.advance(timeout + claimSlack)
	a := h.agent()
	doubted(t, h, a, one(t.Context(), a, unregister("dave")), noon.Add(timeout+claimSlack+registry.Linger))
}

func TestDoubtFromBeforeTheClockWasSetBackIsCut(t *testing.T) {
	h, clock := still(t)
	a := h.agent()
	lateWrite(h.box)
	one(t.Context(), a, register("dave"))
	clock.advance(-1000 * time.Hour)
	doubted(t, h, a, one(t.Context(), a, unregister("dave")), clock.now().Add(registry.MaxClaim+registry.Linger))
}

func TestForeignValueDuringADoubtKeepsTheRowUntilItIsOver(t *testing.T) {
	h, clock := still(t)
	a := h.agent()
	lateWrite(h.box)
	one(t.Context(), a, register("dave"))
	h.box.set("dave", "user=somebody")
	if result := must(t, a, unregister("dave"), Conflict); result.Conflict == "" || result.Registration == nil || !result.Registration.NextAt.Equal(noon.Add(registry.Linger)) {
		t.Errorf("%+v", result)
	}
	clock.advance(registry.Linger)
	if result := must(t, a, verify("dave"), Conflict); result.Conflict == "" || result.Registration != nil {
		t.Errorf("%+v", result)
	}
	h.box.holds(t, "dave", "user=somebody")
}

func TestUnknownUserInDoubtIsNotForgotten(t *testing.T) {
	h, _ := still(t)
	a := h.agent()
	lateWrite(h.box)
	one(t.Context(), a, register("dave"))
	h.box.reading = fails(errNoUser)
	if result := one(t.Context(), a, unregister("dave")); result.Registration == nil {
		t.Errorf("%+v", result)
	}
}

// SQLite waits by the bubble's clock, too.
func TestRegistryThatIsLockedWhenTheResultIsRecorded(t *testing.T) {
	for _, row := range []struct {
		name string
		lock time.Duration
		also bool // somebody else waits for the lock first, in vain
		want error
	}{
		{"for less than it is waited for", 18 * time.Second, false, nil},
		{"for good", time.Hour, false, registry.ErrBusy},
		{"for good, and others wait, too", time.Hour, true, ErrLate},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t, time.Now)
				a := h.agent()
				unlocked := make(chan error, 1)
				waited := make(chan error, 1)
				h.box.wrote = func(ctx context.Context, _ string) error {
					unlock, err := lock(t.Context(), h.path)
					if err != nil {
						return err
					}
					time.AfterFunc(row.lock, func() { unlocked <- unlock() })
					if waited <- nil; row.also {
						<-waited
						go func() { waited <- a.options.Registry.Release(context.Background(), "nobody") }()
						time.Sleep(time.Second)
					}
					return nil
				}
				result := one(t.Context(), a, register("dave"))
				if !errors.Is(result.Err, row.want) || (result.Verdict == Added) != (row.want == nil) {
					t.Errorf("%s, %v; want %v", result.Verdict, result.Err, row.want)
				}
				<-waited
				if err := <-unlocked; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// lock takes the registry's write lock, as another process would.
func lock(ctx context.Context, path string) (unlock func() error, err error) {
	db, err := sql.Open("sqlite", path)
	if err != nil {
		return nil, err
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	if _, err := conn.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), conn.Close(), db.Close())
	}
	return func() error {
		_, err := conn.ExecContext(context.Background(), "ROLLBACK")
		return errors.Join(err, conn.Close(), db.Close())
	}, nil
}
