package userlist

import (
	"bytes"
	"fmt"
)

// maxLine is the longest line of a list, in bytes and without its end, and the
// longest name of a sequence: more than the longest user and identity together.
const maxLine = 4096

var byteOrderMark = []byte("\ufeff")

// parse takes a line apart that is without its end. A user is empty where the
// line names none. What is wrong with the line is said in words that go behind
// its number.
func parse(text []byte) (user, identity []byte, wrong string) {
	if wrong := unfit(text); wrong != "" {
		return nil, nil, wrong
	}
	if len(text) == 0 || text[0] == '#' {
		return nil, nil, ""
	}
	user, identity, found := bytes.Cut(text, []byte("\t"))
	switch {
	case len(user) == 0:
		return nil, nil, quote(text) + " has no user before the TAB"
	case found && len(identity) == 0:
		return nil, nil, quote(text) + " has no identity behind the TAB"
	case bytes.IndexByte(identity, '\t') >= 0:
		return nil, nil, quote(text) + " holds more than one TAB"
	}
	return user, identity, ""
}

// unfit says what is wrong with text that a record cannot hold.
func unfit(text []byte) (wrong string) {
	switch {
	case len(text) > maxLine:
		return fmt.Sprintf("%s is longer than %d bytes", quote(text), maxLine)
	case bytes.IndexByte(text, 0) >= 0:
		return quote(text) + " holds a NUL byte"
	}
	return ""
}

// chomp returns a line without its end, LF or CRLF.
func chomp(line []byte) []byte {
	if text, ok := bytes.CutSuffix(line, []byte("\n")); ok {
		return bytes.TrimSuffix(text, []byte("\r"))
	}
	return line
}
