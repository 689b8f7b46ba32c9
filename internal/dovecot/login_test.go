package dovecot_test

import (
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dovepush/internal/dovecot"
	"dovepush/internal/dovecot/dovecottest"
)

var people = []dovecot.User{
	{Name: "alice", Password: "alice's: secret"},
	{Name: "bob", Password: "bob"},
	{Name: "carol", Password: "carol", Extra: "nologin"},
	{Name: `odd "na\me" #+é`, Password: "odd"},
	{Name: `it's "na\me" #+%=`, Password: "odd"},
}

func TestLogins(t *testing.T) {
	dovecottest.Each(t, dovecot.Options{Users: people}, func(t *testing.T, s *dovecot.Server) {
		for _, c := range []struct{ name, command, want string }{
			{"own password", plain("", "alice", "alice's: secret"), "OK [CAPABILITY "},
			{"own password wrong", plain("", "alice", "bob"), "NO [AUTHENTICATIONFAILED]"},
			{"master by authzid", plain("alice", s.MasterUser, s.MasterPassword), "OK "},
			{"master by authzid, odd name", plain(`odd "na\me" #+é`, s.MasterUser, s.MasterPassword), "OK "},
			{"master by separator", `LOGIN "bob*` + s.MasterUser + `" ` + s.MasterPassword, "OK "},
			{"master password wrong", plain("alice", s.MasterUser, "no"), "NO [AUTHENTICATIONFAILED]"},
			{"unknown user through master", plain("nobody", s.MasterUser, s.MasterPassword), "NO [AUTHORIZATIONFAILED]"},
			{"login disabled", plain("carol", s.MasterUser, s.MasterPassword), "NO [CONTACTADMIN]"},
			{"oauthbearer", oauthbearer("alice", s.Token("alice", time.Hour)), "OK "},
			{"xoauth2", xoauth2("alice", s.Token("alice", time.Hour)), "OK "},
			{"token expired", xoauth2("alice", s.Token("alice", -time.Minute)), "NO [AUTHENTICATIONFAILED]"},
			{"token of another user", oauthbearer("alice", s.Token("bob", time.Hour)), "NO [AUTHENTICATIONFAILED]"},
		} {
			x := dial(t, s.IMAP)
			wantPrefix(t, c.name, x.do(c.command), c.want)
		}
		x := dialTLS(t, s, &tls.Config{})
		wantPrefix(t, "over TLS", x.do(plain("alice", s.MasterUser, s.MasterPassword)), "OK ")
	})
}

func TestCertificateNames(t *testing.T) {
	dovecottest.Each(t, dovecot.Options{}, func(t *testing.T, s *dovecot.Server) {
		roots := pool(t, s)
		for name, good := range map[string]bool{"localhost": true, "127.0.0.1": true, "imap.example.com": false} {
			c, err := tls.Dial("tcp", s.IMAPS, &tls.Config{RootCAs: roots, ServerName: name})
			if (err == nil) != good {
				t.Errorf("server name %s: %v", name, err)
			}
			if err == nil {
				_ = c.Close()
			}
		}
	})
}

func TestClientCertificateLogsInAsMaster(t *testing.T) {
	dovecottest.Each(t, dovecot.Options{Users: people, ClientCerts: true}, func(t *testing.T, s *dovecot.Server) {
		cert, err := tls.LoadX509KeyPair(s.ClientCertFile, s.ClientKeyFile)
		if err != nil {
			t.Fatal(err)
		}
		external := func(user string) string {
			return "AUTHENTICATE EXTERNAL " + base64.StdEncoding.EncodeToString([]byte(user))
		}
		with := func() *session { return dialTLS(t, s, &tls.Config{Certificates: []tls.Certificate{cert}}) }
		without := func() *session { return dialTLS(t, s, &tls.Config{}) }
		wantPrefix(t, "certificate", with().do(external("alice")), "OK ")
		wantPrefix(t, "certificate, unknown user", with().do(external("nobody")), "NO [AUTHORIZATIONFAILED]")
		wantPrefix(t, "no certificate", without().do(external("alice")), "NO ")
		wantPrefix(t, "no certificate, password", without().do(plain("alice", s.MasterUser, s.MasterPassword)), "OK ")
	})
}

func TestPlaintextRefused(t *testing.T) {
	dovecottest.Each(t, dovecot.Options{Users: people, PlaintextRefused: true}, func(t *testing.T, s *dovecot.Server) {
		x := dial(t, s.IMAP)
		wantPrefix(t, "without TLS", x.do(plain("", "bob", "bob")), "NO [PRIVACYREQUIRED]")
		wantPrefix(t, "with TLS", dialTLS(t, s, &tls.Config{ServerName: "127.0.0.2"}).do(plain("", "bob", "bob")), "OK ")
	})
}

