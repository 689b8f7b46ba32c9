package agent

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dovepush/identity"
	"dovepush/imapmeta"
	"dovepush/registry"
)

const (
	keyA = "the first key, of which there are 32 letters and more"
	keyB = "the second key, of which there are 32 letters and more"
)

func newSigner(t testing.TB, key, old string) *identity.Signer {
	t.Helper()
	s, err := identity.New(key, old, false)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func signing(s *identity.Signer) func(*Options) {
	return func(o *Options) { o.Sign, o.Plain = s.Sign, s.Plain }
}

// holdsSigned expects that a user's entry and row are signed, and that the row
// knows of no other value.
func (h *house) holdsSigned(r *registry.Registry, s *identity.Signer, user, plain string) {
	h.t.Helper()
	value := imapmeta.Encode(imapmeta.Pair{Key: "user", Value: s.Sign(plain)})
	h.box.holds(h.t, user, value)
	reg, _ := h.row(r, user)
	if reg.Identity != s.Sign(plain) || reg.Value != string(value) || !slices.Equal(reg.Written, []string{string(value)}) ||
		reg.State != registry.Registered || reg.ClaimedBy != "" || !reg.DoubtUntil.IsZero() {
		h.t.Errorf("%s: %+v", user, reg)
	}
}

func TestIdentitiesAreSignedOnce(t *testing.T) {
	h, c := still(t)
	s := newSigner(t, keyA, "")
	a := h.agent(signing(s))
	must(t, a, register("alice"), Added)
	must(t, a, registerAs("bob", "3@7"), Added)
	for _, again := range []Request{register("alice"), verify("alice"), registerAs("bob", "3@7"), verify("bob")} {
		c.advance(time.Second)
		must(t, a, again, Unchanged)
		h.holdsSigned(a.options.Registry, s, "alice", "alice")
		h.holdsSigned(a.options.Registry, s, "bob", "3@7")
	}
	c.advance(time.Second)
	must(t, a, unregister("alice"), Removed)
	if err := one(t.Context(), a, registerAs("carol", "a\x00b")).Err; !errors.Is(err, ErrIdentity) {
		t.Errorf("a bad identity: %v", err)
	}
	nobody := h.agent(signing(s), func(o *Options) { o.Identity = func(string) string { return "" } })
	if err := one(t.Context(), nobody, register("carol")).Err; !errors.Is(err, ErrIdentity) {
		t.Errorf("an empty identity: %v", err)
	}
	tooLong := strings.Repeat("x", imapmeta.MaxValue-len("user=")-identity.Overhead+1)
	if err := one(t.Context(), a, registerAs("carol", tooLong)).Err; !errors.Is(err, ErrIdentity) {
		t.Errorf("an identity that does not fit with its signature: %v", err)
	}
}

func TestPlanSaysWhoseSignatureIsOutdated(t *testing.T) {
	h, c := still(t)
	a := h.agent(signing(newSigner(t, keyA, "")))
	for _, r := range []Request{register("due"), registerAs("other", "1@2"), register("removing")} {
		must(t, a, r, Added)
	}
	h.box.reading = fails(errNologin)
	one(t.Context(), a, register("refuseddue"))
	h.box.reading = nil
	c.advance(25 * time.Hour)
	must(t, a, register("fresh"), Added)
	must(t, h.agent(), register("unsigned"), Added)
	must(t, h.agent(signing(newSigner(t, keyB, ""))), register("new"), Added)
	h.box.reading = fails(errNologin)
	one(t.Context(), a, register("refused"))
	h.box.reading = fails(errRefused)
	one(t.Context(), a, register("retrying"))
	h.box.reading = nil
	one(t.Context(), a, Request{Action: Unregister, User: "removing", NoWait: true})

	rotated := newSigner(t, keyB, keyA)
	names := []string{"due", "fresh", "new", "other", "refused", "refuseddue", "retrying", "unsigned"}
	as := func(s []string) []string {
		for i := range s {
			s[i] += " on main"
		}
		return s
	}
	for _, test := range []struct {
		name    string
		changes func(*Options)
		aim     Aim
		want    []string
	}{
		{"the key is as it was", signing(newSigner(t, keyA, "")), Aim{Listed: listed(names...), Verify: None}, []string{
			"change new", "change other", "remove removing", "add retrying", "change unsigned"}},
		{"all are listed, none is verified", signing(rotated), Aim{Listed: listed(names...), Verify: None}, []string{
			"change due", "change fresh", "change other", "remove removing", "add retrying", "change unsigned"}},
		{"who was refused has to wait until he is due", signing(rotated), Aim{Listed: listed(names...), Verify: Due}, []string{
			"change due", "change fresh", "change other", "change refuseddue", "remove removing", "add retrying", "change unsigned"}},
		{"all are verified", signing(rotated), Aim{Listed: listed(names...), Verify: All}, []string{
			"change due", "change fresh", "verify new", "change other", "change refused", "change refuseddue", "remove removing", "add retrying", "change unsigned"}},
		{"no list", signing(rotated), Aim{Verify: None}, []string{
			"change due", "change fresh", "change other", "remove removing", "add retrying", "change unsigned"}},
		{"others' users", signing(rotated), Aim{Listed: listed("fresh"), Verify: None}, []string{"change fresh", "remove removing"}},
		{"nothing is signed any more, no list", func(*Options) {}, Aim{Verify: None}, []string{"remove removing", "add retrying"}},
		{"nothing is signed any more, listed", func(*Options) {}, Aim{Listed: listed("fresh", "unsigned"), Verify: None}, []string{"change fresh", "remove removing"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, steps := plan(t, h.agent(test.changes), test.aim); !slices.Equal(steps, as(test.want)) {
				t.Errorf("steps\n%q\nwant\n%q", steps, test.want)
			}
		})
	}
}

// What is moved keeps everything that somebody wished for.
func TestSweepMovesEverybodyToTheNewKey(t *testing.T) {
	for name, aim := range map[string]Aim{
		"listed":  {Listed: listed("alice", "bob", "carol"), Verify: None},
		"no list": {Verify: None},
	} {
		t.Run(name, func(t *testing.T) {
			h, c := still(t)
			old, rotated := newSigner(t, keyA, ""), newSigner(t, keyB, keyA)
			before := h.agent(signing(old))
			must(t, before, Request{Action: Register, User: "alice", Expires: 48 * time.Hour}, Added)
			must(t, h.agent(), register("bob"), Added)
			h.box.set("carol", "user=somebody")
			must(t, before, register("carol"), Conflict)
			c.advance(time.Hour)

			a := h.agent(signing(rotated))
			want := map[string]Verdict{"alice": Changed, "bob": Changed, "carol": Conflict}
			for user, verdict := range swept(t, a, aim) {
				if verdict != want[user] {
					t.Errorf("%s: %s, want %s", user, verdict, want[user])
				}
				delete(want, user)
			}
			if len(want) > 0 {
				t.Errorf("not reported: %v", want)
			}
			for _, user := range []string{"alice", "bob"} {
				h.holdsSigned(a.options.Registry, rotated, user, user)
			}
			if reg, _ := h.row(a.options.Registry, "alice"); !reg.ExpiresAt.Equal(noon.Add(48 * time.Hour)) {
				t.Errorf("expires at %v", reg.ExpiresAt)
			}
			if reg, _ := h.row(a.options.Registry, "carol"); reg.State != registry.Conflict || reg.Identity != rotated.Sign("carol") {
				t.Errorf("carol: %+v", reg)
			}
			if _, steps := plan(t, a, aim); len(steps) > 0 {
				t.Errorf("still to be done: %q", steps)
			}
		})
	}
}

func TestServiceMovesWhoIsDueToTheNewKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		old, rotated := newSigner(t, keyA, ""), newSigner(t, keyB, keyA)
		before := h.agent(signing(old))
		names := users("a.test", 20)
		for _, user := range names {
			must(t, before, Request{Action: Register, User: user, Identity: "id-" + user, Expires: 100 * time.Hour}, Added)
		}
		h.box.reading = fails(errNologin)
		one(t.Context(), before, register("refused"))
		h.box.reading = func(_ context.Context, user string) error {
			if reg, _ := h.row(before.options.Registry, user); !slices.Contains(reg.Written, reg.Value) || reg.ClaimedBy == "" {
				t.Errorf("%s: the value is not known as ours before it is written: %+v", user, reg)
			}
			if user == "refused" {
				return errNologin
			}
			return nil
		}
		a := h.agent(signing(rotated), connections(4))
		stop := h.run(a)
		time.Sleep(verifyEvery + time.Hour)
		stop()
		for _, user := range names {
			h.holdsSigned(a.options.Registry, rotated, user, "id-"+user)
			if reg, _ := h.row(a.options.Registry, user); reg.ExpiresAt.IsZero() {
				t.Errorf("%s does not expire any more", user)
			}
		}
		if reg, _ := h.row(a.options.Registry, "refused"); reg.State != registry.Failed || reg.Identity != rotated.Sign("refused") || reg.Error == nil {
			t.Errorf("refused: %+v", reg)
		}
		if n := len(h.box.updated()); n > 2*len(names)+4 {
			t.Errorf("%d exchanges", n)
		}
	})
}

