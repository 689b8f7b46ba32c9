package config

import (
	"crypto/tls"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSocketMode(t *testing.T) {
	for text, want := range map[string]fs.FileMode{"0660": 0o660, "660": 0o660, "0600": 0o600, "000": 0, "0777": 0o777} {
		if got := mustParse(t, minimal+"[api]\nmode = \""+text+"\"").API.SocketMode(); got != want {
			t.Errorf("%s is %o", text, got)
		}
	}
	if got := mustParse(t, minimal).API.SocketMode(); got != 0o660 {
		t.Errorf("without a key: %o", got)
	}
	if got := (&API{Mode: "1777"}).SocketMode(); got != 0o600 {
		t.Errorf("a mode that Parse would refuse is %o", got)
	}
}

func TestAPIPresentsARenewedCertificate(t *testing.T) {
	dir := t.TempDir()
	c := load(t, dir, minimal+"[api]\nlisten = \"127.0.0.1:0\"\ntoken_file = \"t\"\ntls_cert_file = \"api.pem\"\ntls_key_file = \"api.key\"\n")
	for range 2 {
		want := keyPair(t, dir, "api")
		got, err := c.API.TLSConfig()
		if err != nil {
			t.Fatal(err)
		}
		if got.MinVersion != tls.VersionTLS12 {
			t.Errorf("lowest version is %x", got.MinVersion)
		}
		if len(got.Certificates) != 1 || string(got.Certificates[0].Certificate[0]) != string(want.Certificate[0]) {
			t.Error("another certificate than the file's")
		}
	}
	if err := os.Remove(filepath.Join(dir, "api.key")); err != nil {
		t.Fatal(err)
	}
	if got, err := c.API.TLSConfig(); got != nil || err == nil || !strings.HasPrefix(err.Error(), "api.tls_key_file: open "+dir) {
		t.Errorf("without the key: %v, %v", got, err)
	}
	if got, err := mustParse(t, minimal).API.TLSConfig(); got != nil || err != nil {
		t.Errorf("not set: %v, %v", got, err)
	}
}

func TestAPIWarnings(t *testing.T) {
	dir := t.TempDir()
	keyPair(t, dir, "api")
	write(t, filepath.Join(dir, "t"), "x", 0o600)
	const tlsKeys = "tls_cert_file = \"api.pem\"\ntls_key_file = \"api.key\"\n"
	for text, want := range map[string][]string{
		"listen = \"0.0.0.0:1\"\ntoken_file = \"t\"\n" + tlsKeys: nil,
		"mode = \"0600\"\n": nil,
		"mode = \"0666\"\n": {`api.mode: "0666" lets every user of this machine register and unregister users; use "0660" and a group`},
		"mode = \"0662\"\n": {`api.mode: "0662" lets every user of this machine register and unregister users; use "0660" and a group`},
		"mode = \"0664\"\n": nil, // reading alone does not connect
		"listen = \"127.0.0.1:1\"\nmode = \"0666\"\ntoken_file = \"t\"\n": nil,
		"listen = \"\"\nmode = \"0666\"\n":                                nil,
		tlsKeys:                                                           {"api.tls_cert_file: without effect on a UNIX socket, which no other machine reaches; remove it and tls_key_file"},
	} {
		if diff := cmp.Diff(want, load(t, dir, minimal+"[api]\n"+text).Warnings()); diff != "" {
			t.Errorf("%s(-want +got):\n%s", text, diff)
		}
	}
	key := filepath.Join(dir, "api.key")
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	c := load(t, dir, minimal+"[api]\nlisten = \"127.0.0.1:1\"\ntoken_file = \"t\"\n"+tlsKeys)
	if diff := cmp.Diff([]string{"api.tls_key_file: " + key + " (mode 644) is open to others; chmod 600 " + key}, c.Warnings()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
