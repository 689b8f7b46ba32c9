package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dovepush/config"
	"dovepush/internal/dovecot"
	"dovepush/internal/dovecot/dovecottest"
	"dovepush/registry"
)

const pushPath = "/preliminary/http-notify/v1/notify"

// pushPassword is p@ss as it stands in the URL of Dovecot's settings: 2.3
// expands variables there, which begin with %.
var pushPassword = map[dovecot.Version]string{dovecot.V23: "p%%40ss", dovecot.V24: "p%40ss"}

// anyPort returns an address on loopback where nobody listens.
func anyPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// notified is a site whose Dovecot notifies the service.
type notified struct {
	*site
	address string // where the service takes notifications
}

// everyNotified runs a test on each version of Dovecot, which notifies the
// service.
func everyNotified(t *testing.T, o dovecot.Options, f func(t *testing.T, w notified)) {
	for _, version := range dovecot.Versions() {
		t.Run(string(version), func(t *testing.T) {
			if testing.Short() {
				t.Skip("needs a real Dovecot")
			}
			o, address := o, anyPort(t)
			o.Version, o.PushURL = version, "http://dovecot:"+pushPassword[version]+"@"+address+pushPath
			w := notified{newSite(t, dovecottest.Start(t, o)), address}
			w.write("notify.secret", "p@ss\n")
			w.more(fmt.Sprintf("[notify]\nlisten = %q\npassword_file = \"notify.secret\"\n", address))
			f(t, w)
		})
	}
}

// deliver brings a message to a user's INBOX.
func (w notified) deliver(user, subject string) {
	w.t.Helper()
	if err := w.s.Deliver(w.t.Context(), user, "bob@example.org", subject, "It is about "+subject); err != nil {
		w.t.Fatal(err)
	}
}

// put sends something to the endpoint, and returns the status.
func (w notified) put(user, password, path, body string) int {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodPut, "http://"+w.address+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	req.SetBasicAuth(user, password)
	req.Header.Set("Content-Type", "application/json; charset=utf-8")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, res.Body)
	return res.StatusCode
}

// proven waits until a user is proven.
func (w notified) proven(user string) (reg registry.Registration) {
	w.t.Helper()
	eventually(w.t, user+" is proven", func() error {
		if err := json.Unmarshal([]byte(w.run(exitOK, "status", "--json", user)), &reg); err != nil {
			return err
		}
		if reg.ProvenAt.IsZero() {
			return fmt.Errorf("%+v", reg)
		}
		return nil
	})
	return reg
}

// shows waits until the service's metrics show a line.
func (r *running) shows(lines ...string) {
	r.t.Helper()
	eventually(r.t, "the metrics show "+strings.Join(lines, ", "), func() error {
		res, err := r.client.Get("http://dovepush/metrics")
		if err != nil {
			return err
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil {
			return err
		}
		for _, line := range lines {
			if !strings.Contains("\n"+string(text), "\n"+line+"\n") {
				return fmt.Errorf("no %s in\n%s", line, text)
			}
		}
		return nil
	})
}

// watching is a dovepush watch in a process of its own.
type watching struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines chan string
	err   *lockedBuffer
}

// watch begins to watch, and returns when the service knows of it.
func (w notified) watch(r *running, watchers int, args ...string) *watching {
	w.t.Helper()
	v := &watching{t: w.t, cmd: w.command(append([]string{"watch"}, args...)...), lines: make(chan string, 100), err: new(lockedBuffer)}
	v.begin()
	r.shows(fmt.Sprintf("dovepush_watchers %d", watchers))
	return v
}

// begin starts the process, which ends with the test.
func (v *watching) begin() {
	v.t.Helper()
	v.cmd.Stderr, v.cmd.Stdin = v.err, strings.NewReader("bob\n") // for those who watch "-"
	out, err := v.cmd.StdoutPipe()
	if err != nil {
		v.t.Fatal(err)
	}
	if err := v.cmd.Start(); err != nil {
		v.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(v.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			v.lines <- s.Text()
		}
	}()
	v.t.Cleanup(func() {
		_ = v.cmd.Process.Kill()
		<-done
		_ = v.cmd.Wait()
	})
}

// line returns what is shown next.
func (v *watching) line() string {
	v.t.Helper()
	select {
	case line, ok := <-v.lines:
		if !ok {
			v.t.Fatalf("watch has ended: %s", v.err)
		}
		return line
	case <-time.After(time.Minute):
		v.t.Fatalf("nothing is shown; %s", v.err)
		return ""
	}
}

// wants that a line holds all parts.
func (v *watching) wants(parts ...string) {
	v.t.Helper()
	line := v.line()
	for _, part := range parts {
		if !strings.Contains(line, part) {
			v.t.Errorf("no %q in %s", part, line)
		}
	}
}

