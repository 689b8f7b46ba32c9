package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dovepush/internal/dovecot"
)

// oddPassword needs every kind of escape: those of URLs, and those of Dovecot's settings.
const oddPassword = `p@ss %{user} %u:/?#[] $x "q" '\ é`

// oddKey needs those that a quoted setting has.
const oddKey = `k "e" \y $mail #%{user}`

const notifyPath = "/preliminary/http-notify/v1/notify"

// A pushed is a request that the endpoint got.
type pushed struct {
	Method, Path, Username, Password string
	User, Folder                     string
}

// pushEndpoint stands for whoever is told of new mail.
type pushEndpoint struct {
	*httptest.Server
	caFile string // PEM; empty: plain HTTP

	mu   sync.Mutex
	told []pushed
}

func newPushEndpoint(t *testing.T, encrypted bool, hold func(n int) bool) *pushEndpoint {
	t.Helper()
	e := &pushEndpoint{}
	e.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := pushed{Method: r.Method, Path: r.URL.Path}
		n.Username, n.Password, _ = r.BasicAuth()
		body, _ := io.ReadAll(r.Body)
		_ = json.Unmarshal(body, &n)
		e.mu.Lock()
		e.told = append(e.told, n)
		count := len(e.told)
		e.mu.Unlock()
		if hold != nil && hold(count) {
			<-r.Context().Done()
		}
	}))
	if encrypted {
		var certificate tls.Certificate
		certificate, e.caFile = selfSigned(t)
		e.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
		e.StartTLS()
	} else {
		e.Start()
	}
	t.Cleanup(e.Close)
	return e
}

func (e *pushEndpoint) drain() []pushed {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := e.told
	e.told = nil
	return all
}

// selfSigned makes a certificate for 127.0.0.1 that is its own CA.
func selfSigned(t *testing.T) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// pushPlan is a config.toml, and what comes of it in Dovecot.
type pushPlan struct {
	name    string
	top     string // of config.toml
	server  string // behind [[server]]; ${IMAP}, ${IMAPS}, ${DOVEADM}, ${CA}
	https   bool
	odd     bool // Dovecot listens on 127.0.0.2, and connections come from 127.0.0.1
	args    []string
	user    string // whom Dovecot tells of, for alice
	doveadm bool
}

var pushPlans = []pushPlan{
	{name: "imap", user: "alice", server: `
address = "${IMAP}"
tls = "none"
[server.auth]
master_user = "agent"
password_file = "master.secret"
`},
	{name: "identity, separator, https", user: "alice@ctx", https: true, top: `identity = "{user}@ctx"`, server: `
address = "${IMAPS}"
tls_ca_file = "${CA}"
[server.auth]
mechanism = "login"
master_user = "agent"
master_separator = "*"
password_file = "master.secret"
`},
	{name: "in clear between machines", user: "alice", odd: true, args: []string{"--from", "127.0.0.1"}, server: `
address = "${IMAP}"
tls = "none"
[server.auth]
master_user = "agent"
password_file = "master.secret"
`},
	{name: "doveadm", user: "alice", doveadm: true, server: `
connector = "doveadm"
[server.doveadm]
endpoints = ["${DOVEADM}"]
api_key_file = "doveadm.key"
`},
	{name: "doveadm, by password", user: "alice@ctx", doveadm: true, top: `identity = "{user}@ctx"`, server: `
connector = "doveadm"
[server.doveadm]
endpoints = ["${DOVEADM}"]
password_file = "doveadm.key"
`},
}

// pushStage is where a plan is carried out: all but Dovecot.
type pushStage struct {
	*site
	plan     pushPlan
	version  dovecot.Version
	endpoint *pushEndpoint
	root     string // of Dovecot's file system
	shared   string // a directory that Dovecot can read
	doveadm  string // the endpoint that the plan names
}

func newPushStage(t *testing.T, version dovecot.Version, p pushPlan, hold func(int) bool) *pushStage {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a real Dovecot")
	}
	install, err := dovecot.Find(version)
	if err != nil {
		t.Fatal(err)
	}
	shared, err := os.MkdirTemp(filepath.Join(install.Root, "/tmp"), "dovepush")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(shared) })
	if err := os.Chmod(shared, 0o755); err != nil {
		t.Fatal(err)
	}
	g := &pushStage{
		site: &site{t: t, dir: t.TempDir()}, plan: p, version: version,
		endpoint: newPushEndpoint(t, p.https, hold), root: install.Root, shared: shared,
		doveadm: fmt.Sprintf("http://127.0.0.1:%d/doveadm/v1", freePort(t)),
	}
	g.write("master.secret", "master's own\n")
	g.write("doveadm.key", oddKey+"\n")
	g.write("notify.secret", oddPassword+"\n")
	return g
}

// freePort finds a port below those that the kernel gives to outgoing connections.
func freePort(t *testing.T) int {
	t.Helper()
	for {
		n, err := rand.Int(rand.Reader, big.NewInt(10_000))
		if err != nil {
			t.Fatal(err)
		}
		port := 20_000 + int(n.Int64())
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			l.Close()
			return port
		}
	}
}

