package doctor

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"path/filepath"
	"testing"
	"time"

	"dovepush/config"
)

// authority issues certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	a.cert, a.key = issue(t, nil, &x509.Certificate{Subject: pkix.Name{CommonName: "test CA"}, NotAfter: time.Now().Add(100 * day), IsCA: true, BasicConstraintsValid: true})
	a.pem = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
	return a
}

// issue makes a certificate; by nil, one that signs itself.
func issue(t *testing.T, by *authority, want *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	want.SerialNumber, want.NotBefore = big.NewInt(1), want.NotAfter.Add(-200*day)
	parent, signer := want, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, want, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// imapPort greets over TLS as an IMAP server does, and hears nothing.
func imapPort(t *testing.T, by *authority, host string, left time.Duration) (address string) {
	t.Helper()
	cert, key := issue(t, by, &x509.Certificate{Subject: pkix.Name{CommonName: host}, DNSNames: []string{host}, NotAfter: time.Now().Add(left)})
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(conn, "* OK here\r\n* BYE and gone\r\n")
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		listener.Close()
		<-done
	})
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	return "localhost:" + port
}

func TestFaultsOfCertificatesAreNamed(t *testing.T) {
	ours, other := newAuthority(t), newAuthority(t)
	c := newChain(t)
	c.write(t, "ca.pem", ours.pem)
	c.write(t, "master", "x\n")
	for _, test := range []struct {
		name   string
		by     *authority
		host   string
		left   time.Duration
		status Status
		words  []string
	}{
		{"good", ours, "localhost", 60*day + time.Hour, OK, []string{"TLS 1.3", "for localhost by test CA", "60 days left"}},
		{"ends soon", ours, "localhost", 10*day + time.Hour, Warn, []string{"10 days left", "renew it before"}},
		{"expired", ours, "localhost", -day, Fail, []string{"expired", "renew the server's certificate"}},
		{"wrong name", ours, "imap.example.org", 60 * day, Fail, []string{"for imap.example.org", "tls_server_name"}},
		{"unknown CA", other, "localhost", 60 * day, Fail, []string{"for localhost by test CA", "tls_ca_file"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			address := imapPort(t, test.by, test.host, test.left)
			o := c.options(t, fmt.Sprintf("[[server]]\naddress = %q\ntls_ca_file = \"ca.pem\"\n[server.auth]\nmaster_user = \"m\"\npassword_file = \"master\"\n", address)+
				"[registry]\npath = \"registry.db\"\n[api]\nlisten = \"\"\n")
			o.Deliver = false
			w := run(t, o)
			w.has(t, "tls", test.status, test.words...)
			if test.status == Fail {
				w.has(t, "greeting", Skip, "tls failed")
				if w.Verdict.Fault != Unavailable {
					t.Errorf("fault %d", w.Verdict.Fault)
				}
				return
			}
			w.has(t, "greeting", OK)
			w.has(t, "login", Fail)
			w.has(t, "probe", Skip)
		})
	}
}

func TestTheEndpointsCertificateIsSeenAsDovecotSeesIt(t *testing.T) {
	for _, test := range []struct {
		name   string
		host   string
		left   time.Duration
		status Status
		words  []string
	}{
		{"issuer not trusted", "localhost", 60 * day, Warn, []string{"does not trust", "ssl_client_ca_file"}},
		{"wrong name", "push.example.org", 60 * day, Fail, []string{"not for localhost", "notify.url"}},
		{"expired", "localhost", -day, Fail, []string{"expired", "renew notify.tls_cert_file"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newChain(t)
			address := imapPort(t, newAuthority(t), test.host, test.left)
			text := fmt.Sprintf("[[server]]\naddress = \"127.0.0.1:1\"\ntls = \"none\"\n[server.auth]\nmaster_user = \"m\"\npassword = \"x\"\n[registry]\npath = \"registry.db\"\n[api]\nlisten = \"\"\n"+
				"[notify]\nlisten = \"127.0.0.1:1\"\nurl = \"https://%s/preliminary/http-notify/v1/notify\"\n", address)
			o := c.options(t, text)
			o.Config = func() (*config.Config, error) { return config.Parse([]byte(text), filepath.Join(c.dir, "config.toml")) }
			o.Deliver = false
			w := run(t, o)
			w.has(t, "endpoint tls", test.status, test.words...)
			if test.status == Fail {
				w.has(t, "endpoint", Skip, "tls failed")
			} else {
				w.has(t, "endpoint", Fail) // it speaks IMAP
			}
		})
	}
}
