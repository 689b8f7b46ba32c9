package agent

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"dovepush/imapmeta"
	"dovepush/registry"
)

// The times in the past of a row: what happened an hour ago, and now.
const (
	never = iota
	before
	now
)

// When a row is looked at again.
type again struct{ least, most time.Duration }

var (
	aDay   = again{verifyEvery - verifyEvery/4, verifyEvery}
	soon   = again{retryInitial, 2 * retryInitial} // after the first failure
	later4 = again{retryInitial, 16 * retryInitial}
)

// Every verdict, and what it leaves in the registry.
func TestVerdictsInTheRegistry(t *testing.T) {
	const mine, theirs = imapmeta.Value("user=alice"), imapmeta.Value("user=somebody")
	forced := func(r Request) Request { r.Force = true; return r }
	expiring := func(r Request, d time.Duration) Request { r.Expires = d; return r }
	var (
		refused  = &registry.Failure{Kind: "retry", Message: "connect: connection refused"}
		nologin  = &registry.Failure{Kind: "user", Message: errNologin.Error()}
		noUser   = &registry.Failure{Kind: "user", Message: errNoUser.Error()}
		master   = &registry.Failure{Kind: "server", Message: errMaster.Error()}
		conflict = &registry.Failure{Kind: "user", Message: `the entry notifies for user="somebody", which dovepush did not write`}
		known    = []Request{register("alice")}
	)
	type want struct {
		verdict               Verdict
		gone                  bool // no row is left; the rest does not matter
		state                 registry.State
		attempts              int
		again                 again
		expires               bool // looked at again at the very time of expiry
		force                 bool
		written               []string
		writtenAt, verifiedAt int
		failure               *registry.Failure
	}
	registered := func(v Verdict, writtenAt int) want {
		return want{verdict: v, state: registry.Registered, again: aDay, written: []string{string(mine)}, writtenAt: writtenAt, verifiedAt: now}
	}
	for _, row := range []struct {
		name    string
		past    []Request       // carried out an hour ago
		failed  int             // times that the request was tried before, and the server down
		entry   *imapmeta.Value // put there by somebody else
		request Request
		fails   error
		replace bool
		want    want
	}{
		{name: "added", request: register("alice"), want: registered(Added, now)},
		{name: "added with force, which is used up", request: forced(register("alice")), want: registered(Added, now)},
		{name: "adopted", entry: new(mine), request: register("alice"), want: registered(Adopted, never)},
		{name: "unchanged", past: known, request: register("alice"), want: registered(Unchanged, before)},
		{name: "verified", past: known, request: verify("alice"), want: registered(Unchanged, before)},
		{name: "drift", past: known, entry: new(imapmeta.Absent), request: verify("alice"), want: registered(Added, now)},
		{name: "changed identity", past: []Request{registerAs("alice", "old")}, request: register("alice"), want: registered(Changed, now)},
		{name: "changed by force, which is used up", entry: new(theirs), request: forced(register("alice")), want: registered(Changed, now)},
		{name: "changed by on_conflict = replace", entry: new(theirs), replace: true, request: register("alice"), want: registered(Changed, now)},
		{name: "added after failures, which are forgotten", failed: 3, request: forced(register("alice")), want: registered(Added, now)},
		{name: "added, expires before the next look", request: expiring(register("alice"), time.Hour),
			want: want{verdict: Added, state: registry.Registered, expires: true, written: []string{string(mine)}, writtenAt: now, verifiedAt: now}},
		{name: "added, expires after the next look", request: expiring(register("alice"), 48*time.Hour), want: registered(Added, now)},

		{name: "conflict", entry: new(theirs), request: register("alice"),
			want: want{verdict: Conflict, state: registry.Conflict, attempts: 1, again: aDay, written: []string{string(mine)}, verifiedAt: now, failure: conflict}},
		{name: "conflict keeps what was written", past: []Request{registerAs("alice", "old")}, entry: new(theirs), request: register("alice"),
			want: want{verdict: Conflict, state: registry.Conflict, attempts: 1, again: aDay, written: []string{"user=old", string(mine)}, writtenAt: before, verifiedAt: now, failure: conflict}},
		{name: "conflict by drift", past: known, entry: new(theirs), request: verify("alice"),
			want: want{verdict: Conflict, state: registry.Conflict, attempts: 1, again: aDay, written: []string{string(mine)}, writtenAt: before, verifiedAt: now, failure: conflict}},
		{name: "conflict of an expiring registration", entry: new(theirs), request: expiring(register("alice"), time.Hour),
			want: want{verdict: Conflict, state: registry.Conflict, attempts: 1, expires: true, written: []string{string(mine)}, verifiedAt: now, failure: conflict}},
		{name: "conflict at unregistering", past: known, entry: new(theirs), request: unregister("alice"), replace: true,
			want: want{verdict: Conflict, gone: true}},
		{name: "conflict at unregistering a stranger", entry: new(theirs), request: unregister("alice"), want: want{verdict: Conflict, gone: true}},

		{name: "removed", past: known, request: unregister("alice"), want: want{verdict: Removed, gone: true}},
		{name: "removed with another identity", past: []Request{registerAs("alice", "7@1")}, request: unregister("alice"), want: want{verdict: Removed, gone: true}},
		{name: "removed by force", entry: new(theirs), request: forced(unregister("alice")), want: want{verdict: Removed, gone: true}},
		{name: "removed, registry lost", entry: new(mine), request: unregister("alice"), want: want{verdict: Removed, gone: true}},
		{name: "gone already", past: known, entry: new(imapmeta.Absent), request: unregister("alice"), want: want{verdict: Unchanged, gone: true}},

		{name: "server down", request: forced(register("alice")), fails: errRefused,
			want: want{verdict: Deferred, state: registry.Pending, attempts: 1, again: soon, force: true, written: []string{string(mine)}, failure: refused}},
		{name: "server down for long", failed: 3, request: forced(register("alice")), fails: errRefused,
			want: want{verdict: Deferred, state: registry.Pending, attempts: 4, again: later4, force: true, written: []string{string(mine)}, failure: refused}},
		{name: "server down at verifying", past: known, request: verify("alice"), fails: errRefused,
			want: want{verdict: Deferred, state: registry.Registered, attempts: 1, again: soon, written: []string{string(mine)}, writtenAt: before, verifiedAt: before, failure: refused}},
		{name: "server down at unregistering", past: known, request: forced(unregister("alice")), fails: errRefused,
			want: want{verdict: Deferred, state: registry.Removing, attempts: 1, again: soon, force: true, written: []string{string(mine)}, writtenAt: before, verifiedAt: before, failure: refused}},
		{name: "server down longer than the registration lasts", request: expiring(register("alice"), time.Second), fails: errRefused,
			want: want{verdict: Deferred, state: registry.Pending, attempts: 1, expires: true, written: []string{string(mine)}, failure: refused}},
		{name: "server fails for everybody", request: register("alice"), fails: errMaster,
			want: want{verdict: Deferred, state: registry.Pending, written: []string{string(mine)}, failure: master}}, // due, and no attempt
		{name: "login disabled", request: forced(register("alice")), fails: errNologin,
			want: want{verdict: Failed, state: registry.Failed, attempts: 1, again: aDay, force: true, written: []string{string(mine)}, failure: nologin}},
		{name: "login disabled, expires", request: expiring(register("alice"), time.Hour), fails: errNologin,
			want: want{verdict: Failed, state: registry.Failed, attempts: 1, expires: true, written: []string{string(mine)}, failure: nologin}},
		{name: "login disabled at unregistering", request: unregister("alice"), fails: errNologin,
			want: want{verdict: Failed, state: registry.Failed, attempts: 1, again: aDay, failure: nologin}},
		{name: "no such user", request: register("alice"), fails: errNoUser,
			want: want{verdict: Failed, state: registry.Failed, attempts: 1, again: aDay, written: []string{string(mine)}, failure: noUser}},
		{name: "no such user, who was never reached, at unregistering", request: unregister("alice"), fails: errNoUser,
			want: want{verdict: Failed, gone: true}},
		{name: "no such user, who was registered once, at unregistering", past: known, request: unregister("alice"), fails: errNoUser,
			want: want{verdict: Failed, state: registry.Failed, attempts: 1, again: aDay, written: []string{string(mine)}, writtenAt: before, verifiedAt: before, failure: noUser}},
		{name: "no such user, who was registered once, at unregistering by force", past: known, request: forced(unregister("alice")), fails: errNoUser,
			want: want{verdict: Failed, gone: true}},
	} {
		for _, random := range []float64{0, nearlyOne} {
			t.Run(fmt.Sprintf("%s/random %.0f", row.name, random), func(t *testing.T) {
				t.Parallel()
				h, clock := still(t)
				a := h.agent(func(o *Options) { o.Replace, o.Random = row.replace, func() float64 { return random } })
				for _, r := range row.past {
					must(t, a, r, Added)
				}
				past := clock.now()
				clock.advance(time.Hour)
				request := row.request
				for range row.failed {
					h.box.reading = fails(errRefused)
					one(t.Context(), a, request)
					request = verify("alice") // the wish stands, and is tried again
				}
				if row.entry != nil {
					h.box.set("alice", *row.entry)
				}
				if h.box.reading = nil; row.fails != nil {
					h.box.reading = fails(row.fails)
				}

				result := one(t.Context(), a, request)
				if result.Verdict != row.want.verdict || result.Err != row.fails {
					t.Errorf("%s, %v; want %s, %v", result.Verdict, result.Err, row.want.verdict, row.fails)
				}
				if says := map[bool]string{true: conflict.Message}[row.want.verdict == Conflict]; result.Conflict != says {
					t.Errorf("conflict %q, want %q", result.Conflict, says)
				}
				reg, found := h.row(a.options.Registry, "alice")
				if found == row.want.gone || found != (result.Registration != nil) {
					t.Fatalf("there is a row: %t, in the result: %t", found, result.Registration != nil)
				}
				if !found {
					return
				}
				at := []time.Time{never: {}, before: past, now: clock.now()}
				want := reg // user, server, identity, value, wanted, expires and revision are the registry's
				want.State, want.Attempts, want.Force, want.Written, want.Error = row.want.state, row.want.attempts, row.want.force, row.want.written, row.want.failure
				want.WrittenAt, want.VerifiedAt = at[row.want.writtenAt], at[row.want.verifiedAt]
				want.ClaimedBy, want.ClaimedUntil = "", time.Time{}
				switch {
				case row.want.expires:
					want.NextAt = clock.now().Add(row.request.Expires)
				case random == 0:
					want.NextAt = clock.now().Add(row.want.again.least)
				case reg.NextAt.Add(time.Millisecond).Before(clock.now().Add(row.want.again.most)): // what is stored is cut to milliseconds
					want.NextAt = clock.now().Add(row.want.again.most)
				}
				for which, got := range map[string]registry.Registration{"registry": reg, "result": *result.Registration} {
					if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
						t.Errorf("the row in the %s (-want +got):\n%s", which, diff)
					}
				}
				if most := clock.now().Add(row.want.again.most); !row.want.expires && reg.NextAt.After(most) {
					t.Errorf("next look at %v, after %v", reg.NextAt, most)
				}
			})
		}
	}
}

