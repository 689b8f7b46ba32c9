package imapmeta

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Entry is the private server entry that Dovecot's ox push-notification driver
// looks for on mailbox "": a user whose entry is absent gets no notifications.
// Entry names are compared without case (RFC 5464 section 3); Dovecot answers
// in lower case.
const Entry = "/private/vendor/vendor.dovecot/http-notify"

// MaxValue bounds the values that dovepush writes, in bytes. Dovecot takes far
// more, but 2.4's imap process panics after a quoted string over 64 KiB, and
// no identity needs more.
const MaxValue = 1024

// Value is what the entry holds: tab-separated, tab-escaped key=value pairs.
// The driver reads the pair with the key "user" and ignores the others.
// The empty Value is an absent entry: the driver does not tell the two apart
// from any other value without a user.
type Value string

// Absent is the value of an entry that is not there (NIL), or empty.
const Absent Value = ""

// Pair is one key=value of a Value, unescaped.
type Pair struct {
	Key, Value string
}

// ErrIdentity is wrapped by the errors of NewValue.
var ErrIdentity = errors.New("bad identity")

// NewValue returns the value that makes the driver notify for identity.
// Tab, CR and LF in it are escaped, so that an identity cannot smuggle in
// further pairs. It must not be empty, must be UTF-8, must hold no NUL (the
// driver would cut it there) and must fit into MaxValue.
func NewValue(identity string) (Value, error) {
	switch {
	case identity == "":
		return Absent, fmt.Errorf("%w: it is empty", ErrIdentity)
	case !utf8.ValidString(identity):
		return Absent, fmt.Errorf("%w: %q is not UTF-8", ErrIdentity, identity)
	case strings.ContainsRune(identity, 0):
		return Absent, fmt.Errorf("%w: %q holds a NUL", ErrIdentity, identity)
	}
	v := Encode(Pair{"user", identity})
	if len(v) > MaxValue {
		return Absent, fmt.Errorf("%w: %d bytes, more than %d fit", ErrIdentity, len(identity), MaxValue-len("user="))
	}
	return v, nil
}

// Encode joins pairs to a value, in their order.
func Encode(pairs ...Pair) Value {
	fields := make([]string, len(pairs))
	for i, p := range pairs {
		fields[i] = tabEscape.Replace(p.Key + "=" + p.Value)
	}
	return Value(strings.Join(fields, "\t"))
}

// Pairs splits the value. A field without "=" becomes a pair with an empty
// value, as it is one that the driver ignores.
func (v Value) Pairs() []Pair {
	if v == Absent {
		return nil
	}
	var pairs []Pair
	for field := range strings.SplitSeq(string(v), "\t") {
		key, value, _ := strings.Cut(tabUnescape(field), "=")
		pairs = append(pairs, Pair{key, value})
	}
	return pairs
}

// Identity returns what stands behind "user=", and whether there is such a
// pair. The last one counts, as it does for the driver.
func (v Value) Identity() (string, bool) {
	identity, found := "", false
	for _, p := range v.Pairs() {
		if p.Key == "user" {
			identity, found = p.Value, true
		}
	}
	return identity, found
}

// Dovecot's tab escaping (lib/strescape.c): SOH introduces one letter.
var tabEscape = strings.NewReplacer("\x01", "\x011", "\t", "\x01t", "\r", "\x01r", "\n", "\x01n", "\x00", "\x010")

func tabUnescape(s string) string {
	if !strings.Contains(s, "\x01") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != 1 || i+1 == len(s) {
			// A lone SOH at the end is dropped, as Dovecot drops it.
			if s[i] != 1 {
				b.WriteByte(s[i])
			}
			continue
		}
		i++
		switch s[i] {
		case '0':
			b.WriteByte(0)
		case '1':
			b.WriteByte(1)
		case 't':
			b.WriteByte('\t')
		case 'r':
			b.WriteByte('\r')
		case 'n':
			b.WriteByte('\n')
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

// Change is what shall be done to an entry: the zero Change keeps it.
type Change struct {
	kind  changeKind
	value Value
}

type changeKind int

const (
	keep changeKind = iota
	set
	remove
)

// Keep leaves the entry as it is.
func Keep() Change { return Change{} }

// Set makes the entry hold v. Setting Absent is the same as Remove.
func Set(v Value) Change {
	if v == Absent {
		return Remove()
	}
	return Change{set, v}
}

// Remove makes the entry absent.
func Remove() Change { return Change{remove, Absent} }

// Keeps reports whether the change leaves the entry as it is.
func (c Change) Keeps() bool { return c.kind == keep }

// Value returns what the entry holds after the change, and false if the change
// leaves it as it is.
func (c Change) Value() (Value, bool) { return c.value, c.kind != keep }

// String returns "keep", "remove", or "set" with the value in Go quotes.
func (c Change) String() string {
	switch c.kind {
	case set:
		return fmt.Sprintf("set %q", string(c.value))
	case remove:
		return "remove"
	}
	return "keep"
}

// Outcome is what an Update found and did.
type Outcome struct {
	Had Value  // what the entry held
	Did Change // what was carried out, and confirmed by the server
	// Resent says that the change had been sent before, in a request that was
	// not answered: Dovecot may carry it out once more, a minute later.
	Resent bool
}
