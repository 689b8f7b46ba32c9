package doveadm

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"os"
	"strings"
	"testing"
	"time"

	"dovepush/imapmeta"
	"dovepush/internal/dovecot"
	"dovepush/internal/dovecot/dovecottest"
)

func TestEntries(t *testing.T) {
	together(t, dovecot.Options{Users: people, Extra: busyDoveadm},
		shared{"read, set, changed, removed", readSetRemoved},
		shared{"INBOX has another", inboxHasAnother},
		shared{"API key and password", keyAndPassword},
		shared{"what IMAP writes", whatIMAPWrites},
		shared{"empty is absent", emptyIsAbsent},
		shared{"foreign values", foreignValues},
		shared{"a user who may not log in", nologin},
		shared{"capitals", capitals},
	)
}

func readSetRemoved(t *testing.T, s *dovecot.Server) {
	c := on(t, s)
	update(t, c, "alice", imapmeta.Keep(), imapmeta.Absent)
	update(t, c, "alice", imapmeta.Remove(), imapmeta.Absent)
	holds(t, s, "alice", imapmeta.Absent)
	update(t, c, "alice", imapmeta.Set("user=1"), imapmeta.Absent)
	holds(t, s, "alice", "user=1")
	update(t, c, "alice", imapmeta.Keep(), "user=1")
	update(t, c, "alice", imapmeta.Set("user=2\tx=y"), "user=1")
	holds(t, s, "alice", "user=2\tx=y")
	holds(t, s, "bob", imapmeta.Absent)
	update(t, c, "alice", imapmeta.Set(imapmeta.Absent), "user=2\tx=y")
	holds(t, s, "alice", imapmeta.Absent)
	if out, err := c.Update(t.Context(), "alice", keepIt); err != nil || out.Resent {
		t.Errorf("%+v, %v", out, err)
	}
}

// The ox driver looks at the server's own entry, on mailbox "".
func inboxHasAnother(t *testing.T, s *dovecot.Server) {
	c := on(t, s)
	inbox, err := imapEntry(t, s, "alice", "INBOX", "user=inbox")
	if err != nil || inbox != "user=inbox" {
		t.Fatalf("INBOX's entry holds %q (%v)", inbox, err)
	}
	update(t, c, "alice", imapmeta.Set("user=server"), imapmeta.Absent)
	update(t, c, "alice", imapmeta.Remove(), "user=server")
	if inbox, err := imapEntry(t, s, "alice", "INBOX", ""); err != nil || inbox != "user=inbox" {
		t.Errorf("INBOX's entry holds %q (%v)", inbox, err)
	}
}

func password(s *dovecot.Server) func(*Options) {
	return func(o *Options) { o.Basic, o.Secret = true, secretIs(s.DoveadmPassword) }
}

func keyAndPassword(t *testing.T, s *dovecot.Server) {
	update(t, on(t, s), "alice", imapmeta.Set("user=key"), imapmeta.Absent)
	update(t, on(t, s, password(s)), "alice", imapmeta.Set("user=password"), "user=key")
	holds(t, s, "alice", "user=password")
}