// configure writes config.toml; without a Dovecot, for stock ports.
func (g *pushStage) configure(s *dovecot.Server) {
	host := "127.0.0.1"
	if g.plan.odd {
		host = "127.0.0.2"
	}
	values := map[string]string{"IMAP": host + ":143", "IMAPS": host + ":993", "CA": "", "DOVEADM": g.doveadm}
	if s != nil {
		values["IMAP"], values["IMAPS"], values["CA"] = s.IMAP, s.IMAPS, s.CAFile
	}
	listen, keys := g.endpoint.Listener.Addr().String(), ""
	if g.plan.https {
		keys = "tls_cert_file = \"cert.pem\"\ntls_key_file = \"key.pem\"\n"
	}
	g.write("config.toml", os.Expand(g.plan.top+"\n[[server]]\ntimeout = \"10s\""+g.plan.server+`
[registry]
path = "registry.db"
[notify]
listen = "`+listen+`"
password_file = "notify.secret"
`+keys, func(name string) string { return values[name] }))
}

// settings is what dovecot-config prints.
func (g *pushStage) settings() string {
	g.configure(nil)
	return g.run(exitOK, slices.Concat([]string{"dovecot-config", "--dovecot", string(g.version)}, g.plan.args)...)
}

// follow does by the printed text what its own steps say.
func (g *pushStage) follow(text string) string {
	g.t.Helper()
	percent := "%"
	if strings.Contains(text, "as %%XX") {
		percent = "%%"
	}
	var password strings.Builder
	for _, c := range []byte(oddPassword) {
		fmt.Fprintf(&password, "%s%02X", percent, c)
	}
	inside := func(name, content string) string {
		path := filepath.Join(g.shared, name)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			g.t.Fatal(err)
		}
		if g.root == "" {
			return path
		}
		return strings.TrimPrefix(path, g.root)
	}
	key := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(oddKey)
	if strings.Contains(text, "and % as %%") {
		key = strings.ReplaceAll(key, "%", "%%")
	}
	values := map[string]string{
		"PASSWORD": password.String(),
		"KEY":      key,
		"CA-FILE":  inside("ca.pem", g.endpoint.caFile),
	}
	for line := range strings.Lines(text) {
		marker, _, found := strings.Cut(strings.TrimPrefix(line, "#   "), " by ")
		value, known := values[marker]
		if !strings.HasPrefix(line, "#   ") || !found {
			continue
		}
		if !known {
			g.t.Fatalf("no value for the step %s", line)
		}
		text = strings.ReplaceAll(text, marker, value)
	}
	return strings.ReplaceAll(text, "/etc/dovecot/dovepush.passwd", inside("dovepush.passwd", "agent:{PLAIN}master's own\n"))
}

// start starts a Dovecot with these settings and none of ours.
func (g *pushStage) start(text string) (*dovecot.Server, error) {
	// Not the test's context: it ends before the log is looked at.
	s, err := dovecot.Start(context.Background(), dovecot.Options{
		Version: g.version, Bare: true, PlaintextRefused: g.plan.odd,
		Users: []dovecot.User{{Name: "alice", Password: "x"}},
		Extra: map[dovecot.Version]string{g.version: text},
	})
	if err != nil {
		return nil, err
	}
	g.t.Cleanup(func() {
		if g.t.Failed() {
			g.t.Logf("Dovecot's log:\n%s", s.Log())
		}
		s.Close()
	})
	g.s = s
	g.configure(s)
	return s, nil
}

// prove registers alice, and sees Dovecot tell the endpoint of her mail.
func (g *pushStage) prove(s *dovecot.Server) error {
	if out, err := s.Command(g.t.Context(), "doveconf", "-n").CombinedOutput(); err != nil || strings.Contains(string(out), "Warning") {
		return fmt.Errorf("doveconf -n: %v\n%s", err, out)
	}
	if out, err := g.command("register", "alice").CombinedOutput(); err != nil {
		return fmt.Errorf("register: %w\n%s", err, out)
	}
	// Nobody of that name must not look like trouble of the server's.
	unknown := g.command("register", "nobody")
	if out, _ := unknown.CombinedOutput(); unknown.ProcessState.ExitCode() != exitNoUser {
		return fmt.Errorf("register nobody: exit status %d\n%s", unknown.ProcessState.ExitCode(), out)
	}
	for way, deliver := range map[string]func() error{
		"LMTP": func() error { return s.Deliver(g.t.Context(), "alice", "bob@example.org", "lunch", "at noon") },
		"dovecot-lda": func() error {
			lda := s.Command(g.t.Context(), "dovecot-lda", "-d", "alice")
			lda.Stdin = strings.NewReader("From: bob@example.org\nSubject: lunch\n\nat noon\n")
			out, err := lda.CombinedOutput()
			return errors.Join(err, errors.New(string(out)))
		},
	} {
		g.endpoint.drain()
		err := deliver()
		want := pushed{"PUT", notifyPath, "dovecot", oddPassword, g.plan.user, "INBOX"}
		if got := g.endpoint.drain(); len(got) != 1 || got[0] != want {
			return fmt.Errorf("%s: told %+v, want %+v; %v\n%s", way, got, want, err, s.Log())
		}
	}
	return nil
}
