package config

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type refusal struct {
	name string
	toml string
	want []string
}

// refused holds the cases that testdata/refused.toml cannot.
var refused = []refusal{
	{"not UTF-8", "identity = \"\xff\"\n", []string{"line 1: invalid UTF-8 byte: 0xff"}},
	{"value too long to repeat", "on_conflict = \"" + strings.Repeat("x", 100) + "\"\n" + minimal,
		[]string{`on_conflict: "` + strings.Repeat("x", 64) + `..." is not one of keep, replace`}},
	{"unknown key, long", strings.Repeat("a", 80) + " = 1\n" + minimal,
		[]string{`"` + strings.Repeat("a", 64) + `...": unknown key`}},
	{"identity, long", "identity = \"{user}" + strings.Repeat("x", 512) + "\"\n" + minimal,
		[]string{"identity: is longer than 512 bytes"}},
	{"api on a long socket", minimal + "[api]\nlisten = \"unix:/" + strings.Repeat("x", 107) + "\"",
		[]string{"api.listen: the socket's path has 108 bytes; a UNIX socket allows 107"}},
	{"endpoint on a long socket", minimal + "[server.doveadm]\nendpoints = [\"unix:/" + strings.Repeat("x", 107) + "\"]",
		[]string{"server[0].doveadm.endpoints[0]: the socket's path has 108 bytes; a UNIX socket allows 107"}},
	{"too many endpoints", minimal + "[server.doveadm]\n" + endpoints(65),
		[]string{"server[0].doveadm.endpoints: has 65; use at most 64"}},
	{"secret too long", minimal + "[server.auth]\npassword = \"" + strings.Repeat("x", maxSecret+1) + "\"",
		[]string{"server[0].auth.password: is longer than 64 KiB"}},
}

// endpoints is a key with n of them.
func endpoints(n int) string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("\"unix:/%d\"", i)
	}
	return "endpoints = [" + strings.Join(list, ", ") + "]"
}

// refusals reads testdata/refused.toml and adds the cases above.
func refusals(t testing.TB) []refusal {
	t.Helper()
	data, err := os.ReadFile("testdata/refused.toml")
	if err != nil {
		t.Fatal(err)
	}
	list := append([]refusal(nil), refused...)
	for i, part := range strings.Split("\n"+string(data), "\n### ") {
		if i == 0 {
			continue // what the file says about itself
		}
		name, body, _ := strings.Cut(part, "\n")
		c := refusal{name: name}
		for line := range strings.Lines(body) {
			if want, ok := strings.CutPrefix(line, "#! "); ok {
				c.want = append(c.want, strings.TrimSuffix(want, "\n"))
			} else if len(c.want) == 0 {
				c.toml += line
			}
		}
		list = append(list, c)
	}
	return list
}

func TestParseRefuses(t *testing.T) {
	names := map[string]bool{}
	for _, c := range refusals(t) {
		if names[c.name] {
			t.Errorf("two cases have the name %s", c.name)
		}
		names[c.name] = true
		t.Run(c.name, func(t *testing.T) {
			got, err := Parse([]byte(c.toml), "config.toml")
			var errs Errors
			if got != nil || !errors.As(err, &errs) {
				t.Fatalf("got %v, %v; want Errors", got, err)
			}
			var list []string
			for _, e := range errs {
				list = append(list, e.Error())
			}
			if diff := cmp.Diff(c.want, list); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if !strings.HasPrefix(err.Error(), "config.toml: ") {
				t.Errorf("does not name the file: %v", err)
			}
			if strings.Contains(err.Error(), "hunter") {
				t.Errorf("shows a secret: %v", err)
			}
		})
	}
}