func TestANotificationIsSeenAndProvesARegistration(t *testing.T) {
	o := dovecot.Options{Users: []dovecot.User{{Name: "alice", Password: "x"}, {Name: "bob", Password: "x"}}}
	everyNotified(t, o, func(t *testing.T, w notified) {
		r := w.start()
		w.run(exitOK, "register", "alice", "bob")
		all, objects, bob := w.watch(r, 1), w.watch(r, 2, "--json", "alice"), w.watch(r, 3, "-")

		w.deliver("alice", "Grüße")
		all.wants("alice", "INBOX #1", "bob@example.org", `"Grüße"`, "1 unseen")
		var got struct{ User, Event, Folder, From, Subject, Snippet string }
		if err := json.Unmarshal([]byte(objects.line()), &got); err != nil || got.User != "alice" || got.Event != "messageNew" ||
			got.Folder != "INBOX" || got.From != "bob@example.org" || got.Subject != "Grüße" || got.Snippet != "It is about Grüße" {
			t.Errorf("%+v (%v)", got, err)
		}
		if reg := w.proven("alice"); time.Since(reg.ProvenAt) > time.Minute {
			t.Errorf("proven at %s", reg.ProvenAt)
		}
		if out := w.run(exitOK, "status", "bob", "alice"); strings.Count(out, "never") != 1 {
			t.Errorf("bob is not proven, alice is:\n%s", out)
		}
		if out := w.run(exitOK, "status"); !strings.Contains(out, "1 of 2  1 within 7 days") {
			t.Errorf("status says:\n%s", out)
		}
		r.shows(`dovepush_notifications_total{result="accepted"} 1`, `dovepush_proofs_total{proof="proven"} 1`,
			`dovepush_registrations_proven{server="main"} 1`, `dovepush_registrations_proven_lately{server="main"} 1`)

		// The same again is recognised; whom nobody has registered is counted.
		const again = `{"user":"carol","event":"messageNew","folder":"INBOX","imap-uidvalidity":1,"imap-uid":1}`
		for range 2 {
			if status := w.put("dovecot", "p@ss", pushPath, again); status != 200 {
				t.Errorf("status %d", status)
			}
		}
		all.wants("carol", "INBOX #1")
		r.shows(`dovepush_notifications_total{result="accepted"} 2`, `dovepush_notifications_total{result="duplicate"} 1`, `dovepush_proofs_total{proof="unknown"} 1`)

		for _, c := range []struct {
			user, password, path string
			status               int
			shown                string
		}{
			{"dovecot", "wrong", pushPath, 401, "401, wrong user or password"},
			{"dovecot", "p@ss", "/elsewhere", 404, "404, wrong path"},
		} {
			if status := w.put(c.user, c.password, c.path, again); status != c.status {
				t.Errorf("status %d, want %d", status, c.status)
			}
			all.wants("refused a request from 127.0.0.1", c.shown)
		}
		w.deliver("bob", "Last")
		bob.wants("bob", `"Last"`) // and nothing before
		if text := r.log.String(); strings.Contains(text, "Gr") || strings.Contains(text, "example.org") || strings.Contains(text, "p@ss") {
			t.Error("the service has logged what is in the mail, or the password")
		}

		// Watching goes on when the service is there again.
		r.stop()
		r = w.start()
		r.shows("dovepush_watchers 3")
		w.deliver("bob", "Anew")
		bob.wants(`"Anew"`)
		if text := bob.err.String(); strings.Count(text, "waiting for it") != 1 || strings.Count(text, "watching again") != 1 {
			t.Errorf("watch says:\n%s", text)
		}
		if err := bob.cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		if _, ok := <-bob.lines; ok {
			t.Error("more is shown")
		}
	})
}

func TestWatchSaysWhyItCannot(t *testing.T) {
	s := dovecottest.Start(t, dovecot.Options{Version: dovecot.Versions()[0]})
	w := newSite(t, s)
	w.more(fmt.Sprintf("[api]\nlisten = \"unix:%s\"\n", filepath.Join(w.dir, "nobody.sock")))
	says := func(code int, parts ...string) {
		t.Helper()
		cmd := w.command("watch")
		text, _ := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != code {
			t.Errorf("exit status %d, want %d", got, code)
		}
		for _, part := range parts {
			if !strings.Contains(string(text), part) {
				t.Errorf("no %q in %s", part, text)
			}
		}
	}
	says(exitUnavailable, "dovepush serve does not answer at unix:", "no such file", "hint: start it")
	w.settings(s.IMAP)
	w.more("[api]\nlisten = \"\"\n")
	says(exitConfig, "api.listen is empty")
	w.settings(s.IMAP)
	r := w.start()
	says(exitConfig, "dovepush takes no notifications", "notify.listen")
	r.stop()
}

