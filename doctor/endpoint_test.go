package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"dovepush/config"
)

// notifySettings are settings whose server is not there.
func notifySettings(address string) string {
	return fmt.Sprintf("[[server]]\naddress = \"127.0.0.1:1\"\ntls = \"none\"\n[server.auth]\nmaster_user = \"m\"\npassword = \"x\"\n[registry]\npath = \"registry.db\"\n[api]\nlisten = \"\"\n"+
		"[notify]\nlisten = %q\npassword_file = \"notify\"\n", address)
}

func TestWhoAnswersAtTheEndpointIsTold(t *testing.T) {
	c := newChain(t)
	c.write(t, "notify", notifyPassword+"\n")
	c.write(t, "wrong", "something else\n")
	status := func(code int) string {
		return answering(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) })
	}
	open := answering(t, func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "dovepush: no body", http.StatusBadRequest)
	})
	for _, test := range []struct {
		name, address, more string
		status              Status
		words               []string
	}{
		{"ours", c.endpoint.address, "", OK, []string{"takes the password, and refuses others"}},
		{"another path", c.endpoint.address, "path = \"/other\"\n", Fail, []string{"404"}},
		{"another program", status(http.StatusNotFound), "", Fail, []string{"another program answers", "404", "ss -ltnp"}},
		{"a program that likes everything", status(http.StatusOK), "", Fail, []string{"another program answers with HTTP 200"}},
		{"one that refuses our password", status(http.StatusUnauthorized), "", Fail, []string{"refuses our own password"}},
		{"one that lets everybody in", open, "", Fail, []string{"400 to a wrong password"}},
		{"nobody", "127.0.0.1:1", "", Skip, []string{"not running"}},
		{"a port that nobody can know", "127.0.0.1:0", "", Skip, []string{"notify.url"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := c.options(t, notifySettings(test.address)+test.more)
			o.Deliver = false
			run(t, o).has(t, "endpoint", test.status, test.words...)
		})
	}
}

func TestWebhooksAreReachedAndNotCalled(t *testing.T) {
	c := newChain(t)
	called := false
	address := answering(t, func(http.ResponseWriter, *http.Request) { called = true })
	c.write(t, "spool.db", "")
	text := notifySettings("127.0.0.1:1") + fmt.Sprintf("[[webhook]]\nname = \"here\"\nurl = \"http://%s/x?token=hush\"\nsecret = \"s\"\n[[webhook]]\nname = \"gone\"\nurl = \"http://127.0.0.1:1/\"\nsecret = \"s\"\n", address)
	c.write(t, "notify", notifyPassword+"\n")
	o := c.options(t, text)
	o.Deliver = false
	now := time.Now()
	o.Spool = func(context.Context, string) ([]Waiting, error) {
		return []Waiting{{Target: "gone", Waiting: 7, Dead: 2, Oldest: now.Add(-time.Hour), LastError: "connection refused"}, {Target: "here"}}, nil
	}
	w := run(t, o)
	w.has(t, "webhook tcp", OK, address)
	w.has(t, "webhook tcp", Fail, "127.0.0.1:1", "the receiver is down")
	w.has(t, "spool", Warn, "gone: 7 waiting, 2 dead letters, the oldest since", "connection refused", "here: 0 waiting, 0 dead letters")
	if called {
		t.Error("the webhook was called")
	}
}

// What is left of a webhook that was taken out of the settings waits for ever.
func TestWhatIsKeptForAFormerWebhookIsNamed(t *testing.T) {
	c := newChain(t)
	c.write(t, "spool.db", "")
	c.write(t, "notify", notifyPassword+"\n")
	var damage error
	look := func() walk {
		o := c.options(t, notifySettings("127.0.0.1:1"))
		o.Deliver = false
		o.Spool = func(context.Context, string) ([]Waiting, error) {
			return []Waiting{{Target: "old", Waiting: 3, Dead: 2, Oldest: time.Now().Add(-time.Hour), LastError: "connection refused"}, {Target: "done"}}, damage
		}
		return run(t, o)
	}
	w := look()
	w.has(t, "spool", Warn, "old: 3 waiting, 2 dead letters, not configured any more", "done: 0 waiting, 0 dead letters, not configured any more", "dovepush webhooks old --drop deletes")
	for _, r := range w.of("spool") {
		if strings.Contains(r.Mend, "receiver") || strings.Contains(r.Mend, "done") {
			t.Errorf("mend %q", r.Mend)
		}
	}
	damage = errors.New("spool x: check: damaged; move it away")
	look().has(t, "spool", Fail, "move it away")
}

// A service whose API answers, or does not.
func TestTheServiceIsAskedHowItIs(t *testing.T) {
	const settings = "[[server]]\naddress = \"127.0.0.1:1\"\ntls = \"none\"\n[server.auth]\nmaster_user = \"m\"\npassword = \"x\"\n[registry]\npath = \"registry.db\"\n[api]\n"
	for _, test := range []struct {
		name           string
		healthy, ready int
		err            error
		api            string
		status         Status
		words          []string
	}{
		{"well", 200, 200, nil, "listen = \"127.0.0.1:1\"\ntoken = \"t\"\n", OK, []string{"runs and is ready"}},
		{"stuck", 503, 200, nil, "listen = \"127.0.0.1:1\"\ntoken = \"t\"\n", Fail, []string{"its wheels do not turn"}},
		{"not ready", 200, 503, nil, "listen = \"127.0.0.1:1\"\ntoken = \"t\"\n", Fail, []string{"not ready", "because"}},
		{"not there", 0, 0, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, "listen = \"unix:/x\"\n", Warn, []string{"not running", "systemctl start dovepush"}},
		{"not for us", 0, 0, &net.OpError{Op: "dial", Err: syscall.EACCES}, "listen = \"unix:/x\"\n", Warn, []string{"cannot be seen", "run doctor as root"}},
		{"another one", 0, 0, fmt.Errorf("x: %w", &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}), "listen = \"127.0.0.1:1\"\ntoken = \"t\"\n",
			Fail, []string{"another certificate than api.tls_cert_file", "systemctl reload dovepush"}},
		{"not asked", 200, 200, nil, "listen = \"\"\n", Skip, []string{"api.listen is empty"}},
		{"its token cannot be read", 200, 200, nil, "listen = \"127.0.0.1:1\"\ntoken_file = \"none\"\n", Skip, []string{"api.token_file failed"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newChain(t)
			o := c.options(t, settings+test.api)
			o.Deliver = false
			o.Service = func(_ context.Context, path string) (int, string, error) {
				if path == "/readyz" {
					return test.ready, "because\n", test.err
				}
				return test.healthy, "because\n", test.err
			}
			run(t, o).has(t, "service", test.status, test.words...)
		})
	}
}

// The walk ends where it is interrupted, and says so.
func TestAnInterruptedWalkSaysSo(t *testing.T) {
	c := newChain(t)
	ctx, cancel := context.WithCancel(t.Context())
	o := c.options(t, notifySettings(c.endpoint.address))
	load := o.Config
	o.Config = func() (*config.Config, error) {
		defer cancel()
		return load()
	}
	c.write(t, "notify", notifyPassword+"\n")
	w := runIn(t, ctx, o)
	if w.Err == nil || w.Failed > 0 {
		t.Errorf("verdict %+v", w.Verdict)
	}
}
