package imapmeta

import (
	"errors"
	"testing"
)

// Every refusal that Dovecot 2.3 and 2.4 were seen to give, and what it means.
func TestRepliesAndTheirKinds(t *testing.T) {
	master := Auth{Mechanism: Plain, MasterUser: "agent"}
	own := Auth{Mechanism: Plain}
	token := Auth{Mechanism: OAuthBearer}
	for _, c := range []struct {
		reply string
		auth  Auth
		kind  Kind
		is    error
		hint  bool
	}{
		{"NO [AUTHENTICATIONFAILED] Authentication failed.", master, Server, ErrLogin, true},
		{"NO [AUTHENTICATIONFAILED] Authentication failed.", own, User, ErrLogin, true},
		{"NO [AUTHENTICATIONFAILED] Authentication failed.", token, User, ErrLogin, true},
		{"NO [authenticationfailed] lower case", master, Server, ErrLogin, true},
		{"NO [EXPIRED] Password expired", own, User, ErrLogin, true},
		{"NO [AUTHORIZATIONFAILED] Authorization failed", master, User, ErrNoUser, true},
		{"NO [UNAVAILABLE] Internal error occurred. Refer to server log for more information.", master, Retry, nil, true},
		{"NO [CONTACTADMIN] Login disabled for this user", master, User, ErrLogin, true},
		{"NO [CONTACTADMIN] Moved to the new system, call us", master, User, ErrLogin, true},
		{"NO [LIMIT] Maximum number of connections from user+IP exceeded (mail_max_userip_connections=10)", master, Retry, nil, false},
		{"NO [UNAVAILABLE] Maximum number of connections from user+IP exceeded (mail_max_userip_connections=1)", master, Retry, nil, false},
		{"NO [INUSE] busy", master, Retry, nil, false},
		{"NO [PRIVACYREQUIRED] Plaintext authentication disallowed on non-secure (SSL/TLS) connections.", master, Server, ErrPlaintext, true},
		{"NO [ALERT] Unsupported authentication mechanism.", master, Server, ErrLogin, true},
		{"NO [ALERT] Client didn't present valid SSL certificate", master, Server, ErrTLS, true},
		{"NO [FROM-THE-FUTURE 1 2] who knows", master, Retry, nil, false},
		{"BAD Error in IMAP command received by server.", master, Retry, nil, false},
	} {
		checkKind(t, c.reply, parseReply(c.reply).loginError(c.auth), c.kind, c.is, c.hint)
	}
	for _, c := range []struct {
		reply string
		kind  Kind
		is    error
		hint  bool
	}{
		{"NO [CANNOT] Generic mailbox attributes not enabled (0.001 + 0.000 secs).", Server, ErrNoMetadata, true},
		{"NO [CANNOT] Mailbox attributes not enabled (0.001 + 0.000 secs).", Server, ErrNoMetadata, true},
		{"NO [SERVERBUG] Internal error occurred. Refer to server log for more information. [2026-11-23 20:00:00]", Retry, nil, true},
		{"NO [CANNOT] Attribute string value has NULs", User, nil, false},
		{"NO [NOPERM] Permission denied", User, nil, false},
		{"NO [METADATA TOOMANY] no more", User, nil, false},
		{"NO [METADATA MAXSIZE 512] too long", User, nil, false},
		{"NO [UNAVAILABLE] later", Retry, nil, false},
		{"NO [LIMIT] too much", Retry, nil, false},
		{"NO [INUSE] locked", Retry, nil, false},
		{"NO [OVERQUOTA] full", Retry, nil, false},
		{"BAD Error in IMAP command GETMETADATA: Too long argument.", Retry, nil, false},
		{"NO without a code", Retry, nil, false},
	} {
		checkKind(t, c.reply, parseReply(c.reply).metadataError("setmetadata"), c.kind, c.is, c.hint)
	}
}

func checkKind(t *testing.T, reply string, err *Error, kind Kind, is error, hint bool) {
	t.Helper()
	if err.Kind != kind {
		t.Errorf("%s: kind %s, want %s", reply, err.Kind, kind)
	}
	for _, sentinel := range []error{ErrLogin, ErrNoUser, ErrNoMetadata, ErrPlaintext, ErrTLS} {
		if got, want := errors.Is(err, sentinel), sentinel == is; got != want {
			t.Errorf("%s: is %v: %v", reply, sentinel, got)
		}
	}
	if (err.Hint != "") != hint {
		t.Errorf("%s: hint %q", reply, err.Hint)
	}
	if err.Text == "" {
		t.Errorf("%s: the server's words are lost in %v", reply, err)
	}
}

func TestWhatIsNotClassifiedIsRetry(t *testing.T) {
	if k := KindOf(errors.New("something else")); k != Retry {
		t.Errorf("KindOf a plain error = %s", k)
	}
}
