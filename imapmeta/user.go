package imapmeta

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// MaxUser bounds user names, in bytes. Dovecot's processes tell one another of
// a user in lines of at most 1024 bytes, addresses and settings included
// (MAX_INBUF_SIZE in src/anvil, src/config and src/auth). Measured on 2.3.19
// and 2.4.1: names from about 940 bytes on fail in doveadm, and from about 1000
// on they cost 2.3's login process its connection to anvil, and so everybody
// else who is logging in there. An address has at most 320 (RFC 5321 section
// 4.5.3.1).
const MaxUser = 512

// ErrUser is wrapped by the errors of CheckUser, and when Dovecot refuses the
// name itself.
var ErrUser = errors.New("bad user name")

// CheckUser reports why a user name must not be sent to Dovecot. Names that
// are merely odd (blanks, quotes, backslash, UTF-8) pass: Dovecot knows whether
// it has such a user.
//
// Refused are empty names, names that are not UTF-8, that are longer than
// MaxUser, or that hold NUL, CR, LF or another control character; and those
// with a path component "..": Dovecot expands the name into the path of the
// home directory (%u, %n and %d), and would look into another one.
func CheckUser(user string) error {
	switch {
	case user == "":
		return fmt.Errorf("%w: it is empty", ErrUser)
	case len(user) > MaxUser:
		return fmt.Errorf("%w: %d bytes, more than %d, beginning with %.32q", ErrUser, len(user), MaxUser, user)
	case !utf8.ValidString(user):
		return fmt.Errorf("%w: %q is not UTF-8", ErrUser, user)
	}
	for _, r := range user {
		if r < 0x20 || r == 0x7f {
			return fmt.Errorf("%w: %q holds a control character", ErrUser, user)
		}
	}
	for part := range strings.FieldsFuncSeq(user, func(r rune) bool { return r == '/' || r == '@' }) {
		if part == ".." {
			return fmt.Errorf("%w: %q leads outside of the home directory", ErrUser, user)
		}
	}
	return nil
}
