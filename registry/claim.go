package registry

import (
	"context"
	"database/sql"
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
	sqlSelect = `SELECT ` + columns + ` FROM registrations WHERE username = $1 AND server = $2`

	sqlClaim = `
		UPDATE registrations SET attempts = attempts + 1, next_at = ?, claimed_by = ?, claimed_until = ?, written = ?,
			doubt_until = ?
		WHERE username = ? AND server = ?`
)

// rowsClaim is sqlClaim for rows that are written to for the first time, or
// again, and that nothing is in doubt of for longer.
var rowsClaim = rowsQuery{
	head: `
		UPDATE registrations SET attempts = attempts + 1, next_at = ?, claimed_by = ?, claimed_until = ?,
			written = CASE written WHEN '` + noneWritten + `' THEN json_array(value) ELSE written END, doubt_until = ?
		WHERE server = ? AND username IN (`,
	row:  `?`,
	tail: `)`,
}

// rowsSelect is sqlSelect for several rows, in the order of their names here.
var rowsSelect = rowsQuery{
	head: `SELECT ` + columns + ` FROM (VALUES `,
	row:  `(?, ?)`,
	tail: `) CROSS JOIN registrations ON username = column1 AND server = column2`,
}

// Claim is what came of the claim of a row, and the row as [Registry.Claim]
// returns it: the zero one if it is Missing.
type Claim struct {
	Registration
	Outcome Claimed
}

// claiming is who claims rows, and for how long.
type claiming struct {
	owner               string
	until, retryAt, now time.Time
}

func (r *Registry) claiming(owner string, until, retryAt time.Time) claiming {
	now := r.now()
	if most := now.Add(MaxClaim); until.After(most) {
		until = most
	}
	return claiming{owner: owner, until: until, retryAt: retryAt, now: now}
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
	claims, err := r.ClaimEach(ctx, key.Server, owner, until, retryAt, []string{key.User})
	if err != nil {
		return Registration{}, Missing, err
	}
	return claims[0].Registration, claims[0].Outcome, nil
}

// ClaimEach is Claim for users of a server, all in one transaction. What came
// of them is in the order of users.
func (r *Registry) ClaimEach(ctx context.Context, server, owner string, until, retryAt time.Time, users []string) ([]Claim, error) {
	if err := r.checkOwner("claim", owner); err != nil {
		return nil, err
	}
	if len(users) == 0 {
		return nil, nil
	}
	var claims []Claim
	err := r.writer.submit(ctx, "claim", len(users), func(ctx context.Context, tx transaction) (err error) {
		claims, err = claimEach(ctx, tx, server, users, r.claiming(owner, until, retryAt))
		return err
	})
	if err != nil {
		return nil, err // claims may still be written to
	}
	return claims, nil
}

// claimEach reads the rows first, all at once, and changes as many alike as
// it can at a time.
func claimEach(ctx context.Context, tx transaction, server string, users []string, c claiming) ([]Claim, error) {
	rows, err := selectEach(ctx, tx, server, users)
	if err != nil {
		return nil, err
	}
	claims := make([]Claim, 0, len(users))
	var alike []string
	for _, user := range users {
		reg, found := rows[user]
		if !found {
			claims = append(claims, Claim{Outcome: Missing})
			continue
		}
		if reg.expired(c.now) && !reg.heldFrom(c) {
			if reg, err = expire(ctx, tx, reg, c.now); err != nil {
				return nil, err
			}
		}
		claim, doubt := c.claim(reg)
		claims = append(claims, claim)
		if claim.Outcome != Taken {
			continue
		}
		if c.alike(reg, claim, doubt) {
			alike = append(alike, user)
		} else if err := storeClaim(ctx, tx, claim, doubt); err != nil {
			return nil, err
		}
		reg = claim.Registration // the user may be named again
		reg.DoubtUntil, reg.Written = doubt, slices.Clone(claim.Written)
		rows[user] = reg
	}
	var args []any
	err = tx.inSteps(ctx, rowsClaim, len(alike), func(stmt *sql.Stmt, from, to int) error {
		args = append(args[:0], millis(c.retryAt), c.owner, millis(c.until), millis(c.until.Add(Linger)), server)
		for _, user := range alike[from:to] {
			args = append(args, user)
		}
		_, err := stmt.ExecContext(unwatched(ctx), args...)
		return err
	})
	return claims, err
}

