package registry

import (
	"context"
	"database/sql"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"
)

// Standing is of a registration what a comparison with a list of users needs.
type Standing struct {
	Key
	Identity string
	Revision int64
	Wanted   Wanted
	State    State
	Due      bool // it is time to look at it
	Expired  bool // it should be present, but only until now
	Refused  bool // it waits in the slow lane, see TakeRefused
}

// standingsPage is how many rows Standings reads at a time.
const standingsPage = 5000

// What a row stands at, in one number: 64 times its revision, 8 times the place
// of its state in standingStates, 4 if due, 2 if expired, 1 if absent. Most
// rows take the short way to it.
const (
	standingNumber = `CASE WHEN state = 'registered' AND wanted = 'present' AND next_at > $4 AND expires_at IS NULL THEN revision * 64
		ELSE revision * 64
			+ CASE state WHEN 'registered' THEN 0 WHEN 'pending' THEN 8 WHEN 'removing' THEN 16 WHEN 'conflict' THEN 24 WHEN 'failed' THEN 32 ELSE 56 END
			+ CASE WHEN next_at <= $4 THEN 4 ELSE 0 END + CASE WHEN wanted = 'present' AND expires_at <= $4 THEN 2 ELSE 0 END + (wanted = 'absent') END`

	// Server and identity follow only where they are not what was guessed:
	// a value more costs as much as to find the row.
	sqlStandings = `
		SELECT username, CASE WHEN server = $1 AND identity = username THEN ` + standingNumber + `
			ELSE ` + standingNumber + ` || char(0) || server || char(0) || identity END
		FROM registrations WHERE (username, server) > ($2, $3)
		ORDER BY username, server LIMIT $5`
)

var standingStates = [...]State{Registered, Pending, Removing, Conflict, Failed}

// Standings streams what all rows stand at when it begins, in the order of
// user and server, compared byte by byte. As List, it holds no transaction
// between pages, and an error, ctx's included, comes last. It reads a page of
// 5,000 rows while another is worked on, and is several times faster than List.
func (r *Registry) Standings(ctx context.Context) iter.Seq2[Standing, error] {
	return func(yield func(Standing, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stmt, err := r.readers.PrepareContext(ctx, sqlStandings)
		if err != nil {
			yield(Standing{}, explain(r.path, "list", err))
			return
		}
		defer stmt.Close() // after the last use of it, below
		now := r.now()
		type page struct {
			rows []Standing
			err  error
		}
		var coming chan page
		read := func(into []Standing, after Key) {
			c := make(chan page, 1)
			coming = c
			go func() {
				rows, err := r.standings(ctx, stmt, into, after, now)
				c <- page{rows, err}
			}()
		}
		defer func() {
			if cancel(); coming != nil {
				<-coming
			}
		}()
		var spare []Standing
		for read(nil, Key{}); coming != nil; {
			p := <-coming
			coming = nil
			if p.err != nil {
				yield(Standing{}, p.err)
				return
			}
			if len(p.rows) == standingsPage {
				read(spare[:0], p.rows[len(p.rows)-1].Key)
			}
			for _, s := range p.rows {
				if err := ctx.Err(); err != nil {
					yield(Standing{}, explain(r.path, "list", err))
					return
				}
				if !yield(s, nil) {
					return
				}
			}
			spare = p.rows
		}
	}
}

// standings reads a page into list. It guesses that all rows are on the server
// of the last one.
func (r *Registry) standings(ctx context.Context, stmt *sql.Stmt, list []Standing, after Key, now time.Time) ([]Standing, error) {
	server := after.Server
	if err := ctx.Err(); err != nil {
		return nil, explain(r.path, "list", err)
	}
	rows, err := stmt.QueryContext(unwatched(ctx), server, after.User, after.Server, now.UnixMilli(), standingsPage)
	if err != nil {
		return nil, explain(r.path, "list", err)
	}
	defer rows.Close()
	var user string
	var found any
	for fields := []any{&user, &found}; rows.Next(); {
		if err := rows.Scan(fields...); err != nil {
			return nil, explain(r.path, "list", err)
		}
		s := Standing{Key: Key{User: user, Server: server}, Identity: user, Wanted: Present}
		number, ok := found.(int64)
		if text, long := found.(string); long {
			parts := strings.Split(text, "\x00")
			if number, err = strconv.ParseInt(parts[0], 10, 64); len(parts) == 3 && err == nil {
				s.Server, s.Identity, ok = parts[1], parts[2], true
			}
		}
		state := number / 8 % 8
		if !ok || state >= int64(len(standingStates)) {
			return nil, explain(r.path, "list", fmt.Errorf("user %q: %w", user, errUnreadable))
		}
		s.Revision, s.State = number/64, standingStates[state]
		s.Due, s.Expired, s.Refused = number&4 != 0, number&2 != 0, s.State == Failed
		if number&1 != 0 {
			s.Wanted = Absent
		}
		list = append(list, s)
	}
	return list, explain(r.path, "list", rows.Err())
}
