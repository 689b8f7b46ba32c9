package imapmeta

import (
	"errors"
	"strings"
)

// Kind says whom a failure concerns, and so what to do next.
type Kind string

const (
	// Retry: this may work later. What is not classified is Retry, for a wrong
	// "never again" drops a user silently, a wrong "again" costs one login.
	Retry Kind = "retry"
	// User: wrong for this user only.
	User Kind = "user"
	// Server: wrong for everybody on this server; trying it for the next user
	// would only add another refused login.
	Server Kind = "server"
)

// What went wrong, where somebody may act on it: matched with errors.Is.
var (
	// ErrLogin: the credentials, the agent's or the user's own, were refused,
	// or this user may not log in.
	ErrLogin = errors.New("login refused")
	// ErrNoUser: the master user was accepted, the user was not: there is no
	// such user, or an allow_nets, uid or the like keeps him out.
	ErrNoUser = errors.New("no such user")
	// ErrNoMetadata: the server does not offer IMAP METADATA.
	ErrNoMetadata = errors.New("no IMAP METADATA")
	// ErrTLS: the server's certificate is not trusted or has another name, the
	// server does not trust ours, or the TLS settings do not fit the port.
	ErrTLS = errors.New("no trusted TLS connection")
	// ErrPlaintext: the connection would carry the password unencrypted over a
	// network.
	ErrPlaintext = errors.New("plaintext connection refused")
)

// Error is a failed exchange. Its text holds the server's own words and never
// a secret.
type Error struct {
	Kind   Kind
	Op     string // "connect", "starttls", "login", "getmetadata", "setmetadata"
	User   string // whose entry it was about; empty when it is about none
	Status string // "NO", "BAD" or "BYE"; empty when there was no reply
	Code   string // the response code without its brackets and arguments (RFC 5530), such as "AUTHENTICATIONFAILED"
	Text   string // the server's words, without the code
	Hint   string // what an admin can do about it; not part of Error()
	Err    error  // one of the sentinels above, or the cause; may be nil
	// Unreached says that the server did not even greet: the failure, of kind
	// Retry, has nothing to do with the user.
	Unreached bool
}

// Error returns "op: cause: STATUS [CODE] text", without the hint.
func (e *Error) Error() string {
	var parts []string
	if e.Op != "" {
		parts = append(parts, e.Op)
	}
	if e.Err != nil {
		parts = append(parts, e.Err.Error())
	}
	if e.Status != "" {
		parts = append(parts, "server says: "+reply{status: e.Status, code: e.Code, text: e.Text}.String())
	}
	return strings.Join(parts, ": ")
}

// Unwrap returns the sentinel or cause.
func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the kind that err carries; Retry if it carries none.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Retry
}
