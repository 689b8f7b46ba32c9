package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"
)

// idle is the condition that nobody works on a row as of $1, and $2, MaxClaim
// after it: see claimRunning.
const idle = `(claimed_by = '' OR claimed_until <= $1 OR claimed_until > $2)`

// unsettled is the condition that something is left to be done for a row.
const unsettled = `(state IN ('pending', 'removing') OR error_kind IN ('retry', 'server'))`

const (
	sqlDue = `
		SELECT username FROM registrations
		WHERE server = $3 AND next_at <= $1 AND ` + idle + `
		ORDER BY next_at LIMIT $4`

	// Whoever is at work may have looked already: he must not take it off.
	sqlHasten = `
		UPDATE registrations SET next_at = $3, revision = revision + (claimed_by <> '')
		WHERE username = $1 AND server = $2 AND (next_at IS NULL OR next_at > $3)`

	sqlNextDue = `
		SELECT next_at FROM registrations
		WHERE server = $3 AND next_at IS NOT NULL AND ` + idle + `
		ORDER BY next_at LIMIT 1`

	// Looked for in the order of an index, page after page, and changed by
	// their keys: in one statement, each 500 rows would cost a walk over all.
	// The unsettled are few where all is well, and those that are due late many.
	sqlLateState = `
		SELECT username, next_at FROM registrations INDEXED BY registrations_state
		WHERE server = $1 AND state = $2 AND username > $3 AND next_at > $4
		ORDER BY username LIMIT $5`
	sqlLateKind = `
		SELECT username, next_at FROM registrations INDEXED BY registrations_failing
		WHERE error_kind <> '' AND server = $1 AND error_kind = $2 AND username > $3 AND next_at > $4
		ORDER BY username LIMIT $5`
	sqlLateSettled = `
		SELECT username, next_at FROM registrations
		WHERE server = $1 AND (next_at, username) > ($2, $3) AND +next_at > $4 AND NOT ` + unsettled + `
		ORDER BY next_at, username LIMIT $5`

	sqlSpread = `
		UPDATE registrations SET next_at = $3 + abs(random()) % ($4 - $3 + 1)
		WHERE username = $5 AND server = $1 AND next_at > $2`

	// It hops from server to server, and counts in the indexes alone: of
	// 1,000,000 rows, of which none is due, it reads some ten. Few are claimed.
	sqlBacklogs = `
		WITH RECURSIVE servers (name) AS (
			SELECT min(server) FROM registrations INDEXED BY registrations_due WHERE next_at IS NOT NULL
			UNION ALL
			SELECT (SELECT min(server) FROM registrations INDEXED BY registrations_due WHERE next_at IS NOT NULL AND server > name)
			FROM servers WHERE name IS NOT NULL)
		SELECT name,
			(SELECT count(*) FROM registrations WHERE server = name AND next_at <= $1)
				- (SELECT count(*) FROM registrations INDEXED BY registrations_claimed
					WHERE claimed_by <> '' AND server = name AND next_at <= $1 AND NOT ` + idle + `),
			(SELECT next_at FROM registrations WHERE server = name AND next_at <= $1 AND ` + idle + ` ORDER BY next_at LIMIT 1),
			(SELECT count(*) FROM registrations WHERE server = name AND error_kind <> '' AND error_kind IN ('retry', 'server'))
		FROM servers WHERE name IS NOT NULL`
)

// Take claims up to limit rows of a server that are due and that nobody works
// on, in one transaction: those of the users named first, then the longest
// due. It claims each as Claim does, and returns them as Claim does.
func (r *Registry) Take(ctx context.Context, server, owner string, until, retryAt time.Time, limit int, first ...string) ([]Registration, error) {
	if err := r.checkOwner("take", owner); err != nil {
		return nil, err
	}
	var taken []Registration
	err := r.writer.submit(ctx, "take", max(limit, 1), func(ctx context.Context, tx transaction) (err error) {
		taken, err = r.take(ctx, tx, server, owner, until, retryAt, limit, first)
		return err
	})
	if err != nil {
		return nil, err // taken may still be written to
	}
	return taken, nil
}

func (r *Registry) take(ctx context.Context, tx transaction, server, owner string, until, retryAt time.Time, limit int, first []string) ([]Registration, error) {
	var taken []Registration
	claim := func(user string) error {
		// A claim that was long in coming may be over at once.
		if slices.ContainsFunc(taken, func(reg Registration) bool { return reg.User == user }) {
			return nil
		}
		reg, outcome, err := r.claim(ctx, tx, Key{User: user, Server: server}, owner, until, retryAt)
		if err == nil && outcome == Taken {
			taken = append(taken, reg)
		}
		return err
	}
	now := r.now()
	for _, user := range first {
		if len(taken) >= limit {
			return taken, nil
		}
		reg, err := scanRow(tx.row(ctx, sqlSelect, user, server))
		switch {
		case errors.Is(err, sql.ErrNoRows):
			continue
		case err != nil:
			return nil, err
		case reg.NextAt.IsZero() || reg.NextAt.After(now) || reg.claimRunning(now):
			continue
		}
		if err := claim(user); err != nil {
			return nil, err
		}
	}
	due, err := due(ctx, tx, now, server, limit-len(taken))
	if err != nil {
		return nil, err
	}
	for _, user := range due {
		if err := claim(user); err != nil {
			return nil, err
		}
	}
	return taken, nil
}

