package registry

import (
	"fmt"
	"time"
	"unicode/utf8"
)

// Wanted is what a user's entry should be.
type Wanted string

// What an entry should be.
const (
	Present Wanted = "present" // the entry should hold the registration's value
	Absent  Wanted = "absent"  // the entry should be gone, and then the row
)

// State is how far a registration has come.
type State string

// The states of a registration.
const (
	Pending    State = "pending"    // should be present, not confirmed yet
	Registered State = "registered" // present, as last seen
	Removing   State = "removing"   // should be absent, not confirmed yet
	Conflict   State = "conflict"   // the entry holds somebody else's value, which was kept
	Failed     State = "failed"     // cannot be done for this user; the failure says why
)

// ParseState reads the name of a state, as it stands in JSON and on the command line.
func ParseState(s string) (State, error) {
	switch State(s) {
	case Pending, Registered, Removing, Conflict, Failed:
		return State(s), nil
	}
	return "", fmt.Errorf("state %q is none of pending, registered, removing, conflict, failed", s)
}

// Failure is why the last attempt did not succeed.
type Failure struct {
	Kind    string `json:"kind"`    // retry, user or server
	Message string `json:"message"` // for people; cut at 1,024 bytes when stored
}

// Key names a registration: one user on one server.
type Key struct {
	User   string // as Dovecot knows the mailbox, compared byte by byte
	Server string // the server's name in the configuration
}

// Registration is one row: what should be and what was last seen. Times are
// kept to the millisecond and returned in UTC; the zero time means none.
type Registration struct {
	User       string    `json:"user"`
	Server     string    `json:"server"`
	Identity   string    `json:"identity,omitempty"`
	Value      string    `json:"value,omitempty"` // what the entry should hold
	Wanted     Wanted    `json:"wanted"`
	State      State     `json:"state"`
	ExpiresAt  time.Time `json:"expires_at,omitzero"`
	Attempts   int       `json:"attempts"`             // claims since the wish last changed or was settled
	NextAt     time.Time `json:"next_at,omitzero"`     // when to look again
	WrittenAt  time.Time `json:"written_at,omitzero"`  // when the entry was last written by us
	VerifiedAt time.Time `json:"verified_at,omitzero"` // when the entry was last read
	ProvenAt   time.Time `json:"proven_at,omitzero"`   // when a notification last came
	Error      *Failure  `json:"error,omitempty"`

	// Force says that the wish, not settled yet, may replace or remove a foreign value.
	Force bool `json:"-"`
	// Written holds every value that we wrote or may have written and that may
	// still be in the entry, at most 16. Empty: none. A value stands twice if
	// it may have been sent again while an earlier write was in doubt.
	Written []string `json:"-"`
	// DoubtUntil is until when a value that we sent without hearing of it may
	// still turn up in the entry.
	DoubtUntil time.Time `json:"-"`
	// Revision grows with every change of what should be.
	Revision int64 `json:"-"`
	// ClaimedBy is who works on the row until ClaimedUntil; empty: nobody.
	ClaimedBy    string    `json:"-"`
	ClaimedUntil time.Time `json:"-"`
}

// Key returns the registration's key.
func (reg Registration) Key() Key { return Key{User: reg.User, Server: reg.Server} }

// Intent is a wish: what a user's entry should be from now on.
type Intent struct {
	Key
	Identity  string    // what stands behind user= in the value; empty: the user name
	Value     string    // what the entry should hold; required if Wanted is Present
	Wanted    Wanted    // Present or Absent
	ExpiresAt time.Time // when to unregister by itself; zero: never
	Force     bool      // may replace or remove a foreign value

	// Revision, unless 0, says of which row the wish was thought: if it is
	// gone, or has another revision, the intent is passed over.
	Revision int64
	// OnlyIfOther passes the intent over if the row wants the same already:
	// present or absent, identity and value, and has not expired.
	OnlyIfOther bool
}

// Bounds of what is stored. Names come from strangers; Dovecot itself takes
// user names and entry values far shorter than this.
const (
	maxName    = 1 << 10  // bytes of a user, server, identity or owner
	maxValue   = 64 << 10 // bytes of an entry's value
	maxMessage = 1 << 10  // bytes kept of a failure's message
	maxWritten = 16       // values that may still be in an entry
	maxURL     = 4 << 10  // bytes of an endpoint's URL
	maxReason  = 64       // bytes of the word why an endpoint is set aside
)

func (k Key) check() error {
	if k.User == "" || k.Server == "" {
		return fmt.Errorf("user %q on server %q: both names must be given", k.User, k.Server)
	}
	if err := checkText("user", k.User, maxName); err != nil {
		return err
	}
	return checkText("server", k.Server, maxName)
}

func (in Intent) check() error {
	if err := in.Key.check(); err != nil {
		return err
	}
	switch {
	case in.Wanted != Present && in.Wanted != Absent:
		return fmt.Errorf("user %q: wanted %q is neither present nor absent", in.User, in.Wanted)
	case in.Wanted == Present && in.Value == "":
		return fmt.Errorf("user %q: a value is needed for an entry that should be present", in.User)
	}
	if err := checkText("identity", in.Identity, maxName); err != nil {
		return fmt.Errorf("user %q: %w", in.User, err)
	}
	if err := checkText("value", in.Value, maxValue); err != nil {
		return fmt.Errorf("user %q: %w", in.User, err)
	}
	return nil
}

// checkText refuses what would not come back as it went in: PostgreSQL takes
// no NUL, and JSON replaces bytes that are not UTF-8.
func checkText(what, s string, most int) error {
	if len(s) > most {
		return fmt.Errorf("%s is %d bytes long, at most %d are stored", what, len(s), most)
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
