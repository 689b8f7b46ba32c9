package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWhereDovecotFindsTheEndpoint(t *testing.T) {
	const path = "/preliminary/http-notify/v1/notify"
	for _, c := range []struct {
		keys, url string
		whole     bool
	}{
		{``, "", false},
		{`listen = "unix:/run/n.sock"`, "", false},
		{`listen = "127.0.0.1:8026"`, "http://127.0.0.1:8026" + path, true},
		{"listen = \"unix:/run/n.sock\"\nalso_listen = [\"[::1]:8026\"]", "http://[::1]:8026" + path, true},
		{"listen = \":8026\"\npassword = \"x\"", "http://THIS-HOST:8026" + path, false},
		{"listen = \"[::]:8026\"\npassword = \"x\"", "http://THIS-HOST:8026" + path, false},
		{"listen = \"a.example:0\"\npassword = \"x\"", "http://a.example:PORT" + path, false},
		{"listen = \"a.example:1\"\npassword = \"x\"\ntls_cert_file = \"c\"\ntls_key_file = \"k\"\npath = \"/p\"", "https://a.example:1/p", true},
		{"listen = \":8026\"\npassword = \"x\"\nurl = \"https://n.example/q\"", "https://n.example/q", true},
	} {
		n := mustParse(t, minimal+"[notify]\n"+c.keys).Notify
		if url, whole := n.Endpoint(); url != c.url || whole != c.whole {
			t.Errorf("%s: %s, %t", c.keys, url, whole)
		}
	}
}

func TestNotifyListenersAreAllOrNone(t *testing.T) {
	n := mustParse(t, minimal+"[notify]\nlisten = \"127.0.0.1:1\"\nalso_listen = [\"127.0.0.1:2\"]").Notify
	if got := n.Listeners(); cmp.Diff(got, []string{"127.0.0.1:1", "127.0.0.1:2"}) != "" {
		t.Error(got)
	}
	n = mustParse(t, minimal).Notify
	if got := n.Listeners(); got != nil {
		t.Error(got)
	}
}

func TestNotifyWarnings(t *testing.T) {
	dir := t.TempDir()
	keyPair(t, dir, "n")
	write(t, filepath.Join(dir, "p"), "x", 0o600)
	const tlsKeys = "password_file = \"p\"\ntls_cert_file = \"n.pem\"\ntls_key_file = \"n.key\"\n"
	for text, want := range map[string][]string{
		``: nil,
		"listen = \"127.0.0.1:1\"\npassword_file = \"p\"": nil,
		"listen = \":1\"\n" + tlsKeys:                     nil,
		"listen = \"unix:/run/n\"":                        {"notify.listen: Dovecot's ox driver calls no UNIX socket; use one only behind a proxy"},
		"listen = \"127.0.0.1:1\"":                        {"notify.password_file: missing: every process of this machine can make up notifications; set one, and write it into Dovecot's URL"},
		"listen = \"127.0.0.1:1\"\nalso_listen = [\":2\"]\npassword_file = \"p\"": {
			"notify.also_listen[0]: \":2\" carries the password, senders and subjects in clear to other machines; set tls_cert_file and tls_key_file, or listen on loopback behind a TLS proxy"},
		"listen = \"127.0.0.1:1\"\nurl = \"http://n.example\"\n" + tlsKeys: {
			"notify.url: has Dovecot send the password, senders and subjects in clear to \"n.example\"; use https, with a certificate here or a TLS proxy",
			"notify.url: begins with http, but tls_cert_file makes the listeners speak https"},
	} {
		c := load(t, dir, minimal+"[notify]\n"+text)
		if diff := cmp.Diff(want, c.Warnings()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", text, diff)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "n.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := load(t, dir, minimal+"[[webhook]]\nname = \"w\"\nurl = \"https://w.example\"\nsecret_file = \"p\"\n")
	if diff := cmp.Diff([]string{"webhook[0]: gets nothing: notify.listen is empty, so that Dovecot can notify nobody; set it"}, c.Warnings()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	c = load(t, dir, minimal+"[notify]\nlisten = \"127.0.0.1:1\"\n"+tlsKeys)
	if got := strings.Join(c.Warnings(), "\n"); !strings.HasPrefix(got, "notify.tls_key_file: "+filepath.Join(dir, "n.key")+" (mode 644) is open to others") {
		t.Error(got)
	}
}

func TestNotifyAndWebhooksReadTheirCertificates(t *testing.T) {
	dir := t.TempDir()
	want := keyPair(t, dir, "n")
	c := load(t, dir, minimal+"[notify]\ntls_cert_file = \"n.pem\"\ntls_key_file = \"n.key\"\n[[webhook]]\nname = \"w\"\nurl = \"https://w.example\"\nsecret = \"x\"\ntls_ca_file = \"n.pem\"\n")
	got, err := c.Notify.TLSConfig()
	if err != nil || len(got.Certificates) != 1 || string(got.Certificates[0].Certificate[0]) != string(want.Certificate[0]) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := c.Webhooks[0].TLSConfig(); err != nil || got.RootCAs == nil {
		t.Errorf("%v, %v", got, err)
	}
	if err := os.Remove(filepath.Join(dir, "n.pem")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Webhooks[0].TLSConfig(); err == nil || !strings.HasPrefix(err.Error(), "webhook[0].tls_ca_file: open "+dir) {
		t.Error(err)
	}
	if err := c.Check(); err == nil || !strings.Contains(err.Error(), "notify.tls_cert_file: ") || !strings.Contains(err.Error(), "webhook[0].tls_ca_file: ") {
		t.Error(err)
	}
}

func TestTheSpoolStandsBesideTheRegistry(t *testing.T) {
	for text, want := range map[string]string{
		"":                               "/var/lib/dovepush/spool.db",
		"[registry]\npath = \"/a/r.db\"": "/a/spool.db",
		"[spool]\npath = \"/b/s.db\"":    "/b/s.db",
		"[spool]\npath = \"s.db\"":       "/etc/dovepush/s.db",
		"[registry]\npath = \"r\"\n[spool]\npath=\"\"": "/etc/dovepush/spool.db",
	} {
		c, err := Parse([]byte(minimal+text), "/etc/dovepush/config.toml")
		if err != nil || c.SpoolPath() != want {
			t.Errorf("%s: %s (%v)", text, c.SpoolPath(), err)
		}
	}
}
