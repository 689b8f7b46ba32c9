package imapmeta

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dovepush/internal/dovecot"
	"dovepush/internal/dovecot/dovecottest"
)

// overTLS trusts the server's CA, unless conf trusts another.
func overTLS(s *dovecot.Server, conf *tls.Config) func(*Options) {
	return func(o *Options) {
		o.Address, o.TLS, o.TLSConfig = s.IMAPS, TLSImplicit, conf.Clone()
		if conf.RootCAs == nil {
			pem, _ := os.ReadFile(s.CAFile)
			o.TLSConfig.RootCAs = x509.NewCertPool()
			o.TLSConfig.RootCAs.AppendCertsFromPEM(pem)
		}
	}
}

// startTLS is to be used after overTLS.
func startTLS(s *dovecot.Server) func(*Options) {
	return func(o *Options) { o.Address, o.TLS = s.IMAP, TLSStart }
}

func clientCertificate(t *testing.T, s *dovecot.Server) tls.Certificate {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(s.ClientCertFile, s.ClientKeyFile)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestConnections(t *testing.T) {
	together(t,
		shared{"not trusted", notTrusted}, // first: it looks into the log
		shared{"trusted", trusted},
		shared{"settings that do not fit the port", unfitting},
		shared{"plaintext to another machine", plaintextElsewhere},
	)
}

func trusted(t *testing.T, s *dovecot.Server) {
	trusted := overTLS(s, &tls.Config{})
	port := s.IMAPS[strings.LastIndexByte(s.IMAPS, ':'):]
	for value, c := range map[Value]*Client{
		"user=implicit":  on(t, s, trusted),
		"user=starttls":  on(t, s, trusted, startTLS(s)),
		"user=localhost": on(t, s, trusted, func(o *Options) { o.Address = "localhost" + port }),
		"user=named":     on(t, s, overTLS(s, &tls.Config{ServerName: "localhost"})),
		"user=login":     on(t, s, trusted, startTLS(s), separator("*"), mechanism(Login)),
		"user=bearer":    on(t, s, trusted, startTLS(s), ownPassword(s.Token("alice", time.Hour)), mechanism(OAuthBearer)),
	} {
		update(t, c, "alice", Set(value), Absent)
		holds(t, s, "alice", value)
		update(t, c, "alice", Remove(), value)
	}
}

func notTrusted(t *testing.T, s *dovecot.Server) {
	at := func(days int) *tls.Config {
		return &tls.Config{Time: func() time.Time { return time.Now().AddDate(0, 0, days) }}
	}
	nobody, named := &tls.Config{RootCAs: x509.NewCertPool()}, &tls.Config{ServerName: "imap.example.com"}
	fail := func(words, hint string) fault {
		return fault{kind: Server, is: ErrTLS, op: "connect", words: words, hint: hint}
	}
	for _, c := range []struct {
		name string
		with func(*Options)
		want fault
	}{
		{"unknown CA", overTLS(s, nobody), fail("unknown authority", "server.tls_ca_file")},
		{"unknown CA, STARTTLS", both(overTLS(s, nobody), startTLS(s)), fail("unknown authority", "server.tls_ca_file")},
		{"the system's CAs", func(o *Options) { o.Address, o.TLS = s.IMAPS, TLSImplicit }, fail("certificate", "server.tls_ca_file")},
		{"another name", overTLS(s, named), fail("not imap.example.com", "server.tls_server_name")},
		{"another name, STARTTLS", both(overTLS(s, named), startTLS(s)), fail("not imap.example.com", "server.tls_server_name")},
		{"expired", overTLS(s, at(40)), fail("expired", "renew the server's certificate")},
		{"not yet valid", overTLS(s, at(-2)), fail("not yet valid", "this machine's clock")},
		{"TLS on the plaintext port", both(overTLS(s, &tls.Config{}), func(o *Options) { o.Address = s.IMAP }), fail("TLS handshake", `server.tls = "starttls"`)},
	} {
		t.Run(c.name, func(t *testing.T) { refuses(t, s, on(t, s, c.with), "alice", c.want) })
	}
	if strings.Contains(s.Log(), "auth failed") || strings.Contains(s.Log(), "ogged in: ") || strings.Contains(s.Log(), "Login: ") {
		t.Error("a secret went to a server that is not trusted")
	}
}

func unfitting(t *testing.T, s *dovecot.Server) {
	silent := fault{kind: Retry, op: "starttls", words: "no answer within 500ms", hint: `server.tls = "implicit"`}
	refuses(t, s, on(t, s, overTLS(s, &tls.Config{}), func(o *Options) { o.TLS, o.Timeout = TLSStart, 500*time.Millisecond }), "alice", silent)
	gone := fault{kind: Retry, op: "login", words: "closed the connection", hint: `server.tls = "implicit"`}
	refuses(t, s, on(t, s, func(o *Options) { o.Address = s.IMAPS }), "alice", gone)
	lmtp := fault{kind: Server, op: "login", words: "not an IMAP server: it greets with \"220 ", hint: "server.address"}
	refuses(t, s, on(t, s, func(o *Options) { o.Address = s.LMTP }), "alice", lmtp)
	old := overTLS(s, &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
	want := fault{kind: Server, is: ErrTLS, op: "connect", words: "protocol version", hint: "ssl_min_protocol"}
	if s.Version == dovecot.V23 {
		want = fault{kind: Retry, op: "connect", words: "closed the connection without a word"}
	}
	refuses(t, s, on(t, s, old), "alice", want)
}

func TestNoSTARTTLSIsOffered(t *testing.T) {
	t.Parallel()
	none := map[dovecot.Version]string{dovecot.V23: "ssl = no\n", dovecot.V24: "ssl = no\n"}
	dovecottest.Each(t, dovecot.Options{Users: people, Extra: none}, func(t *testing.T, s *dovecot.Server) {
		want := fault{kind: Server, is: ErrTLS, op: "starttls", words: "BAD TLS support isn't enabled", hint: "no STARTTLS"}
		refuses(t, s, on(t, s, overTLS(s, &tls.Config{}), startTLS(s)), "alice", want)
	})
}

func TestAClientCertificateIsMissing(t *testing.T) {
	t.Parallel()
	demand := map[dovecot.Version]string{dovecot.V23: "auth_ssl_require_client_cert = yes\n", dovecot.V24: "auth_ssl_require_client_cert = yes\n"}
	dovecottest.Each(t, dovecot.Options{Users: people, ClientCerts: true, Extra: demand}, func(t *testing.T, s *dovecot.Server) {
		update(t, on(t, s, overTLS(s, &tls.Config{Certificates: []tls.Certificate{clientCertificate(t, s)}})), "alice", Keep(), Absent)
		want := fault{kind: Server, is: ErrTLS, op: "login", code: "ALERT", words: "Client didn't present valid SSL certificate", hint: "server.tls_cert_file"}
		refuses(t, s, on(t, s, overTLS(s, &tls.Config{})), "alice", want)
		refuses(t, s, on(t, s, overTLS(s, &tls.Config{}), startTLS(s)), "alice", want)
	})
}

// Dovecot asks for a certificate in the handshake, but judges it in the login.
// What terminates TLS before it may do so by an alert.
func TestAnAlertAsksForAClientCertificate(t *testing.T) {
	server := httptest.NewUnstartedServer(nil)
	server.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	trust := x509.NewCertPool()
	trust.AddCert(server.Certificate())
	c, err := New(Options{Address: server.Listener.Addr().String(), TLS: TLSImplicit, TLSConfig: &tls.Config{RootCAs: trust},
		Auth: Auth{Mechanism: Plain, MasterUser: "agent", Secret: secretIs("x")}})
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.Update(t.Context(), "alice", keepIt)
	fault{kind: Server, is: ErrTLS, op: "connect", words: "certificate required", hint: "server.tls_cert_file"}.
		check(t, &dovecot.Server{MasterPassword: telltale}, "alice", out, err)
}

// elsewhere is a connection whose other end claims to be on another machine.
type elsewhere struct {
	net.Conn
	sent *atomic.Int64
}

func (elsewhere) RemoteAddr() net.Addr {
	return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 143} // TEST-NET-1, RFC 5737
}

func (e elsewhere) Write(p []byte) (int, error) {
	e.sent.Add(int64(len(p)))
	return e.Conn.Write(p)
}

func plaintextElsewhere(t *testing.T, s *dovecot.Server) {
	var sent atomic.Int64
	far := func(change ...func(*Options)) *Client {
		c := on(t, s, change...)
		near := c.dial
		c.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := near(ctx, network, address)
			return elsewhere{conn, &sent}, err
		}
		return c
	}
	refuses(t, s, far(), "alice", fault{kind: Server, is: ErrPlaintext, op: "connect", words: "192.0.2.1:143 is not loopback", hint: "server.allow_plaintext"})
	if n := sent.Load(); n != 0 {
		t.Errorf("%d bytes were sent", n)
	}
	update(t, far(func(o *Options) { o.AllowPlaintext = true }), "alice", Set("user=1"), Absent)
	update(t, far(overTLS(s, &tls.Config{})), "alice", Set("user=2"), "user=1")
	update(t, far(overTLS(s, &tls.Config{}), startTLS(s)), "alice", Set("user=3"), "user=2")
	holds(t, s, "alice", "user=3")
	if sent.Load() == 0 {
		t.Error("the test counts nothing")
	}
}

func TestDovecotRefusesPlaintext(t *testing.T) {
	t.Parallel()
	dovecottest.Each(t, dovecot.Options{Users: people, PlaintextRefused: true}, func(t *testing.T, s *dovecot.Server) {
		want := fault{kind: Server, is: ErrPlaintext, op: "login", code: "PRIVACYREQUIRED", words: "text authentication dis", hint: `server.tls to "implicit"`}
		for _, c := range []*Client{on(t, s), on(t, s, separator("*"), mechanism(Login)), on(t, s, ownPassword(s.Token("alice", time.Hour)), mechanism(XOAuth2))} {
			refuses(t, s, c, "alice", want)
		}
		update(t, on(t, s, overTLS(s, &tls.Config{})), "alice", Set("user=1"), Absent)
		update(t, on(t, s, overTLS(s, &tls.Config{}), startTLS(s)), "alice", Set("user=2"), "user=1")
		holds(t, s, "alice", "user=2")
	})
}
