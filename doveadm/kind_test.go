package doveadm

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"dovepush/imapmeta"
)

// Every reply that Dovecot 2.3 and 2.4 were seen to give, or can give by their
// source, and what it means.
func TestRepliesAndTheirKinds(t *testing.T) {
	exit := func(code int) reply { return reply{status: statusExitCode, exitCode: code} }
	for _, c := range []struct {
		reply  reply
		others bool // have got an answer
		kind   imapmeta.Kind
		is     error
		status string
		hint   string
	}{
		{exit(67), false, imapmeta.User, imapmeta.ErrNoUser, "exitCode 67", hintNoUser},
		{exit(67), true, imapmeta.User, imapmeta.ErrNoUser, "exitCode 67", hintNoUser},
		{exit(68), false, imapmeta.User, nil, "exitCode 68", hintLog},
		{exit(65), false, imapmeta.Server, ErrNoAttributes, "exitCode 65", hintDict},
		{exit(65), true, imapmeta.User, ErrNoAttributes, "exitCode 65", hintDict},
		{exit(77), false, imapmeta.Server, ErrForbidden, "exitCode 77", hintPerm},
		{exit(77), true, imapmeta.User, ErrForbidden, "exitCode 77", hintPerm},
		{exit(73), false, imapmeta.Retry, nil, "exitCode 73", hintQuota},
		{exit(75), false, imapmeta.Retry, nil, "exitCode 75", hintInternal},
		{exit(64), false, imapmeta.Retry, nil, "exitCode 64", hintLog},
		{exit(0), false, imapmeta.Retry, nil, "exitCode 0", hintLog},
		{exit(-1), true, imapmeta.Retry, nil, "exitCode -1", hintLog},
		{reply{status: "unAuthorized"}, true, imapmeta.Server, ErrForbidden, "unAuthorized", hintAllowed},
		{reply{status: "unknownMethod"}, true, imapmeta.Server, ErrUnsupported, "unknownMethod", hintOld},
		{reply{status: "invalidRequest"}, false, imapmeta.Server, ErrUnsupported, "invalidRequest", hintOld},
		{reply{status: "internalError"}, false, imapmeta.Retry, nil, "internalError", hintLog},
		{reply{status: "fromTheFuture"}, false, imapmeta.Retry, nil, "fromTheFuture", hintLog},
		{reply{long: true}, false, imapmeta.Retry, nil, "", hintLog},
	} {
		for m, op := range map[method]string{get: "getmetadata", set: "setmetadata", unset: "setmetadata", lookup: "user"} {
			err := c.reply.err(m, c.others)
			fault{kind: c.kind, is: c.is, op: op, status: c.status}.check(t, "", err)
			var e *imapmeta.Error
			if errors.As(err, &e); e != nil && e.Hint != c.hint {
				t.Errorf("%v: hint %q, want %q", err, e.Hint, c.hint)
			}
		}
	}
	good := reply{status: statusResponse}
	if err := good.err(get, false); err != nil {
		t.Error(err)
	}
}