// selectEach returns the rows of users, by user.
func selectEach(ctx context.Context, tx transaction, server string, users []string) (map[string]Registration, error) {
	regs := make(map[string]Registration, len(users))
	var args []any
	err := tx.inSteps(ctx, rowsSelect, len(users), func(stmt *sql.Stmt, from, to int) error {
		args = args[:0]
		for _, user := range users[from:to] {
			args = append(args, user, server)
		}
		rows, err := stmt.QueryContext(unwatched(ctx), args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for reader := newRowReader(); rows.Next(); {
			reg, err := reader.read(rows.Scan)
			if err != nil {
				return err
			}
			regs[reg.User] = reg
		}
		return rows.Err()
	})
	return regs, err
}

// heldFrom reports whether somebody else works on the row.
func (reg Registration) heldFrom(c claiming) bool {
	return reg.ClaimedBy != c.owner && reg.claimRunning(c.now)
}

// claim returns what comes of the claim of a row that has not expired, and
// until when values may turn up from then on.
func (c claiming) claim(reg Registration) (Claim, time.Time) {
	if reg.heldFrom(c) {
		return Claim{reg, Held}, reg.DoubtUntil
	}
	renewed := reg.ClaimedBy == c.owner // its doubt is of the same work
	reg.Attempts++
	reg.ClaimedBy, reg.ClaimedUntil, reg.NextAt = c.owner, stored(c.until), stored(c.retryAt)
	doubt := reg.DoubtUntil
	if reg.Wanted == Present {
		reg.Written = remember(slices.Clone(reg.Written), reg.Value, doubt.After(c.now) && !renewed)
		if most := stored(c.until.Add(Linger)); most.After(doubt) {
			doubt = most
		}
	}
	return Claim{reg, Taken}, doubt
}

// alike reports whether rowsClaim does for a row, as it was before, what was
// made of it. It does nothing twice for a user who is named twice.
func (c claiming) alike(before Registration, claim Claim, doubt time.Time) bool {
	return before.ClaimedBy != c.owner && claim.Wanted == Present && doubt.Equal(stored(c.until.Add(Linger))) &&
		(len(before.Written) == 0 || slices.Equal(before.Written, claim.Written))
}

func storeClaim(ctx context.Context, tx transaction, claim Claim, doubt time.Time) error {
	written, err := encodeWritten(claim.Written)
	if err != nil {
		return err
	}
	_, err = tx.exec(ctx, sqlClaim, millis(claim.NextAt), claim.ClaimedBy, millis(claim.ClaimedUntil), written, millis(doubt),
		claim.User, claim.Server)
	return err
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
	gone := Intent{Key: reg.Key(), Identity: reg.Identity, Value: reg.Value, Wanted: Absent}
	if err := intendRows(ctx, tx, rowsIntend, []Intent{gone}, now); err != nil {
		return reg, err
	}
	return scanRow(tx.row(ctx, sqlSelect, reg.User, reg.Server))
}

func (reg Registration) claimRunning(now time.Time) bool {
	return reg.ClaimedBy != "" && reg.ClaimedUntil.After(now) && !reg.ClaimedUntil.After(now.Add(MaxClaim))
}

func (reg Registration) expired(now time.Time) bool {
	return reg.Wanted == Present && !reg.ExpiresAt.IsZero() && !reg.ExpiresAt.After(now)
}

func (r *Registry) checkOwner(op, owner string) error {
	if owner == "" || len(owner) > maxName {
		return fmt.Errorf("registry %s: %s: owner %q must have 1 to %d bytes", r.path, op, owner, maxName)
	}
	return nil
}
