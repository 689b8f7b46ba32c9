package doctor

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/url"
	"time"
)

// guard knows who may be given the notify password over TLS: who has the
// certificate of the settings, or one that an authority vouches for.
type guard struct {
	own   *tls.Config    // notify.tls_cert_file; nil: not set
	name  string         // of the endpoint; empty: the settings tell none, so that nobody can vouch for it
	roots *x509.CertPool // nil: those of this machine
	now   func() time.Time
}

// strangerError says why somebody is not known.
type strangerError struct{ err error }

func (e *strangerError) Error() string {
	return "its certificate is not that of notify.tls_cert_file, and " + e.err.Error()
}

func (e *strangerError) Unwrap() error { return e.err }

// mendStranger is for a private authority as well as for a stale certificate.
const mendStranger = "if the file was renewed since: systemctl reload dovepush\n" +
	"if notify.url leads to a proxy: let this machine trust the issuer of its certificate (update-ca-certificates, or SSL_CERT_FILE=ca.pem dovepush doctor), then run doctor again\n" +
	"otherwise another program listens there: ss -ltnp tells"

// errNameless: without notify.url there is no name that a certificate could be
// for.
var errNameless = errors.New("without notify.url there is no name to compare it to")

// knows is for tls.Config.VerifyConnection: it ends a handshake with a stranger.
func (g guard) knows(state tls.ConnectionState) error {
	if g.owns(state) {
		return nil
	}
	if g.name == "" {
		return &strangerError{errNameless}
	}
	if err := g.verify(state); err != nil {
		return &strangerError{err}
	}
	return nil
}

// owns tells whether the certificate is the settings' own.
func (g guard) owns(state tls.ConnectionState) bool {
	return g.own != nil && len(state.PeerCertificates) > 0 &&
		bytes.Equal(state.PeerCertificates[0].Raw, g.own.Certificates[0].Certificate[0])
}

// verify does what crypto/tls does where it is not told to skip it.
func (g guard) verify(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("there is none")
	}
	options := x509.VerifyOptions{DNSName: g.name, Roots: g.roots, CurrentTime: g.now(), Intermediates: x509.NewCertPool()}
	for _, c := range state.PeerCertificates[1:] {
		options.Intermediates.AddCert(c)
	}
	_, err := state.PeerCertificates[0].Verify(options)
	return err
}

// presented looks at the endpoint's certificate as Dovecot does.
func (d *doctor) presented(ctx context.Context, u *url.URL, g guard) finding {
	state, err := d.shake(ctx, hostPort(u), &tls.Config{MinVersion: tls.VersionTLS12, ServerName: u.Hostname(), InsecureSkipVerify: true})
	if err != nil {
		return judgeTLS(state, err, d.Now())
	}
	cert := state.PeerCertificates[0]
	err = g.verify(*state)
	text := "certificate " + describe(cert, d.Now())
	var name x509.HostnameError
	var trust x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fail(Unavailable, text, "renew notify.tls_cert_file, then systemctl reload dovepush: Dovecot does not call it")
	case errors.As(err, &name):
		return fail(Unavailable, text+": not for "+u.Hostname(), "Dovecot compares the names: give notify.tls_cert_file one for "+u.Hostname()+", or set notify.url to a name that stands in it")
	case errors.As(err, &trust):
		return warn(text+": this machine does not trust its issuer", "Dovecot must: set its ssl_client_ca_file to the issuer's certificate")
	case err != nil:
		return warn(text+": "+err.Error(), "")
	}
	return judgeTLS(state, nil, d.Now())
}
