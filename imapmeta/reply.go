package imapmeta

import "strings"

// reply is a status response: tagged, or an untagged BYE.
type reply struct {
	status string // OK, NO, BAD, BYE, PREAUTH; upper case
	code   string // upper case, without arguments
	args   string // what follows the code inside its brackets
	text   string
}

// parseReply reads what follows the tag or the "*" of a status response
// (RFC 9051 section 7.1). A line that is none gives an empty status.
func parseReply(s string) reply {
	status, rest, _ := strings.Cut(s, " ")
	r := reply{status: strings.ToUpper(status)}
	switch r.status {
	case "OK", "NO", "BAD", "BYE", "PREAUTH":
	default:
		return reply{}
	}
	if strings.HasPrefix(rest, "[") {
		if code, text, ok := strings.Cut(rest[1:], "]"); ok {
			name, args, _ := strings.Cut(code, " ")
			r.code, r.args = strings.ToUpper(name), args
			rest = strings.TrimPrefix(text, " ")
		}
	}
	r.text = rest
	return r
}

// String returns the reply as it stood on the wire, without the code's
// arguments.
func (r reply) String() string {
	words := []string{r.status}
	if r.code != "" {
		words = append(words, "["+r.code+"]")
	}
	if r.text != "" {
		words = append(words, r.text)
	}
	return strings.Join(words, " ")
}

// err makes a failure of the given kind out of the reply.
func (r reply) err(kind Kind, op string, cause error, hint string) *Error {
	return &Error{Kind: kind, Op: op, Status: r.status, Code: r.code, Text: r.text, Hint: hint, Err: cause}
}

// What an admin can do, once per cause.
const (
	hintMasterLogin = "check server.auth: master_user, its password, and master_separator against Dovecot's auth_master_user_separator; " +
		"Dovecot's log tells which one it is"
	hintExternal = "no client certificate, or one that Dovecot does not take for the master user: check server.tls_cert_file, " +
		"Dovecot's auth_ssl_username_from_cert and its master passdb"
	hintOwnLogin   = "the user's own password or token was refused"
	hintToken      = "the token was refused: expired, for another user, or not accepted by Dovecot's oauth2 passdb"
	hintAuthorized = "Dovecot accepted the master user but not this user: no such user, or allow_nets, uid or the like keep him out"
	hintChars      = "the name holds characters that Dovecot refuses unless auth_username_chars allows them"
	hintSelf       = "the master user cannot log in for a user of its own name: give it a name that no user has"
	hintMechanism  = "Dovecot does not offer this mechanism: set server.auth.mechanism to one of its auth_mechanisms"
	hintPrivacy    = "set server.tls to \"implicit\" or \"starttls\": Dovecot refuses passwords over plaintext connections"
	hintMetadata   = "switch METADATA on in Dovecot: protocol imap { imap_metadata = yes }"
	hintDict       = "give Dovecot a place for attributes: mail_attribute_dict = file:%h/dovecot-attributes (2.3), " +
		"or mail_attribute { dict file { path = %{home}/dovecot-attributes } } (2.4)"
	hintInternal  = "Dovecot's log tells why; often the attribute dict or the user's home cannot be written"
	hintElsewhere = "Dovecot answers OK and forgets: its attribute dict is not where it keeps things; look at mail_attribute_dict (2.3) or mail_attribute (2.4)"
	hintTemp      = "Dovecot answers the same for trouble and, without result_success = continue in the master passdb, for users it does not know; its log tells"
)

// loginError says what a refused login means (measured on Dovecot 2.3.19 and
// 2.4.1; src/imap-login/client-authenticate.c has the codes).
func (r reply) loginError(a Auth) *Error {
	const op = "login"
	switch r.code {
	case "AUTHENTICATIONFAILED", "EXPIRED":
		switch {
		case a.own() && a.bearer():
			return r.err(User, op, ErrLogin, hintToken)
		case a.own():
			return r.err(User, op, ErrLogin, hintOwnLogin)
		case a.Mechanism == External:
			return r.err(Server, op, ErrLogin, hintExternal)
		}
		return r.err(Server, op, ErrLogin, hintMasterLogin)
	case "AUTHORIZATIONFAILED":
		return r.err(User, op, ErrNoUser, hintAuthorized)
	case "CONTACTADMIN":
		return r.err(User, op, ErrLogin, "logins are disabled for this user (nologin)")
	case "PRIVACYREQUIRED":
		return r.err(Server, op, ErrPlaintext, hintPrivacy)
	case "UNAVAILABLE":
		if !strings.Contains(r.text, "Internal error") { // it says more than its log would
			return r.err(Retry, op, nil, "")
		}
		return r.err(Retry, op, nil, hintTemp)
	}
	// Both come as [ALERT].
	switch {
	case strings.Contains(r.text, "Unsupported authentication mechanism"):
		return r.err(Server, op, ErrLogin, hintMechanism)
	case strings.Contains(r.text, "Client didn't present valid SSL certificate"): // auth_ssl_require_client_cert
		return r.err(Server, op, ErrTLS, hintClient)
	}
	return r.err(Retry, op, nil, "")
}

// metadataError says what a refused GETMETADATA or SETMETADATA means.
func (r reply) metadataError(op string) *Error {
	switch {
	case strings.Contains(r.text, "attributes not enabled"):
		// "Generic mailbox attributes not enabled": no imap_metadata.
		// "Mailbox attributes not enabled": no attribute dict.
		if strings.Contains(r.text, "Generic") {
			return r.err(Server, op, ErrNoMetadata, hintMetadata)
		}
		return r.err(Server, op, ErrNoMetadata, hintDict)
	case r.code == "CANNOT", r.code == "NOPERM", r.code == "NONEXISTENT", r.code == "METADATA":
		return r.err(User, op, nil, "")
	case r.code == "SERVERBUG":
		return r.err(Retry, op, nil, hintInternal)
	}
	return r.err(Retry, op, nil, "")
}

// plainName reports whether Dovecot's default auth_username_chars allow all of
// the name.
func plainName(user string) bool {
	for _, r := range user {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
		case strings.ContainsRune(".-_@", r):
		default:
			return false
		}
	}
	return true
}
