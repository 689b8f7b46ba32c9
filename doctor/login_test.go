package doctor

import (
	"context"
	"strings"
	"testing"
	"time"

	"dovepush/config"
	"dovepush/imapmeta"
	"dovepush/internal/dovecot"
)

func TestUsersAndLoginsThatFailAreNamed(t *testing.T) {
	for _, v := range dovecot.Versions() {
		t.Run(string(v), func(t *testing.T) {
			c := newChain(t)
			// A passdb that knows everybody: the userdb knows alice and bob.
			c.start(t, v, dovecot.Options{Extra: map[dovecot.Version]string{
				dovecot.V23: "passdb {\n driver = static\n args = password=x\n}\n",
				dovecot.V24: "passdb everybody {\n driver = static\n static_password = x\n}\n",
			}})
			text := c.byIMAP() + c.rest()
			look := func(user string, change func(*Options)) walk {
				o := c.options(t, text)
				o.User, o.Deliver = user, false
				if change != nil {
					change(&o)
				}
				return run(t, o)
			}
			w := look("ghost", nil)
			w.has(t, "login", Fail, "userdb", "doveadm user", "result_success")
			w.has(t, "doveadm user", Fail, "does not know ghost")
			w.has(t, "metadata", Skip, "login failed")
			if w.Verdict.Fault != Refused {
				t.Errorf("the fault is %d", w.Verdict.Fault)
			}

			c.write(t, "master", "wrong\n")
			w = look("alice", nil)
			w.has(t, "login", Fail, "AUTHENTICATIONFAILED", "master_user")
			if w.Verdict.Fault != Refused {
				t.Errorf("the fault is %d", w.Verdict.Fault)
			}
			c.write(t, "master", c.server.MasterPassword+"\n")

			c.write(t, "key", "wrong\n")
			w = look("alice", nil)
			w.has(t, "doveadm", Fail, "401", "doveadm_api_key")
			w.has(t, "doveadm user", Skip, "doveadm failed")
			c.write(t, "key", c.server.APIKey+"\n")

			// One endpoint that works will do for what comes after.
			one := text
			text = strings.Replace(text, "endpoints = [", "endpoints = [\"http://127.0.0.1:1/doveadm/v1\", ", 1)
			w = look("alice", nil)
			w.has(t, "doveadm", Fail, "127.0.0.1:1")
			w.has(t, "doveadm", OK, c.server.DoveadmURL)
			w.has(t, "doveadm user", OK)
			text = one

			c.change(t, func(s string) string { return strings.Replace(s, "  result_success = continue\n", "", 1) })
			w = look("alice", func(o *Options) { o.Doveconf = c.doveconf(t) })
			w.has(t, "login", OK)
			w.has(t, "dovecot settings", Warn, "no result_success = continue")

			// Without --user nobody's mailbox is written to.
			c.row(t, "alice", "user=alice")
			w = look("", nil)
			w.has(t, "login", OK, "agent for alice")
			w.has(t, "probe", Skip, "--user")
		})
	}
}

// Dovecot delays whoever comes from an address that had logins refused.
func TestALoginUnderThePenaltyIsNamed(t *testing.T) {
	for _, v := range dovecot.Versions() {
		t.Run(string(v), func(t *testing.T) {
			t.Parallel()
			c := newChain(t)
			c.start(t, v, dovecot.Options{Penalty: true})
			conf, err := config.Parse([]byte(c.byIMAP()+c.rest()), c.dir+"/config.toml")
			if err != nil {
				t.Fatal(err)
			}
			client, err := newIMAP(0, &conf.Servers[0])
			if err != nil {
				t.Fatal(err)
			}
			for _, user := range []string{"nobody1", "nobody2"} {
				if _, err := client.Update(t.Context(), user, func(imapmeta.Value) imapmeta.Change { return imapmeta.Keep() }); err == nil {
					t.Fatal("an unknown user got in")
				}
			}
			o := c.options(t, strings.Replace(c.byIMAP(), `timeout = "15s"`, `timeout = "1m"`, 1)+c.rest())
			o.Deliver = false
			run(t, o).has(t, "login", Warn, "slowly", "anvil-auth-penalty")
		})
	}
}

// Whatever happens to the walk, the probe entry is gone afterwards.
func TestTheProbeIsRemovedWhenTheWalkIsInterrupted(t *testing.T) {
	for _, v := range dovecot.Versions() {
		t.Run(string(v), func(t *testing.T) {
			c := newChain(t)
			c.start(t, v, dovecot.Options{})
			o := c.options(t, c.byIMAP()+c.rest())
			o.Deliver = false
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			load := o.IMAP
			o.IMAP = func(i int, s *config.Server) (*imapmeta.Client, error) {
				time.AfterFunc(30*time.Millisecond, cancel) // somewhere between login and the end
				return load(i, s)
			}
			runIn(t, ctx, o)
			if probes := c.attributes(t, "alice"); strings.Contains(probes, "vendor.dovepush") {
				t.Errorf("the probe stayed: %q", probes)
			}
		})
	}
}