// apiClient reaches an API over TLS, whatever the URL says.
func apiClient(cert *x509.Certificate, address string) *http.Client {
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	return &http.Client{Transport: bearerOverTLS{&http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}, address}}
}

type bearerOverTLS struct {
	*http.Transport
	address string
}

func (b bearerOverTLS) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.Scheme, r.URL.Host = "https", b.address
	r.Header.Set("Authorization", "Bearer the-token")
	return b.Transport.RoundTrip(r)
}

// elsewhere is a listener that other machines reach.
type elsewhere struct{ net.Listener }

func (elsewhere) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 8026} }

func TestWhatOtherMachinesReachNeverDoesWithoutAPassword(t *testing.T) {
	here, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	g := &generation{config: &config.Config{}}
	r := &receiver{now: func() *generation { return g }}
	for _, step := range []struct {
		open     []net.Listener
		required bool
	}{{[]net.Listener{here}, false}, {[]net.Listener{here, elsewhere{here}}, true}} {
		if err := r.opened(t.Context(), step.open); err != nil {
			t.Fatal(err)
		}
		if _, password, required := r.credentials(); required != step.required || password != "" {
			t.Errorf("%d listeners: required %v", len(step.open), required)
		}
		if err := g.receive(t.Context(), r); (err != nil) != step.required || err != nil && !errors.Is(err, errConfig) {
			t.Errorf("%d listeners: settings without a password: %v", len(step.open), err)
		}
	}
	g.config.Notify.Password = config.NewSecret("x")
	if err := g.receive(t.Context(), r); err != nil {
		t.Error(err)
	}
}

func TestNotificationsAreTakenOverHTTPSOnSeveralListeners(t *testing.T) {
	w := notified{site: &site{t: t, dir: t.TempDir()}}
	first := w.certificate(1)
	second := anyPort(t)
	w.write("token", "the-token\n")
	w.write("notify.secret", "first\n")
	w.write("config.toml", fmt.Sprintf("[[server]]\naddress = \"127.0.0.1:1\"\ntls = \"none\"\n[registry]\npath = \"r.db\"\n"+
		"[api]\nlisten = \"127.0.0.1:0\"\ntoken_file = \"token\"\ntls_cert_file = \"cert.pem\"\ntls_key_file = \"key.pem\"\n"+
		"[notify]\nlisten = \"127.0.0.1:0\"\nalso_listen = [%q, \"unix:%s\"]\npath = \"/n\"\npassword_file = \"notify.secret\"\ntls_cert_file = \"cert.pem\"\ntls_key_file = \"key.pem\"\n",
		second, filepath.Join(w.dir, "n.sock")))
	r := w.start()
	w.write("config.toml", strings.Replace(w.read("config.toml"), "[api]\nlisten = \"127.0.0.1:0\"", fmt.Sprintf("[api]\nlisten = %q", r.address("api")), 1))
	v := &watching{t: t, cmd: w.command("watch", "--json"), lines: make(chan string, 10), err: new(lockedBuffer)}
	v.begin()
	r.client = apiClient(first, r.address("api"))
	r.shows("dovepush_watchers 1")

	put := func(cert *x509.Certificate, network, address, password string, uid int) (status int, serial int64) {
		t.Helper()
		roots := x509.NewCertPool()
		roots.AddCert(cert)
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, address)
			}}}
		url := "https://127.0.0.1/n"
		if network == "unix" {
			url = "http://127.0.0.1/n"
		}
		req, err := http.NewRequest(http.MethodPut, url, strings.NewReader(fmt.Sprintf(`{"user":"alice","imap-uidvalidity":1,"imap-uid":%d}`, uid)))
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth("dovecot", password)
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if res.TLS != nil {
			serial = res.TLS.PeerCertificates[0].SerialNumber.Int64()
		}
		return res.StatusCode, serial
	}
	uid := 0
	for _, place := range [][2]string{{"tcp", r.address("notify")}, {"tcp", second}, {"unix", filepath.Join(w.dir, "n.sock")}} {
		uid++
		status, serial := put(first, place[0], place[1], "first", uid)
		if want := map[string]int64{"tcp": 1, "unix": 0}[place[0]]; status != 200 || serial != want {
			t.Errorf("%v: status %d, certificate %d", place, status, serial)
		}
		v.wants(fmt.Sprintf(`"uid":%d`, uid))
	}
	renewed := w.certificate(2)
	w.write("notify.secret", "second\n")
	r.reload()
	if status, serial := put(renewed, "tcp", second, "second", 9); status != 200 || serial != 2 {
		t.Errorf("after the reload: status %d, certificate %d", status, serial)
	}
	if status, _ := put(renewed, "tcp", second, "first", 10); status != 401 {
		t.Errorf("the old password has status %d", status)
	}
	r.stop()
}