// A server that does not answer leaves both values known as ours, so that either
// may be found later.
func TestMoveThatFailsIsRepeatedWithoutAConflict(t *testing.T) {
	for name, hook := range map[string]func(*mailbox) *func(context.Context, string) error{
		"before it was written": func(m *mailbox) *func(context.Context, string) error { return &m.reading },
		"after it was written":  func(m *mailbox) *func(context.Context, string) error { return &m.wrote },
	} {
		t.Run(name, func(t *testing.T) {
			h, c := still(t)
			rotated := newSigner(t, keyB, keyA)
			must(t, h.agent(signing(newSigner(t, keyA, ""))), register("alice"), Added)
			c.advance(time.Hour)
			a := h.agent(signing(rotated))
			*hook(h.box) = fails(errRefused)
			if result := one(t.Context(), a, verify("alice")); result.Verdict != Deferred {
				t.Fatalf("%+v", result)
			}
			reg, _ := h.row(a.options.Registry, "alice")
			if want := []string{"user=" + newSigner(t, keyA, "").Sign("alice"), "user=" + rotated.Sign("alice")}; !slices.Equal(reg.Written, want) {
				t.Errorf("written %q, want %q", reg.Written, want)
			}
			*hook(h.box) = nil
			c.advance(time.Hour)
			if result := one(t.Context(), a, verify("alice")); result.Err != nil || result.Verdict == Conflict {
				t.Errorf("%s, %v", result.Verdict, result.Err)
			}
			h.holdsSigned(a.options.Registry, rotated, "alice", "alice")
		})
	}
}

