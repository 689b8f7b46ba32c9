package imapmeta

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestValueNamesTheIdentityBehindUser(t *testing.T) {
	for _, c := range []struct{ identity, value string }{
		{"alice", "user=alice"},
		{"3@7", "user=3@7"},
		{"alice=bob", "user=alice=bob"},
		{" padded ", "user= padded "},
		{`quo"te\back`, `user=quo"te\back`},
		{"müller@exämple.org", "user=müller@exämple.org"},
		{"a\tuser=b", "user=a\x01tuser=b"},
		{"line\nfeed\rreturn", "user=line\x01nfeed\x01rreturn"},
		{"soh\x01t", "user=soh\x011t"},
		{strings.Repeat("x", MaxValue-5), "user=" + strings.Repeat("x", MaxValue-5)},
	} {
		v, err := NewValue(c.identity)
		if err != nil || string(v) != c.value {
			t.Errorf("NewValue(%q) = %q, %v; want %q", c.identity, v, err, c.value)
		}
		if back, ok := v.Identity(); !ok || back != c.identity {
			t.Errorf("Identity of %q = %q, %v; want %q", v, back, ok, c.identity)
		}
	}
}

func TestIdentitiesThatTheDriverWouldMisreadAreRefused(t *testing.T) {
	for _, identity := range []string{"", "a\x00b", "\xff\xfe", strings.Repeat("x", MaxValue-4)} {
		if v, err := NewValue(identity); !errors.Is(err, ErrIdentity) {
			t.Errorf("NewValue(%.20q) = %.20q, %v; want ErrIdentity", identity, v, err)
		}
	}
}

func TestForeignValuesAreSplitAsTheDriverDoes(t *testing.T) {
	for _, c := range []struct {
		value    Value
		identity string
		found    bool
		pairs    []Pair
	}{
		{Absent, "", false, nil},
		{"user=", "", true, []Pair{{"user", ""}}},
		{"folder=INBOX\tuser=1@2", "1@2", true, []Pair{{"folder", "INBOX"}, {"user", "1@2"}}},
		{"user=first\tuser=last", "last", true, []Pair{{"user", "first"}, {"user", "last"}}},
		{"user", "", true, []Pair{{"user", ""}}},
		{"events=x", "", false, []Pair{{"events", "x"}}},
		{"\t", "", false, []Pair{{"", ""}, {"", ""}}},
		{"user=cut\x01", "cut", true, []Pair{{"user", "cut"}}},
		{"user=a\x01zb", "azb", true, []Pair{{"user", "azb"}}},
	} {
		if diff := cmp.Diff(c.pairs, c.value.Pairs()); diff != "" {
			t.Errorf("Pairs of %q:\n%s", c.value, diff)
		}
		if got, found := c.value.Identity(); got != c.identity || found != c.found {
			t.Errorf("Identity of %q = %q, %v; want %q, %v", c.value, got, found, c.identity, c.found)
		}
	}
}

func TestSettingTheAbsentValueIsARemoval(t *testing.T) {
	if Set(Absent) != Remove() {
		t.Errorf("Set(Absent) = %v", Set(Absent))
	}
}

func FuzzValue(f *testing.F) {
	for _, s := range []string{"alice", "a\tb", "a\x01tb", "\x01", "\r\n", "a=b=c", "müller", "\x00", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if v, err := NewValue(s); err == nil {
			if strings.ContainsAny(string(v), "\t\r\n\x00") {
				t.Errorf("NewValue(%q) = %q holds a separator", s, v)
			}
			if got, ok := v.Identity(); !ok || got != s {
				t.Errorf("NewValue(%q) reads back as %q, %v", s, got, ok)
			}
		} else if s != "" && utf8.ValidString(s) && !strings.Contains(s, "\x00") && len(s) < MaxValue/2 {
			t.Errorf("NewValue(%q): %v", s, err)
		}
		// A foreign value: splitting and joining changes nothing but the escapes.
		pairs := Value(s).Pairs()
		if again := Encode(pairs...).Pairs(); s != "" && !cmp.Equal(pairs, again) {
			t.Errorf("%q: pairs %q read back as %q", s, pairs, again)
		}
	})
}
