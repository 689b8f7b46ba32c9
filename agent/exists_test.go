package agent

import (
	"context"
	"errors"
	"testing"

	"dovepush/imapmeta"
	"dovepush/registry"
)

// exists lets an agent ask whether Dovecot has users, and counts how often.
func exists(has bool, err error, asked *int) func(*Options) {
	return func(o *Options) {
		o.Servers[0].Exists = func(context.Context, string) (bool, error) {
			*asked++
			return has, err
		}
	}
}

// The ways to have a user forgotten whom Dovecot refuses as unknown.
var forgetting = []struct {
	name   string
	before bool // he was registered before
	forget func(t *testing.T, a *Agent) Result
	gone   Verdict // if he is forgotten
}{
	{"who was never there", false, func(t *testing.T, a *Agent) Result {
		one(t.Context(), a, register("ghost"))
		return one(t.Context(), a, unregister("ghost"))
	}, Failed},
	{"by force", true, func(t *testing.T, a *Agent) Result {
		return one(t.Context(), a, Request{Action: Unregister, User: "ghost", Force: true})
	}, Failed},
	{"by a list", true, func(t *testing.T, a *Agent) Result {
		results, _, err := sweepAll(t, t.Context(), a, Aim{Listed: listed("alice"), Prune: true, Verify: None})
		if err != nil {
			t.Error(err)
		}
		return results["ghost"]
	}, Removed},
}

func TestUserWhomDovecotHasIsNotForgotten(t *testing.T) {
	silent := &imapmeta.Error{Kind: imapmeta.Retry, Op: "user", Err: errors.New("no endpoint works")}
	for _, way := range forgetting {
		for _, answer := range []struct {
			name   string
			has    bool
			err    error
			state  registry.State // empty: forgotten
			result Verdict
			is     error
		}{
			{"he has gone", false, nil, "", way.gone, nil},
			{"he is there", true, nil, registry.Failed, Failed, ErrExists},
			{"no answer", false, silent, registry.Removing, Deferred, silent},
		} {
			t.Run(way.name+", "+answer.name, func(t *testing.T) {
				h, _ := still(t)
				asked := 0
				a := h.agent(exists(answer.has, answer.err, &asked))
				must(t, a, register("alice"), Added)
				if way.before {
					must(t, a, register("ghost"), Added)
				}
				h.box.reading = refusing(0, "ghost")
				result := way.forget(t, a)
				if result.Verdict != answer.result || answer.is != nil && !errors.Is(result.Err, answer.is) {
					t.Errorf("%s, %v", result.Verdict, result.Err)
				}
				reg, found := h.row(a.options.Registry, "ghost")
				if found != (answer.state != "") || reg.State != answer.state || asked != 1 {
					t.Errorf("found %t, asked %d times: %+v", found, asked, reg)
				}
				h.unclaimed(a.options.Registry)
			})
		}
	}
}

// Nobody is asked about whom there is nothing to forget of.
func TestWhoIsNotForgottenIsNotAskedAbout(t *testing.T) {
	h, _ := still(t)
	asked := 0
	a := h.agent(exists(false, nil, &asked))
	must(t, a, register("ghost"), Added)
	h.box.reading = refusing(0, "ghost")
	one(t.Context(), a, verify("ghost"))
	one(t.Context(), a, unregister("ghost"))
	if reg, found := h.row(a.options.Registry, "ghost"); !found || reg.State != registry.Failed || asked != 0 {
		t.Errorf("found %t, asked %d times: %+v", found, asked, reg)
	}
}

// A name that the connector refuses to send, as DoveAdm's does with patterns,
// leaves nothing behind that fails for ever.
func TestNameThatCannotBeSentIsForgotten(t *testing.T) {
	unfit := &imapmeta.Error{Kind: imapmeta.User, Op: "getmetadata", Err: imapmeta.ErrUser}
	for _, way := range forgetting {
		t.Run(way.name, func(t *testing.T) {
			h, _ := still(t)
			asked := 0
			a := h.agent(exists(true, nil, &asked))
			must(t, a, register("alice"), Added)
			if way.before {
				must(t, a, register("ghost"), Added)
			}
			h.box.reading = func(_ context.Context, user string) error {
				if user == "ghost" {
					return unfit
				}
				return nil
			}
			result := way.forget(t, a)
			_, found := h.row(a.options.Registry, "ghost")
			// Who was reached before may have an entry: a list alone does not end that.
			if kept := way.name == "by a list"; found != kept || asked != 0 || result.Verdict != Failed {
				t.Errorf("found %t, asked %d times: %s, %v", found, asked, result.Verdict, result.Err)
			}
		})
	}
}