func TestMoveKeepsForceAndTheStateOfWhoIsInTrouble(t *testing.T) {
	h, c := still(t)
	before, a := h.agent(signing(newSigner(t, keyA, ""))), h.agent(signing(newSigner(t, keyB, keyA)))
	for _, user := range []string{"forced", "conflict"} {
		h.box.set(user, "user=somebody")
	}
	one(t.Context(), before, Request{Action: Register, User: "forced", Force: true, NoWait: true})
	must(t, before, register("conflict"), Conflict)
	h.box.reading = fails(errNologin)
	one(t.Context(), before, register("failed"))
	c.advance(time.Hour)

	h.box.reading = fails(errRefused)
	for user, want := range map[string]registry.State{"forced": registry.Pending, "conflict": registry.Conflict, "failed": registry.Failed} {
		one(t.Context(), a, verify(user))
		if reg, _ := h.row(a.options.Registry, user); reg.State != want || reg.Identity != a.sign(user) || reg.Error == nil || reg.Error.Kind != string(imapmeta.Retry) {
			t.Errorf("%s: %+v, %+v", user, reg, reg.Error)
		}
	}
	h.box.reading = nil
	c.advance(time.Hour)
	must(t, a, verify("forced"), Changed)
	must(t, a, verify("conflict"), Conflict)
	must(t, a, verify("failed"), Added)

	must(t, before, register("well"), Added)
	c.advance(time.Hour)
	must(t, a, verify("well"), Changed)
}

// What was registered before anything was signed must not be stuck.
func TestWhoseIdentityDoesNotFitWithASignatureStaysAndCanLeave(t *testing.T) {
	h, c := still(t)
	long := strings.Repeat("x", imapmeta.MaxValue-len("user="))
	unsigned, a := h.agent(), h.agent(signing(newSigner(t, keyA, "")))
	for _, user := range []string{"alice", "bob"} {
		must(t, unsigned, registerAs(user, long), Added)
	}
	c.advance(time.Hour)
	must(t, a, verify("alice"), Unchanged)
	h.box.holds(t, "alice", imapmeta.Value("user="+long))
	if _, steps := plan(t, a, Aim{Verify: None}); len(steps) > 0 {
		t.Errorf("a sweep would do %q again and again", steps)
	}
	must(t, a, unregister("alice"), Removed)
	if verdicts := swept(t, a, Aim{Listed: listed(), Prune: true}); verdicts["bob"] != Removed {
		t.Errorf("%v", verdicts)
	}
}

// Who changes his mind between the claim and the new signature has the last word.
func TestSignAnewLeavesANewerWishAlone(t *testing.T) {
	h, c := still(t)
	rotated := newSigner(t, keyB, keyA)
	must(t, h.agent(signing(newSigner(t, keyA, ""))), register("alice"), Added)
	a := h.agent(signing(rotated))
	until := c.now().Add(time.Minute)
	key := registry.Key{User: "alice", Server: "main"}
	reg, outcome, err := a.options.Registry.Claim(t.Context(), key, "me", until, until)
	if err != nil || outcome != registry.Taken {
		t.Fatal(outcome, err)
	}
	one(t.Context(), a, Request{Action: Unregister, User: "alice", NoWait: true})
	ours, lost, err := a.signAnew(t.Context(), "me", "main", until, until, reg)
	if err != nil || len(lost) != 0 || len(ours) != 1 || ours[0].Wanted != registry.Absent {
		t.Errorf("%+v, %+v, %v", ours, lost, err)
	}
	// And whose row is somebody else's by now is not worked on.
	if err := a.options.Registry.Release(t.Context(), "me"); err != nil {
		t.Fatal(err)
	}
	if _, outcome, err := a.options.Registry.Claim(t.Context(), key, "other", until, until); err != nil || outcome != registry.Taken {
		t.Fatal(outcome, err)
	}
	if ours, lost, err := a.signAnew(t.Context(), "me", "main", until, until, reg); err != nil || len(ours) != 0 || len(lost) != 1 {
		t.Errorf("%+v, %+v, %v", ours, lost, err)
	}
}

func TestOneHalfOfSigningIsRefused(t *testing.T) {
	h, _ := still(t)
	o := h.agent(signing(newSigner(t, keyA, ""))).options
	o.Plain = nil
	if _, err := New(o); err == nil {
		t.Error("taken")
	}
}
