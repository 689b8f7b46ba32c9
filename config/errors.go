package config

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
)

// Error is one mistake in the configuration.
type Error struct {
	Key    string // path of the key, such as server[0].auth.mechanism; servers count from 0 in the order of the file. Empty for a syntax error
	Line   int    // of a syntax error, from 1
	Server string // name of the server that Key belongs to, if there are several
	Msg    string // what is wrong and what to do about it; never holds a secret
	Err    error  // the cause, if a file or command failed
}

// Error begins with the key, or with the line of a syntax error.
func (e *Error) Error() string {
	s := e.Key + ": " + e.Msg
	if e.Key == "" {
		s = fmt.Sprintf("line %d: %s", e.Line, e.Msg)
	}
	if e.Server != "" {
		s += " (server " + quote(e.Server) + ")"
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errors is every mistake found at once, in the order found. It is never empty.
type Errors []*Error

// Error gives one mistake on the same line, several on a line each.
func (e Errors) Error() string {
	if len(e) == 1 {
		return e[0].Error()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d errors:", len(e))
	for _, err := range e {
		b.WriteString("\n  ")
		b.WriteString(err.Error())
	}
	return b.String()
}

// Unwrap makes errors.Is and errors.As look at each mistake.
func (e Errors) Unwrap() []error {
	errs := make([]error, len(e))
	for i, err := range e {
		errs[i] = err
	}
	return errs
}

// report collects errors, one for each key: a key that could not be decoded
// holds its default and must not be complained about a second time.
type report struct {
	errs Errors
	seen map[string]bool
}

func (r *report) add(key, format string, args ...any) {
	if r.known(key) {
		return
	}
	r.mute(key)
	r.errs = append(r.errs, &Error{Key: key, Msg: fmt.Sprintf(format, args...)})
}

// mute keeps later complaints about key back.
func (r *report) mute(key string) {
	if r.seen == nil {
		r.seen = make(map[string]bool)
	}
	r.seen[key] = true
}

// known tells whether key, or a table that it stands in, was reported.
func (r *report) known(key string) bool {
	for i, c := range key {
		if (c == '.' || c == '[') && r.seen[key[:i]] {
			return true
		}
	}
	return r.seen[key]
}

// label names the servers of errors where an index alone would make one count.
func (c *Config) label(errs Errors) {
	for _, e := range errs {
		e.Server = c.labelOf(e.Key)
	}
}

func (c *Config) labelOf(key string) string {
	rest, ok := strings.CutPrefix(key, "server[")
	if !ok {
		return ""
	}
	digits, _, _ := strings.Cut(rest, "]")
	i, err := strconv.Atoi(digits)
	if err != nil {
		return ""
	}
	return c.serverLabel(i)
}

func (c *Config) serverLabel(i int) string {
	if len(c.Servers) < 2 || i >= len(c.Servers) {
		return ""
	}
	return c.Servers[i].Name
}

// quote shows a value of the file, or a key, bounded and on one line.
func quote(s string) string {
	const limit = 64
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "..."
	}
	return strconv.Quote(s)
}

// printable keeps foreign text on one line and a terminal as it was.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(s, "?"))
}
