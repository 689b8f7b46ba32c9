package dovecot_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"net"
	"net/textproto"
	"os"
	"strings"
	"testing"
	"time"

	"dovepush/internal/dovecot"
)

// A session is a raw IMAP connection: these tests must not lean on the client
// that is tested with this package.
type session struct {
	t    *testing.T
	conn *textproto.Conn
}

func dial(t *testing.T, addr string) *session {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return greeted(t, c)
}

func dialTLS(t *testing.T, s *dovecot.Server, config *tls.Config) *session {
	t.Helper()
	config.RootCAs = pool(t, s)
	if config.ServerName == "" {
		config.ServerName = "localhost"
	}
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", s.IMAPS, config)
	if err != nil {
		t.Fatal(err)
	}
	return greeted(t, c)
}

func pool(t *testing.T, s *dovecot.Server) *x509.CertPool {
	t.Helper()
	pem, err := os.ReadFile(s.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(pem) {
		t.Fatalf("%s: no certificate", s.CAFile)
	}
	return p
}

func greeted(t *testing.T, c net.Conn) *session {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	x := &session{t, textproto.NewConn(c)}
	t.Cleanup(func() { _ = x.conn.Close() })
	if line, err := x.conn.ReadLine(); err != nil || !strings.HasPrefix(line, "* OK ") {
		t.Fatalf("greeting %q, %v", line, err)
	}
	return x
}

// do sends a command and returns its tagged reply without the tag. Literals in
// untagged replies are beyond it.
func (x *session) do(command string) string {
	x.t.Helper()
	reply, err := x.try(command)
	if err != nil {
		x.t.Fatalf("reply: %v", err)
	}
	return reply
}

// try is do where Dovecot may hang up.
func (x *session) try(command string) (string, error) {
	if err := x.conn.PrintfLine("t %s", command); err != nil {
		return "", err
	}
	for {
		line, err := x.conn.ReadLine()
		if err != nil {
			return "", err
		}
		if reply, ok := strings.CutPrefix(line, "t "); ok {
			return reply, nil
		}
		if strings.HasPrefix(line, "+") {
			// What an OAuth failure says (RFC 7628 section 3.2.3): acknowledge.
			if err := x.conn.PrintfLine("AQ=="); err != nil {
				return "", err
			}
		}
	}
}

func plain(authzid, user, password string) string {
	return "AUTHENTICATE PLAIN " + base64.StdEncoding.EncodeToString([]byte(authzid+"\x00"+user+"\x00"+password))
}

func xoauth2(user, token string) string {
	return "AUTHENTICATE XOAUTH2 " + base64.StdEncoding.EncodeToString([]byte("user="+user+"\x01auth=Bearer "+token+"\x01\x01"))
}

func oauthbearer(user, token string) string {
	return "AUTHENTICATE OAUTHBEARER " + base64.StdEncoding.EncodeToString([]byte("n,a="+user+",\x01auth=Bearer "+token+"\x01\x01"))
}

func wantPrefix(t *testing.T, what, got, prefix string) {
	t.Helper()
	if !strings.HasPrefix(got, prefix) {
		t.Errorf("%s: %q, want %q", what, got, prefix+"...")
	}
}
