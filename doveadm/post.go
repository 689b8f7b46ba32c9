package doveadm

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"time"
	"unicode"

	"dovepush/imapmeta"
)

// blame says whose fault a failed POST is.
type blame int

const (
	endpoints  blame = iota // the endpoint's: others may do better
	doubtful                // the endpoint's, or that of a command in it: a probe tells
	commands                // that of a command in it
	everybodys              // ours: no endpoint will do better
	nobodys                 // nobody waits for it any more
)

// trouble is why a POST failed.
type trouble struct {
	blame  blame
	reason Reason
	err    *imapmeta.Error
	cause  error // what came, if that was not an answer of HTTP's
	sent   bool  // Dovecot may have the commands, and goes on with them: it does not look whether anybody still waits
}

const (
	hintKey = "check server.doveadm.api_key_file against Dovecot's doveadm_api_key, or password_file against doveadm_password"
	hintURL = "check server.doveadm.endpoints: Dovecot's API is at http://HOST:PORT/doveadm/v1, where service doveadm has " +
		"inet_listener http"
	hintNoTLS    = "the endpoint does not speak TLS: write http://, or give Dovecot's inet_listener http ssl = yes"
	hintMoved    = "write the place that it names into server.doveadm.endpoints, if that is right"
	hintName     = "set the endpoint, or server.tls_server_name, to a name that stands in the certificate"
	hintDown     = "is Dovecot up, with service doveadm { inet_listener http { port = ... } }, at server.doveadm.endpoints?"
	hintTooLarge = "what is before Dovecot refuses the request: let it pass larger ones, or lower server.doveadm.batch"
)

// post sends a body and has read read the answer, of so many bytes at most. It
// returns nil if that was read to its end within the limit. 0: no limit.
func (c *Client) post(ctx context.Context, e *endpoint, limit time.Duration, body []byte, most int64, read func(io.Reader) error) *trouble {
	header, err := c.key.authorization(ctx)
	var failed *imapmeta.Error
	switch {
	case errors.As(err, &failed):
		return &trouble{blame: everybodys, reason: Key, err: failed}
	case err != nil:
		return c.trouble(ctx, err)
	}
	if limit > 0 { // from now on: the key may have taken its time
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, &timeoutError{limit})
		defer cancel()
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url, bytes.NewReader(body))
	if err != nil {
		return c.trouble(ctx, err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Authorization", header)
	request.Header.Set("User-Agent", "dovepush")
	conn, err := e.connect(ctx)
	if err != nil {
		return c.trouble(ctx, err)
	}
	defer hangUp(conn)
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(past) })
	defer stop()
	response, err := ask(conn, request)
	if err != nil {
		return c.trouble(ctx, err)
	}
	if response.StatusCode != http.StatusOK {
		return c.refusal(response, header)
	}
	in := io.Reader(response.Body)
	if most > 0 {
		in = &bounded{r: in, left: most}
	}
	if err := read(in); err != nil {
		return c.trouble(ctx, err)
	}
	return nil
}

// trouble says what it means that no answer came, or none that can be read.
func (c *Client) trouble(ctx context.Context, err error) *trouble {
	var dial *dialError
	sent := !errors.As(err, &dial)
	fail := func(b blame, r Reason, kind imapmeta.Kind, cause error, hint string) *trouble {
		return &trouble{blame: b, reason: r, err: &imapmeta.Error{Kind: kind, Op: opConnect, Err: cause, Hint: hint}, cause: err, sent: sent}
	}
	if ctx.Err() != nil {
		cause := context.Cause(ctx)
		if !errors.Is(cause, context.DeadlineExceeded) {
			return fail(nobodys, Closed, imapmeta.Retry, cause, "")
		}
		return fail(doubtful, Timeout, imapmeta.Retry, cause, "")
	}
	switch {
	case !sent:
		return c.unconnected(dial.err)
	case errors.Is(err, errNotHTTP), errors.Is(err, errNotJSON):
		return fail(doubtful, Reply, imapmeta.Server, fmt.Errorf("%w: %w", ErrNotDoveadm, err), hintURL)
	case errors.Is(err, errLong):
		return fail(doubtful, Reply, imapmeta.Retry, err, hintLog)
	}
	return fail(doubtful, Closed, imapmeta.Retry, imapmeta.HungUp(err), hintLog)
}

