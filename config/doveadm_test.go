package config

import (
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHasDoveadm(t *testing.T) {
	const key = "api_key_file = \"k\"\n"
	for text, want := range map[string]bool{
		minimal:                              false,
		minimal + "[server.doveadm]\n" + key: true,
		minimal + "[server.doveadm]\npassword_command = \"p\"\n":        true,
		minimal + "[server.doveadm]\nendpoints = []\n" + key:            false,
		minimal + "[server.doveadm]\nendpoints = [\"unix:/h\"]\n":       false,
		"[[server]]\nconnector = \"doveadm\"\n[server.doveadm]\n" + key: true,
	} {
		if got := mustParse(t, text).Servers[0].HasDoveadm(); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}

func TestDoveadmWarnings(t *testing.T) {
	dir := t.TempDir()
	keyPair(t, dir, "a")
	write(t, filepath.Join(dir, "k"), "x", 0o600)
	const (
		remote  = "endpoints = [\"http://a/doveadm/v1\"]\n"
		plain   = "allow_plaintext = true\n"
		ca      = "tls_ca_file = \"a.pem\"\n"
		cert    = "tls_cert_file = \"a.pem\"\ntls_key_file = \"a.key\"\n"
		logins  = `server[0].max_logins_per_second: without effect, connector "doveadm" logs nobody in; remove it, doveadm.max_connections and doveadm.batch bound the load`
		inClear = ": without effect on http:// endpoints, which get the API key in clear; use https://"
		half    = ", half of timeout; lower it, or raise timeout"
	)
	for _, c := range []struct {
		name, server, doveadm string
		want                  []string // with connector "doveadm"; none with "imap"
	}{
		{"defaults", "", "", nil},
		{"what imap has left", "tls = \"implicit\"\nmax_connections = 64\n" + ca + cert + "auth.mechanism = \"login\"\nauth.password_file = \"k\"\n", "", nil},
		{"logins", "max_logins_per_second = 1\n", "", []string{logins}},
		{"half of timeout", "timeout = \"20s\"\n", "read_timeout = \"10s\"\n", nil},
		{"more than half of timeout", "timeout = \"19.999s\"\n", "read_timeout = \"10.5s\"\n", []string{"server[0].doveadm.read_timeout: 10.5s counts as 9.9995s" + half}},
		{"the default is more than half of timeout", "timeout = \"1s\"\n", "", nil},
		{"all of timeout", "", "read_timeout = \"30s\"\n", []string{"server[0].doveadm.read_timeout: 30s counts as 15s" + half}},
		{"in clear", plain, remote, nil},
		{"in clear with a CA", plain + ca, remote, []string{"server[0].tls_ca_file" + inClear}},
		{"in clear with a name", plain + "tls_server_name = \"a\"\n", remote, []string{"server[0].tls_server_name" + inClear}},
		{"in clear with a certificate", plain + cert, remote, []string{"server[0].tls_cert_file" + inClear}},
		{"also with TLS", plain + ca, "endpoints = [\"http://a/doveadm/v1\", \"https://a/doveadm/v1\"]\n", nil},
		{"on this machine", ca, "endpoints = [\"http://[::1]:1/doveadm/v1\", \"unix:/run/dovecot/http\"]\n", nil},
		{"also on this machine", plain + ca, "endpoints = [\"http://a/doveadm/v1\", \"unix:/run/dovecot/http\"]\n", []string{"server[0].tls_ca_file" + inClear}},
		{"all", plain + ca + "max_logins_per_second = 2\ntimeout = \"1s\"\n", remote + "read_timeout = \"1s\"\n",
			[]string{"server[0].tls_ca_file" + inClear, logins, "server[0].doveadm.read_timeout: 1s counts as 500ms" + half}},
	} {
		for connector, want := range map[string][]string{ConnectorDoveadm: c.want, ConnectorIMAP: nil} {
			text := minimal + "connector = \"" + connector + "\"\n" + c.server + "[server.doveadm]\napi_key_file = \"k\"\n" + c.doveadm
			if diff := cmp.Diff(want, load(t, dir, text).Warnings()); diff != "" {
				t.Errorf("%s, %s (-want +got):\n%s", c.name, connector, diff)
			}
		}
	}
}