func TestForeignValueIsCutInMessages(t *testing.T) {
	for value, want := range map[imapmeta.Value]string{
		"user=7":     `the entry notifies for user="7", which`,
		"other\tx=y": `the entry holds "other\tx=y", which`,
		"user=a\x1b": `user="a\x1b"`,
	} {
		if got := foreign(value); !strings.Contains(got, want) {
			t.Errorf("%q: %s; want %s in it", value, got, want)
		}
	}
	if n := len(foreign(imapmeta.Value("user=" + strings.Repeat("x", 1<<20)))); n > 400 {
		t.Errorf("a long value makes a message of %d bytes", n)
	}
}

func TestExpiredRegistrationIsUnregistered(t *testing.T) {
	h, clock := still(t)
	a := h.agent()
	must(t, a, Request{User: "alice", Identity: "7@1", Expires: time.Hour}, Added)
	clock.advance(time.Hour - time.Millisecond)
	must(t, a, verify("alice"), Unchanged)
	clock.advance(time.Millisecond)
	if result := must(t, a, verify("alice"), Removed); result.Registration != nil {
		t.Errorf("a row is left: %+v", result.Registration)
	}
	h.box.holds(t, "alice", imapmeta.Absent)
}

func TestExpiredRegistrationStaysExpiredWhileTheServerIsDown(t *testing.T) {
	h, clock := still(t)
	a := h.agent()
	must(t, a, Request{User: "alice", Expires: time.Hour, Force: true}, Added)
	clock.advance(2 * time.Hour)
	h.box.reading = fails(errRefused)
	one(t.Context(), a, verify("alice"))
	reg, _ := h.row(a.options.Registry, "alice")
	if reg.Wanted != registry.Absent || reg.State != registry.Removing || reg.Force || !reg.NextAt.After(clock.now()) {
		t.Errorf("row %+v", reg)
	}
	h.box.reading = nil
	must(t, a, verify("alice"), Removed)
}

// What somebody else wrote is not removed, be the registration that conflicts with it expired.
func TestExpiryKeepsForeignValues(t *testing.T) {
	h, clock := still(t)
	a := h.agent(func(o *Options) { o.Replace = true })
	must(t, a, Request{User: "alice", Expires: time.Hour}, Added)
	clock.advance(time.Hour)
	h.box.set("alice", "user=somebody")
	must(t, a, verify("alice"), Conflict)
	h.box.holds(t, "alice", "user=somebody")
}

func TestRegisteringAgainRenews(t *testing.T) {
	for name, renewal := range map[string]Request{
		"for longer": {User: "alice", Expires: 2 * time.Hour},
		"for ever":   {User: "alice"},
	} {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/late %t", name, late), func(t *testing.T) {
				h, clock := still(t)
				a := h.agent()
				must(t, a, Request{User: "alice", Expires: time.Hour}, Added)
				clock.advance(59 * time.Minute)
				if late {
					clock.advance(time.Hour)
				}
				must(t, a, renewal, Unchanged)
				clock.advance(time.Hour)
				must(t, a, verify("alice"), Unchanged)
				h.box.holds(t, "alice", "user=alice")
			})
		}
	}
}
