package registry

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"time"
)

// idle is the condition that nobody works on a row as of $1, and $2, MaxClaim
// after it: see claimRunning.
const idle = `(claimed_by = '' OR claimed_until <= $1 OR claimed_until > $2)`

// slow is the lane that a row waits in: 1 is the slow one, for users whom the
// server refused. Each of them may cost all logins a delay, so they are not due
// with the others: see [Registry.TakeRefused]. It is what registrations_due has,
// letter by letter.
const slow = `(state = 'failed')`

// The lanes.
const (
	fastLane = 0
	slowLane = 1
)

const (
	sqlDue = `
		SELECT username FROM registrations
		WHERE server = $3 AND ` + slow + ` = $4 AND next_at <= $1 AND ` + idle + `
		ORDER BY next_at LIMIT $5`

	// Whoever is at work may have looked already: he must not take it off.
	sqlHasten = `
		UPDATE registrations SET next_at = $3, revision = revision + (claimed_by <> '')
		WHERE username = $1 AND server = $2 AND (next_at IS NULL OR next_at > $3)`

	sqlNextDue = `
		SELECT next_at FROM registrations
		WHERE server = $3 AND ` + slow + ` = $4 AND next_at IS NOT NULL AND ` + idle + `
		ORDER BY next_at LIMIT 1`

	countDue = `SELECT count(*) FROM registrations WHERE server = name AND next_at <= $1 AND ` + slow + ` = `

	// It hops from server to server, and counts in the indexes alone: of
	// 1,000,000 rows, of which none is due, it reads some ten. Few are claimed.
	sqlBacklogs = `
		` + withServers + `
		SELECT name,
			(` + countDue + `0)
				- (SELECT count(*) FROM registrations INDEXED BY registrations_claimed
					WHERE claimed_by <> '' AND server = name AND ` + slow + ` = 0 AND next_at <= $1 AND NOT ` + idle + `),
			(SELECT next_at FROM registrations
				WHERE server = name AND ` + slow + ` = 0 AND next_at <= $1 AND ` + idle + ` ORDER BY next_at LIMIT 1),
			(` + countDue + `1)
				- (SELECT count(*) FROM registrations INDEXED BY registrations_claimed
					WHERE claimed_by <> '' AND server = name AND ` + slow + ` = 1 AND next_at <= $1 AND NOT ` + idle + `),
			(SELECT count(*) FROM registrations WHERE server = name AND error_kind <> '' AND error_kind IN ('retry', 'server'))
		FROM servers WHERE name IS NOT NULL`
)

// Take claims up to limit rows of a server that are due and that nobody works
// on, in one transaction: those of the users named first, then the longest
// due. It claims each as Claim does, and returns them as Claim does. Rows in
// the slow lane, in state failed, are not among them unless they are named.
func (r *Registry) Take(ctx context.Context, server, owner string, until, retryAt time.Time, limit int, first ...string) ([]Registration, error) {
	return r.take(ctx, owner, max(limit, 1), func(ctx context.Context, tx transaction) ([]Registration, error) {
		c := r.claiming(owner, until, retryAt)
		users, err := dueAmong(ctx, tx, server, limit, first, c.now)
		if err != nil {
			return nil, err
		}
		due, err := due(ctx, tx, fastLane, server, limit, c.now)
		if err != nil {
			return nil, err
		}
		for _, user := range due {
			if len(users) < limit && !slices.Contains(users, user) {
				users = append(users, user)
			}
		}
		return claimDue(ctx, tx, server, users, c)
	})
}

// TakeRefused claims, of the rows of a server that are due and that nobody
// works on, the longest due in the slow lane, and says whether there was one.
// It claims and returns it as Claim does.
func (r *Registry) TakeRefused(ctx context.Context, server, owner string, until, retryAt time.Time) (Registration, bool, error) {
	taken, err := r.take(ctx, owner, 1, func(ctx context.Context, tx transaction) ([]Registration, error) {
		c := r.claiming(owner, until, retryAt)
		users, err := due(ctx, tx, slowLane, server, 1, c.now)
		if err != nil {
			return nil, err
		}
		return claimDue(ctx, tx, server, users, c)
	})
	if err != nil || len(taken) == 0 {
		return Registration{}, false, err
	}
	return taken[0], true, nil
}

func (r *Registry) take(ctx context.Context, owner string, rows int, do func(context.Context, transaction) ([]Registration, error)) ([]Registration, error) {
	if err := r.checkOwner("take", owner); err != nil {
		return nil, err
	}
	var taken []Registration
	err := r.writer.submit(ctx, "take", rows, func(ctx context.Context, tx transaction) (err error) {
		taken, err = do(ctx, tx)
		return err
	})
	if err != nil {
		return nil, err // taken may still be written to
	}
	return taken, nil
}

