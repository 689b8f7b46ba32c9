package registry

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// Nearly all results are of a row that is as it was claimed.
	sqlRecord = `
		UPDATE registrations SET ` + learnt + `,
			state = ?, next_at = ?, error_kind = ?, error_message = ?,
			force = CASE WHEN ? <> 0 THEN force ELSE 0 END, attempts = CASE WHEN ? <> 0 THEN max(attempts - ?, 0) ELSE 0 END
		WHERE username = ? AND server = ? AND claimed_by = ? AND revision = ?`
	sqlGone = `DELETE FROM registrations WHERE username = ? AND server = ? AND claimed_by = ? AND revision = ? AND wanted = 'absent'`

	sqlStillWanted = `
		SELECT count(*) FROM registrations
		WHERE username = ? AND server = ? AND claimed_by = ? AND revision = ? AND wanted = 'present'`

	// What was learnt holds whatever is wanted by now.
	sqlLearn = `UPDATE registrations SET ` + learnt + ` WHERE username = ? AND server = ? AND claimed_by = ?`
	learnt   = `written = COALESCE(?, written), written_at = COALESCE(?, written_at),
			verified_at = COALESCE(?, verified_at), doubt_until = ?, claimed_by = '', claimed_until = NULL`
)

// Result is what came of working on a claimed row.
type Result struct {
	Key
	// Revision is that of the row as it was claimed.
	Revision int64
	// State is how far the registration has come.
	State State
	// Gone says that the entry is confirmed absent, as wanted: the row goes,
	// and the fields below do not matter.
	Gone bool
	// Unsettled says that the wish still stands and will be tried again: its
	// attempts and its permission to force are kept. Otherwise the wish is
	// done with, and both are cleared.
	Unsettled bool
	// Uncounted says of an Unsettled result that the attempt was none: the
	// server was in no state to serve anybody.
	Uncounted bool
	// Written holds all values of ours that may still be in the entry. Nil
	// leaves what is known; empty, but not nil, means none.
	Written []string
	// DoubtUntil is until when a value that was sent without an answer may
	// still turn up; zero: none will.
	DoubtUntil time.Time
	// WrittenAt and VerifiedAt are left as they are if zero.
	WrittenAt, VerifiedAt time.Time
	// NextAt is when to look again; zero means never.
	NextAt time.Time
	// Failure is why it did not succeed; nil clears what was there.
	Failure *Failure
}

func (res Result) check() error {
	if res.Gone {
		return nil
	}
	if _, err := ParseState(string(res.State)); err != nil {
		return fmt.Errorf("user %q: %w", res.User, err)
	}
	for _, v := range res.Written {
		if err := checkText("written value", v, maxValue); err != nil {
			return fmt.Errorf("user %q: %w", res.User, err)
		}
	}
	return nil
}

// Record writes down results, all in one transaction that is durable when
// Record returns, and gives the claims back. A result whose row is no longer
// claimed by owner is not applied; its key is returned. If the wish changed
// meanwhile, only what was learnt is kept (Written, DoubtUntil, WrittenAt,
// VerifiedAt): the row stays as the newer wish made it, and due.
func (r *Registry) Record(ctx context.Context, owner string, results ...Result) (lost []Key, err error) {
	for _, res := range results {
		if err := res.check(); err != nil {
			return nil, fmt.Errorf("registry %s: record: %w", r.path, err)
		}
	}
	if len(results) == 0 {
		return nil, nil
	}
	var missed []Key
	err = r.writer.submit(ctx, "record", len(results), func(ctx context.Context, tx transaction) error {
		missed = nil
		for _, res := range results {
			ours, err := recordOne(ctx, tx, owner, res)
			if err != nil {
				return fmt.Errorf("user %q on server %q: %w", res.User, res.Server, err)
			}
			if !ours {
				missed = append(missed, res.Key)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err // missed may still be written to
	}
	return missed, nil
}

// recordOne reports whether the row was still claimed by owner.
func recordOne(ctx context.Context, tx transaction, owner string, res Result) (bool, error) {
	if owner == "" {
		return false, nil // nobody's rows
	}
	row := []any{res.User, res.Server, owner, res.Revision}
	if res.Gone {
		n, err := tx.exec(ctx, sqlGone, row...)
		if err != nil || n > 0 {
			return true, err
		}
		wanted, err := stillWanted(ctx, tx, row)
		switch {
		case err != nil:
			return true, err
		case wanted:
			return true, errors.New("gone was recorded, but the entry should be present")
		}
	}
	learnt, err := res.learnt()
	if err != nil {
		return true, err
	}
	if !res.Gone {
		kind, message := res.Failure.columns()
		args := append(learnt, string(res.State), millis(res.NextAt), kind, message, bit(res.Unsettled), bit(res.Unsettled), bit(res.Uncounted))
		n, err := tx.exec(ctx, sqlRecord, append(args, row...)...)
		if err != nil || n > 0 {
			return true, err
		}
	}
	n, err := tx.exec(ctx, sqlLearn, append(learnt, row[:3]...)...)
	return n > 0, err
}

// stillWanted reports whether a row that is as it was claimed should be present.
func stillWanted(ctx context.Context, tx transaction, row []any) (bool, error) {
	var n int
	err := tx.row(ctx, sqlStillWanted, row...).Scan(&n)
	return n > 0, err
}

// learnt are the values for the columns of that name.
func (res Result) learnt() ([]any, error) {
	var written any
	if res.Written != nil {
		text, err := encodeWritten(res.Written)
		if err != nil {
			return nil, err
		}
		written = text
	}
	return []any{written, millis(res.WrittenAt), millis(res.VerifiedAt), millis(res.DoubtUntil)}, nil
}