// imapClient is imapmeta's, for the same server.
func imapClient(t *testing.T, s *dovecot.Server) *imapmeta.Client {
	t.Helper()
	c, err := imapmeta.New(imapmeta.Options{Address: s.IMAP, TLS: imapmeta.TLSNone, Timeout: 20 * time.Second,
		Auth: imapmeta.Auth{Mechanism: imapmeta.Plain, MasterUser: s.MasterUser,
			Secret: func(context.Context, string) (string, error) { return s.MasterPassword, nil }}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func whatIMAPWrites(t *testing.T, s *dovecot.Server) {
	imap, http := imapClient(t, s), on(t, s)
	by := func(c interface {
		Update(context.Context, string, func(imapmeta.Value) imapmeta.Change) (imapmeta.Outcome, error)
	}, change imapmeta.Change, had imapmeta.Value) {
		t.Helper()
		out, err := c.Update(t.Context(), "alice", func(imapmeta.Value) imapmeta.Change { return change })
		if err != nil || out.Had != had || out.Did != change {
			t.Errorf("%T, %s: had %q, did %s, %v", c, change, string(out.Had), out.Did, err)
		}
	}
	odd, err := imapmeta.NewValue("a\tb\nc\r\x01\x7f\"\\{5}'é日本🕊")
	if err != nil {
		t.Fatal(err)
	}
	by(imap, imapmeta.Set(odd), imapmeta.Absent)
	by(http, imapmeta.Keep(), odd)
	by(http, imapmeta.Remove(), odd)
	by(imap, imapmeta.Keep(), imapmeta.Absent)
	by(http, imapmeta.Set(odd), imapmeta.Absent)
	by(imap, imapmeta.Keep(), odd)
	by(imap, imapmeta.Remove(), odd)
	by(http, imapmeta.Set("user=1"), imapmeta.Absent)
	by(imap, imapmeta.Set("user=2"), "user=1")
	by(http, imapmeta.Set("user=3"), "user=2")
	by(imap, imapmeta.Keep(), "user=3")
}

func emptyIsAbsent(t *testing.T, s *dovecot.Server) {
	c := on(t, s)
	setEntry(t, s, "alice", "")
	if _, present, err := s.Entry(t.Context(), "alice"); err != nil || !present {
		t.Fatalf("the entry is not there, rather than empty (%v)", err)
	}
	update(t, c, "alice", imapmeta.Keep(), imapmeta.Absent)
	update(t, c, "alice", imapmeta.Remove(), imapmeta.Absent)
	holds(t, s, "alice", imapmeta.Absent)
}

func foreignValues(t *testing.T, s *dovecot.Server) {
	c := on(t, s)
	for _, value := range []imapmeta.Value{
		" ", "x", "\tuser=\t\t", `"quoted"`, `back\slash\`, `[]}{","`, `"],"0"],["doveadmResponse",[],"0"]]`, "\x01\x02\x1f\x7f", "line\r\nends\n",
		"\u2028 é 日本🕊", imapmeta.Value(strings.Repeat("y", 30_000)),
	} {
		setEntry(t, s, "alice", string(value))
		update(t, c, "alice", imapmeta.Keep(), value)
	}
	// No HTTP client can write this (1 MiB), but an IMAP client can.
	const long = 5 << 20
	if _, err := imapEntry(t, s, "alice", "", strings.Repeat("z", long)); err != nil {
		t.Fatal(err)
	}
	want := fault{kind: imapmeta.User, op: "getmetadata", words: "more than 262144 bytes"}
	refuses(t, s, c, "alice", want)
	// Among others, it is his alone.
	atOnce(t, c, []string{"alice", "bob", "carol"}, func(user string, out imapmeta.Outcome, err error) {
		if user == "alice" {
			want.check(t, user, err)
		} else if err != nil || out.Had != imapmeta.Absent {
			t.Errorf("%s: had %q, %v", user, string(out.Had), err)
		}
	}, keepIt)
}

func nologin(t *testing.T, s *dovecot.Server) {
	c := on(t, s)
	update(t, c, "carol", imapmeta.Set("user=carol"), imapmeta.Absent)
	holds(t, s, "carol", "user=carol")
	update(t, c, "carol", imapmeta.Remove(), "user=carol")
}

// The case of ASCII letters is Dovecot's to fold (auth_username_format).
func capitals(t *testing.T, s *dovecot.Server) {
	update(t, on(t, s), "ALICE", imapmeta.Set("user=ALICE"), imapmeta.Absent)
	holds(t, s, "alice", "user=ALICE")
}

// trust returns the TLS settings for the server's own CA.
func trust(t testing.TB, s *dovecot.Server) *tls.Config {
	t.Helper()
	pem, err := os.ReadFile(s.CAFile)
	pool := x509.NewCertPool()
	if err != nil || !pool.AppendCertsFromPEM(pem) {
		t.Fatal(err)
	}
	return &tls.Config{RootCAs: pool}
}

func TestHTTPSAndAUNIXSocket(t *testing.T) {
	t.Parallel()
	both := extra("service doveadm {\n inet_listener http {\n  ssl = yes\n }\n unix_listener http {\n  mode = 0666\n }\n}\n")
	dovecottest.Each(t, dovecot.Options{Users: people, Extra: both}, func(t *testing.T, s *dovecot.Server) {
		secure := strings.Replace(s.DoveadmURL, "http:", "https:", 1)
		at := func(url string, conf *tls.Config) *Client {
			return on(t, s, func(o *Options) { o.Endpoints, o.TLSConfig = []string{url}, conf })
		}
		update(t, at(secure, trust(t, s)), "alice", imapmeta.Set("user=https"), imapmeta.Absent)
		stores(t, s, "alice", "user=https")
		update(t, at(strings.Replace(secure, "127.0.0.1", "localhost", 1), trust(t, s)), "alice", imapmeta.Set("user=localhost"), "user=https")
		unix := at("unix:"+s.Dir+"/run/http", nil)
		update(t, unix, "alice", imapmeta.Set("user=unix"), "user=localhost")
		stores(t, s, "alice", "user=unix")
		update(t, unix, "alice", imapmeta.Remove(), "user=unix")
		stores(t, s, "alice", imapmeta.Absent)

		named := trust(t, s)
		named.ServerName = "dovecot.example.com"
		for _, c := range []struct {
			client *Client
			want   fault
		}{
			{at(secure, nil), fault{kind: imapmeta.Server, is: imapmeta.ErrTLS, op: "connect", words: "unknown authority", hint: "tls_ca_file"}},
			{at(secure, named), fault{kind: imapmeta.Server, is: imapmeta.ErrTLS, op: "connect", words: "not dovecot.example.com", hint: "server.tls_server_name"}},
			{at("https://"+s.IMAP+apiPath, trust(t, s)), fault{kind: imapmeta.Server, is: imapmeta.ErrTLS, op: "connect", words: "TLS handshake", hint: "write http://"}},
			{at("http://"+s.IMAP+apiPath, nil), fault{kind: imapmeta.Server, is: ErrNotDoveadm, op: "connect", words: "* OK [CAPABILITY", hint: "server.doveadm.endpoints"}},
			{at(s.DoveadmURL[:len(s.DoveadmURL)-len(apiPath)]+"/nowhere", nil), fault{kind: imapmeta.Retry, op: "connect", words: "closed the connection", unreached: true}}, // http on the https port
			{at(secure[:len(secure)-len(apiPath)]+"/nowhere", trust(t, s)), fault{kind: imapmeta.Server, is: ErrNotDoveadm, op: "connect", words: "HTTP 404", hint: "server.doveadm.endpoints"}},
			{at("unix:"+s.Dir+"/run/nowhere", nil), fault{kind: imapmeta.Retry, op: "connect", words: "no such file", unreached: true}},
		} {
			refuses(t, s, c.client, "alice", c.want)
		}
		stores(t, s, "alice", imapmeta.Absent)
	})
}
