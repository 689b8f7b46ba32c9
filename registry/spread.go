package registry

import (
	"context"
	"time"
)

// unsettled is the condition that something is left to be done for a row.
const unsettled = `(state IN ('pending', 'removing') OR error_kind IN ('retry', 'server'))`

const (
	// Looked for in the order of an index, page after page, and changed by
	// their keys: in one statement, each 500 rows would cost a walk over all.
	// The unsettled are few where all is well, and those that are due late many.
	sqlLateState = `
		SELECT username, next_at FROM registrations INDEXED BY registrations_state
		WHERE state <> 'registered' AND server = $1 AND state = $2 AND username > $3 AND next_at > $4
		ORDER BY username LIMIT $5`
	sqlLateKind = `
		SELECT username, next_at FROM registrations INDEXED BY registrations_failing
		WHERE error_kind <> '' AND server = $1 AND error_kind = $2 AND username > $3 AND next_at > $4
		ORDER BY username LIMIT $5`
	sqlLateSettled = lateSettled + `0` + lateSettledEnd
	sqlLateRefused = lateSettled + `1` + lateSettledEnd
	lateSettled    = `
		SELECT username, next_at FROM registrations
		WHERE server = $1 AND (next_at, username) > ($2, $3) AND +next_at > $4 AND NOT ` + unsettled + ` AND ` + slow + ` = `
	lateSettledEnd = ` ORDER BY next_at, username LIMIT $5`

	sqlSpread = `
		UPDATE registrations SET next_at = $3 + abs(random()) % ($4 - $3 + 1)
		WHERE username = $5 AND server = $1 AND next_at > $2`
)

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
	type source struct {
		query string
		value any // see spread
	}
	sources := []source{{sqlLateState, string(Pending)}, {sqlLateState, string(Removing)}, {sqlLateKind, "retry"}, {sqlLateKind, "server"}}
	if which == Settled {
		sources = []source{{sqlLateSettled, nil}, {sqlLateRefused, nil}}
	}
	var total int64
	for _, from := range sources {
		n, err := r.spread(ctx, s, from.query, from.value)
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
		calls := make([]call, 0, len(page))
		for _, user := range page {
			calls = append(calls, call{sqlSpread, []any{s.server, millis(s.latest), millis(s.now), millis(s.by), user}})
		}
		n, err := r.change(ctx, "spread", calls...)
		if err != nil {
			return total, err
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
