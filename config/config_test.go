package config

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/google/go-cmp/cmp"
)

const minimal = "[[server]]\naddress = \"imap.example.com:993\"\n"

func mustParse(t *testing.T, text string) *Config {
	t.Helper()
	c, err := Parse([]byte(text), filepath.Join(t.TempDir(), "config.toml"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func written(t *testing.T, c *Config) string {
	t.Helper()
	var b strings.Builder
	if err := c.WriteTOML(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestDesignDefaults pins the defaults that DESIGN.md section 5 shows.
func TestDesignDefaults(t *testing.T) {
	c := mustParse(t, minimal)
	want := `on_conflict = "keep"
identity = "{user}"
verify_every = "24h"
identity_accept_unsigned = false

[[server]]
name = "main"
connector = "imap"
domains = []
address = "imap.example.com:993"
tls = "implicit"
tls_ca_file = ""
tls_server_name = ""
tls_cert_file = ""
tls_key_file = ""
allow_plaintext = false
max_connections = 16
max_logins_per_second = 0
timeout = "30s"

[server.auth]
mechanism = "plain"
master_user = ""
master_separator = ""

[server.doveadm]
endpoints = ["http://127.0.0.1:8080/doveadm/v1"]
max_connections = 4
batch = 100
connect_timeout = "3s"
read_timeout = "10s"
check_interval = "1m"

[registry]
path = "/var/lib/dovepush/registry.db"
url = ""

[retry]
initial = "30s"
max = "6h"

[api]
listen = "unix:/run/dovepush/api.sock"
mode = "0660"
tls_cert_file = ""
tls_key_file = ""

[metrics]
listen = ""

[notify]
listen = ""
also_listen = []
tls_cert_file = ""
tls_key_file = ""
url = ""
path = "/preliminary/http-notify/v1/notify"
username = "dovecot"

[spool]
path = ""
max_events = 1000000
keep_dead = "720h"
`
	if diff := cmp.Diff(want, written(t, c)); diff != "" {
		t.Errorf("effective settings (-want +got):\n%s", diff)
	}
}

const examplePath = "../config.toml.example"

// TestExampleHoldsTheDefaults decodes the example as it is, and with every
// "#key = value" line made live: either way it is the defaults and the lines
// that a site must set.
func TestExampleHoldsTheDefaults(t *testing.T) {
	data, err := os.ReadFile(examplePath)
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	s := DefaultServer()
	s.Address = "imap.example.com:993"
	s.Auth.MasterUser = "dovepush"
	s.Auth.Password = Secret{file: "master.secret"}
	want.Servers = []Server{s}
	want.file = "/etc/dovepush/config.toml"
	live := want
	live.Servers = []Server{s}
	w := DefaultWebhook()
	w.Name, w.URL, w.Secret = "app", NewURL("https://push.example.com/dovepush"), Secret{file: "webhook.secret"}
	live.Webhooks = []Webhook{w}
	want.place()
	live.place()

	for name, text := range map[string]string{
		"as it is":    string(data),
		"uncommented": regexp.MustCompile(`(?m)^#([a-z_]+ = |\[)`).ReplaceAllString(string(data), "$1"),
	} {
		want := want
		if name == "uncommented" {
			want = live
		}
		got, err := Parse([]byte(text), want.file)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !reflect.DeepEqual(got, &want) {
			t.Errorf("%s (-want +got):\n%s", name, cmp.Diff(written(t, &want), written(t, got)))
		}
	}
}

// TestExampleShowsEveryKey compares the keys of the example, live and
// commented out, with those the decoder knows.
func TestExampleShowsEveryKey(t *testing.T) {
	data, err := os.ReadFile(examplePath)
	if err != nil {
		t.Fatal(err)
	}
	var known, shown []string
	var visit func(t reflect.Type, path string)
	visit = func(t reflect.Type, path string) {
		tableKeys := keys(t)
		for _, f := range fields(t) {
			ft := t.Field(f.index).Type
			switch kindOf(ft) {
			case table:
				visit(ft, join(path, f.name))
			case tables:
				visit(ft.Elem(), join(path, f.name))
			default:
				continue
			}
			tableKeys = slices.DeleteFunc(tableKeys, func(k string) bool { return k == f.name })
		}
		for _, k := range tableKeys {
			known = append(known, join(path, k))
		}
	}
	visit(reflect.TypeFor[Config](), "")

	header := regexp.MustCompile(`^#?\[+([a-z_.]+)\]+$`)
	key := regexp.MustCompile(`^#?([a-z_]+) = `)
	path := ""
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if m := header.FindStringSubmatch(line); m != nil {
			path = m[1]
		} else if m := key.FindStringSubmatch(line); m != nil {
			shown = append(shown, join(path, m[1]))
		}
	}
	slices.Sort(known)
	slices.Sort(shown)
	if diff := cmp.Diff(known, shown); diff != "" {
		t.Errorf("keys (-known to the decoder +shown in the example):\n%s", diff)
	}
}

// TestSecretNamesAreComplete keeps the list by which syntax errors hide values.
func TestSecretNamesAreComplete(t *testing.T) {
	c := Default()
	c.Servers = []Server{DefaultServer()}
	c.Webhooks = []Webhook{DefaultWebhook()}
	for key := range c.secrets() {
		if name := key[strings.LastIndex(key, ".")+1:]; !slices.Contains(secretNames, name) {
			t.Errorf("%s is a secret, but not in secretNames", key)
		}
	}
}

// full sets every key to something other than its default.
const full = `
on_conflict = "replace"
identity = "{local}@1 \"q\" \\ \u202e é"
verify_every = "1h30m"
identity_key_file = "identity.key"
identity_old_key = "hunter0"
identity_accept_unsigned = true
[[server]]
name = "a"
connector = "imap"
domains = ["Example.COM", "bücher.example"]
address = "[2001:db8::1]:143"
tls = "starttls"
tls_ca_file = "ca.pem"
tls_server_name = "imap.example.com"
tls_cert_file = "cert.pem"
tls_key_file = "key.pem"
allow_plaintext = true
max_connections = 1
max_logins_per_second = 7
timeout = "1.5s"
[server.auth]
mechanism = "login"
master_user = "m"
master_separator = "*"
password = "hunter2"
[server.doveadm]
endpoints = ["https://a:1/doveadm/v1", "http://b.example/doveadm/v1"]
api_key_command = "pass show 'doveadm' |\n head -1"
max_connections = 5
batch = 10000
connect_timeout = "1ms"
read_timeout = "1h"
check_interval = "24h"
[[server]]
name = "b"
connector = "doveadm"
[server.doveadm]
password_file = "doveadm.secret"
[registry]
path = "r.db"
[retry]
initial = "1s"
max = "1s"
[api]
listen = "127.0.0.1:8025"
mode = "600"
token_file = "/run/token"
tls_cert_file = "api.pem"
tls_key_file = "api.key"
[metrics]
listen = ":9925"
[notify]
listen = "[::1]:0"
also_listen = ["unix:/run/n.sock", "127.0.0.1:0"]
tls_cert_file = "notify.pem"
tls_key_file = "notify.key"
url = "https://n.example:1/n"
path = "/n"
username = "u"
password = "hunter3"
[spool]
path = "s.db"
max_events = 7
keep_dead = "1h"
[[webhook]]
name = "w"
url = "https://u:hunter4@w.example:1/x?access_token=hunter5&a=b"
secret = "hunter6"
old_secret_command = "pass show w"
strip = true
tls_ca_file = "w.pem"
max_connections = 9
timeout = "1s"
retry_initial = "2s"
retry_max = "3s"
give_up_after = "4s"
[[webhook]]
name = "x"
url = "http://127.0.0.1:1"
secret_file = "x.secret"
`

// maskInline does to a Config what WriteTOML does to its text.
func maskInline(c *Config) {
	for _, s := range c.secrets() {
		if s.value != nil {
			m := masked
			s.value = &m
		}
	}
	for i := range c.Webhooks {
		c.Webhooks[i].URL = NewURL(c.Webhooks[i].URL.String())
	}
}

func TestWriteTOMLDecodesToTheSameConfig(t *testing.T) {
	for _, text := range []string{minimal, full} {
		c := mustParse(t, text)
		out := written(t, c)
		if strings.Contains(out, "hunter") {
			t.Errorf("a secret shows:\n%s", out)
		}
		again, err := Parse([]byte(out), c.file)
		if err != nil {
			t.Fatalf("%v in\n%s", err, out)
		}
		maskInline(c)
		if !reflect.DeepEqual(c, again) {
			t.Errorf("differs (-first +second):\n%s", cmp.Diff(out, written(t, again)))
		}
	}
}

func TestJSONHoldsTheSameSettings(t *testing.T) {
	c := mustParse(t, full)
	data, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var fromJSON, fromTOML map[string]any
	if err := json.Unmarshal(data, &fromJSON); err != nil {
		t.Fatal(err)
	}
	if _, err := toml.Decode(written(t, c), &fromTOML); err != nil {
		t.Fatal(err)
	}
	normal, err := json.Marshal(fromTOML) // integers become JSON numbers
	if err != nil {
		t.Fatal(err)
	}
	clear(fromTOML)
	if err := json.Unmarshal(normal, &fromTOML); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(fromTOML, fromJSON); diff != "" {
		t.Errorf("(-TOML +JSON):\n%s", diff)
	}
}

func TestDurationPrintsShort(t *testing.T) {
	for _, text := range []string{"0s", "30s", "15m", "24h", "1h30m", "1m30s", "1h0m30s", "1.5s", "100ms", "10m"} {
		var d Duration
		if err := d.UnmarshalText([]byte(text)); err != nil {
			t.Error(err)
		} else if d.String() != text {
			t.Errorf("%s prints as %s", text, d)
		}
	}
	if got := Duration(90 * time.Minute).String(); got != "1h30m" {
		t.Errorf("90m prints as %s", got)
	}
}

func TestRelativeRegistryStandsBesideTheFile(t *testing.T) {
	c, err := Parse([]byte(minimal+"[registry]\npath = \"r.db\""), "/etc/dovepush/config.toml")
	if err != nil {
		t.Fatal(err)
	}
	if c.Registry.Path != "/etc/dovepush/r.db" {
		t.Errorf("path is %s", c.Registry.Path)
	}
}

func TestLoadNamesTheFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(file, []byte("on_conflict = \"x\""), 0o600); err != nil {
		t.Fatal(err)
	}
	big := filepath.Join(dir, "big.toml")
	if err := os.WriteFile(big, make([]byte, maxFile+2), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		file: file + ": 2 errors:\n  on_conflict: \"x\" is not one of keep, replace\n" +
			"  server: missing; add a [[server]] table with the address of your Dovecot",
		big:                          big + ": longer than 4 MiB; is this the right file?",
		filepath.Join(dir, "absent"): "open " + filepath.Join(dir, "absent") + ": no such file or directory",
		dir:                          "read " + dir + ": is a directory",
	} {
		if _, err := Load(path); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

// TestParseSurvivesDepth: without the bound the parser's stack overflows, which
// nothing can recover.
func TestParseSurvivesDepth(t *testing.T) {
	for _, bracket := range []string{"[", "{a="} {
		_, err := Parse([]byte("x = "+strings.Repeat(bracket, maxFile/len(bracket)-10)), "c")
		if want := "c: more than 50000 brackets; is this the right file?"; err == nil || err.Error() != want {
			t.Errorf("got %.200v, want %s", err, want)
		}
	}
	if _, err := Parse([]byte("x = "+strings.Repeat("[", maxBrackets)), "c"); err == nil {
		t.Error("half a file is accepted")
	}
}
