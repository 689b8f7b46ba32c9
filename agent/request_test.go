package agent

import (
	"errors"
	"strings"
	"testing"
	"time"

	"dovepush/imapmeta"
	"dovepush/registry"
)

func TestRequestsThatNeverReachAServer(t *testing.T) {
	h, _ := still(t)
	a := h.agent(func(o *Options) {
		o.Route = func(user string) (string, bool) { return "main", !strings.HasSuffix(user, "@elsewhere.test") }
		o.Identity = func(user string) string { return strings.TrimPrefix(user, "nobody") }
	})
	for _, row := range []struct {
		name    string
		request Request
		err     error
		words   string
	}{
		{"no server", register("alice@elsewhere.test"), ErrNoServer, "no server"},
		{"no server at unregistering", unregister("alice@elsewhere.test"), ErrNoServer, "no server"},
		{"no server at verifying", verify("alice@elsewhere.test"), ErrNoServer, "no server"},
		{"verify a stranger", verify("stranger"), ErrNotRegistered, "not registered"},
		{"no user name", register(""), ErrUser, "bad user name"},
		{"user name with a line feed", register("alice\r\nA1 LOGOUT"), ErrUser, "bad user name"},
		{"user name with NUL", unregister("alice\x00"), ErrUser, "bad user name"},
		{"user name that leaves the home directory", verify("../alice"), ErrUser, "bad user name"},
		{"user name that is not UTF-8", register("\xff"), ErrUser, "bad user name"},
		{"user name that is too long", register(strings.Repeat("a", imapmeta.MaxUser+1)), ErrUser, "bad user name"},
		{"identity with NUL", registerAs("alice", "a\x00"), ErrIdentity, "bad identity"},
		{"identity that is not UTF-8", registerAs("alice", "\xff"), ErrIdentity, "bad identity"},
		{"identity that is too long", registerAs("alice", strings.Repeat("a", imapmeta.MaxValue)), ErrIdentity, "bad identity"},
		{"default identity that is empty", register("nobody"), ErrIdentity, "bad identity"},
	} {
		for _, noWait := range []bool{false, true} {
			row.request.NoWait = noWait
			result := one(t.Context(), a, row.request)
			if result.Verdict != Failed || !errors.Is(result.Err, row.err) || !strings.Contains(result.Err.Error(), row.words) || result.User != row.request.User || result.Registration != nil {
				t.Errorf("%s: %+v; want %v", row.name, result, row.err)
			}
			if counts, err := a.options.Registry.Counts(t.Context()); len(counts) > 0 || err != nil || len(h.box.updated()) > 0 {
				t.Errorf("%s: the registry holds %v, %v; Updates %q", row.name, counts, err, h.box.updated())
			}
		}
	}
}

func TestServerThatIsNotConfigured(t *testing.T) {
	h, _ := still(t)
	a := h.agent(func(o *Options) { o.Route = func(string) (string, bool) { return "gone", true } })
	result := one(t.Context(), a, register("alice"))
	if result.Verdict != Failed || !errors.Is(result.Err, ErrNoServer) || !strings.Contains(result.Err.Error(), `"gone"`) {
		t.Errorf("%+v", result)
	}
}

func TestRegistryThatFailsKeepsTheServerFromBeingTouched(t *testing.T) {
	h, _ := still(t)
	a := h.agent()
	must(t, a, register("alice"), Added)
	a.options.Registry.Close()
	for _, r := range []Request{register("alice"), unregister("alice"), verify("alice"), register("bob")} {
		if result := one(t.Context(), a, r); result.Err == nil {
			t.Errorf("%+v: %+v", r, result)
		}
	}
	if n := len(h.box.updated()); n != 1 {
		t.Errorf("%d Updates, want the first alone", n)
	}
}

func TestSettingsThatCannotWorkAreRefused(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"no timeout":           func(o *Options) { o.Servers[0].Timeout = 0 },
		"timeout over a claim": func(o *Options) { o.Servers[0].Timeout = MaxTimeout + 1 },
		"no verify_every":      func(o *Options) { o.VerifyEvery = 0 },
		"no first wait":        func(o *Options) { o.RetryInitial = 0 },
		"longest wait shorter": func(o *Options) { o.RetryMax = o.RetryInitial - 1 },
	} {
		good := func() Options {
			return Options{Servers: []Server{{Name: "main", Timeout: MaxTimeout}}, VerifyEvery: time.Hour, RetryInitial: time.Second, RetryMax: time.Second}
		}
		o := good()
		if _, err := New(o); err != nil {
			t.Fatal(err)
		}
		change(&o)
		if _, err := New(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if MaxTimeout+claimSlack > registry.MaxClaim {
		t.Error("the longest work does not fit into a claim")
	}
}
