package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// kind is whom an answer concerns.
type kind int

const (
	arrived     kind = iota
	targetFails      // everybody: the target is set aside
	targetGone       // the same, but it will not come back by itself
	eventFails       // this event only
)

// verdict is what an attempt says.
type verdict struct {
	kind   kind
	status int    // 0: there was no answer
	reason string // for people; of what the target wrote at most where it redirects to
	after  time.Duration
}

// elsewhere reports whether the answer is that of a wrong URL.
func (v verdict) elsewhere() bool {
	return v.status == http.StatusNotFound || v.status == http.StatusMethodNotAllowed
}

// judgeAnswer goes by the status alone.
func judgeAnswer(res *http.Response, now time.Time) verdict {
	v := verdict{status: res.StatusCode, reason: fmt.Sprintf("status %d %s", res.StatusCode, http.StatusText(res.StatusCode))}
	switch s := res.StatusCode; {
	case s >= 200 && s < 300:
		v.kind = arrived
	case s >= 300 && s < 400:
		v.kind = targetFails
		v.reason += ": redirects are not followed; set the new URL"
		if to, err := res.Location(); err == nil {
			v.reason += ", perhaps " + strings.ToValidUTF8(shown(to), "?")
		}
	case s == http.StatusGone:
		v.kind = targetGone
		v.reason += ": the target says that it wants no more events for good; remove it from the configuration, or mend it"
	case s == http.StatusUnauthorized, s == http.StatusForbidden:
		v.kind = targetFails
		v.reason += ": see whether the target has the same secret"
	case s == http.StatusRequestTimeout, s == http.StatusTooManyRequests, s >= 500, s < 200:
		v.kind = targetFails
	default:
		v.kind = eventFails
	}
	if v.kind != arrived {
		v.after = retryAfter(res.Header.Get("Retry-After"), now)
	}
	return v
}

// retryAfter reads the header of that name (RFC 9110 section 10.2.3): seconds
// or a date. It returns 0 for what it does not understand.
func retryAfter(value string, now time.Time) time.Duration {
	const most = 365 * 24 * 60 * 60
	if seconds, err := strconv.ParseUint(value, 10, 63); err == nil {
		return time.Duration(min(seconds, most)) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(0, min(at.Sub(now), most*time.Second))
	}
	return 0
}

// words say why there was no answer. Only the errors that are known to hold
// nothing of the URL's secrets, and nothing that the target wrote, which may be
// the event itself, are shown.
func words(err error, timeout time.Duration) string {
	var (
		soon        net.Error
		dns         *net.DNSError
		certificate *tls.CertificateVerificationError
		record      tls.RecordHeaderError
		alert       tls.AlertError
		op          *net.OpError
	)
	switch {
	case errors.Is(err, errProxy):
		return errProxy.Error()
	case errors.Is(err, context.Canceled):
		return "stopped"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &soon) && soon.Timeout():
		return fmt.Sprintf("no answer in %v", timeout)
	case errors.As(err, &dns):
		return dns.Error()
	case errors.As(err, &certificate): // may list all names of the certificate
		return strings.ToValidUTF8(fmt.Sprintf("%.300s", certificate.Error()), "")
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return "the port does not speak TLS"
	case errors.As(err, &alert):
		return alert.Error()
	case errors.As(err, &op):
		return op.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection was closed before an answer"
	}
	return "no answer that is HTTP"
}
