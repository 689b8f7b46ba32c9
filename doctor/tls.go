package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"dovepush/imapmeta"
)

// soon is how long a certificate should at least be good for.
const soon = 14 * day

// judgeTLS says what a handshake came to: err is its error, or nil.
func judgeTLS(state *tls.ConnectionState, err error, now time.Time) finding {
	if err != nil {
		f := failure(err)
		var verify *tls.CertificateVerificationError
		if errors.As(err, &verify) && len(verify.UnverifiedCertificates) > 0 {
			f.detail += "; it is " + describe(verify.UnverifiedCertificates[0], now)
		}
		return f
	}
	if len(state.PeerCertificates) == 0 {
		return ok(tls.VersionName(state.Version))
	}
	cert := state.PeerCertificates[0]
	text := tls.VersionName(state.Version) + ", certificate " + describe(cert, now)
	if cert.NotAfter.Sub(now) < soon {
		return warn(text, "renew it before "+cert.NotAfter.UTC().Format(time.DateOnly)+", and reload what serves it: when it ends, nobody is reached any more")
	}
	return ok(text)
}

// describe says for whom a certificate is, by whom, and for how long.
func describe(cert *x509.Certificate, now time.Time) string {
	name := cert.Subject.CommonName
	switch {
	case len(cert.DNSNames) > 0:
		name = cert.DNSNames[0]
	case name == "" && len(cert.IPAddresses) > 0:
		name = cert.IPAddresses[0].String()
	}
	if more := len(cert.DNSNames) - 1; more > 0 {
		name += fmt.Sprintf(" and %s", count(more, "other name"))
	}
	life := ""
	switch left := cert.NotAfter.Sub(now); {
	case left < 0:
		life = "expired " + cert.NotAfter.UTC().Format(time.DateOnly)
	case now.Before(cert.NotBefore):
		life = "not valid before " + cert.NotBefore.UTC().Format(time.DateOnly)
	case left < day:
		life = "ends today"
	default:
		life = count(int64(left/day), "day") + " left"
	}
	issuer := cert.Issuer.CommonName
	if issuer == "" {
		issuer = cert.Issuer.String()
	}
	return fmt.Sprintf("for %s by %s, %s", name, issuer, life)
}

// shake does a handshake of its own. Its errors are those of imapmeta.TLSError
// where that knows them.
func (d *doctor) shake(ctx context.Context, address string, conf *tls.Config) (*tls.ConnectionState, error) {
	raw, err := d.dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	ctx, cancel := context.WithTimeoutCause(ctx, d.Wait.Connect, fmt.Errorf("no answer within %s", d.Wait.Connect))
	defer cancel()
	conn := tls.Client(raw, conf)
	if err := conn.HandshakeContext(ctx); err != nil {
		if context.Cause(ctx) != nil {
			return nil, context.Cause(ctx)
		}
		if known := imapmeta.TLSError(err); known != nil {
			return nil, known
		}
		return nil, imapmeta.HungUp(err)
	}
	state := conn.ConnectionState()
	return &state, nil
}
