package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// keyPair writes NAME.pem and NAME.key, self-signed for localhost.
func keyPair(t *testing.T, dir, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, name+".pem"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), 0o644)
	write(t, filepath.Join(dir, name+".key"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})), 0o600)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// load writes config.toml into dir and reads it.
func load(t *testing.T, dir, text string) *Config {
	t.Helper()
	c, err := Load(write(t, filepath.Join(dir, "config.toml"), text, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCheckReportsEveryFileAtOnce(t *testing.T) {
	dir := t.TempDir()
	keyPair(t, dir, "a")
	keyPair(t, dir, "b")
	write(t, filepath.Join(dir, "empty"), "\n", 0o600)
	write(t, filepath.Join(dir, "junk"), "junk", 0o600)
	write(t, filepath.Join(dir, "locked.key"), "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAA==\n-----END ENCRYPTED PRIVATE KEY-----\n", 0o600)
	server := func(name, more string) string {
		return "[[server]]\nname = \"" + name + "\"\ndomains = [\"" + name + "\"]\naddress = \"localhost:993\"\n" + more
	}
	c := load(t, dir, server("absent-ca", "tls_ca_file = \"nope.pem\"\n")+
		server("junk-ca", "tls_ca_file = \"junk\"\n")+
		server("key-as-ca", "tls_ca_file = \"a.key\"\n")+
		server("mixed-up", "tls_cert_file = \"a.pem\"\ntls_key_file = \"b.key\"\n")+
		server("junk-cert", "tls_cert_file = \"junk\"\ntls_key_file = \"b.key\"\n")+
		server("absent-cert", "tls_cert_file = \"nope\"\ntls_key_file = \"b.key\"\n")+
		server("absent-key", "tls_cert_file = \"a.pem\"\ntls_key_file = \"nope\"\n")+
		server("cert-as-key", "tls_cert_file = \"a.pem\"\ntls_key_file = \"a.pem\"\n")+
		server("locked-key", "tls_cert_file = \"a.pem\"\ntls_key_file = \"locked.key\"\n")+
		server("good", "tls_ca_file = \"a.pem\"\ntls_cert_file = \"b.pem\"\ntls_key_file = \"b.key\"\n")+
		server("secret", "[server.auth]\npassword_file = \"empty\"\n[server.doveadm]\napi_key_file = \"nope\"\n")+
		"[api]\ntoken_command = \"exit 1\"\ntls_cert_file = \"a.pem\"\ntls_key_file = \"b.key\"\n[notify]\npassword_file = \".\"\n")
	want := strings.ReplaceAll(`13 errors:
  server[0].tls_ca_file: open DIR/nope.pem: no such file or directory; create it or correct the name (server "absent-ca")
  server[1].tls_ca_file: DIR/junk holds no certificate in PEM form (server "junk-ca")
  server[2].tls_ca_file: DIR/a.key holds no certificate in PEM form (server "key-as-ca")
  server[3].tls_key_file: DIR/b.key does not fit DIR/a.pem: private key does not match public key (server "mixed-up")
  server[4].tls_cert_file: DIR/junk holds no certificate in PEM form (server "junk-cert")
  server[5].tls_cert_file: open DIR/nope: no such file or directory; create it or correct the name (server "absent-cert")
  server[6].tls_key_file: open DIR/nope: no such file or directory; create it or correct the name (server "absent-key")
  server[7].tls_key_file: DIR/a.pem holds no private key in PEM form (server "cert-as-key")
  server[8].tls_key_file: DIR/locked.key is encrypted; remove the passphrase: openssl pkey -in DIR/locked.key -out NEW (server "locked-key")
  api.tls_key_file: DIR/b.key does not fit DIR/a.pem: private key does not match public key
  server[10].auth.password_file: DIR/empty is empty; write the secret into it (server "secret")
  server[10].doveadm.api_key_file: open DIR/nope: no such file or directory; create it or correct the name (server "secret")
  notify.password_file: DIR is no regular file`, "DIR", dir)
	err := c.Check()
	if err == nil {
		t.Fatal("found nothing")
	}
	if diff := cmp.Diff(want, err.Error()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	var errs Errors
	if !errors.As(err, &errs) {
		t.Errorf("is a %T, not Errors", err)
	}
	if err := load(t, dir, minimal+"tls_ca_file = \"a.pem\"\n").Check(); err != nil {
		t.Errorf("good files: %v", err)
	}
}

// TestUnreadableFileSaysHowToMendIt gives up root's rights for files, if there
// are any, on a thread of its own that ends with the goroutine.
func TestUnreadableFileSaysHowToMendIt(t *testing.T) {
	dir, err := os.MkdirTemp("", "dovepush") // t.TempDir's parent is closed to others
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s := Secret{file: "s", origin: origin{key: "api.token", dir: dir}}
	name := write(t, filepath.Join(dir, "s"), "hunter2", 0)
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		if os.Geteuid() == 0 {
			if err := syscall.Setfsuid(65534); err != nil {
				done <- err
				return
			}
		}
		_, err := s.Read(t.Context())
		done <- err
	}()
	want := "api.token_file: open " + name + ": permission denied; chown it to the user that dovepush runs as, then chmod 600"
	if err := <-done; err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func TestWarningsNameTheFileAndTheMend(t *testing.T) {
	dir := t.TempDir()
	keyPair(t, dir, "a")
	text := `
[[server]]
name = "a"
domains = ["a"]
address = "a:143"
tls_cert_file = "a.pem"
tls_key_file = "a.key"
[server.auth]
mechanism = "external"
password_file = "world"
[server.doveadm]
api_key = "hunter2"
[[server]]
name = "b"
address = "a:993"
tls = "starttls"
[server.auth]
password_file = "group"
[api]
token_file = "fine"
[notify]
password_file = "absent"
`
	c := load(t, dir, text)
	write(t, filepath.Join(dir, "world"), "x", 0o644)
	write(t, filepath.Join(dir, "group"), "x", 0o660)
	write(t, filepath.Join(dir, "fine"), "x", 0o400)
	for _, name := range []string{"a.key", "config.toml"} {
		if err := os.Chmod(filepath.Join(dir, name), 0o604); err != nil {
			t.Fatal(err)
		}
	}
	if os.Getegid() != 0 && os.Geteuid() == 0 {
		t.Fatal("run this test as root:root or as an ordinary user")
	}
	want := []string{
		`server[0].tls: "implicit" on port 143, where Dovecot expects STARTTLS; use port 993 or tls = "starttls" (server "a")`,
		`server[0].auth.password_file: mechanism "external" does not use it; remove it (server "a")`,
		`server[0].tls_key_file: DIR/a.key (mode 604) is open to others; chmod 600 DIR/a.key (server "a")`,
		`server[1].tls: "starttls" on port 993, where Dovecot expects TLS at once; use port 143 or tls = "implicit" (server "b")`,
		`api.token_file: a UNIX socket is guarded by its file mode, not by a token; remove it`,
		`server[0].auth.password_file: DIR/world (mode 644) is open to others; chmod 600 DIR/world (server "a")`,
		`server[0].doveadm.api_key: DIR/config.toml (mode 604) is open to others; chmod 600 DIR/config.toml (server "a")`,
		`server[1].auth.password_file: DIR/group (mode 660) is open to its group; chmod 600 DIR/group (server "b")`,
	}
	for i := range want {
		want[i] = strings.ReplaceAll(want[i], "DIR", dir)
	}
	if diff := cmp.Diff(want, c.Warnings()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	t.Setenv("CREDENTIALS_DIRECTORY", dir) // systemd looks after the modes there
	for _, w := range c.Warnings() {
		if strings.Contains(w, "chmod") && !strings.Contains(w, "config.toml") {
			t.Errorf("warns of a credential: %s", w)
		}
	}
}

func TestWarningsAreSilentWhenAllIsWell(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "s"), "x", 0o600)
	c := load(t, dir, minimal+"[server.auth]\npassword_file = \"s\"\n[notify]\npassword = \"x\"\n")
	if got := c.Warnings(); got != nil {
		t.Errorf("got %q", got)
	}
	if err := os.Chmod(filepath.Join(dir, "config.toml"), 0o644); err != nil {
		t.Fatal(err)
	}
	want := []string{"notify.password: " + filepath.Join(dir, "config.toml") + " (mode 644) is open to others; chmod 600 " + filepath.Join(dir, "config.toml")}
	if diff := cmp.Diff(want, c.Warnings()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	c = load(t, dir, minimal+"[api]\nlisten = \"0.0.0.0:1\"\ntoken_file = \"s\"\n")
	if diff := cmp.Diff([]string{`api.listen: "0.0.0.0:1" carries the token in clear to other machines; set tls_cert_file and tls_key_file, or listen on loopback behind a TLS proxy`}, c.Warnings()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestGroupOfTheServiceMayRead needs root to give a file to another group.
func TestGroupOfTheServiceMayRead(t *testing.T) {
	name := write(t, filepath.Join(t.TempDir(), "s"), "x", 0o640)
	err := os.Chown(name, 0, 65534)
	if os.Geteuid() != 0 {
		if err == nil {
			t.Error("an ordinary user gave a file away")
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := exposed(name); got != "" {
		t.Errorf("root:service 640: %s", got)
	}
	if err := os.Chmod(name, 0o644); err != nil {
		t.Fatal(err)
	}
	if got, want := exposed(name), name+" (mode 644) is open to others; chmod 640 "+name; got != want {
		t.Errorf("root:service 644: %s, want %s", got, want)
	}
}

func TestTLSConfigTrustsAndPresentsTheFiles(t *testing.T) {
	dir := t.TempDir()
	serverCert := keyPair(t, dir, "server")
	clientCert := keyPair(t, dir, "client")
	keyPair(t, dir, "stranger")

	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{serverCert}, ClientAuth: tls.RequireAnyClientCert})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	presented := make(chan []byte, 10)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			if tc := conn.(*tls.Conn); tc.HandshakeContext(t.Context()) == nil {
				presented <- tc.ConnectionState().PeerCertificates[0].Raw
			}
			conn.Close()
		}
	}()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	dial := func(more string) error {
		c := load(t, dir, "[[server]]\naddress = \"localhost:"+port+"\"\ntls_cert_file = \"client.pem\"\ntls_key_file = \"client.key\"\n"+more)
		tc, err := c.Servers[0].TLSConfig()
		if err != nil {
			return err
		}
		if tc.MinVersion != tls.VersionTLS12 {
			t.Errorf("lowest version is %x", tc.MinVersion)
		}
		conn, err := tls.Dial("tcp", ln.Addr().String(), tc)
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Read(make([]byte, 1))
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	}
	if err := dial("tls_ca_file = \"server.pem\"\n"); err != nil {
		t.Errorf("right CA: %v", err)
	} else if got := <-presented; string(got) != string(clientCert.Certificate[0]) {
		t.Error("another client certificate arrived")
	}
	for more, want := range map[string]string{
		"":                                 "certificate signed by unknown authority",
		"tls_ca_file = \"stranger.pem\"\n": "certificate signed by unknown authority",
		"tls_ca_file = \"server.pem\"\ntls_server_name = \"imap.example.com\"\n": "not imap.example.com",
	} {
		if err := dial(more); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", more, err, want)
		}
	}
}

func TestTLSConfigNames(t *testing.T) {
	for _, c := range []struct{ text, imap, doveadm string }{
		{minimal, "imap.example.com", ""},
		{"[[server]]\naddress = \"[::1]:993\"", "::1", ""},
		{minimal + "tls_server_name = \"x\"", "x", "x"},
	} {
		s := &mustParse(t, c.text).Servers[0]
		imap, err1 := s.TLSConfig()
		doveadm, err2 := s.DoveadmTLSConfig()
		if err := errors.Join(err1, err2); err != nil {
			t.Error(err)
		} else if imap.ServerName != c.imap || doveadm.ServerName != c.doveadm || imap.RootCAs != nil {
			t.Errorf("%s: %q %q %v", c.text, imap.ServerName, doveadm.ServerName, imap.RootCAs)
		}
	}
	s := DefaultServer()
	if _, err := s.TLSConfig(); err == nil || err.Error() != "server.address: missing port in address" {
		t.Errorf("no address: %v", err)
	}
	s.TLS = TLSNone
	if c, err := s.TLSConfig(); c != nil || err != nil {
		t.Errorf("none: %v %v", c, err)
	}
}