// due returns the users whose rows are due and idle, longest due first.
func due(ctx context.Context, tx transaction, now time.Time, server string, limit int) (users []string, err error) {
	rows, err := tx.StmtContext(ctx, tx.stmts[sqlDue]).QueryContext(ctx, millis(now), millis(now.Add(MaxClaim)), server, max(limit, 0))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var user string
		if err := rows.Scan(&user); err != nil {
			return nil, err
		}
		users = append(users, user)
	}
	return users, rows.Err()
}

// NextDue returns when the next row of a server that nobody works on is due,
// which may be in the past, and whether there is one.
func (r *Registry) NextDue(ctx context.Context, server string) (time.Time, bool, error) {
	now := r.now()
	var next any
	err := r.readers.QueryRowContext(ctx, sqlNextDue, millis(now), millis(now.Add(MaxClaim)), server).Scan(&next)
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

// Which rows Spread is about.
type Which int

// The choices.
const (
	Unsettled Which = iota // pending, removing, or to be tried again
	Settled                // all others: to be verified
)

// Spread gives rows of a server that are due later than latest new times,
// evenly between now and by, and returns how many these were: for when nothing
// can rightly be due that late, as the clock was set back, or as the time
// between two looks was shortened. A by after latest counts as latest. The
// rows change 500 at a time, so that others get their turn.
func (r *Registry) Spread(ctx context.Context, server string, which Which, latest, by time.Time) (int64, error) {
	s := spread{server: server, latest: latest, now: r.now(), by: by}
	if s.latest.Before(s.now) {
		s.latest = s.now // what is due already need not change
	}
	if s.by.After(s.latest) {
		s.by = s.latest // a new time after latest would be found again
	}
	if s.by.Before(s.now) {
		s.by = s.now
	}
	if which == Settled {
		return r.spread(ctx, s, sqlLateSettled, nil)
	}
	var total int64
	for _, of := range []struct {
		query string
		value any
	}{{sqlLateState, string(Pending)}, {sqlLateState, string(Removing)}, {sqlLateKind, "retry"}, {sqlLateKind, "server"}} {
		n, err := r.spread(ctx, s, of.query, of.value)
		if total += n; err != nil {
			return total, err
		}
	}
	return total, nil
}

// spread is what Spread is asked for.
type spread struct {
	server          string
	latest, now, by time.Time
}

// spread changes the rows that a query finds, page after page. value is that
// of the column which the query goes by; if it goes by next_at, it is nil, and
// becomes that of the last row of a page.
func (r *Registry) spread(ctx context.Context, s spread, query string, value any) (total int64, err error) {
	after, byTime := "", value == nil
	if byTime {
		value = s.latest.UnixMilli()
	}
	for {
		page, last, err := r.late(ctx, query, s.server, value, after, s.latest)
		if err != nil || len(page) == 0 {
			return total, err
		}
		if after = page[len(page)-1]; byTime {
			value = last
		}
		var n int64
		err = r.writer.submit(ctx, "spread", len(page), func(ctx context.Context, tx transaction) error {
			n = 0
			for _, user := range page {
				changed, err := tx.exec(ctx, sqlSpread, s.server, millis(s.latest), millis(s.now), millis(s.by), user)
				if err != nil {
					return err
				}
				n += changed
			}
			return nil
		})
		if err != nil {
			return total, err // n may still be written to
		}
		total += n
	}
}

// late returns the users of the next rows that a query finds, and when the last
// of them is due, in Unix milliseconds.
func (r *Registry) late(ctx context.Context, query, server string, value any, after string, latest time.Time) (users []string, last int64, err error) {
	rows, err := r.readers.QueryContext(ctx, query, server, value, after, millis(latest), maxBatch)
	if err != nil {
		return nil, 0, explain(r.path, "find what to spread", err)
	}
	defer rows.Close()
	for rows.Next() {
		var user string
		if err := rows.Scan(&user, &last); err != nil {
			return nil, 0, explain(r.path, "find what to spread", err)
		}
		users = append(users, user)
	}
	return users, last, explain(r.path, "find what to spread", rows.Err())
}

// Backlog is what a server's registrations wait for.
type Backlog struct {
	Server   string
	Due      int64     // whose time has come; who is worked on does not count
	Oldest   time.Time // when the longest due fell due; zero: none is due
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
		if err := rows.Scan(&b.Server, &b.Due, &oldest, &b.Retrying); err != nil {
			return nil, explain(r.path, "find what waits", err)
		}
		b.Oldest = fromMillis(oldest)
		if b.Due > 0 || b.Retrying > 0 {
			list = append(list, b)
		}
	}
	return list, explain(r.path, "find what waits", rows.Err())
}

func (r *Registry) checkOwner(op, owner string) error {
	if owner == "" || len(owner) > maxName {
		return fmt.Errorf("registry %s: %s: owner %q must have 1 to %d bytes", r.path, op, owner, maxName)
	}
	return nil
}
