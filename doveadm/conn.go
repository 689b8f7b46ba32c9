package doveadm

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"strings"
	"time"
)

// maxHeader bounds the header of an answer, in bytes.
const maxHeader = 64 << 10

// errNotHTTP: what came is no answer of HTTP's.
var errNotHTTP = errors.New("it does not speak HTTP")

// past makes a deadline that is over.
var past = time.Unix(1, 0)

// dialError is the failure to connect, TLS included: nothing was sent.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// connect opens a connection, which ctx ends. Every error is a *dialError.
//
// Not by http.Transport, which is for connections that are used again: it sends
// "Connection: close" if they are not, see ask, dials on when the caller has
// left, and may lose what a server says that speaks first, but for a line in the
// standard logger.
func (e *endpoint) connect(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, e.limit, &timeoutError{e.limit})
	defer cancel()
	dialer := net.Dialer{KeepAlive: -1} // no connection outlives its time limit
	conn, err := dialer.DialContext(ctx, e.network, e.address)
	if err != nil {
		return nil, &dialError{err}
	}
	if e.tls == nil {
		return conn, nil
	}
	secure := tls.Client(conn, e.tls)
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, &dialError{err}
	}
	return secure, nil
}

// hangUp closes a connection at once; TLS would take up to 5 s for its goodbye
// to a server that does not read.
func hangUp(conn net.Conn) {
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn()
	}
	conn.Close()
}

// ask sends the only request of a connection and reads the answer's header. It
// does not announce that it is the only one, though Dovecot takes no other:
// 2.3.19 and 2.4.1 do not answer at all to "Connection: close" with a key that
// is wrong.
func ask(conn net.Conn, request *http.Request) (*http.Response, error) {
	// If it cannot be written, there may be an answer that says why; if there
	// is none, that fails too.
	_ = request.Write(conn)
	limit := &bounded{r: conn, left: maxHeader}
	in := bufio.NewReader(limit)
	for {
		response, err := header(in, limit, request)
		if err != nil {
			return nil, err
		}
		if response.StatusCode/100 != 1 { // RFC 9110 section 15.2: the answer is still to come
			limit.left = math.MaxInt64
			return response, nil
		}
	}
}

// header reads one header.
func header(in *bufio.Reader, limit *bounded, request *http.Request) (*http.Response, error) {
	if begin, _ := in.Peek(5); len(begin) > 0 && string(begin) != "HTTP/" {
		said, _ := in.Peek(min(in.Buffered(), 200))
		line, _, _ := strings.Cut(string(said), "\n")
		return nil, fmt.Errorf("%w, but says %q", errNotHTTP, strings.TrimRight(line, "\r"))
	}
	response, err := http.ReadResponse(in, request)
	switch {
	case err == nil:
		return response, nil
	case errors.Is(limit.failed, errLong):
		return nil, fmt.Errorf("%w: a header of more than %d bytes", errNotHTTP, maxHeader)
	case limit.failed != nil: // rather than what that made of the line
		return nil, limit.failed
	}
	return nil, fmt.Errorf("%w: %w", errNotHTTP, err)
}
