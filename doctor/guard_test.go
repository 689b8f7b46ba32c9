package doctor

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"
)

// keyPair is a certificate for localhost with its key, as files.
func (c *chain) keyPair(t *testing.T, name string, cert *x509.Certificate, key *ecdsa.PrivateKey) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	c.write(t, name+".crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})))
	c.write(t, name+".key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
}

// Whoever sits at the endpoint's address is given the password only if he has
// the certificate of the settings, or one by somebody who is trusted.
func TestTheNotifyPasswordIsOnlyForWhoIsKnown(t *testing.T) {
	trusted, other := newAuthority(t), newAuthority(t)
	roots := x509.NewCertPool()
	roots.AddCert(trusted.cert)
	for _, test := range []struct {
		name   string
		by     *authority // of the certificate that is presented
		own    bool       // it is that of the settings
		url    bool       // notify.url is set
		host   string     // the certificate's
		status Status     // of the endpoint
		words  []string
	}{
		{"the settings' own", other, true, true, "localhost", OK, []string{"takes the password"}},
		{"the settings' own, without a URL", other, true, false, "localhost", OK, []string{"takes the password"}},
		{"of a trusted authority", trusted, false, true, "localhost", OK, []string{"takes the password"}},
		{"of a trusted authority for anybody", trusted, false, false, "localhost", Skip, []string{"without notify.url", "systemctl reload"}},
		{"of a trusted authority for somebody else", trusted, false, true, "push.example.org", Skip, []string{"tls failed"}},
		{"of an authority that only Dovecot trusts", other, false, true, "localhost", Skip, []string{"not called", "unknown authority", "update-ca-certificates"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newChain(t)
			c.write(t, "notify", notifyPassword+"\n")
			template := func() *x509.Certificate {
				return &x509.Certificate{Subject: pkix.Name{CommonName: test.host}, DNSNames: []string{test.host}, NotAfter: time.Now().Add(60 * day)}
			}
			cert, key := issue(t, test.by, template())
			if test.own {
				c.keyPair(t, "own", cert, key)
			} else {
				own, ownKey := issue(t, other, template())
				c.keyPair(t, "own", own, ownKey)
			}
			var told atomic.Bool // the password
			listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}})
			if err != nil {
				t.Fatal(err)
			}
			serveOn(t, listener, func(w http.ResponseWriter, r *http.Request) {
				if _, password, _ := r.BasicAuth(); password != notifyPassword {
					http.Error(w, "dovepush: no", http.StatusUnauthorized)
					return
				}
				told.Store(true)
				http.Error(w, "dovepush: no body", http.StatusBadRequest)
			})
			_, port, _ := net.SplitHostPort(listener.Addr().String())
			text := notifySettings("0.0.0.0:"+port) + "tls_cert_file = \"own.crt\"\ntls_key_file = \"own.key\"\n"
			if test.url {
				text += fmt.Sprintf("url = \"https://localhost:%s/preliminary/http-notify/v1/notify\"\n", port)
			}
			o := c.options(t, text)
			o.Deliver, o.Roots = false, roots
			run(t, o).has(t, "endpoint", test.status, test.words...)
			if told.Load() != (test.status == OK) {
				t.Errorf("the password was told: %t", told.Load())
			}
		})
	}
}
