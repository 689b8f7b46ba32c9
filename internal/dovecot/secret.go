package dovecot

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"time"
)

// passwdLine is one line of a passwd-file. Base64 keeps a colon in the
// password from ending the field.
func passwdLine(name, password, extra string) string {
	return name + ":{PLAIN.B64}" + base64.StdEncoding.EncodeToString([]byte(password)) + "::::::" + extra + "\n"
}

// certificates are PEM texts.
type certificates struct {
	ca, server, serverKey, client, clientKey []byte
}

// newCertificates makes a CA, a server certificate for localhost and its
// addresses, and a client certificate whose common name is client. They end
// after a day: whatever outlives a test run must not be of use.
func newCertificates(client string) (certificates, error) {
	var out certificates
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return out, err
	}
	begin := time.Now().Add(-time.Hour)
	ca := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "dovepush throw-away CA"},
		NotBefore:             begin,
		NotAfter:              begin.Add(30 * 24 * time.Hour),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	issue := func(serial int64, name string, usage x509.ExtKeyUsage, hosts []string, ips []net.IP) (cert, key []byte, err error) {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, nil, err
		}
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(serial),
			Subject:      pkix.Name{CommonName: name},
			NotBefore:    ca.NotBefore,
			NotAfter:     ca.NotAfter,
			KeyUsage:     x509.KeyUsageDigitalSignature,
			ExtKeyUsage:  []x509.ExtKeyUsage{usage},
			DNSNames:     hosts,
			IPAddresses:  ips,
		}, ca, &k.PublicKey, caKey)
		if err != nil {
			return nil, nil, err
		}
		pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			return nil, nil, err
		}
		return pemText("CERTIFICATE", der), pemText("PRIVATE KEY", pkcs8), nil
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return out, err
	}
	out.ca = pemText("CERTIFICATE", der)
	out.server, out.serverKey, err = issue(2, "localhost", x509.ExtKeyUsageServerAuth, []string{"localhost"},
		[]net.IP{net.IPv4(127, 0, 0, 1), net.IPv4(127, 0, 0, 2)})
	if err != nil {
		return out, err
	}
	out.client, out.clientKey, err = issue(3, client, x509.ExtKeyUsageClientAuth, nil, nil)
	return out, err
}

func pemText(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// Token returns a token (JWT, RFC 7519) that lets user in by OAUTHBEARER and
// XOAUTH2 for the given time; a negative time makes one that has expired.
func (s *Server) Token(user string, valid time.Duration) string {
	now := time.Now()
	claims := map[string]any{
		"email": user, // username_attribute
		"sub":   user,
		"iat":   now.Add(min(valid, 0) - time.Minute).Unix(),
		"exp":   now.Add(valid).Unix(),
	}
	body, _ := json.Marshal(claims) // strings and numbers always marshal
	b64 := base64.RawURLEncoding
	text := b64.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + b64.EncodeToString(body)
	mac := hmac.New(sha256.New, s.tokenKey)
	mac.Write([]byte(text))
	return text + "." + b64.EncodeToString(mac.Sum(nil))
}