func TestHTTPStatusesAndTheirKinds(t *testing.T) {
	c := open(t, Options{Endpoints: []string{"http://127.0.0.1:1/"}, Secret: secretIs(dummyKey)})
	for _, s := range []struct {
		status int
		blame  blame
		reason Reason
		kind   imapmeta.Kind
		is     error
		hint   string
		sent   bool // Dovecot may have carried out some of it
	}{
		{401, endpoints, Key, imapmeta.Server, ErrKey, hintKey, false},
		{403, endpoints, HTTP, imapmeta.Server, ErrNotDoveadm, hintURL, false},
		{404, endpoints, HTTP, imapmeta.Server, ErrNotDoveadm, hintURL, false},
		{405, endpoints, HTTP, imapmeta.Server, ErrNotDoveadm, hintURL, false},
		{410, endpoints, HTTP, imapmeta.Server, ErrNotDoveadm, hintURL, false},
		{301, endpoints, Redirect, imapmeta.Server, ErrNotDoveadm, hintMoved, false},
		{302, endpoints, Redirect, imapmeta.Server, ErrNotDoveadm, hintMoved, false},
		{307, endpoints, Redirect, imapmeta.Server, ErrNotDoveadm, hintMoved, false},
		{308, endpoints, Redirect, imapmeta.Server, ErrNotDoveadm, hintMoved, false},
		{413, doubtful, HTTP, imapmeta.Retry, nil, hintTooLarge, false},
		{429, endpoints, HTTP, imapmeta.Retry, nil, "", false},
		{400, doubtful, HTTP, imapmeta.Retry, nil, hintLog, true},
		{500, doubtful, HTTP, imapmeta.Retry, nil, hintLog, true},
		{502, doubtful, HTTP, imapmeta.Retry, nil, hintLog, true},
		{503, doubtful, HTTP, imapmeta.Retry, nil, hintLog, true},
		{504, doubtful, HTTP, imapmeta.Retry, nil, hintLog, true},
		{204, doubtful, HTTP, imapmeta.Retry, nil, hintLog, true},
		{599, doubtful, HTTP, imapmeta.Retry, nil, hintLog, true},
	} {
		got := c.refusal(&http.Response{StatusCode: s.status, Header: http.Header{"Location": {"http://elsewhere.test/"}},
			Body: io.NopCloser(strings.NewReader("  so\r\n says  the\tproxy\n"))}, "X-Dovecot-API eA==")
		if got.blame != s.blame || got.reason != s.reason || got.sent != s.sent || got.err.Hint != s.hint {
			t.Errorf("%d: blame %d, %s, sent %t, hint %q", s.status, got.blame, got.reason, got.sent, got.err.Hint)
		}
		words := fmt.Sprintf("HTTP %d: so says the proxy", s.status)
		if s.reason == Redirect {
			words = fmt.Sprintf("HTTP %d: it redirects to \"http://elsewhere.test/\"", s.status)
		}
		fault{kind: s.kind, is: s.is, op: "connect", words: words}.check(t, "", got.err)
	}
	empty := c.refusal(&http.Response{StatusCode: 502, Body: http.NoBody}, "X-Dovecot-API eA==")
	fault{kind: imapmeta.Retry, words: "HTTP 502: Bad Gateway"}.check(t, "", empty.err)
	unknown := c.refusal(&http.Response{StatusCode: 599, Body: io.NopCloser(strings.NewReader(strings.Repeat("x", 1<<20)))}, "")
	if text := unknown.err.Error(); !strings.Contains(text, "HTTP 599: xxx") || len(text) > 300 {
		t.Errorf("%d bytes: %.300s", len(text), text)
	}
	odd := c.refusal(&http.Response{StatusCode: 500, Body: io.NopCloser(strings.NewReader("\x1b[31mred\x00\xff"))}, "")
	if text := odd.err.Error(); !strings.HasSuffix(text, "HTTP 500: [31mred ") {
		t.Errorf("what a terminal would obey: %q", text)
	}
	cut := c.refusal(&http.Response{StatusCode: 500, Body: io.NopCloser(strings.NewReader("Internal " + strings.Repeat("é", 300)))}, "")
	if text := cut.err.Error(); strings.ContainsRune(text, '\ufffd') || strings.ToValidUTF8(text, "") != text {
		t.Errorf("cut in the middle of a letter: %q", text)
	}
}

func TestFailuresWithoutAnAnswerAndTheirKinds(t *testing.T) {
	const limit = 7 * time.Second
	c := open(t, Options{Endpoints: []string{"http://127.0.0.1:1/"}, Secret: secretIs(dummyKey), ConnectTimeout: 3 * time.Second})
	over, cancel := context.WithTimeoutCause(t.Context(), 0, &timeoutError{limit})
	defer cancel()
	left, leave := context.WithCancel(t.Context())
	leave()
	dial := func(err error) error { return &dialError{&net.OpError{Op: "dial", Net: "tcp", Err: err}} }
	going := t.Context()
	for _, f := range []struct {
		name   string
		ctx    context.Context
		err    error
		blame  blame
		reason Reason
		kind   imapmeta.Kind
		is     error
		words  string
		sent   bool
	}{
		{"time is over", over, io.EOF, doubtful, Timeout, imapmeta.Retry, nil, "no answer within 7s", true},
		{"nobody waits", left, io.EOF, nobodys, Closed, imapmeta.Retry, nil, "context canceled", true},
		{"time is over before a connection", over, dial(context.DeadlineExceeded), doubtful, Timeout, imapmeta.Retry, nil, "no answer within 7s", false},
		{"nobody listens", going, dial(syscall.ECONNREFUSED), endpoints, Refused, imapmeta.Retry, nil, "connection refused", false},
		{"no route", going, dial(syscall.EHOSTUNREACH), endpoints, Refused, imapmeta.Retry, nil, "no route to host", false},
		{"no socket", going, dial(os.NewSyscallError("connect", syscall.ENOENT)), endpoints, Refused, imapmeta.Retry, nil, "no such file", false},
		{"a socket of others", going, dial(os.NewSyscallError("connect", syscall.EACCES)), endpoints, Refused, imapmeta.Server, nil, "permission denied", false},
		{"not even that", going, &dialError{fs.ErrPermission}, endpoints, Refused, imapmeta.Server, nil, "permission denied", false},
		{"no such host", going, dial(&net.DNSError{Err: "no such host", Name: "x", IsNotFound: true}), endpoints, Refused, imapmeta.Server, nil, "no such host", false},
		{"the resolver is down", going, dial(&net.DNSError{Err: "server misbehaving", Name: "x", IsTemporary: true}), endpoints, Refused, imapmeta.Retry, nil, "misbehaving", false},
		{"no connection in time", going, dial(context.DeadlineExceeded), endpoints, Timeout, imapmeta.Retry, nil, "no answer within 3s", false},
		{"no connection in the kernel's time", going, dial(syscall.ETIMEDOUT), endpoints, Timeout, imapmeta.Retry, nil, "no answer within 3s", false},
		{"closed in the handshake", going, &dialError{io.EOF}, endpoints, Refused, imapmeta.Retry, nil, "closed the connection without a word", false},
		{"no TLS there", going, &dialError{tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}}, endpoints, TLS, imapmeta.Server, imapmeta.ErrTLS, "TLS handshake", false},
		{"not trusted", going, &dialError{&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}}, endpoints, TLS, imapmeta.Server, imapmeta.ErrTLS, "unknown authority", false},
		{"another name", going, &dialError{x509.HostnameError{Certificate: &x509.Certificate{}, Host: "h"}}, endpoints, TLS, imapmeta.Server, imapmeta.ErrTLS, "not valid for any names", false},
		{"closed", going, io.EOF, doubtful, Closed, imapmeta.Retry, nil, "closed the connection without a word", true},
		{"closed in the middle", going, fmt.Errorf("read: %w", io.ErrUnexpectedEOF), doubtful, Closed, imapmeta.Retry, nil, "closed the connection without a word", true},
		{"reset", going, &net.OpError{Op: "read", Err: syscall.ECONNRESET}, doubtful, Closed, imapmeta.Retry, nil, "closed the connection without a word", true},
		{"cut", going, errCut, doubtful, Closed, imapmeta.Retry, nil, "ends in the middle", true},
		{"not HTTP", going, fmt.Errorf("%w, but says %q", errNotHTTP, "* OK ready"), doubtful, Reply, imapmeta.Server, ErrNotDoveadm, "* OK ready", true},
		{"not JSON", going, fmt.Errorf("%w: 'x'", errNotJSON), doubtful, Reply, imapmeta.Server, ErrNotDoveadm, "not a list of replies", true},
		{"too long", going, errLong, doubtful, Reply, imapmeta.Retry, nil, "too long", true},
		{"anything else", going, errors.New("who knows"), doubtful, Closed, imapmeta.Retry, nil, "who knows", true},
	} {
		got := c.trouble(f.ctx, f.err)
		if got.blame != f.blame || got.reason != f.reason || got.sent != f.sent {
			t.Errorf("%s: blame %d, %s, sent %t; want %d, %s, %t", f.name, got.blame, got.reason, got.sent, f.blame, f.reason, f.sent)
		}
		fault{kind: f.kind, is: f.is, op: "connect", words: f.words}.check(t, "", got.err)
	}
}