// dueAmong returns up to limit of the users whose rows are due and idle, in
// whatever lane.
func dueAmong(ctx context.Context, tx transaction, server string, limit int, users []string, now time.Time) ([]string, error) {
	var due []string
	for _, user := range users {
		if len(due) >= limit {
			break
		}
		if slices.Contains(due, user) {
			continue
		}
		reg, err := scanRow(tx.row(ctx, sqlSelect, user, server))
		switch {
		case errors.Is(err, sql.ErrNoRows):
		case err != nil:
			return nil, err
		case !reg.NextAt.IsZero() && !reg.NextAt.After(now) && !reg.claimRunning(now):
			due = append(due, user)
		}
	}
	return due, nil
}

// claimDue is claimEach for rows that are known to be there and idle.
func claimDue(ctx context.Context, tx transaction, server string, users []string, c claiming) ([]Registration, error) {
	claims, err := claimEach(ctx, tx, server, users, c)
	var taken []Registration
	for _, claim := range claims {
		taken = append(taken, claim.Registration)
	}
	return taken, err
}

// due returns the users whose rows are due and idle, longest due first.
func due(ctx context.Context, tx transaction, lane int, server string, limit int, now time.Time) ([]string, error) {
	rows, err := tx.bind(tx.w.stmts[sqlDue]).QueryContext(unwatched(ctx), millis(now), millis(now.Add(MaxClaim)), server, lane, max(limit, 0))
	if err != nil {
		return nil, err
	}
	return scanStrings(rows)
}

// NextDue returns when the next row of a server that nobody works on is due,
// which may be in the past, and whether there is one. The slow lane does not
// count.
func (r *Registry) NextDue(ctx context.Context, server string) (time.Time, bool, error) {
	return r.next(ctx, server, fastLane)
}

// NextRefused is NextDue for the slow lane alone.
func (r *Registry) NextRefused(ctx context.Context, server string) (time.Time, bool, error) {
	return r.next(ctx, server, slowLane)
}

func (r *Registry) next(ctx context.Context, server string, lane int) (time.Time, bool, error) {
	now := r.now()
	var next any
	err := r.readers.QueryRowContext(ctx, sqlNextDue, millis(now), millis(now.Add(MaxClaim)), server, lane).Scan(&next)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return time.Time{}, false, explain(r.path, "find what is due next", err)
	}
	return fromMillis(next), next != nil, nil
}

// Hasten makes a row due now, and returns it as it is then, and whether there
// is one. If somebody works on it, it stays due when he has finished: he may
// have looked at the entry before.
func (r *Registry) Hasten(ctx context.Context, key Key) (Registration, bool, error) {
	var reg Registration
	var found bool
	err := r.writer.submit(ctx, "hasten", 1, func(ctx context.Context, tx transaction) (err error) {
		if _, err := tx.exec(ctx, sqlHasten, key.User, key.Server, millis(r.now())); err != nil {
			return err
		}
		reg, err = scanRow(tx.row(ctx, sqlSelect, key.User, key.Server))
		if found = err == nil; errors.Is(err, sql.ErrNoRows) {
			err = nil
		}
		return err
	})
	if err != nil {
		return Registration{}, false, err
	}
	return reg, found, nil
}

// Backlog is what a server's registrations wait for.
type Backlog struct {
	Server   string
	Due      int64     // whose time has come, but for the slow lane; who is worked on does not count
	Oldest   time.Time // when the longest due fell due; zero: none is due
	Refused  int64     // as Due, of the slow lane: in state failed
	Retrying int64     // whose last attempt failed, and which will be tried again
}

// Backlogs tells, by server and in the order of their names, what waits. A
// server without registrations that wait is not in it.
func (r *Registry) Backlogs(ctx context.Context) ([]Backlog, error) {
	now := r.now()
	rows, err := r.readers.QueryContext(ctx, sqlBacklogs, millis(now), millis(now.Add(MaxClaim)))
	if err != nil {
		return nil, explain(r.path, "find what waits", err)
	}
	defer rows.Close()
	var list []Backlog
	for rows.Next() {
		var b Backlog
		var oldest any
		if err := rows.Scan(&b.Server, &b.Due, &oldest, &b.Refused, &b.Retrying); err != nil {
			return nil, explain(r.path, "find what waits", err)
		}
		b.Oldest = fromMillis(oldest)
		if b.Due > 0 || b.Refused > 0 || b.Retrying > 0 {
			list = append(list, b)
		}
	}
	return list, explain(r.path, "find what waits", rows.Err())
}
