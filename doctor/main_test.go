package doctor

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dovepush/config"
	"dovepush/doveadm"
	"dovepush/imapmeta"
	"dovepush/internal/dovecot"
	"dovepush/internal/dovecot/dovecottest"
	"dovepush/notify"
	"dovepush/registry"
)

const notifyPassword = "n0tify-secret"

// endpoint is what Dovecot notifies in these tests, made of notify's real parts.
type endpoint struct {
	address string
	hub     *notify.Hub
	prover  *notify.Prover
}

// newEndpoint listens. verify may be nil.
func newEndpoint(t *testing.T, reg *registry.Registry, verify func(string) (string, error)) *endpoint {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := &endpoint{address: listener.Addr().String(), hub: notify.NewHub(), prover: notify.NewProver(notify.ProverOptions{Prove: reg.Prove})}
	handler := notify.New(notify.Options{
		Path:        config.Default().Notify.Path,
		Credentials: func() (string, string, bool) { return "dovecot", notifyPassword, true },
		Verify:      verify,
		Publish: func(n notify.Notification) {
			e.prover.Add(n)
			e.hub.Publish(notify.Event{Notification: &n})
		},
		Refused: func(r notify.Refusal) { e.hub.Publish(notify.Event{Refusal: &r}) },
	})
	server := notify.Server(handler, nil)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	ctx, stop := context.WithCancel(context.Background())
	proved := make(chan error, 1)
	go func() { proved <- e.prover.Run(ctx) }()
	t.Cleanup(func() {
		server.Close()
		<-served
		stop()
		<-proved
		e.hub.Close()
	})
	return e
}

// url is what Dovecot is told.
func (e *endpoint) url() string {
	return "http://dovecot:" + notifyPassword + "@" + e.address + config.Default().Notify.Path
}

// chain is everything from config.toml to the registry, but for Dovecot.
type chain struct {
	dir      string
	registry *registry.Registry
	endpoint *endpoint
	server   *dovecot.Server
	settings string // Dovecot's, as they were at first
	identity string // of alice's registration
}

func newChain(t *testing.T) *chain {
	t.Helper()
	c := &chain{dir: t.TempDir()}
	reg, err := registry.Open(t.Context(), filepath.Join(c.dir, "registry.db"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reg.Close() })
	c.registry = reg
	c.endpoint = newEndpoint(t, reg, nil)
	return c
}

// start starts Dovecot with alice and bob.
func (c *chain) start(t *testing.T, v dovecot.Version, o dovecot.Options) {
	t.Helper()
	o.Version = v
	o.Users = append(o.Users, dovecot.User{Name: "alice", Password: "a"}, dovecot.User{Name: "bob", Password: "b"})
	if o.PushURL == "" {
		o.PushURL = c.endpoint.url()
	}
	c.server = dovecottest.Start(t, o)
	text, err := os.ReadFile(c.conf())
	if err != nil {
		t.Fatal(err)
	}
	c.settings = string(text)
	for name, text := range map[string]string{"master": c.server.MasterPassword, "key": c.server.APIKey, "notify": notifyPassword} {
		c.write(t, name, text+"\n")
	}
}

func (c *chain) conf() string { return filepath.Join(c.server.Dir, "dovecot.conf") }

