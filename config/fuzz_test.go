package config

import (
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
)

// FuzzParse: whatever the file, Parse returns; its errors name a key or a
// line; and what it accepts survives WriteTOML.
func FuzzParse(f *testing.F) {
	for _, c := range refusals(f) {
		f.Add([]byte(c.toml))
	}
	f.Add([]byte(minimal))
	f.Add([]byte(full))
	example, err := os.ReadFile(examplePath)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(example)
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > maxBrackets { // the bounds on size have tests of their own
			return
		}
		const name = "/etc/dovepush/config.toml"
		c, err := Parse(data, name)
		if err != nil {
			var errs Errors
			if !errors.As(err, &errs) || len(errs) == 0 || c != nil {
				t.Fatalf("not Errors: %v", err)
			}
			for _, e := range errs {
				if (e.Key == "") == (e.Line == 0) || e.Msg == "" || strings.Contains(e.Error(), "\n") {
					t.Errorf("names no key or line, or takes several: %q", e)
				}
			}
			return
		}
		maskInline(c)
		var out strings.Builder
		if err := c.WriteTOML(&out); err != nil {
			t.Fatal(err)
		}
		again, err := Parse([]byte(out.String()), name)
		if err != nil {
			t.Fatalf("%v in\n%s", err, &out)
		}
		if !reflect.DeepEqual(c, again) {
			t.Errorf("differs after\n%s", &out)
		}
		for _, user := range []string{"", "a", "a@b"} {
			c.ServerFor(user)
			c.IdentityFor(user)
		}
	})
}
