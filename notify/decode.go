package notify

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Bounds of what is kept of a body of at most 64 KiB.
const (
	maxUser   = 1 << 10 // bytes; more is refused
	maxEvent  = 128     // bytes; more is refused
	maxFolder = 4 << 10 // bytes; more is refused
	maxText   = 4 << 10 // bytes each of from, subject and snippet; the rest is cut off
	maxFields = 32      // unknown members; those beyond are dropped
	maxExtra  = 16 << 10
)

// What Dovecot's ox driver sends (push_notification_driver_ox_process_msg in
// src/plugins/push-notification/push-notification-driver-ox.c, 2.3 and 2.4
// alike): all of these but "unread". From, subject, snippet and unseen are left
// out where Dovecot could not find them. Lua scripts, written after the example
// of Dovecot's manual, send the same with the event as "MessageNew", null for
// what they do not know, and some "unread".
const (
	memberUser = 1 << iota
	memberEvent
	memberFolder
	memberUIDValidity
	memberUID
	memberFrom
	memberSubject
	memberSnippet
	memberUnseen
	memberUnread
	memberOther = 0
)

func memberOf(key []byte) int {
	switch string(key) {
	case "user":
		return memberUser
	case "event":
		return memberEvent
	case "folder":
		return memberFolder
	case "imap-uidvalidity":
		return memberUIDValidity
	case "imap-uid":
		return memberUID
	case "from":
		return memberFrom
	case "subject":
		return memberSubject
	case "snippet":
		return memberSnippet
	case "unseen":
		return memberUnseen
	case "unread":
		return memberUnread
	}
	return memberOther
}

// decode reads a body. User is as it was sent.
func decode(body []byte, received time.Time) (Notification, error) {
	n := Notification{Received: received}
	s := scanner{b: body}
	extra, seen := 0, 0
	more, err := s.begin()
	for more && err == nil {
		var k, v value
		if k, v, more, err = s.member(); err != nil {
			break
		}
		name := k.inner()
		if k.escaped {
			var text string
			if text, err = k.text(); err != nil {
				break
			}
			name = []byte(text)
		}
		m := memberOf(name)
		switch {
		case m == memberOther:
			extra, err = n.keep(name, v, extra)
		case seen&m != 0: // whoever checks the first must not be shown the second
			err = errTwice
		case !v.null():
			err = n.set(m, v, seen)
		}
		seen |= m
	}
	switch {
	case err != nil:
		return Notification{}, err
	case n.Sent == "":
		return Notification{}, errNoUser
	}
	return n, nil
}

// set takes one member. Seen holds those before it.
func (n *Notification) set(member int, v value, seen int) (err error) {
	switch member {
	case memberUIDValidity:
		n.UIDValidity, err = uint32Of(v)
		return err
	case memberUID:
		n.UID, err = uint32Of(v)
		return err
	case memberUnseen, memberUnread:
		count, err := numberOf(v)
		if member == memberUnseen || seen&memberUnseen == 0 {
			n.Unseen = &count
		}
		return err
	}
	text, err := v.text()
	if err != nil {
		return err
	}
	switch member {
	case memberUser:
		n.Sent, n.User = text, text
		return checkUser(text)
	case memberEvent:
		if n.Event = clean(text); strings.EqualFold(n.Event, "messageNew") {
			n.Event = "messageNew"
		}
		if len(n.Event) > maxEvent {
			return errLong
		}
	case memberFolder:
		if n.Folder = clean(text); len(n.Folder) > maxFolder {
			return errLong
		}
	case memberFrom:
		n.From = cut(readable(decodeWords(text)))
	case memberSubject:
		n.Subject = cut(readable(decodeWords(text)))
	case memberSnippet: // no header: its text may well look like an encoded word
		n.Snippet = cut(readable(text))
	}
	return nil
}

// checkUser wants a name that can be one, as it was sent: whatever is put right
// in it makes it somebody else's.
func checkUser(user string) error {
	for _, r := range user {
		if r == utf8.RuneError || unicode.IsControl(r) {
			return errUser
		}
	}
	if len(user) > maxUser {
		return errUser
	}
	return nil
}

func uint32Of(v value) (uint32, error) {
	n, err := numberOf(v)
	if err == nil && n > 1<<32-1 {
		err = errNumber
	}
	return uint32(n), err
}

// numberOf reads a whole number that is not negative; scripts send strings.
func numberOf(v value) (int64, error) {
	digits := v.raw
	switch v.kind {
	case '"':
		digits = v.inner()
	case 0:
	default:
		return 0, errWrongType
	}
	n, err := strconv.ParseUint(string(digits), 10, 63)
	if err != nil {
		return 0, errNumber
	}
	return int64(n), nil
}

// keep keeps an unknown member, if there is room. Extra is how many bytes are
// kept already.
func (n *Notification) keep(name []byte, v value, extra int) (int, error) {
	if v.escaped && !json.Valid(v.raw) {
		return extra, errNotJSON
	}
	// What is no UTF-8 would make the JSON that we send none.
	raw := bytes.ToValidUTF8(v.raw, []byte("\uFFFD"))
	key := clean(string(name))
	more := extra + len(key) + len(raw)
	if len(n.Fields) == maxFields || more > maxExtra {
		return extra, nil
	}
	if _, twice := n.Fields[key]; twice {
		return extra, errTwice
	}
	if n.Fields == nil {
		n.Fields = make(map[string]json.RawMessage)
	}
	n.Fields[key] = raw
	return more, nil
}
