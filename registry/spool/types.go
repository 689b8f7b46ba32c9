package spool

import (
	"fmt"
	"time"
	"unicode/utf8"
)

// MaxBody is how many bytes the body of an event may have.
const MaxBody = 256 << 10

const (
	maxName   = 1 << 10 // bytes of a user or target
	maxID     = 128     // bytes of an event's ID
	maxReason = 1 << 10 // bytes kept of a reason
)

// Event is one notification that is to be forwarded.
type Event struct {
	// ID tells the event from all others, whatever the target, and stays the
	// same when it is sent again: 1 to 128 visible ASCII characters without a
	// full stop, which ends it where it is signed.
	ID string
	// Key is the same for two events if they are one and the same thing; only
	// its hash is kept. Empty: the event is never a duplicate.
	Key string
	// User is whom it concerns. Events of one user are forwarded in order.
	User string
	// Body is what is sent, JSON of at most MaxBody bytes; Stripped, to targets
	// that are not to see what is in a mail.
	Body, Stripped []byte
	// Received is when Dovecot sent it.
	Received time.Time
}

// Target names whom an event is for.
type Target struct {
	Name  string
	Strip bool // is sent Event.Stripped; of Event.Body it has nothing, not even here
}

// Delivery is an event on its way to one target.
type Delivery struct {
	ID       int64 // in the spool, never used twice
	Event    string
	Target   string
	User     string
	Body     []byte
	Received time.Time
	// Queued is since when it has waited: Received, unless it was revived.
	Queued time.Time
	// Attempts counts how often it was taken, this time included; Refusals, how
	// often that ended in Refuse. Both begin anew when it is revived.
	Attempts, Refusals int
}

// DeadLetter is a delivery that was given up. Its body is kept and not shown.
type DeadLetter struct {
	ID       int64     `json:"id"`
	Event    string    `json:"event"`
	Target   string    `json:"target"`
	User     string    `json:"user"`
	Received time.Time `json:"received"`
	Died     time.Time `json:"died"`
	Attempts int       `json:"attempts"`
	Reason   string    `json:"reason"`
	Size     int       `json:"size"` // of the body in bytes
}

// TargetStats is how a target fares. A target is known from its first event on.
type TargetStats struct {
	Target      string    `json:"target"`
	Waiting     int64     `json:"waiting"`
	Dead        int64     `json:"dead"`
	Delivered   int64     `json:"delivered"`              // ever
	Skipped     int64     `json:"skipped"`                // ever: events that came when Options.Most were waiting
	Oldest      time.Time `json:"oldest,omitzero"`        // when the one that has waited longest was queued
	DeliveredAt time.Time `json:"delivered_at,omitzero"`  // when one was last delivered
	LastError   string    `json:"last_error,omitempty"`   // why one last was not
	LastErrorAt time.Time `json:"last_error_at,omitzero"` // and when
}

func (e Event) check(targets []Target) error {
	if len(e.ID) == 0 || len(e.ID) > maxID {
		return fmt.Errorf("event id is %d bytes long, must have 1 to %d", len(e.ID), maxID)
	}
	for i := range len(e.ID) {
		if c := e.ID[i]; c <= ' ' || c > '~' || c == '.' {
			return fmt.Errorf("event id %q holds %q", e.ID, c)
		}
	}
	if err := checkName("user", e.User); err != nil {
		return err
	}
	if e.Received.IsZero() {
		return fmt.Errorf("event %s: it must be said when it was received", e.ID)
	}
	for i, t := range targets {
		if err := checkName("target", t.Name); err != nil {
			return err
		}
		for _, other := range targets[:i] {
			if other.Name == t.Name {
				return fmt.Errorf("target %q is named twice", t.Name)
			}
		}
		if n := len(e.bodyFor(t)); n == 0 || n > MaxBody {
			return fmt.Errorf("event %s: its body for target %q is %d bytes long, must have 1 to %d", e.ID, t.Name, n, MaxBody)
		}
	}
	return nil
}

// bodyFor never falls back on the whole body for a target that must not see it.
func (e Event) bodyFor(t Target) []byte {
	if t.Strip {
		return e.Stripped
	}
	return e.Body
}

func checkName(what, s string) error {
	if s == "" || len(s) > maxName {
		return fmt.Errorf("%s is %d bytes long, must have 1 to %d", what, len(s), maxName)
	}
	if !utf8.ValidString(s) {
		return fmt.Errorf("%s %q is not UTF-8", what, s)
	}
	for i := range len(s) {
		if s[i] == 0 {
			return fmt.Errorf("%s %q holds a NUL", what, s)
		}
	}
	return nil
}

func millis(t time.Time) int64 { return t.UnixMilli() }

func fromMillis(ms int64) time.Time { return time.UnixMilli(ms).UTC() }
