package doctor

import (
	"testing"

	"dovepush/internal/dovecot"
)

func TestAHealthyChainHoldsFromConfigToProof(t *testing.T) {
	for _, v := range dovecot.Versions() {
		t.Run(string(v), func(t *testing.T) {
			c := newChain(t)
			c.start(t, v, dovecot.Options{Extra: map[dovecot.Version]string{
				dovecot.V24: "push_notification ox {\n http_client_request_timeout = 2s\n}\n",
			}})
			c.register(t, "alice")
			for name, server := range map[string]string{"imap": c.byIMAP(), "doveadm": c.byDoveadm()} {
				o := c.options(t, server+c.rest())
				o.LMTP, o.Doveconf = c.server.LMTP, c.doveconf(t)
				w := run(t, o)
				if w.Failed > 0 {
					t.Errorf("%s: %d links fail: %s", name, w.Failed, w.Verdict.Text())
				}
				for _, link := range []string{"config", "secrets", "registry", "entry", "probe", "doveadm", "doveadm user", "dovecot settings", "endpoint", "canary", "notification", "proof"} {
					w.has(t, link, OK)
				}
			}
		})
	}
}
