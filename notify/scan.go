package notify

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"unicode/utf8"
)

// maxDepth bounds how deep objects and arrays may stand in one another, the
// body itself included.
const maxDepth = 32

// Why a body is refused. None of them says what stands in it.
var (
	errNotJSON   = errors.New("the body is not a JSON object")
	errDeep      = errors.New("the body is nested more than 32 deep")
	errTrailing  = errors.New("something follows the JSON object")
	errTwice     = errors.New("a member stands twice in the body")
	errNoUser    = errors.New("the body has no user, or an empty one")
	errUser      = errors.New("user is longer than 1,024 bytes, not UTF-8, or has control characters")
	errWrongType = errors.New("a member has another type than Dovecot sends")
	errNumber    = errors.New("imap-uid, imap-uidvalidity or unseen is not a whole number in its range")
	errLong      = errors.New("event or folder is too long")
)

// A scanner splits a JSON object (RFC 8259) into its members in one pass.
// encoding/json would go over it twice, take keys in any case and the last of
// equal ones, and let 10,000 levels of nesting through.
type scanner struct {
	b []byte
	i int
}

// A value is a JSON value as it stands in the body, with the quotes of a string.
// It is known to be JSON, but for what stands behind a string's backslashes.
type value struct {
	raw     []byte
	kind    byte // '"', '{', '[', or 0 for numbers, true, false and null
	escaped bool // a string with backslashes
}

// begin goes into the object. More tells whether it has members.
func (s *scanner) begin() (more bool, err error) {
	s.space()
	if s.next() != '{' {
		return false, errNotJSON
	}
	s.i++
	s.space()
	if s.next() != '}' {
		return true, nil
	}
	s.i++
	return false, s.end()
}

// member reads a key and its value. More tells whether another follows.
func (s *scanner) member() (key, v value, more bool, err error) {
	if s.next() != '"' {
		return key, v, false, errNotJSON
	}
	if key, err = s.str(); err != nil {
		return key, v, false, err
	}
	s.space()
	if s.next() != ':' {
		return key, v, false, errNotJSON
	}
	s.i++
	s.space()
	if v, err = s.value(); err != nil {
		return key, v, false, err
	}
	s.space()
	switch s.next() {
	case ',':
		s.i++
		s.space()
		return key, v, true, nil
	case '}':
		s.i++
		return key, v, false, s.end()
	}
	return key, v, false, errNotJSON
}

func (s *scanner) end() error {
	if s.space(); s.i < len(s.b) {
		return errTrailing
	}
	return nil
}

func (s *scanner) space() {
	for s.i < len(s.b) && (s.b[s.i] == ' ' || s.b[s.i] == '\n' || s.b[s.i] == '\r' || s.b[s.i] == '\t') {
		s.i++
	}
}

// next is the next byte; 0 at the end.
func (s *scanner) next() byte {
	if s.i < len(s.b) {
		return s.b[s.i]
	}
	return 0
}

func (s *scanner) value() (value, error) {
	switch c := s.next(); c {
	case '"':
		return s.str()
	case '{', '[':
		start := s.i
		if err := s.skip(); err != nil {
			return value{}, err
		}
		v := value{raw: s.b[start:s.i], kind: c}
		if !json.Valid(v.raw) {
			return value{}, errNotJSON
		}
		return v, nil
	}
	start := s.i
	for s.i < len(s.b) && strings.IndexByte(",}] \n\r\t", s.b[s.i]) < 0 {
		s.i++
	}
	v := value{raw: s.b[start:s.i]}
	if !plainNumber(v.raw) && !json.Valid(v.raw) {
		return value{}, errNotJSON
	}
	return v, nil
}

// plainNumber spares the usual numbers json.Valid.
func plainNumber(b []byte) bool {
	for _, c := range b {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(b) > 0 && (b[0] != '0' || len(b) == 1)
}

// str reads a string, but for what is wrong behind a backslash.
func (s *scanner) str() (value, error) {
	v := value{kind: '"'}
	start := s.i
	for i := start + 1; i < len(s.b); i++ {
		switch c := s.b[i]; {
		case c == '"':
			v.raw, s.i = s.b[start:i+1], i+1
			return v, nil
		case c == '\\':
			v.escaped = true
			i++
		case c < ' ':
			return v, errNotJSON
		}
	}
	return v, errNotJSON
}

// skip goes behind an object or array, whose depth alone it looks at.
func (s *scanner) skip() error {
	for depth := 1; s.i < len(s.b); s.i++ {
		switch s.b[s.i] {
		case '"':
			if _, err := s.str(); err != nil {
				return err
			}
			s.i-- // for the loop's step
		case '{', '[':
			if depth++; depth > maxDepth {
				return errDeep
			}
		case '}', ']':
			if depth--; depth == 1 {
				s.i++
				return nil
			}
		}
	}
	return errNotJSON
}

// text returns the text of a string; what is not UTF-8 in it, be it as it is
// or as "\ud800", has become U+FFFD.
func (v value) text() (string, error) {
	if v.kind != '"' {
		return "", errWrongType
	}
	if v.escaped {
		var text string
		if err := json.Unmarshal(v.raw, &text); err != nil {
			return "", errNotJSON
		}
		return text, nil
	}
	inner := v.inner()
	if utf8.Valid(inner) {
		return string(inner), nil
	}
	return string(bytes.ToValidUTF8(inner, []byte("\uFFFD"))), nil
}

// inner is a string without its quotes, which are no escapes.
func (v value) inner() []byte { return v.raw[1 : len(v.raw)-1] }

func (v value) null() bool { return v.kind == 0 && string(v.raw) == "null" }
