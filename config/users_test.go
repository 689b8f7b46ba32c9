package config

import (
	"slices"
	"testing"
)

func TestServerForFollowsTheDomain(t *testing.T) {
	two := mustParse(t, `
[[server]]
name = "a"
address = "a:993"
domains = ["A.example", "bücher.example"]
[[server]]
name = "rest"
address = "b:993"
`)
	for user, want := range map[string]string{
		"alice@a.example":     "a",
		"alice@A.EXAMPLE":     "a",
		"x@y@a.example":       "a",
		"x@BÜCHER.example":    "a",
		"alice@sub.a.example": "rest",
		"a.example@b.example": "rest",
		"a.example":           "rest",
		"alice@":              "rest",
		"":                    "rest",
	} {
		if s, ok := two.ServerFor(user); !ok || s.Name != want {
			t.Errorf("%q: %v %v, want %s", user, s, ok, want)
		} else if s != &two.Servers[slices.IndexFunc(two.Servers, func(s Server) bool { return s.Name == want })] {
			t.Errorf("%q: got a copy", user)
		}
	}
	one := mustParse(t, minimal+"domains = [\"a.example\"]")
	for _, user := range []string{"alice@b.example", "alice", "alice@"} {
		if s, ok := one.ServerFor(user); ok || s != nil {
			t.Errorf("%q: %v %v, want none", user, s, ok)
		}
	}
}

func TestIdentityForFillsTheTemplate(t *testing.T) {
	for _, c := range []struct{ template, user, want string }{
		{"{user}", "alice@a.example", "alice@a.example"},
		{"{local}@{domain}!{user}", "alice@a.example", "alice@a.example!alice@a.example"},
		{"{local}@1", "alice@b@a.example", "alice@b@1"},
		{"{local}|{domain}", "alice", "alice|"},
		{"{local}|{domain}", "alice@", "alice|"},
		{"{local}|{domain}", "{domain}@{user}", "{domain}|{user}"},
		{"{user}{user}", "a", "aa"},
	} {
		if got := (&Config{Identity: c.template}).IdentityFor(c.user); got != c.want {
			t.Errorf("%q of %q: %q, want %q", c.template, c.user, got, c.want)
		}
	}
}

func TestListenAddressSplits(t *testing.T) {
	for listen, want := range map[string][2]string{
		"":                   {"", ""},
		"unix:/run/api.sock": {"unix", "/run/api.sock"},
		"127.0.0.1:8025":     {"tcp", "127.0.0.1:8025"},
		"[::1]:8025":         {"tcp", "[::1]:8025"},
	} {
		if network, address := ListenAddress(listen); network != want[0] || address != want[1] {
			t.Errorf("%q: %q %q", listen, network, address)
		}
	}
}
