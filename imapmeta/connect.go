package imapmeta

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
)

// TLSMode is how the connection is protected.
type TLSMode string

// The ways to protect a connection.
const (
	TLSImplicit TLSMode = "implicit" // TLS from the first byte, usually port 993 (RFC 8314)
	TLSStart    TLSMode = "starttls" // STARTTLS on the plaintext port, usually 143
	TLSNone     TLSMode = "none"     // plaintext
)

const (
	hintTrust    = "set server.tls_ca_file to the CA that signed the server's certificate"
	hintName     = "set server.address or server.tls_server_name to a name that stands in the certificate"
	hintExpired  = "renew the server's certificate, and look at this machine's clock"
	hintTLSPort  = "the port does not speak TLS: set server.tls = \"starttls\" (port 143), or use port 993"
	hintStartTLS = "the server offers no STARTTLS on this port: set server.tls = \"implicit\" and port 993, or give Dovecot a certificate"
	hintNoTLS    = "no greeting: if the port speaks TLS from the start (993), set server.tls = \"implicit\""
	hintVersion  = "the server refused the TLS handshake: look at Dovecot's ssl_min_protocol, and at its log"
	hintClient   = "the server wants a client certificate that it trusts: set server.tls_cert_file and server.tls_key_file, " +
		"and look at Dovecot's ssl_ca (2.3) or ssl_server_ca_file (2.4)"
	hintAddress = "check server.address"
	hintPlain   = "set server.tls = \"implicit\" or \"starttls\"; server.allow_plaintext = true if the network in between is yours alone"
)

// connect opens the connection, protects it, and returns a session that is
// ready to log in. No byte of a secret is sent before the server is trusted.
func (c *Client) connect(ctx context.Context) (*session, error) {
	s, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.protect(ctx, s); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// open opens the connection.
func (c *Client) open(ctx context.Context) (*session, error) {
	raw, err := c.dial(ctx, "tcp", c.options.Address)
	if err != nil {
		return nil, connectError(ctx, err)
	}
	// go-imap's own deadlines end when a reply begins, and overwrite the
	// caller's: the session ignores them, and the context alone ends a wait.
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(past) })
	return newSession(ctx, raw, stop), nil
}

func (c *Client) protect(ctx context.Context, s *session) error {
	switch c.options.TLS {
	case TLSNone:
		if !c.options.AllowPlaintext && !isLoopback(s.conn.RemoteAddr()) {
			return &Error{Kind: Server, Op: "connect", Hint: hintPlain,
				Err: fmt.Errorf("%w: %s is not loopback", ErrPlaintext, s.conn.RemoteAddr())}
		}
		return nil
	case TLSStart:
		if err := s.startTLS(); err != nil {
			return err
		}
	}
	conn := tls.Client(s.conn, c.tls)
	if err := conn.HandshakeContext(ctx); err != nil {
		return connectError(ctx, err)
	}
	s.use(conn)
	return nil
}

func isLoopback(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// connectError says what a failed dial or handshake means.
func connectError(ctx context.Context, err error) error {
	if e := contextError(ctx, "connect"); e != nil {
		return e
	}
	if e := TLSError(err); e != nil {
		return e
	}
	var dns *net.DNSError
	if errors.As(err, &dns) && dns.IsNotFound {
		return &Error{Kind: Server, Op: "connect", Err: err, Hint: hintAddress}
	}
	return &Error{Kind: Retry, Op: "connect", Err: HungUp(err)}
}

// HungUp puts the many ways to learn of a closed connection into words, and
// returns other errors as they are.
func HungUp(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return errors.New("the server closed the connection without a word")
	}
	return err
}

// TLSError says what a failed handshake means: an error of kind server that is
// ErrTLS. It returns nil if err is not about trust or TLS settings. Its hints
// name the settings of a [[server]].
func TLSError(err error) *Error {
	fail := func(hint string) *Error {
		return &Error{Kind: Server, Op: "connect", Err: fmt.Errorf("%w: %w", ErrTLS, err), Hint: hint}
	}
	var (
		name    x509.HostnameError
		trust   x509.UnknownAuthorityError
		invalid x509.CertificateInvalidError
		record  tls.RecordHeaderError
		verify  *tls.CertificateVerificationError
		alert   = alertText(err)
	)
	switch {
	case errors.As(err, &name):
		return fail(hintName)
	case errors.As(err, &trust):
		return fail(hintTrust)
	case errors.As(err, &invalid):
		if invalid.Reason == x509.Expired {
			return fail(hintExpired)
		}
		return fail(hintTrust)
	case errors.As(err, &verify):
		return fail(hintTrust)
	case errors.As(err, &record):
		return fail(hintTLSPort)
	case strings.Contains(alert, "certificate"), strings.Contains(alert, "access denied"):
		return fail(hintClient)
	case strings.Contains(alert, "protocol version"), strings.Contains(alert, "handshake failure"), strings.Contains(alert, "insufficient security"):
		return fail(hintVersion)
	}
	return nil
}

// alertText returns the text of the alert that the server sent (RFC 8446
// section 6), if err is one. crypto/tls has a type for alerts only with QUIC.
func alertText(err error) string {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" {
		return op.Err.Error()
	}
	return ""
}

// contextError returns nil while ctx goes on.
func contextError(ctx context.Context, op string) error {
	if err := context.Cause(ctx); err != nil {
		return &Error{Kind: Retry, Op: op, Err: err}
	}
	return nil
}

// startTLS upgrades the plaintext connection (RFC 9051 section 6.2.1).
func (s *session) startTLS() error {
	const op = "starttls"
	s.op = op
	if err := s.greeting(); err != nil {
		return err
	}
	if _, err := s.conn.Write([]byte("S1 STARTTLS\r\n")); err != nil {
		return s.ioError(err)
	}
	for {
		line, err := s.line()
		if err != nil {
			return err
		}
		tag, rest, _ := strings.Cut(line, " ")
		r := parseReply(rest)
		switch {
		case tag == "*" && r.status == "BYE":
			return r.err(Retry, op, nil, "")
		case tag == "*":
		case tag == "S1" && r.status == "OK":
			// What arrived with the reply came before TLS, from whoever sits on
			// the wire (RFC 9051 section 11.1; "NO STARTTLS", USENIX 2021).
			if s.br.Buffered() > 0 {
				return &Error{Kind: Server, Op: op, Err: fmt.Errorf("%w: plaintext after the reply to STARTTLS, somebody is tampering with the connection", ErrTLS)}
			}
			return nil
		case tag == "S1":
			return r.err(Server, op, ErrTLS, hintStartTLS)
		default:
			return s.unexpected(line)
		}
	}
}
