package imapmeta

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestUserNamesThatMustNotReachDovecotAreRefused(t *testing.T) {
	for _, user := range []string{
		"", "a\rb", "a\nb", "a\x00b", "alice\n", "\x1b[31m", "del\x7f", "\xff",
		"..", "../bob", "a/../../b", "a/..", "..@example.org", "alice@..",
		strings.Repeat("x", MaxUser+1),
	} {
		if err := CheckUser(user); !errors.Is(err, ErrUser) {
			t.Errorf("CheckUser(%.30q) = %v; want ErrUser", user, err)
		}
	}
}

func TestOddUserNamesAreDovecotsToJudge(t *testing.T) {
	for _, user := range []string{
		"alice", "alice@example.org", " alice", "alice ", "alice*agent", `quo"te`, `back\slash`, "o'hara",
		"müller", "a+b", "a#b", "a%b", "a=b", "a..b", "a/b", "..a", "日本",
		strings.Repeat("x", MaxUser),
	} {
		if err := CheckUser(user); err != nil {
			t.Errorf("CheckUser(%.30q) = %v", user, err)
		}
	}
}

func TestOptionsThatCannotWorkAreRefused(t *testing.T) {
	good := func() Options {
		return Options{Address: "localhost:143", TLS: TLSStart, Auth: Auth{Mechanism: Plain, MasterUser: "agent", Secret: secretIs("x")}}
	}
	if _, err := New(good()); err != nil {
		t.Fatal(err)
	}
	for words, spoil := range map[string]func(*Options){
		"missing port":               func(o *Options) { o.Address = "localhost" },
		"unknown TLS mode":           func(o *Options) { o.TLS = "ssl" },
		"unknown mechanism":          func(o *Options) { o.Auth.Mechanism = "cram-md5" },
		"needs a password or token":  func(o *Options) { o.Auth.Secret = nil },
		"needs a master separator":   func(o *Options) { o.Auth.Mechanism = OAuthBearer },
		"its first character only":   func(o *Options) { o.Auth.MasterSeparator = "**" },
		"timeout -1s":                func(o *Options) { o.Timeout = -time.Second },
		"max connections -1 must no": func(o *Options) { o.MaxConnections = -1 },
	} {
		o := good()
		spoil(&o)
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("New = %v; want %q", err, words)
		}
	}
}
