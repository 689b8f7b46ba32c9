package imapmeta

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/emersion/go-sasl"
)

const (
	// maxReplies bounds what one session reads, in bytes; go-imap by itself
	// would take a literal of any size into memory.
	maxReplies = 1 << 20
	// maxLine bounds one line of it.
	maxLine = 64 << 10
	// maxEntry bounds the value that is kept, of one that is read: other
	// clients may have written more than MaxValue. maxSkip bounds what is read.
	maxEntry = 64 << 10
	maxSkip  = maxReplies - maxLine
)

// past is a deadline that frees every pending read and write.
var past = time.Unix(1, 0)

// session is one connection, from the greeting on. It logs in by itself, for
// go-imap cannot let commands follow AUTHENTICATE without waiting for the
// reply, and loses the reason when the server says BYE. From then on it is the
// net.Conn of a go-imap client, to which the connection looks pre-authenticated
// (RFC 9051 section 7.1.4), and lets through only what concerns METADATA:
// go-imap v2.0.0-beta.8 ends the connection at an untagged response that it
// does not know, and reads for ever at a "(" in a capability list.
type session struct {
	ctx  context.Context
	conn net.Conn
	stop func() bool // ends the context's hold on conn
	br   *bufio.Reader

	op       string // what a failure of the connection is blamed on, until go-imap takes over
	greeted  bool
	greets   string // the greeting's text
	loggedIn bool
	login    login
	pending  []byte // what waits to travel with what go-imap writes next: the AUTHENTICATE line, or what was held
	hold     bool   // what go-imap writes waits
	caps     []string

	ready []byte // what go-imap has yet to read

	failed atomic.Pointer[error] // why Read failed, which go-imap does not keep

	// closed is set when go-imap closes the connection, which it does before it
	// fails the commands that wait. A command that joins them after that waits
	// for ever (go-imap v2.0.0-beta.8, beginCommand and closeWithError). It has
	// joined them when its bytes come to Write: if the connection is closed by
	// then, it is lost, and nobody must wait for it.
	closed atomic.Bool
	lost   bool
}

var errClosed = errors.New("the connection is closed")

// login is what a session logs in with.
type login struct {
	auth   Auth
	client sasl.Client
}

func newSession(ctx context.Context, conn net.Conn, stop func() bool) *session {
	s := &session{ctx: ctx, stop: stop, op: "connect"}
	s.use(conn)
	return s
}

// use goes on over conn, forgetting nothing that was read: the caller has made
// sure that nothing is buffered.
func (s *session) use(conn net.Conn) {
	s.conn = conn
	s.br = bufio.NewReader(&bounded{conn, maxReplies})
}

func (s *session) close() {
	s.stop()
	s.conn.Close()
}

// begin prepares the login. If the mechanism allows it nothing is sent yet:
// the first Write takes it along. Otherwise it is done when begin returns.
func (s *session) begin(auth Auth, user, secret string) error {
	client, err := auth.client(user, secret)
	if err != nil {
		return &Error{Kind: Server, Op: "login", Err: err}
	}
	mechanism, initial, err := client.Start()
	if err != nil {
		return &Error{Kind: Server, Op: "login", Err: err}
	}
	// RFC 4959: an empty initial response is sent as "=". Dovecot has always
	// had SASL-IR, so that there is no need to wait for its capabilities.
	response := "="
	if len(initial) > 0 {
		response = base64.StdEncoding.EncodeToString(initial)
	}
	s.op = "login"
	s.login = login{auth, client}
	s.pending = []byte("L1 AUTHENTICATE " + mechanism + " " + response + "\r\n")
	if auth.pipelines() {
		return nil
	}
	if _, err := s.Write(nil); err != nil {
		return err
	}
	return s.logIn()
}

// greeting reads the greeting, once.
func (s *session) greeting() error {
	if s.greeted {
		return nil
	}
	line, err := s.line()
	if err != nil {
		// A port that speaks TLS waits for our first word (2.3, 2.4), or hangs
		// up when it hears IMAP (2.3; 2.4 sends an alert first).
		var e *Error
		if _, ok := s.conn.(*tls.Conn); !ok && errors.As(err, &e) {
			e.Hint = hintNoTLS
		}
		return err
	}
	mark, rest, _ := strings.Cut(line, " ")
	r := parseReply(rest)
	switch {
	case mark == "*" && r.status == "OK":
		s.greeted, s.greets = true, clip(r.text)
		return nil
	case mark == "*" && r.status == "BYE":
		return r.err(Retry, s.op, nil, "")
	case mark == "*" && r.status == "PREAUTH":
		return r.err(Server, s.op, errors.New("the server has logged us in before we said as whom"), hintAddress)
	}
	return &Error{Kind: Server, Op: s.op, Hint: hintAddress,
		Err: fmt.Errorf("this is not an IMAP server: it greets with %q", clip(line))}
}

