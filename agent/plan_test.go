package agent

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"slices"
	"testing"
	"time"
)

// listed is a list of users with their default identities.
func listed(names ...string) iter.Seq2[Listed, error] {
	slices.Sort(names)
	return func(yield func(Listed, error) bool) {
		for _, name := range names {
			if !yield(Listed{User: name}, nil) {
				return
			}
		}
	}
}

// plan makes a plan that must succeed.
func plan(t testing.TB, a *Agent, aim Aim) (*Plan, []string) {
	t.Helper()
	var steps []string
	p, err := a.Plan(t.Context(), aim, func(s Step) error {
		steps = append(steps, fmt.Sprintf("%s %s on %s", s, s.User, s.Server))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p, steps
}

// prepared is a registry with a user in each situation.
func prepared(t *testing.T) (*house, *Agent) {
	h, c := still(t)
	a := h.agent()
	row := func(user string, box func(context.Context, string) error, changes func(*Request)) {
		h.box.reading = box
		r := register(user)
		if changes != nil {
			changes(&r)
		}
		one(t.Context(), a, r)
		h.box.reading = nil
	}
	row("due", nil, nil)
	row("expired", nil, func(r *Request) { r.Expires = 10 * time.Hour })
	row("nolonger", fails(errNoUser), nil)
	row("old", nil, nil)
	row("other", nil, func(r *Request) { r.Identity = "1@2" })
	row("removing", nil, nil)
	row("retrying", fails(errRefused), nil)
	c.advance(20 * time.Hour) // verified after 18 to 24
	row("fresh", nil, nil)
	row("lasting", nil, func(r *Request) { r.Expires = 10 * time.Hour })
	one(t.Context(), a, Request{Action: Unregister, User: "removing", NoWait: true})
	one(t.Context(), a, Request{Action: Register, User: "waiting", NoWait: true})
	c.advance(2 * time.Hour)
	row("backoff", fails(errRefused), nil)
	return h, a
}

func TestPlanSaysWhatIsToBeDoneForEachUser(t *testing.T) {
	_, a := prepared(t)
	all := []string{"backoff", "due", "expired", "fresh", "lasting", "new", "nolonger", "old", "other", "removing", "retrying", "waiting"}
	for _, test := range []struct {
		name string
		aim  Aim
		want []string
	}{
		{"everybody is listed, what is due is verified", Aim{Listed: listed(all...), Verify: Due}, []string{
			"add backoff", "verify due", "add expired", "add new", "verify nolonger", "verify old", "change other", "add removing", "add retrying", "add waiting"}},
		{"all are verified", Aim{Listed: listed(all...), Verify: All}, []string{
			"add backoff", "verify due", "add expired", "verify fresh", "verify lasting", "add new", "verify nolonger", "verify old", "change other", "add removing", "add retrying", "add waiting"}},
		{"none is verified", Aim{Listed: listed(all...), Verify: None}, []string{
			"add backoff", "add expired", "add new", "change other", "add removing", "add retrying", "add waiting"}},
		{"who is not listed is left alone, but for who leaves", Aim{Listed: listed("fresh"), Verify: Due}, []string{
			"remove expired", "remove removing"}},
		{"who is not listed is pruned", Aim{Listed: listed("fresh", "new"), Verify: Due, Prune: true}, []string{
			"remove backoff", "remove due", "remove expired", "remove lasting", "add new", "remove nolonger", "remove old", "remove other", "remove removing", "remove retrying", "remove waiting"}},
		{"an empty list", Aim{Listed: listed(), Verify: None}, []string{"remove expired", "remove removing"}},
		{"no list", Aim{Verify: Due}, []string{
			"add backoff", "verify due", "remove expired", "verify nolonger", "verify old", "verify other", "remove removing", "add retrying", "add waiting"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, steps := plan(t, a, test.aim)
			for i := range test.want {
				test.want[i] += " on main"
			}
			if !slices.Equal(steps, test.want) {
				t.Errorf("steps\n%q\nwant\n%q", steps, test.want)
			}
			if p.Steps() != int64(len(test.want)) {
				t.Errorf("%d steps of %d", p.Steps(), len(test.want))
			}
		})
	}
}

func TestPlanCountsWhomPruningCouldTake(t *testing.T) {
	_, a := prepared(t)
	p, _ := plan(t, a, Aim{Listed: listed("fresh", "old", "new", "expired"), Verify: None, Prune: true})
	// "expired" and "removing" are leaving anyway.
	if p.Listed != 4 || p.Registered != 9 || p.Pruned != 7 || p.Unchanged != 2 {
		t.Errorf("listed %d, registered %d, pruned %d, unchanged %d", p.Listed, p.Registered, p.Pruned, p.Unchanged)
	}
}

func TestPlanComparesByServerToo(t *testing.T) {
	h, _ := still(t)
	old := h.agent(func(o *Options) {
		o.Servers = append(o.Servers, Server{Name: "other", Entries: h.box, Timeout: timeout}, Server{Name: "gone", Entries: h.box, Timeout: timeout})
		o.Route = func(user string) (string, bool) {
			return map[string]string{"moved": "other", "left": "gone", "nowhere": "main"}[user], true
		}
	})
	must(t, old, register("moved"), Added)
	must(t, old, register("left"), Added)
	a := h.agent(func(o *Options) {
		o.Servers = append(o.Servers, Server{Name: "other", Entries: h.box, Timeout: timeout})
		o.Route = func(user string) (string, bool) { return "main", user != "nowhere" }
	})
	must(t, old, register("nowhere"), Added)
	p, steps := plan(t, a, Aim{Listed: listed("moved", "left", "nowhere", "bad\nname"), Verify: Due, Prune: true})
	want := []string{"invalid bad\nname on main", "add left on main", "remove moved on other", "add moved on main", "invalid nowhere on "}
	if !slices.Equal(steps, want) {
		t.Errorf("steps\n%q\nwant\n%q", steps, want)
	}
	if p.Pruned != 1 {
		t.Errorf("%d pruned", p.Pruned)
	}
}

func TestPlanThatFailsHasChangedNothingAndLeavesNoFile(t *testing.T) {
	h, a := prepared(t)
	dir := t.TempDir()
	torn := errors.New("read error")
	before := h.rows(a.options.Registry)
	_, err := a.Plan(t.Context(), Aim{Dir: dir, Prune: true, Verify: All, Listed: func(yield func(Listed, error) bool) {
		for _, name := range []string{"a", "b", "c"} {
			if !yield(Listed{User: name}, nil) {
				return
			}
		}
		yield(Listed{}, torn)
	}}, nil)
	if !errors.Is(err, torn) {
		t.Errorf("Plan: %v", err)
	}
	for user, now := range h.rows(a.options.Registry) {
		if was, known := before[user]; !known || was.Revision != now.Revision || was.Attempts != now.Attempts {
			t.Errorf("%s: %+v, was %+v", user, now, was)
		}
	}
	files, err := os.ReadDir(dir)
	if len(files) > 0 || err != nil {
		t.Errorf("left %v, %v", files, err)
	}
}

func TestPlanFilesHaveNoName(t *testing.T) {
	_, a := prepared(t)
	dir := t.TempDir()
	plan(t, a, Aim{Dir: dir, Verify: All})
	if files, err := os.ReadDir(dir); len(files) > 0 || err != nil {
		t.Errorf("%v, %v", files, err)
	}
	if _, err := a.Plan(t.Context(), Aim{Dir: dir + "/none", Verify: All}, nil); !errors.Is(err, os.ErrNotExist) || !errors.Is(err, ErrPlanFile) {
		t.Errorf("without a directory: %v", err)
	}
}

func TestSpoolGivesBackWhatWasPutIn(t *testing.T) {
	s, err := newSpool(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	want := []step{
		{kind: Add, intend: true, user: "alice"},
		{kind: Remove, intend: true, user: "bob\x00\n\t", identity: "1@2", revision: 1 << 62},
		{kind: Look, user: string(make([]byte, 100_000))},
	}
	for _, st := range want {
		if err := s.add(st); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		var got []step
		for st, err := range s.steps() {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, st)
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %.200q", fmt.Sprint(got))
		}
	}
	if err := s.file.Truncate(20); err != nil {
		t.Fatal(err)
	}
	for _, failed := range s.steps() {
		err = failed
	}
	if err == nil {
		t.Error("half a spool was read without an error")
	}
}

// sweepAll carries out a plan and returns the results by user.
func sweepAll(t testing.TB, ctx context.Context, a *Agent, aim Aim) (results map[string]Result, untried int64, err error) {
	t.Helper()
	p, _ := plan(t, a, aim)
	return carriedOut(t, ctx, a, p, Sweeping{Rows: true})
}

func carriedOut(t testing.TB, ctx context.Context, a *Agent, p *Plan, o Sweeping) (results map[string]Result, untried int64, err error) {
	t.Helper()
	results = make(map[string]Result)
	o.Report = func(r Result) {
		if earlier, twice := results[r.User]; twice {
			t.Errorf("%s was reported twice: %+v, %+v", r.User, earlier, r)
		}
		results[r.User] = r
	}
	untried, err = a.Sweep(ctx, p, o)
	return results, untried, err
}

// swept is sweepAll that must succeed for all.
func swept(t testing.TB, a *Agent, aim Aim) map[string]Verdict {
	t.Helper()
	results, untried, err := sweepAll(t, t.Context(), a, aim)
	if untried != 0 || err != nil {
		t.Fatalf("%d were not tried: %v", untried, err)
	}
	verdicts := make(map[string]Verdict)
	for user, r := range results {
		if verdicts[user] = r.Verdict; r.Err != nil {
			t.Errorf("%s: %v", user, r.Err)
		}
	}
	return verdicts
}

func TestPlanCountsListedUsersWhoFailAndAreNotDue(t *testing.T) {
	h, _ := still(t)
	a := h.agent()
	h.box.set("foreign", "user=9@9")
	one(t.Context(), a, register("foreign"))
	h.box.reading = fails(errNologin)
	one(t.Context(), a, register("locked"))
	p, steps := plan(t, a, Aim{Listed: listed("foreign", "locked"), Verify: Due})
	if len(steps) != 0 || p.Failing != 1 || p.Conflicting != 1 || p.Unchanged != 0 {
		t.Errorf("%q, %+v", steps, p)
	}
	// Without a list it is about who is due.
	if p, _ := plan(t, a, Aim{Verify: Due}); p.Failing+p.Conflicting != 0 || p.Unchanged != 2 {
		t.Errorf("%+v", p)
	}
}
