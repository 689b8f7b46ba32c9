package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"
)

// MaxClaim bounds how long a claim lasts. One that seems to last longer was
// made before the clock was set back, and counts as expired.
const MaxClaim = 10 * time.Minute

// Linger is how long a write may still come through after we stopped waiting
// for its answer. Dovecot carries out a SETMETADATA although the client has
// gone, and waits for another process's dotlock on the file of the dict
// before: a stale one is overridden after a minute. 62 s were seen.
const Linger = 90 * time.Second

// Claimed tells what came of a claim.
type Claimed int

// What can come of a claim.
const (
	Missing Claimed = iota // there is no such row
	Held                   // somebody else works on it
	Taken                  // it is the caller's until the time given
)

func (c Claimed) String() string {
	switch c {
	case Missing:
		return "missing"
	case Held:
		return "held"
	case Taken:
		return "taken"
	}
	return fmt.Sprintf("Claimed(%d)", int(c))
}

const (
	sqlIntend = `
		INSERT INTO registrations (` + columns + `)
		VALUES ($1, $2, $3, $4, $5, $6, $7, 0, $8, NULL, NULL, NULL, '', '', $9, '` + noneWritten + `', NULL, 1, '', NULL)
		ON CONFLICT (username, server) DO UPDATE SET
			identity = excluded.identity, value = excluded.value, wanted = excluded.wanted,
			expires_at = excluded.expires_at, force = excluded.force, next_at = excluded.next_at,
			revision = registrations.revision + 1, attempts = 0, error_kind = '', error_message = '',
			state = CASE
				WHEN excluded.wanted = 'present' AND registrations.state = 'registered'
					AND registrations.value = excluded.value THEN registrations.state
				ELSE excluded.state END`

	sqlSelect = `SELECT ` + columns + ` FROM registrations WHERE username = $1 AND server = $2`

	sqlClaim = `
		UPDATE registrations SET attempts = attempts + 1, next_at = $3, claimed_by = $4, claimed_until = $5, written = $6,
			doubt_until = $7
		WHERE username = $1 AND server = $2`

	sqlDelete = `DELETE FROM registrations WHERE username = $1 AND server = $2`

	// What was learnt holds whatever is wanted by now.
	sqlLearn = `
		UPDATE registrations SET written = COALESCE($3, written), written_at = COALESCE($4, written_at),
			verified_at = COALESCE($5, verified_at), doubt_until = $6, claimed_by = '', claimed_until = NULL
		WHERE username = $1 AND server = $2`

	sqlConclude = `
		UPDATE registrations SET state = $3, next_at = $4, error_kind = $5, error_message = $6,
			force = CASE WHEN $7 <> 0 THEN force ELSE 0 END,
			attempts = CASE WHEN $7 = 0 THEN 0 ELSE max(attempts - $8, 0) END
		WHERE username = $1 AND server = $2`

	// Two statements, one for each index.
	sqlProveIdentity = `
		UPDATE registrations SET proven_at = $2
		WHERE identity = $1 AND identity <> '' AND (proven_at IS NULL OR proven_at < $2)`
	sqlProveUser = `
		UPDATE registrations SET proven_at = $2
		WHERE username = $1 AND identity = '' AND (proven_at IS NULL OR proven_at < $2)`
)

// writerStatements are prepared once, for the life of the writer's connection.
var writerStatements = []string{sqlIntend, sqlSelect, sqlClaim, sqlDelete, sqlLearn, sqlConclude, sqlProveIdentity, sqlProveUser,
	sqlDue, sqlHasten, sqlSpread, sqlRelease, sqlReclaim, sqlOpenCircuit, sqlCloseCircuit}