// unconnected says what a failed dial or handshake means.
func (c *Client) unconnected(err error) *trouble {
	if e := imapmeta.TLSError(err); e != nil {
		switch {
		case errors.As(err, new(tls.RecordHeaderError)):
			e.Hint = hintNoTLS
		case errors.As(err, new(x509.HostnameError)):
			e.Hint = hintName
		}
		return &trouble{blame: endpoints, reason: TLS, err: e}
	}
	var slow net.Error
	if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &slow) && slow.Timeout() {
		return &trouble{blame: endpoints, reason: Timeout,
			err: &imapmeta.Error{Kind: imapmeta.Retry, Op: opConnect, Hint: hintDown, Err: &timeoutError{c.options.ConnectTimeout}}}
	}
	kind := imapmeta.Retry
	if dns := new(net.DNSError); errors.As(err, &dns) && dns.IsNotFound || errors.Is(err, fs.ErrPermission) {
		kind = imapmeta.Server
	}
	return &trouble{blame: endpoints, reason: Refused, err: &imapmeta.Error{Kind: kind, Op: opConnect, Hint: hintDown, Err: imapmeta.HungUp(err)}}
}

// refusal says what an HTTP status other than 200 means. Dovecot's own are 400,
// 401, 404 and 500; the others come from proxies, and from what is no Dovecot.
// Some of those repeat the request with its header.
func (c *Client) refusal(r *http.Response, header string) *trouble {
	text, _ := io.ReadAll(io.LimitReader(r.Body, 4096))
	said, words := fmt.Sprintf("HTTP %d", r.StatusCode), string(text)
	if _, secret, _ := strings.Cut(header, " "); secret != "" {
		words = strings.ReplaceAll(words, secret, "***")
	}
	unfit := func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }
	if words = strings.Join(strings.FieldsFunc(words, unfit), " "); words != "" {
		said += ": " + clip(words)
	} else if words := http.StatusText(r.StatusCode); words != "" {
		said += ": " + words
	}
	fail := func(b blame, reason Reason, kind imapmeta.Kind, cause error, hint string) *trouble {
		return &trouble{blame: b, reason: reason, err: &imapmeta.Error{Kind: kind, Op: opConnect, Err: cause, Hint: hint}, sent: b == doubtful}
	}
	told := func(cause error) error { return fmt.Errorf("%w: the server says: %s", cause, said) }
	switch status := r.StatusCode; {
	case status == http.StatusUnauthorized:
		c.key.refused(header)
		return fail(endpoints, Key, imapmeta.Server, told(ErrKey), hintKey)
	case status/100 == 3:
		return fail(endpoints, Redirect, imapmeta.Server,
			fmt.Errorf("%w: HTTP %d: it redirects to %q", ErrNotDoveadm, status, clip(r.Header.Get("Location"))), hintMoved)
	case status == http.StatusForbidden, status == http.StatusNotFound, status == http.StatusMethodNotAllowed, status == http.StatusGone:
		return fail(endpoints, HTTP, imapmeta.Server, told(ErrNotDoveadm), hintURL)
	case status == http.StatusRequestEntityTooLarge:
		t := fail(doubtful, HTTP, imapmeta.Retry, errors.New("the server says: "+said), hintTooLarge)
		t.sent = false // it was not even read
		return t
	case status == http.StatusTooManyRequests:
		return fail(endpoints, HTTP, imapmeta.Retry, errors.New("the server says: "+said), "")
	}
	return fail(doubtful, HTTP, imapmeta.Retry, errors.New("the server says: "+said), hintLog)
}
