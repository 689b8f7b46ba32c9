package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"

	"dovepush/agent"
	"dovepush/imapmeta"
	"dovepush/registry"
)

// outcome is the JSON of one user's result: the registration as it is now, and
// what was done. What has no registration has user and result only.
type outcome struct {
	Result agent.Verdict `json:"result"`
	registry.Registration
}

// bare is the JSON of a result without a registration.
type bare struct {
	Result agent.Verdict     `json:"result"`
	User   string            `json:"user"`
	Server string            `json:"server,omitempty"`
	Wanted registry.Wanted   `json:"wanted,omitempty"`
	Error  *registry.Failure `json:"error,omitempty"`
}

// failure is an error as JSON shows it.
func failure(err error) *registry.Failure {
	if err == nil {
		return nil
	}
	kind := imapmeta.KindOf(err)
	switch exitCode(err) {
	case exitData, exitNoUser:
		kind = imapmeta.User
	}
	return &registry.Failure{Kind: string(kind), Message: err.Error()}
}

func asJSON(action agent.Action, r agent.Result) any {
	if r.Registration == nil {
		b := bare{Result: r.Verdict, User: r.User, Server: r.Server, Error: failure(r.Err)}
		if action == agent.Unregister && r.Err == nil {
			b.Wanted = registry.Absent
		}
		if r.Verdict == agent.Conflict {
			b.Error = &registry.Failure{Kind: string(imapmeta.User), Message: r.Conflict}
		}
		return b
	}
	o := outcome{Result: r.Verdict, Registration: *r.Registration}
	if r.Err != nil {
		o.Error = failure(r.Err)
	}
	return o
}

// printJSON writes one object on a line. What is not printable is escaped: some
// terminals take C1 controls in UTF-8 for orders, and others are invisible.
func printJSON(w io.Writer, v any) error {
	var text strings.Builder
	e := json.NewEncoder(&text)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err
	}
	line := strings.TrimSuffix(text.String(), "\n")
	text.Reset()
	for _, r := range line {
		switch {
		case unicode.IsPrint(r):
			text.WriteRune(r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&text, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&text, `\u%04x`, r)
		}
	}
	_, err := fmt.Fprintln(w, text.String())
	return err
}

// printLines prints text that may hold what servers and users have written.
func printLines(w io.Writer, text string) error {
	for line := range strings.Lines(text) {
		if _, err := fmt.Fprintln(w, printable(strings.TrimSuffix(line, "\n"))); err != nil {
			return err
		}
	}
	return nil
}

// printable keeps hostile names and replies from steering the terminal.
func printable(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) < 0 {
		return s
	}
	quoted := strconv.Quote(s)
	return quoted[1 : len(quoted)-1]
}

func since(t, now time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return rough(now.Sub(t)) + " ago"
}

func until(t, now time.Time) string {
	if t.IsZero() {
		return "never"
	}
	if !t.After(now) {
		return "due"
	}
	return "in " + rough(t.Sub(now))
}

// rough gives a duration in its greatest unit.
func rough(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