// logIn reads up to the reply to AUTHENTICATE.
func (s *session) logIn() error {
	if err := s.greeting(); err != nil {
		return err
	}
	reason := "" // what a challenge told: the bearer mechanisms give the reason there
	for {
		line, err := s.line()
		if err != nil {
			return err
		}
		tag, rest, _ := strings.Cut(line, " ")
		switch tag {
		case "*":
			if r := parseReply(rest); r.status == "BYE" {
				return r.err(Retry, s.op, nil, "")
			}
			if list, ok := cutPrefixFold(rest, "CAPABILITY "); ok {
				s.caps = strings.Fields(strings.ToUpper(list))
			}
		case "+":
			if reason, err = s.challenge(rest); err != nil {
				return err
			}
		case "L1":
			return s.loginReply(parseReply(rest), reason)
		default:
			return s.unexpected(line)
		}
	}
}

func (s *session) challenge(encoded string) (reason string, err error) {
	text, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return "", &Error{Kind: Retry, Op: s.op, Err: fmt.Errorf("challenge is not base64: %w", err)}
	}
	if s.login.auth.bearer() {
		reason = clip(string(text))
	}
	if s.login.auth.pipelines() {
		return reason, nil // the next command was taken for the answer
	}
	response, err := s.login.client.Next(text)
	if err != nil {
		return "", &Error{Kind: Server, Op: s.op, Err: fmt.Errorf("challenge %q: %w", clip(string(text)), err), Hint: hintMechanism}
	}
	if _, err := s.conn.Write([]byte(base64.StdEncoding.EncodeToString(response) + "\r\n")); err != nil {
		return "", s.ioError(err)
	}
	return reason, nil
}

func (s *session) loginReply(r reply, reason string) error {
	if r.status == "" {
		return &Error{Kind: Retry, Op: s.op, Err: errors.New("the reply to AUTHENTICATE is none")}
	}
	if r.status != "OK" {
		if s.login.auth.bearer() && reason != "" && r.status != "" {
			r.text = strings.TrimSpace(r.text + " " + reason)
			if r.status == "BAD" || r.code == "" {
				r.code = "AUTHENTICATIONFAILED"
			}
		}
		return r.loginError(s.login.auth)
	}
	if r.code == "CAPABILITY" {
		s.caps = strings.Fields(strings.ToUpper(r.args))
	}
	s.loggedIn = true
	s.op = "getmetadata"
	// LITERAL+ lets go-imap send an 8-bit value without asking first.
	s.ready = []byte("* PREAUTH [CAPABILITY IMAP4rev1] logged in\r\n")
	if slices.Contains(s.caps, "LITERAL+") {
		s.ready = []byte("* PREAUTH [CAPABILITY IMAP4rev1 LITERAL+] logged in\r\n")
	}
	return nil
}

// Write sends what go-imap has to say, behind the login if that has not been
// sent yet. A failed write is not reported here: go-imap would close the
// connection before the server's reason for closing it was read.
func (s *session) Write(p []byte) (int, error) {
	s.lost = s.closed.Load()
	if s.hold {
		s.pending = append(s.pending, p...)
		return len(p), nil
	}
	out := p
	if s.pending != nil {
		out = append(s.pending, p...)
		s.pending = nil
	}
	s.conn.Write(out)
	return len(p), nil
}

// Read gives go-imap the greeting that it expects, and then what the server
// says about METADATA.
func (s *session) Read(p []byte) (int, error) {
	for len(s.ready) == 0 {
		if failed := s.failed.Load(); failed != nil {
			return 0, *failed // go-imap reads on after an error
		}
		if err := s.fill(); err != nil {
			s.failed.Store(&err)
			return 0, err
		}
	}
	n := copy(p, s.ready)
	s.ready = s.ready[n:]
	return n, nil
}

// fill reads the next line and decides whether go-imap shall see it.
func (s *session) fill() error {
	if !s.loggedIn {
		return s.logIn()
	}
	line, err := s.line()
	if err != nil {
		return err
	}
	tag, rest, _ := strings.Cut(line, " ")
	switch tag {
	case "*":
		word, _, _ := strings.Cut(rest, " ")
		switch strings.ToUpper(word) {
		case "METADATA":
			return s.metadata(line)
		case "BYE":
			return parseReply(rest).err(Retry, s.op, nil, "")
		}
		return s.skip(line)
	case "+":
		s.ready = []byte(line + "\r\n")
		return nil
	}
	r := parseReply(rest)
	switch {
	case r.status != "OK" && r.status != "NO" && r.status != "BAD":
		return s.unexpected(line)
	case !plainCode(r.code):
		r.code = ""
	}
	s.ready = []byte(tag + " " + r.String() + "\r\n")
	return nil
}

