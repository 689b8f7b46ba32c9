package imapmeta

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dovepush/internal/dovecot"
	"dovepush/internal/dovecot/dovecottest"
)

func TestLogins(t *testing.T) {
	together(t,
		shared{"ways to log in", waysToLogIn},
		shared{"refused", refusedLogins},
		shared{"a changed master password costs one refusal", changedMasterPassword},
	)
}

func waysToLogIn(t *testing.T, s *dovecot.Server) {
	token := secret(s.Token("alice", time.Hour))
	had := Absent
	for _, c := range []struct {
		name string
		with func(*Options)
	}{
		{"master, authorization identity", func(*Options) {}},
		{"master, separator", separator("*")},
		{"master, separator, LOGIN", both(separator("*"), mechanism(Login))},
		{"own password", ownPassword("alice's s3cr3t")},
		{"own password, LOGIN", both(ownPassword("alice's s3cr3t"), mechanism(Login))},
		{"own token, OAUTHBEARER", both(ownPassword(""), token, mechanism(OAuthBearer))},
		{"own token, XOAUTH2", both(ownPassword(""), token, mechanism(XOAuth2))},
	} {
		t.Run(c.name, func(t *testing.T) {
			value := Value("user=" + c.name)
			update(t, on(t, s, c.with), "alice", Set(value), had)
			holds(t, s, "alice", value)
			had = value
		})
	}
}

func TestAClientCertificateLogsInAsMaster(t *testing.T) {
	t.Parallel()
	dovecottest.Each(t, dovecot.Options{Users: people, ClientCerts: true, Extra: busyDoveadm}, func(t *testing.T, s *dovecot.Server) {
		external := func(conf *tls.Config) func(*Options) {
			return both(overTLS(s, conf), mechanism(External), func(o *Options) { o.Auth.Secret = nil })
		}
		with := external(&tls.Config{Certificates: []tls.Certificate{clientCertificate(t, s)}})
		update(t, on(t, s, with), "alice", Set("user=alice"), Absent)
		holds(t, s, "alice", "user=alice")
		start := func(o *Options) { o.TLS, o.Address = TLSStart, s.IMAP }
		update(t, on(t, s, with, start), "alice", Remove(), "user=alice")
		holds(t, s, "alice", Absent)
		refuses(t, s, on(t, s, with), "nobody", fault{kind: User, is: ErrNoUser, op: "login", code: "AUTHORIZATIONFAILED"})
		refuses(t, s, on(t, s, external(&tls.Config{})), "alice", fault{kind: Server, is: ErrLogin, op: "login", hint: "auth_ssl_username_from_cert"})
	})
}

// The refusals of one well-configured server. They are had side by side, for
// 2.3 holds each back for half a second.
func refusedLogins(t *testing.T, s *dovecot.Server) {
	bearer := func(token string) func(*Options) { return both(ownPassword(token), mechanism(OAuthBearer)) }
	xoauth2 := func(token string) func(*Options) { return both(ownPassword(token), mechanism(XOAuth2)) }
	expired, bobs, junk := s.Token("alice", -time.Minute), s.Token("bob", time.Hour), "eyJhbGciOiJub25l.s3cr3t"
	ownFault := fault{kind: User, is: ErrLogin, op: "login", code: "AUTHENTICATIONFAILED", words: "login refused: server says: NO [AUTHENTICATIONFAILED] Authentication failed.", hint: "own password"}
	tokenFault := fault{kind: User, is: ErrLogin, op: "login", code: "AUTHENTICATIONFAILED", words: "NO [AUTHENTICATIONFAILED] Authentication failed.", hint: "token was refused"}
	reasonFault := tokenFault
	reasonFault.words = `Authentication failed. {"`
	masterFault := fault{kind: Server, is: ErrLogin, op: "login", code: "AUTHENTICATIONFAILED", words: "NO [AUTHENTICATIONFAILED] Authentication failed.", hint: "auth_master_user_separator"}
	disabled := fault{kind: User, is: ErrLogin, op: "login", code: "CONTACTADMIN", words: "Login disabled for this user", hint: "nologin"}
	noUser := fault{kind: User, is: ErrNoUser, op: "login", code: "AUTHORIZATIONFAILED", words: "NO [AUTHORIZATIONFAILED] Authorization failed", hint: "no such user"}
	// 2.4 refuses a sound token for somebody else without a reason.
	otherFault := reasonFault
	if s.Version == dovecot.V24 {
		otherFault = tokenFault
	}
	var wg sync.WaitGroup
	for _, c := range []struct {
		name string
		with func(*Options)
		user string
		want fault
	}{
		{"own password wrong", ownPassword("not alice's s3cr3t"), "alice", ownFault},
		{"own password of nobody", ownPassword("nobody's s3cr3t"), "nobody", ownFault},
		{"own password, login disabled", ownPassword("carol's s3cr3t"), "carol", disabled},
		{"LOGIN, own password wrong", both(ownPassword("not alice's s3cr3t"), mechanism(Login)), "alice", ownFault},
		{"OAUTHBEARER, token expired", bearer(expired), "alice", reasonFault},
		{"OAUTHBEARER, no token", bearer(junk), "alice", reasonFault},
		{"OAUTHBEARER, another user's token", bearer(bobs), "alice", otherFault},
		{"XOAUTH2, token expired", xoauth2(expired), "alice", reasonFault},
		{"XOAUTH2, no token", xoauth2(junk), "alice", reasonFault},
		{"XOAUTH2, another user's token", xoauth2(bobs), "alice", otherFault},
		{"master password wrong", secret("wrong s3cr3t"), "alice", masterFault},
		{"master password wrong, separator", both(secret("wrong s3cr3t"), separator("*")), "alice", masterFault},
		{"master password wrong, unknown user", secret("wrong s3cr3t"), "nobody", masterFault},
		{"unknown master", func(o *Options) { o.Auth.MasterUser = "nomaster" }, "alice", masterFault},
		{"a user's password is no master's", func(o *Options) { o.Auth.MasterUser, o.Auth.Secret = "bob", secretIs("bob's s3cr3t") }, "alice", masterFault},
		{"another separator than Dovecot's", separator("%"), "alice", masterFault},
		{"unknown user", func(*Options) {}, "nobody", noUser},
		{"unknown user, separator", separator("*"), "nobody", noUser},
		{"login disabled", func(*Options) {}, "carol", disabled},
		{"mechanism not offered", both(mechanism(External), func(o *Options) { o.Auth.Secret = nil }), "alice",
			fault{kind: Server, is: ErrLogin, op: "login", words: "Unsupported authentication mechanism", hint: "auth_mechanisms"}},
	} {
		client := on(t, s, c.with)
		wg.Go(func() {
			t.Run(c.name, func(t *testing.T) { refuses(t, s, client, c.user, c.want) })
		})
	}
	wg.Wait()
	// A refused token is a refused login of alice's to Dovecot too, not a
	// client that left in the middle.
	for _, mech := range []string{"OAUTHBEARER", "XOAUTH2"} {
		eventually(t, "three refusals by "+mech+" in the log", func() bool {
			n := 0
			for line := range strings.Lines(s.Log()) {
				if strings.Contains(line, "auth failed") && strings.Contains(line, "user=<alice>, method="+mech+",") {
					n++
				}
			}
			return n == 3
		})
	}
}

