package registry

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// columns is what scanRow reads, in its order.
const columns = `username, server, identity, value, wanted, state, expires_at, attempts,
	next_at, written_at, verified_at, proven_at, error_kind, error_message,
	force, written, doubt_until, revision, claimed_by, claimed_until`

// errUnreadable marks a row that cannot have been written by dovepush.
var errUnreadable = errors.New("unreadable row")

// rowReader reads rows of columns. It is kept from row to row, and takes
// numbers as any, for lists of a million rows: the ways in which database/sql
// converts values cost more than reading them.
type rowReader struct {
	user, server, identity, value, wanted, state string
	kind, message, written, claimedBy            string
	expires, attempts, next, wrote, verified     any
	proven, force, doubt, revision, until        any
	fields                                       []any // pointers to the above
}

func newRowReader() *rowReader {
	r := new(rowReader)
	r.fields = []any{&r.user, &r.server, &r.identity, &r.value, &r.wanted, &r.state, &r.expires, &r.attempts,
		&r.next, &r.wrote, &r.verified, &r.proven, &r.kind, &r.message,
		&r.force, &r.written, &r.doubt, &r.revision, &r.claimedBy, &r.until}
	return r
}

func (r *rowReader) read(scan func(...any) error) (Registration, error) {
	if err := scan(r.fields...); err != nil {
		return Registration{}, err
	}
	reg := Registration{User: r.user, Server: r.server, Identity: r.identity, Value: r.value,
		Wanted: Wanted(r.wanted), ClaimedBy: r.claimedBy}
	if r.kind != "" || r.message != "" {
		reg.Error = &Failure{Kind: r.kind, Message: r.message}
	}
	number := func(v any) int64 {
		n, _ := v.(int64)
		return n
	}
	reg.Attempts, reg.Force, reg.Revision = int(number(r.attempts)), number(r.force) != 0, number(r.revision)
	reg.ExpiresAt, reg.NextAt, reg.WrittenAt = fromMillis(r.expires), fromMillis(r.next), fromMillis(r.wrote)
	reg.VerifiedAt, reg.ProvenAt, reg.ClaimedUntil = fromMillis(r.verified), fromMillis(r.proven), fromMillis(r.until)
	reg.DoubtUntil = fromMillis(r.doubt)

	var err, werr error
	reg.State, err = ParseState(r.state)
	reg.Written, werr = decodeWritten(r.written, r.value)
	if err := errors.Join(err, werr); err != nil {
		return Registration{}, fmt.Errorf("user %q on server %q: %w: %w", reg.User, reg.Server, errUnreadable, err)
	}
	return reg, nil
}

func scanRow(row *sql.Row) (Registration, error) { return newRowReader().read(row.Scan) }

// millis is a time as it is stored: an int64, or nil for none.
func millis(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UnixMilli()
}

// fromMillis takes what the driver returns for a BIGINT: an int64, or nil.
func fromMillis(v any) time.Time {
	ms, ok := v.(int64)
	if !ok {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// stored returns a time as it comes back from the registry.
func stored(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return time.UnixMilli(t.UnixMilli()).UTC()
}

func bit(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

const noneWritten = "[]"

func encodeWritten(values []string) (string, error) {
	if len(values) == 0 {
		return noneWritten, nil
	}
	b, err := json.Marshal(values)
	return string(b), err
}

// decodeWritten knows at a glance the two lists that nearly all rows have:
// none, and the row's own value.
func decodeWritten(s, value string) ([]string, error) {
	if s == noneWritten {
		return []string{}, nil
	}
	if len(s) == len(value)+4 && s[2:len(s)-2] == value && strings.HasPrefix(s, `["`) && strings.HasSuffix(s, `"]`) &&
		!strings.ContainsAny(value, `"\\`) {
		return []string{value}, nil
	}
	var values []string
	if err := json.Unmarshal([]byte(s), &values); err != nil {
		return nil, fmt.Errorf("written values: %w", err)
	}
	return values, nil
}

// columns returns the failure as it is stored: a stranger's words, cut to a bound.
func (f *Failure) columns() (kind, message string) {
	if f == nil {
		return "", ""
	}
	clean := func(s string) string {
		s = strings.ReplaceAll(s[:min(len(s), maxMessage)], "\x00", "")
		return strings.ToValidUTF8(s, "") // also what the cut left of a rune
	}
	return clean(f.Kind), clean(f.Message)
}
