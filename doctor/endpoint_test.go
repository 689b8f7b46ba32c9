package doctor

import (
	"context"
	"fmt"
	"net/http"
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

// A service whose API answers, in the words of its own.
func TestTheServiceIsAskedHowItIs(t *testing.T) {
	for _, test := range []struct {
		name           string
		healthy, ready int
		status         Status
		words          []string
	}{
		{"well", 200, 200, OK, []string{"runs and is ready"}},
		{"stuck", 503, 200, Fail, []string{"its wheels do not turn"}},
		{"not ready", 200, 503, Fail, []string{"not ready", "because"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newChain(t)
			address := answering(t, func(w http.ResponseWriter, r *http.Request) {
				code := test.healthy
				if r.URL.Path == "/readyz" {
					code = test.ready
				}
				http.Error(w, "because", code)
			})
			o := c.options(t, fmt.Sprintf("[[server]]\naddress = \"127.0.0.1:1\"\ntls = \"none\"\n[server.auth]\nmaster_user = \"m\"\npassword = \"x\"\n[registry]\npath = \"registry.db\"\n[api]\nlisten = %q\ntoken = \"t\"\n", address))
			o.Deliver = false
			run(t, o).has(t, "service", test.status, test.words...)
		})
	}
	c := newChain(t)
	o := c.options(t, "[[server]]\naddress = \"127.0.0.1:1\"\ntls = \"none\"\n[server.auth]\nmaster_user = \"m\"\npassword = \"x\"\n[registry]\npath = \"registry.db\"\n[api]\nlisten = \"unix:"+c.dir+"/api.sock\"\n")
	o.Deliver = false
	run(t, o).has(t, "service", Warn, "not running", "systemctl start dovepush")
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
