package imapmeta

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/emersion/go-sasl"
)

// Mechanism is a SASL mechanism, under the name that Dovecot's auth_mechanisms
// uses.
type Mechanism string

// The mechanisms that this package speaks. Login, OAuthBearer and XOAuth2 cost
// one round trip more than the others.
const (
	Plain       Mechanism = "plain"       // RFC 4616
	Login       Mechanism = "login"       // draft-murchison-sasl-login
	OAuthBearer Mechanism = "oauthbearer" // RFC 7628
	XOAuth2     Mechanism = "xoauth2"     // Google's forerunner of OAUTHBEARER
	External    Mechanism = "external"    // RFC 4422 appendix A: the TLS client certificate
)

// Auth tells how to log in for a user.
type Auth struct {
	Mechanism Mechanism

	// MasterUser logs in on behalf of every user; empty: each user's own
	// credentials.
	MasterUser string

	// MasterSeparator is Dovecot's auth_master_user_separator: the login name
	// becomes USER+MasterSeparator+MasterUser. Empty: the user goes as the SASL
	// authorization identity, which also reaches names that hold the separator.
	MasterSeparator string

	// Secret returns the password or token with which to log in for user; for
	// a master user it is asked at most once a minute, and again after a
	// refused login. Not used by External. Its errors must not hold the secret.
	Secret func(ctx context.Context, user string) (string, error)
}

// own reports whether users log in with their own credentials.
func (a Auth) own() bool { return a.MasterUser == "" }

// bearer reports whether the secret is an OAuth token.
func (a Auth) bearer() bool { return a.Mechanism == OAuthBearer || a.Mechanism == XOAuth2 }

// pipelines reports whether commands may follow AUTHENTICATE in the same
// packet: the initial response (RFC 4959) is all that the mechanism sends.
//
// The bearer mechanisms do not: a refused token makes Dovecot ask once more,
// with the reason, and it takes the next line for the answer. With GETMETADATA
// there, 2.3.19 and 2.4.1 say
//
//	S: + eyJzdGF0dXMiOiJpbnZhbGlkX3Rva2VuIn0=
//	S: L1 NO [ALERT] Invalid base64 in response
//
// and log "client didn't finish SASL auth" with an empty user, where the right
// answer gets [AUTHENTICATIONFAILED] and "auth failed" with the user's name.
// (2.4 refuses a sound token for somebody else without asking.)
func (a Auth) pipelines() bool { return a.Mechanism == Plain || a.Mechanism == External }

// secret asks for the password or token; EXTERNAL may go without.
func (a Auth) secret(ctx context.Context, user string) (string, error) {
	if a.Secret == nil {
		return "", nil
	}
	return a.Secret(ctx, user)
}

func (a Auth) check() error {
	switch a.Mechanism {
	case Plain, Login, OAuthBearer, XOAuth2, External:
	default:
		return fmt.Errorf("unknown mechanism %q", a.Mechanism)
	}
	if a.Secret == nil && a.Mechanism != External {
		return fmt.Errorf("mechanism %s needs a password or token", a.Mechanism)
	}
	if !a.own() && a.MasterSeparator == "" && a.Mechanism != Plain && a.Mechanism != External {
		return fmt.Errorf("mechanism %s needs a master separator to log in as a master user", a.Mechanism)
	}
	if len(a.MasterSeparator) > 1 {
		return fmt.Errorf("master separator %q: Dovecot looks at its first character only", a.MasterSeparator)
	}
	return nil
}

// blamesName returns what an admin can do if the user's name is what Dovecot
// refused when it answered as to a wrong master password; empty if it cannot
// be the name.
//
// Both come from src/auth/auth-request-fields.c, and were measured on 2.3.19
// and 2.4.1, by authorization identity and by separator:
// auth_request_fix_username refuses what auth_username_chars does not allow,
// before it looks at the password; auth_request_set_login_username takes a
// master user that asks for itself for a user with a password of its own.
func (a Auth) blamesName(user string) (hint string) {
	switch {
	case strings.EqualFold(user, a.MasterUser):
		return hintSelf
	case !plainName(user):
		return hintChars
	}
	return ""
}

// checkUser reports users that this way to log in cannot reach.
func (a Auth) checkUser(user string) error {
	if err := CheckUser(user); err != nil {
		return &Error{Kind: User, Op: "login", User: user, Err: err}
	}
	if !a.own() && a.MasterSeparator != "" && strings.Contains(user, a.MasterSeparator) {
		return &Error{Kind: User, Op: "login", User: user,
			Err:  fmt.Errorf("%w: %q holds the master separator %q", ErrUser, user, a.MasterSeparator),
			Hint: "set server.auth.master_separator = \"\" and mechanism = \"plain\": the name then goes as SASL authorization identity"}
	}
	return nil
}

var errSecret = errors.New("the password or token holds a control character")

// client returns the SASL client for one login. The user is always named, so
// that a certificate or token of somebody else's cannot end in his mailbox.
func (a Auth) client(user, secret string) (sasl.Client, error) {
	for _, r := range secret {
		// NUL ends a field of PLAIN, SOH one of the bearer mechanisms; a line
		// end is the mark of a badly trimmed file.
		if r < 0x20 || r == 0x7f {
			return nil, errSecret
		}
	}
	login, authz := user, ""
	switch {
	case a.own():
	case a.MasterSeparator != "":
		login = user + a.MasterSeparator + a.MasterUser
	default:
		login, authz = a.MasterUser, user
	}
	switch a.Mechanism {
	case Login:
		return sasl.NewLoginClient(login, secret), nil
	case OAuthBearer:
		return oauthBearer{sasl.NewOAuthBearerClient(&sasl.OAuthBearerOptions{Username: saslName.Replace(login), Token: secret})}, nil
	case XOAuth2:
		return xoauth2{user: login, token: secret}, nil
	case External:
		return sasl.NewExternalClient(cmp.Or(authz, login)), nil
	}
	return sasl.NewPlainClient(authz, login, secret), nil
}

// saslName escapes what the GS2 header of OAUTHBEARER reserves (RFC 5801
// section 4); go-sasl sends the name as it is.
var saslName = strings.NewReplacer("=", "=3D", ",", "=2C")

// oauthBearer answers the challenge that tells why the token was refused as
// RFC 7628 section 3.2.3 wants it; go-sasl's client gives up instead.
type oauthBearer struct{ sasl.Client }

func (oauthBearer) Next([]byte) ([]byte, error) { return []byte{1}, nil }

// xoauth2 is the XOAUTH2 mechanism, which go-sasl no longer has.
// https://developers.google.com/workspace/gmail/imap/xoauth2-protocol
type xoauth2 struct{ user, token string }

func (x xoauth2) Start() (string, []byte, error) {
	return "XOAUTH2", []byte("user=" + x.user + "\x01auth=Bearer " + x.token + "\x01\x01"), nil
}

// Next answers the challenge that tells why the token was refused: an empty
// response, after which the refusal itself comes.
func (x xoauth2) Next([]byte) ([]byte, error) { return []byte{}, nil }