// TestParseAccepts has the edges of the rules above.
func TestParseAccepts(t *testing.T) {
	none := "[[server]]\ntls = \"none\"\n"
	for name, text := range map[string]string{
		"plaintext to 127/8":             none + `address = "127.9.9.9:143"`,
		"plaintext to ::1":               none + `address = "[::1]:143"`,
		"plaintext to mapped loopback":   none + `address = "[::ffff:127.0.0.1]:143"`,
		"plaintext to localhost":         none + `address = "LocalHost:143"`,
		"plaintext allowed":              none + "address = \"imap.example.com:143\"\nallow_plaintext = true",
		"http off loopback allowed":      minimal + "allow_plaintext = true\n[server.doveadm]\nendpoints = [\"http://a/doveadm/v1\"]",
		"http on loopback":               minimal + "[server.doveadm]\nendpoints = [\"http://[::1]:8080/doveadm/v1\"]",
		"plain with authorization id":    minimal + "[server.auth]\nmaster_user = \"m\"\npassword_file = \"p\"",
		"plain with separator":           minimal + "[server.auth]\nmaster_user = \"m\"\nmaster_separator = \"*\"\npassword_file = \"p\"",
		"login with separator":           minimal + "[server.auth]\nmechanism = \"login\"\nmaster_user = \"m\"\nmaster_separator = \"%\"\npassword_file = \"p\"",
		"xoauth2 with separator":         minimal + "[server.auth]\nmechanism = \"xoauth2\"\nmaster_user = \"m\"\nmaster_separator = \"*\"\npassword_command = \"p\"",
		"oauthbearer with own tokens":    minimal + "[server.auth]\nmechanism = \"oauthbearer\"\npassword_command = \"p\"",
		"external with master":           minimal + "tls_cert_file = \"c\"\ntls_key_file = \"k\"\n[server.auth]\nmechanism = \"external\"\nmaster_user = \"m\"",
		"doveadm without address":        "[[server]]\nconnector = \"doveadm\"\n[server.doveadm]\npassword_file = \"p\"",
		"doveadm needs no IMAP password": "[[server]]\nconnector = \"doveadm\"\n[server.auth]\nmaster_user = \"m\"\n[server.doveadm]\napi_key_file = \"p\"",
		"doveadm on a socket":            "[[server]]\nconnector = \"doveadm\"\n[server.doveadm]\nendpoints = [\"unix:/run/dovecot/http\"]\npassword_file = \"p\"",
		"doveadm on the longest socket":  minimal + "[server.doveadm]\nendpoints = [\"unix:/" + strings.Repeat("x", 106) + "\"]",
		"doveadm on both":                minimal + "[server.doveadm]\nendpoints = [\"unix:/h?#%\", \"https://a/doveadm/v1\"]",
		"most endpoints":                 minimal + "[server.doveadm]\n" + endpoints(64),
		"imap without endpoints":         minimal + "[server.doveadm]\nendpoints = []",
		"empty forms of a secret":        minimal + "[server.auth]\nmaster_user = \"m\"\npassword = \"\"\npassword_file = \"p\"\npassword_command = \"\"",
		"no api":                         minimal + "[api]\nlisten = \"\"",
		"api with token":                 minimal + "[api]\nlisten = \":0\"\ntoken_file = \"t\"",
		"any port twice":                 minimal + "[metrics]\nlisten = \"127.0.0.1:0\"\n[notify]\nlisten = \"127.0.0.1:0\"",
		"notify on loopback":             minimal + "[notify]\nlisten = \"localhost:8080\"",
		"notify on a socket":             minimal + "[notify]\nlisten = \"unix:/run/n.sock\"",
		"longest socket":                 minimal + "[api]\nlisten = \"unix:/" + strings.Repeat("x", 106) + "\"",
		"bounds, low":                    minimal + "max_connections = 1\ntimeout = \"1ms\"\n[server.doveadm]\nbatch = 1",
		"bounds, high":                   minimal + "max_connections = 1024\ntimeout = \"5m\"\n[server.doveadm]\nbatch = 10000",
		"retry always the same":          minimal + "[retry]\ninitial = \"1m\"\nmax = \"1m\"",
		"servers inline":                 `server = [{address = "a:993"}]`,
		"dotted keys":                    "retry.max = \"1h\"\n" + minimal + "auth.mechanism = \"login\"",
	} {
		if _, err := Parse([]byte(text), "config.toml"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