func TestSettings(t *testing.T) {
	none := ""
	for _, c := range []struct {
		name  string
		o     dovecot.Options
		login func(s *dovecot.Server) string
		want  string // of GETMETADATA where the login is good
	}{
		{"stock", dovecot.Options{}, nil, "OK "},
		{"no metadata", dovecot.Options{NoMetadata: true}, nil, "NO [CANNOT] Generic mailbox attributes not enabled"},
		{"no dict", dovecot.Options{NoDict: true}, nil, "NO [CANNOT] Mailbox attributes not enabled"},
		{"no separator", dovecot.Options{MasterSeparator: &none}, func(s *dovecot.Server) string {
			return plain("", "bob*"+s.MasterUser, s.MasterPassword)
		}, "NO [AUTHENTICATIONFAILED]"},
		{"no result_success", dovecot.Options{NoResultSuccess: true}, func(s *dovecot.Server) string {
			return plain("nobody", s.MasterUser, s.MasterPassword)
		}, "NO [UNAVAILABLE]"},
		{"stock user name characters", dovecot.Options{StockUsernameChars: true}, func(s *dovecot.Server) string {
			return plain(people[3].Name, s.MasterUser, s.MasterPassword)
		}, "NO "},
		{"extra settings", dovecot.Options{Extra: map[dovecot.Version]string{
			dovecot.V23: "protocol imap {\n imap_metadata = no\n}", dovecot.V24: "protocol imap {\n imap_metadata = no\n}",
		}}, nil, "NO [CANNOT]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.o.Users = people
			dovecottest.Each(t, c.o, func(t *testing.T, s *dovecot.Server) {
				x := dial(t, s.IMAP)
				if c.login != nil {
					reply, err := x.try(c.login(s))
					// One in four internal failures is no reply but a closed
					// connection, in both versions.
					for range 50 {
						if !errors.Is(err, io.EOF) {
							break
						}
						reply, err = dial(t, s.IMAP).try(c.login(s))
					}
					if err != nil {
						t.Fatal(err)
					}
					wantPrefix(t, "login", reply, c.want)
					return
				}
				wantPrefix(t, "login", x.do(plain("", "bob", "bob")), "OK ")
				wantPrefix(t, "metadata", x.do(`GETMETADATA "" /private/vendor/vendor.dovecot/http-notify`), c.want)
			})
		})
	}
}

// What the penalty does takes half a minute to see; that it is left alone is
// enough here.
func TestPenaltyIsAChoice(t *testing.T) {
	for _, penalty := range []bool{false, true} {
		dovecottest.Each(t, dovecot.Options{Penalty: penalty}, func(t *testing.T, s *dovecot.Server) {
			text, err := os.ReadFile(filepath.Join(s.Dir, "dovecot.conf"))
			if err != nil {
				t.Fatal(err)
			}
			off := strings.Contains(string(text), "auth_failure_delay = 0 secs\n") && strings.Contains(string(text), "    mode = 0\n")
			on := strings.Contains(string(text), "auth_failure_delay = 2 secs\n") && !strings.Contains(string(text), "    mode = 0\n")
			if off == penalty || on != penalty {
				t.Errorf("penalty %t: off %t, on %t", penalty, off, on)
			}
		})
	}
}

func TestAccountsChangeAtOnce(t *testing.T) {
	dovecottest.Each(t, dovecot.Options{}, func(t *testing.T, s *dovecot.Server) {
		t.Parallel() // it waits for seconds to turn
		login := func(user, password string) string { return dial(t, s.IMAP).do(plain("", user, password)) }
		// All in one second and of one size, which is all that Dovecot looks at.
		for _, password := range []string{"one", "two", "six"} {
			if err := s.AddUser(dovecot.User{Name: "dave", Password: password}); err != nil {
				t.Fatal(err)
			}
			wantPrefix(t, "added with "+password, login("dave", password), "OK ")
		}
		wantPrefix(t, "old password", login("dave", "two"), "NO ")
		for _, password := range []string{"abc", "abd"} {
			if err := s.SetMasterPassword(password); err != nil {
				t.Fatal(err)
			}
			wantPrefix(t, "master password", dial(t, s.IMAP).do(plain("dave", s.MasterUser, password)), "OK ")
		}
		wantPrefix(t, "old master password", dial(t, s.IMAP).do(plain("dave", s.MasterUser, "abc")), "NO ")
		if err := s.RemoveUser("dave"); err != nil {
			t.Fatal(err)
		}
		wantPrefix(t, "removed", login("dave", "six"), "NO ")
	})
}

func TestAddUserRefusesWhatTheFileCannotHold(t *testing.T) {
	s := dovecottest.Start(t, dovecot.Options{Version: dovecot.V23})
	for _, u := range []dovecot.User{
		{Name: ""}, {Name: "a:b"}, {Name: "#a"}, {Name: "a\nb"}, {Name: "a", Extra: "x\ny:{PLAIN}z"},
	} {
		if err := s.AddUser(u); err == nil {
			t.Errorf("%q was added", u.Name)
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: error of two lines", u.Name)
		}
	}
}
