package doveadm

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"dovepush/imapmeta"
)

// method is a command of the API.
type method string

const (
	get    method = "mailboxMetadataGet"
	set    method = "mailboxMetadataSet"
	unset  method = "mailboxMetadataUnset"
	lookup method = "user"
)

// The operations that errors name: RFC 5464's for what is one.
const (
	opConnect = "connect"
	opGet     = "getmetadata"
	opSet     = "setmetadata"
	opUser    = "user"
)

func (m method) op() string {
	switch m {
	case get:
		return opGet
	case lookup:
		return opUser
	}
	return opSet
}

// turn is whose commands go first: 0 those that end an Update, which must not
// wait for all who begin one.
func (m method) turn() int {
	if m == set || m == unset {
		return 0
	}
	return 1
}

// command is one of a POST.
type command struct {
	method method
	user   string
	value  string // of set
}

// size is how many bytes a command takes in a POST at most: JSON may write six
// for one.
func (c command) size() int { return 200 + 6*(len(c.user)+len(c.value)) }

// metadata are the parameters of the mailbox commands. A mailbox "" is the
// server's own entry, the one that the ox driver looks for; INBOX has another.
type metadata struct {
	User       string  `json:"user"`
	Mailbox    string  `json:"mailbox"`
	AllowEmpty bool    `json:"allowEmptyMailboxName"`
	Key        string  `json:"key"`
	Value      *string `json:"value,omitempty"`
}

// users are the parameters of the command user. A mask without a pattern is a
// user to look up.
type users struct {
	UserMask []string `json:"userMask"`
}

// body encodes commands; the tag of each is its place. A tag must be a string.
func body(calls []*call) ([]byte, error) {
	list := make([][3]any, len(calls))
	for i, c := range calls {
		var parameters any
		switch c.method {
		case lookup:
			parameters = users{[]string{c.user}}
		case set:
			parameters = metadata{c.user, "", true, imapmeta.Entry, &c.value}
		default:
			parameters = metadata{c.user, "", true, imapmeta.Entry, nil}
		}
		list[i] = [3]any{c.method, parameters, strconv.Itoa(i)}
	}
	return json.Marshal(list)
}

// Statuses of replies that are errors, and the beginning of those that carry an
// exit code.
const (
	statusUnauthorized = "unAuthorized"
	statusExitCode     = "exitCode"
)

// What an admin can do, once per cause.
const (
	hintPattern = "connector = \"imap\" reaches this user"
	hintLog     = "Dovecot's log tells why"
	hintAllowed = "let doveadm_allowed_commands be empty, or list mailbox metadata get, set and unset, and user"
	hintOld     = "Dovecot 2.3.0 or later is needed: earlier ones do not know this command or its parameters"
	hintDict    = "give Dovecot a place for attributes: mail_attribute_dict = file:%h/dovecot-attributes (2.3), " +
		"or mail_attribute { dict file { path = %{home}/dovecot-attributes } } (2.4)"
	hintNoUser   = "Dovecot's userdb does not know this user"
	hintInternal = "Dovecot's log tells why; often the attribute dict or the user's home cannot be written"
	hintPerm     = "Dovecot's doveadm may not do that: its log tells why"
	hintQuota    = "the user is over quota"
)

// Exit codes of sysexits.h in replies, as doveadm_mail_failed_error in
// src/doveadm/doveadm-mail.c gives them.
const (
	exNotPossible = 65 // MAIL_ERROR_NOTPOSSIBLE; "Mailbox attributes not enabled" is one
	exNoUser      = 67
	exNotFound    = 68 // no such mailbox
	exCantCreate  = 73 // over quota
	exTempFail    = 75
	exNoPerm      = 77
)

// err says what a reply means. others tells whether this endpoint's Dovecot has
// done the like for other users a moment ago: then what would be wrong for
// everybody is wrong for this one.
func (r *reply) err(m method, others bool) error {
	if r.status == statusResponse {
		return nil
	}
	status := r.status
	fail := func(kind imapmeta.Kind, cause error, hint string) error {
		return &imapmeta.Error{Kind: kind, Op: m.op(), Status: status, Err: cause, Hint: hint}
	}
	server := imapmeta.Server
	if others {
		server = imapmeta.User
	}
	switch r.status {
	case statusExitCode:
		status = fmt.Sprintf("%s %d", statusExitCode, r.exitCode)
	case statusUnauthorized:
		return fail(imapmeta.Server, ErrForbidden, hintAllowed)
	case "unknownMethod", "invalidRequest":
		return fail(imapmeta.Server, ErrUnsupported, hintOld)
	default:
		return fail(imapmeta.Retry, nil, hintLog)
	}
	switch r.exitCode {
	case exNoUser:
		return fail(imapmeta.User, imapmeta.ErrNoUser, hintNoUser)
	case exNotFound:
		return fail(imapmeta.User, nil, hintLog)
	case exNotPossible:
		return fail(server, ErrNoAttributes, hintDict)
	case exNoPerm:
		return fail(server, ErrForbidden, hintPerm)
	case exCantCreate:
		return fail(imapmeta.Retry, nil, hintQuota)
	case exTempFail:
		return fail(imapmeta.Retry, nil, hintInternal)
	}
	return fail(imapmeta.Retry, nil, hintLog)
}

// What went wrong, where package imapmeta has no word for it: matched with
// errors.Is.
var (
	// ErrForbidden: Dovecot does not let DoveAdm do this.
	ErrForbidden = errors.New("not allowed to DoveAdm")
	// ErrUnsupported: Dovecot does not know the command, or its parameters.
	ErrUnsupported = errors.New("not known to this Dovecot")
	// ErrKey: Dovecot refused the API key or the password.
	ErrKey = errors.New("API key or password refused")
	// ErrNotDoveadm: what answers at the endpoint is not Dovecot's DoveAdm API.
	ErrNotDoveadm = errors.New("not a DoveAdm API")
	// ErrNoAttributes: Dovecot has no place for mailbox attributes.
	ErrNoAttributes = errors.New("mailbox attributes are not enabled")
	// ErrNoReply: the API answered, but not to this command.
	ErrNoReply = errors.New("no reply to this command")
)