// What is wrong with several endpoints is told of all of them; for everybody
// only if it is for each.
func TestWhatAFailureEverywhereMeans(t *testing.T) {
	at := func(url string, kind imapmeta.Kind, works bool, cause error, hint string) attempt {
		return attempt{&endpoint{state: Endpoint{URL: url}}, &trouble{err: &imapmeta.Error{Kind: kind, Op: opConnect, Err: cause, Hint: hint}}, works}
	}
	down, gone := errors.New("down"), errors.New("gone")
	for _, c := range []struct {
		name  string
		tried []attempt
		want  fault
	}{
		{"one", []attempt{at("a", imapmeta.Retry, false, down, "1")},
			fault{kind: imapmeta.Retry, words: "connect: a: down", hint: "1", unreached: true}},
		{"one, for everybody", []attempt{at("a", imapmeta.Server, false, ErrKey, "1")},
			fault{kind: imapmeta.Server, is: ErrKey, words: "connect: a: API key", hint: "1"}},
		{"two", []attempt{at("a", imapmeta.Retry, false, down, "1"), at("b", imapmeta.Retry, false, gone, "2")},
			fault{kind: imapmeta.Retry, words: "connect: no endpoint works; a: down; b: gone", unreached: true}},
		{"one is down, one refuses", []attempt{at("a", imapmeta.Server, false, ErrKey, "1"), at("b", imapmeta.Retry, false, gone, "2")},
			fault{kind: imapmeta.Retry, is: ErrKey, words: "a: API key or password refused; b: gone", hint: "2", unreached: true}},
		{"it works for others", []attempt{at("a", imapmeta.Retry, false, down, "1"), at("b", imapmeta.Retry, true, gone, "2")},
			fault{kind: imapmeta.Retry, words: "connect: this endpoint answers other commands, but not this one: gone", hint: "2"}},
		{"it works for others, so it is not for everybody", []attempt{at("b", imapmeta.Server, true, ErrNotDoveadm, "2")},
			fault{kind: imapmeta.Retry, is: ErrNotDoveadm, words: "answers other commands", hint: hintLog}},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := (&batch{tried: c.tried}).failure()
			c.want.check(t, "", err)
			for _, a := range c.tried {
				if !c.tried[len(c.tried)-1].works && !errors.Is(err, a.trouble.err.Err) {
					t.Errorf("%v is lost", a.trouble.err.Err)
				}
			}
		})
	}
}

func TestASecretThatAServerRepeatsIsNotToldOn(t *testing.T) {
	d := play(t, onPost(func(w http.ResponseWriter, r *http.Request, _ []command) bool {
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprintf(w, "cannot forward %v", r.Header)
		return true
	}))
	_, err := d.client().Update(t.Context(), "alice", keepIt)
	fault{kind: imapmeta.Retry, words: "cannot forward map[Authorization:[X-Dovecot-API ***", unreached: true}.check(t, "alice", err)
	if err != nil {
		secretFree(t, err.Error(), dummyKey)
	}
}