// Intend changes what should be, all intents in one transaction that is
// durable when Intend returns. Each makes its row due now and begins it
// afresh: attempts 0, no error, a higher revision. A registration that holds
// the same value stays registered while it is looked at again; any other is
// pending, or removing. A claim is left alone: who holds it will find the
// higher revision when recording.
func (r *Registry) Intend(ctx context.Context, intents ...Intent) error {
	for _, in := range intents {
		if err := in.check(); err != nil {
			return fmt.Errorf("registry %s: intend: %w", r.path, err)
		}
	}
	if len(intents) == 0 {
		return nil
	}
	return r.writer.submit(ctx, "intend", len(intents), func(ctx context.Context, tx transaction) error {
		now := r.now()
		for _, in := range intents {
			if err := intendOne(ctx, tx, in, now); err != nil {
				return err
			}
		}
		return nil
	})
}

// IntendOne is Intend for one, and returns the row as it is then.
func (r *Registry) IntendOne(ctx context.Context, in Intent) (Registration, error) {
	if err := in.check(); err != nil {
		return Registration{}, fmt.Errorf("registry %s: intend: %w", r.path, err)
	}
	var reg Registration
	err := r.writer.submit(ctx, "intend", 1, func(ctx context.Context, tx transaction) (err error) {
		if err := intendOne(ctx, tx, in, r.now()); err != nil {
			return err
		}
		reg, err = scanRow(tx.row(ctx, sqlSelect, in.User, in.Server))
		return err
	})
	if err != nil {
		return Registration{}, err // reg may still be written to
	}
	return reg, nil
}

func intendOne(ctx context.Context, tx transaction, in Intent, now time.Time) error {
	state := Pending
	if in.Wanted == Absent {
		state = Removing
	}
	if _, err := tx.exec(ctx, sqlIntend, in.User, in.Server, in.Identity, in.Value, string(in.Wanted), string(state),
		millis(in.ExpiresAt), millis(now), bit(in.Force)); err != nil {
		return fmt.Errorf("user %q on server %q: %w", in.User, in.Server, err)
	}
	return nil
}

// Claim takes a row for owner until a time at most MaxClaim ahead, before the
// network is touched. It counts the attempt, and sets when to look again
// should nothing ever be recorded. If the entry should be present, its value
// is counted as written from now on: who dies between writing and recording
// must still know it as ours, and that it may turn up until Linger after the
// claim: DoubtUntil is stored accordingly. A registration that has expired is
// turned into one that should be absent first.
//
// Written is bounded. What goes is the oldest value but the first: the first
// was there before all that followed failed, and is the likeliest to be there
// still. A value that was dropped counts as foreign should it turn up.
//
// The row is returned as it is afterwards, unless it is Missing, but with
// DoubtUntil as it was before. An owner may claim its own row again.
func (r *Registry) Claim(ctx context.Context, key Key, owner string, until, retryAt time.Time) (Registration, Claimed, error) {
	if err := r.checkOwner("claim", owner); err != nil {
		return Registration{}, Missing, err
	}
	var reg Registration
	var outcome Claimed
	err := r.writer.submit(ctx, "claim", 1, func(ctx context.Context, tx transaction) (err error) {
		reg, outcome, err = r.claim(ctx, tx, key, owner, until, retryAt)
		return err
	})
	if err != nil {
		return Registration{}, Missing, err // reg may still be written to
	}
	return reg, outcome, nil
}