// plainCode reports whether go-imap reads the response code as a mere word:
// it parses what follows some of them, and drops what follows the others.
func plainCode(code string) bool {
	switch code {
	case "CAPABILITY", "APPENDUID", "COPYUID":
		return false
	}
	for _, r := range code {
		if !('A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-') {
			return false
		}
	}
	return true
}

// metadata passes on a METADATA response, line by line and literal by literal.
func (s *session) metadata(line string) error {
	for {
		head, size, ok := cutLiteral(line)
		if !ok {
			s.ready = append(s.ready, line+"\r\n"...)
			return nil
		}
		if size > maxSkip {
			return &Error{Kind: User, Op: s.op, Err: fmt.Errorf("the entry holds %d bytes, more than %d: dovepush did not write that", size, maxSkip)}
		}
		// The beginning of a long value tells that it is not ours.
		kept := min(size, maxEntry)
		s.ready = fmt.Appendf(s.ready, "%s{%d}\r\n", head, kept)
		at := len(s.ready)
		s.ready = append(s.ready, make([]byte, kept)...)
		if _, err := io.ReadFull(s.br, s.ready[at:]); err != nil {
			return s.ioError(err)
		}
		if _, err := io.CopyN(io.Discard, s.br, size-kept); err != nil {
			return s.ioError(err)
		}
		var err error
		if line, err = s.line(); err != nil {
			return err
		}
	}
}

// skip passes over a response with its literals.
func (s *session) skip(line string) error {
	for {
		_, size, ok := cutLiteral(line)
		if !ok {
			return nil
		}
		if _, err := io.CopyN(io.Discard, s.br, size); err != nil {
			return s.ioError(err)
		}
		var err error
		if line, err = s.line(); err != nil {
			return err
		}
	}
}

// cutLiteral splits a line that ends in a literal's length. The "~" of a
// literal8 (RFC 3516), with which a server may announce a streamed value, is
// dropped: go-imap reads plain literals only.
func cutLiteral(line string) (head string, size int64, ok bool) {
	open := strings.LastIndexByte(line, '{')
	if open < 0 || !strings.HasSuffix(line, "}") {
		return "", 0, false
	}
	size, err := strconv.ParseInt(line[open+1:len(line)-1], 10, 64)
	if err != nil || size < 0 {
		return "", 0, false
	}
	return strings.TrimSuffix(line[:open], "~"), size, true
}

// line reads one line, without its end.
func (s *session) line() (string, error) {
	var line []byte
	for {
		part, err := s.br.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			line = line[:len(line)-1]
			if n := len(line); n > 0 && line[n-1] == '\r' {
				line = line[:n-1]
			}
			return string(line), nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return "", s.ioError(err)
		case len(line) > maxLine:
			return "", s.unexpected(string(line))
		}
	}
}

func (s *session) unexpected(line string) error {
	return &Error{Kind: Retry, Op: s.op, Err: fmt.Errorf("unexpected reply %q", clip(line))}
}

// ioError says what a broken connection means.
func (s *session) ioError(err error) error {
	if e := contextError(s.ctx, s.op); e != nil {
		return e
	}
	if e := TLSError(err); e != nil {
		return e
	}
	return &Error{Kind: Retry, Op: s.op, Err: HungUp(err)}
}

// The rest of net.Conn, for go-imap. Its deadlines are not wanted: see connect.

func (s *session) Close() error {
	s.closed.Store(true)
	return s.conn.Close()
}

func (s *session) LocalAddr() net.Addr              { return s.conn.LocalAddr() }
func (s *session) RemoteAddr() net.Addr             { return s.conn.RemoteAddr() }
func (s *session) SetDeadline(time.Time) error      { return nil }
func (s *session) SetReadDeadline(time.Time) error  { return nil }
func (s *session) SetWriteDeadline(time.Time) error { return nil }

// bounded reads at most left bytes, and then fails.
type bounded struct {
	r    io.Reader
	left int
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("the server sent more than %d bytes", maxReplies)
	}
	n, err := b.r.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix) {
		return s[len(prefix):], true
	}
	return s, false
}

// clip bounds foreign text in messages.
func clip(s string) string {
	const most = 200
	if len(s) <= most {
		return s
	}
	return s[:most] + "..."
}