func TestWithoutResultSuccessAnUnknownUserLooksLikeTrouble(t *testing.T) {
	t.Parallel()
	dovecottest.Each(t, dovecot.Options{Users: people, NoResultSuccess: true}, func(t *testing.T, s *dovecot.Server) {
		c := on(t, s)
		for range 8 {
			out, err := c.Update(t.Context(), "nobody", setTo("x"))
			want := fault{kind: Retry, op: "login", code: "UNAVAILABLE", words: "Internal error occurred", hint: "result_success = continue"}
			if e := new(Error); errors.As(err, &e) && e.Status == "" {
				// One in four internal failures is no reply but the end of the
				// connection, in both versions.
				want = fault{kind: Retry, words: "closed the connection without a word"}
			}
			want.check(t, s, "nobody", out, err)
		}
		update(t, c, "alice", Set("user=alice"), Absent)
	})
}

// changing is a password that an admin changes while the client lives.
type changing struct {
	now   atomic.Pointer[string]
	asked atomic.Int32
}

func (c *changing) set(secret string) { c.now.Store(&secret) }

func (c *changing) read(context.Context, string) (string, error) {
	c.asked.Add(1)
	return *c.now.Load(), nil
}

func changedMasterPassword(t *testing.T, s *dovecot.Server) {
	var password changing
	password.set(s.MasterPassword)
	c := on(t, s, func(o *Options) { o.Auth.Secret = password.read })
	update(t, c, "alice", Set("user=1"), Absent)
	update(t, c, "bob", Keep(), Absent)
	if n := password.asked.Load(); n != 1 {
		t.Errorf("the password was read %d times for two logins", n)
	}
	if err := s.SetMasterPassword("new s3cr3t"); err != nil {
		t.Fatal(err)
	}
	refused := fault{kind: Server, is: ErrLogin, op: "login", code: "AUTHENTICATIONFAILED"}
	refuses(t, s, c, "alice", refused)
	refuses(t, s, c, "alice", refused) // the file still has the old one
	password.set("new s3cr3t")
	update(t, c, "alice", Set("user=2"), "user=1")
	if n := password.asked.Load(); n != 3 {
		t.Errorf("the password was read %d times, want 3", n)
	}
	// The file first, Dovecot later: the same.
	password.set(s.MasterPassword)
	update(t, c, "alice", Keep(), "user=2") // not read yet
	if err := s.SetMasterPassword(s.MasterPassword); err != nil {
		t.Fatal(err)
	}
	refuses(t, s, c, "alice", refused)
	update(t, c, "alice", Keep(), "user=2")
	holds(t, s, "alice", "user=2")
}

func TestNoSecretIsPrinted(t *testing.T) {
	s := play(t, greets, logsIn, gets, loggedIn, absent, gotten)
	c := s.client()
	if _, err := c.Update(t.Context(), "alice", keepIt); err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v"} {
		if text := fmt.Sprintf(verb, c); strings.Contains(text, telltale) {
			t.Errorf("%s of a client gives the secret away", verb)
		}
	}
}