func (c *chain) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// change makes Dovecot run with settings that differ from the first ones.
func (c *chain) change(t *testing.T, edit func(settings string) string) {
	t.Helper()
	// As it was written by whoever runs the test; Dovecot reads it before it
	// becomes another user.
	if err := os.WriteFile(c.conf(), []byte(edit(c.settings)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// register writes alice's entry and row, as an agent does.
func (c *chain) register(t *testing.T, identity string) {
	t.Helper()
	value, err := imapmeta.NewValue(identity)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.server.SetEntry(t.Context(), "alice", string(value)); err != nil {
		t.Fatal(err)
	}
	c.row(t, identity, value)
	c.identity = identity
}

// row notes alice's registration.
func (c *chain) row(t *testing.T, identity string, value imapmeta.Value) {
	t.Helper()
	key := registry.Key{User: "alice", Server: "main"}
	err := c.registry.Intend(t.Context(), registry.Intent{Key: key, Identity: identity, Value: string(value), Wanted: registry.Present})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	row, _, err := c.registry.Claim(t.Context(), key, "test", now.Add(time.Minute), now)
	if err != nil {
		t.Fatal(err)
	}
	result := registry.Result{Key: key, Revision: row.Revision, State: registry.Registered, WrittenAt: now, VerifiedAt: now, NextAt: now.Add(time.Hour)}
	if _, err := c.registry.Record(t.Context(), "test", result); err != nil {
		t.Fatal(err)
	}
}

const imapSettings = `
[[server]]
address = %q
tls_ca_file = %q
timeout = "15s"
[server.auth]
master_user = %q
password_file = "master"
[server.doveadm]
endpoints = [%q]
api_key_file = "key"
`

const doveadmSettings = `
[[server]]
connector = "doveadm"
[server.doveadm]
endpoints = [%q]
api_key_file = "key"
`

// byIMAP and byDoveadm are the server's tables.
func (c *chain) byIMAP() string {
	return fmt.Sprintf(imapSettings, c.server.IMAPS, c.server.CAFile, c.server.MasterUser, c.server.DoveadmURL)
}

func (c *chain) byDoveadm() string { return fmt.Sprintf(doveadmSettings, c.server.DoveadmURL) }

// rest is the tables that are not a server's.
func (c *chain) rest() string {
	return fmt.Sprintf("[registry]\npath = \"registry.db\"\n[api]\nlisten = \"\"\n[notify]\nlisten = %q\npassword_file = \"notify\"\n", c.endpoint.address)
}

// doveconf is a command line that prints the settings of this Dovecot.
func (c *chain) doveconf(t *testing.T) string {
	t.Helper()
	in, err := dovecot.Find(c.server.Version)
	if err != nil {
		t.Fatal(err)
	}
	conf := " doveconf -c " + strings.TrimPrefix(c.conf(), in.Root)
	switch {
	case in.Root == "":
		return conf
	case os.Getuid() == 0:
		return "PATH=$PATH:/usr/sbin chroot " + in.Root + conf
	}
	return "unshare --map-root-user --root=" + in.Root + conf
}

// walk is a run of doctor and what it reported.
type walk struct {
	results []Result
	Verdict
}

// options are those of a healthy chain for alice.
func (c *chain) options(t *testing.T, text string) Options {
	t.Helper()
	hub := c.endpoint.hub
	return Options{
		Config:   func() (*config.Config, error) { return config.Parse([]byte(text), filepath.Join(c.dir, "config.toml")) },
		Path:     "config.toml",
		User:     "alice",
		Deliver:  true,
		Doveconf: "false", // not readable, unless a test says otherwise
		IMAP:     newIMAP,
		Doveadm:  newDoveadm,
		Watch: func(context.Context, bool) (*Feed, error) {
			sub, err := hub.Subscribe(nil, 0)
			if err != nil {
				return nil, err
			}
			return &Feed{Events: sub.Events(), Proves: true, Where: "the test's endpoint", Close: sub.Close}, nil
		},
		Wait: Wait{Arrive: 1500 * time.Millisecond},
	}
}

// run walks the chain.
func run(t *testing.T, o Options) walk {
	t.Helper()
	return runIn(t, t.Context(), o)
}

func runIn(t *testing.T, ctx context.Context, o Options) walk {
	t.Helper()
	var w walk
	var text strings.Builder
	o.Report = func(r Result) {
		w.results = append(w.results, r)
		text.WriteString(r.Text())
	}
	w.Verdict = Run(ctx, o)
	said := text.String() + w.Verdict.Text()
	if testing.Verbose() {
		t.Logf("\n%s", said)
	}
	for _, secret := range []string{notifyPassword} {
		if strings.Contains(said, secret) {
			t.Errorf("doctor says a secret:\n%s", said)
		}
	}
	t.Cleanup(func() {
		if t.Failed() && !testing.Verbose() {
			t.Logf("doctor said:\n%s", said)
		}
	})
	return w
}

// of returns the results of a link.
func (w walk) of(link string) (list []Result) {
	for _, r := range w.results {
		if r.Link == link {
			list = append(list, r)
		}
	}
	return list
}

// has wants a result of a link with a status, which says some words, in its
// detail or its mend.
func (w walk) has(t *testing.T, link string, status Status, words ...string) {
	t.Helper()
	for _, r := range w.of(link) {
		if r.Status == status && !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(r.Detail+"\n"+r.Mend, word) }) {
			return
		}
	}
	t.Errorf("%s: no result %q with the words %q among %+v", link, status, words, w.of(link))
}

func newIMAP(_ int, s *config.Server) (*imapmeta.Client, error) {
	conf, err := s.TLSConfig()
	if err != nil {
		return nil, err
	}
	return imapmeta.New(imapmeta.Options{
		Address: s.Address, TLS: imapmeta.TLSMode(s.TLS), TLSConfig: conf, Timeout: time.Duration(s.Timeout),
		Auth: imapmeta.Auth{
			Mechanism: imapmeta.Mechanism(s.Auth.Mechanism), MasterUser: s.Auth.MasterUser, MasterSeparator: s.Auth.MasterSeparator,
			Secret: func(ctx context.Context, user string) (string, error) {
				return s.Auth.Password.Read(ctx, "DOVEPUSH_USER="+user)
			},
		},
	})
}

func newDoveadm(_ int, s *config.Server) (*doveadm.Client, error) {
	conf, err := s.DoveadmTLSConfig()
	if err != nil {
		return nil, err
	}
	return doveadm.New(doveadm.Options{
		Endpoints: s.Doveadm.Endpoints, TLSConfig: conf,
		Secret: func(ctx context.Context) (string, error) { return s.Doveadm.APIKey.Read(ctx) },
	})
}

// answering is an HTTP server that is none of ours.
func answering(t *testing.T, handler http.HandlerFunc) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, listener, handler)
	return listener.Addr().String()
}

// serveOn serves until the test ends.
func serveOn(t *testing.T, listener net.Listener, handler http.HandlerFunc) {
	t.Helper()
	server := &http.Server{Handler: handler, ErrorLog: log.New(io.Discard, "", 0)} // handshakes that doctor breaks off
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Close()
		<-served
	})
}

// attributes is what a user's dict holds; empty, if there is none.
func (c *chain) attributes(t *testing.T, user string) string {
	t.Helper()
	text, err := os.ReadFile(c.server.AttributeFile(user))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(text)
}