func (r *Registry) claim(ctx context.Context, tx transaction, key Key, owner string, until, retryAt time.Time) (Registration, Claimed, error) {
	reg, err := scanRow(tx.row(ctx, sqlSelect, key.User, key.Server))
	if errors.Is(err, sql.ErrNoRows) {
		return Registration{}, Missing, nil
	}
	if err != nil {
		return Registration{}, Missing, err
	}
	now := r.now()
	if reg.ClaimedBy != owner && reg.claimRunning(now) {
		return reg, Held, nil
	}
	if most := now.Add(MaxClaim); until.After(most) {
		until = most
	}
	if reg.Wanted == Present && !reg.ExpiresAt.IsZero() && !reg.ExpiresAt.After(now) {
		if reg, err = expire(ctx, tx, reg, now); err != nil {
			return Registration{}, Missing, err
		}
	}
	renewed := reg.ClaimedBy == owner // its doubt is of the same work
	reg.Attempts++
	reg.ClaimedBy, reg.ClaimedUntil, reg.NextAt = owner, stored(until), stored(retryAt)
	doubt := reg.DoubtUntil
	if reg.Wanted == Present {
		reg.Written = remember(reg.Written, reg.Value, doubt.After(now) && !renewed)
		if most := until.Add(Linger); most.After(doubt) {
			doubt = most
		}
	}
	written, err := encodeWritten(reg.Written)
	if err != nil {
		return Registration{}, Missing, err
	}
	_, err = tx.exec(ctx, sqlClaim, key.User, key.Server, millis(retryAt), owner, millis(until), written, millis(doubt))
	return reg, Taken, err
}

// remember adds a value that may be written now. It stands twice if it is the
// only one and an earlier write of it is in doubt: to see it in the entry then
// does not tell which of the two came through.
func remember(written []string, value string, doubt bool) []string {
	if !slices.Contains(written, value) || doubt && len(written) == 1 {
		written = append(written, value)
	}
	if over := len(written) - maxWritten; over > 0 {
		written = slices.Delete(written, 1, 1+over)
	}
	return written
}

// expire makes an expired registration one that should be absent, as an Intent
// would. Nobody can renew it in between.
func expire(ctx context.Context, tx transaction, reg Registration, now time.Time) (Registration, error) {
	if _, err := tx.exec(ctx, sqlIntend, reg.User, reg.Server, reg.Identity, reg.Value, string(Absent), string(Removing),
		millis(time.Time{}), millis(now), 0); err != nil {
		return reg, err
	}
	return scanRow(tx.row(ctx, sqlSelect, reg.User, reg.Server))
}

func (reg Registration) claimRunning(now time.Time) bool {
	return reg.ClaimedBy != "" && reg.ClaimedUntil.After(now) && !reg.ClaimedUntil.After(now.Add(MaxClaim))
}

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
	reg, err := scanRow(tx.row(ctx, sqlSelect, res.User, res.Server))
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	if err != nil || owner == "" || reg.ClaimedBy != owner {
		return false, err
	}
	current := reg.Revision == res.Revision
	if current && res.Gone {
		if reg.Wanted != Absent {
			return true, errors.New("gone was recorded, but the entry should be present")
		}
		_, err := tx.exec(ctx, sqlDelete, res.User, res.Server)
		return true, err
	}
	var written sql.NullString
	if res.Written != nil {
		written.Valid = true
		if written.String, err = encodeWritten(res.Written); err != nil {
			return true, err
		}
	}
	if _, err := tx.exec(ctx, sqlLearn, res.User, res.Server, written, millis(res.WrittenAt), millis(res.VerifiedAt), millis(res.DoubtUntil)); err != nil {
		return true, err
	}
	if !current {
		return true, nil
	}
	kind, message := res.Failure.columns()
	_, err = tx.exec(ctx, sqlConclude, res.User, res.Server, string(res.State), millis(res.NextAt), kind, message, bit(res.Unsettled), bit(res.Uncounted))
	return true, err
}

// Prove notes that a notification for identity came at a time, in every row
// with that identity, or with that user name and no identity. It returns how
// many rows that is new to; 0 also means that nobody is known by that name.
func (r *Registry) Prove(ctx context.Context, identity string, at time.Time) (int64, error) {
	var total int64
	err := r.writer.submit(ctx, "prove", 1, func(ctx context.Context, tx transaction) error {
		total = 0
		for _, query := range []string{sqlProveIdentity, sqlProveUser} {
			n, err := tx.exec(ctx, query, identity, millis(at))
			if err != nil {
				return err
			}
			total += n
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	return total, nil
}
