package registry

import (
	"context"
	"database/sql"
	"errors"
	"iter"
	"slices"
	"strings"
)

// pageSize is how many rows List reads at a time. Between pages no
// transaction is open: one would keep the -wal file from being reused.
const pageSize = 1000

// Get returns one row, and whether there is one.
func (r *Registry) Get(ctx context.Context, key Key) (Registration, bool, error) {
	reg, err := scanRow(r.readers.QueryRowContext(ctx, sqlSelect, key.User, key.Server))
	if errors.Is(err, sql.ErrNoRows) {
		return Registration{}, false, nil
	}
	if err != nil {
		return Registration{}, false, explain(r.path, "get", err)
	}
	return reg, true, nil
}

// Lookup returns the user's rows on all servers, in the order of their names.
func (r *Registry) Lookup(ctx context.Context, user string) ([]Registration, error) {
	return r.query(ctx, nil, "look up", `SELECT `+columns+` FROM registrations WHERE username = $1 ORDER BY server`, user)
}

// Filter chooses rows to List. The zero Filter chooses all.
type Filter struct {
	Server string // only this server; empty: all
	State  State  // only this state; empty: all
	After  Key    // only rows that come after this key
	Limit  int    // at most so many rows; 0: all
}

// List streams rows in the order of user and server, compared byte by byte.
// It holds one page of 1,000 rows in memory and no transaction between pages:
// a row that changes meanwhile is seen either as it was or as it is. An error,
// ctx's included, comes last.
func (r *Registry) List(ctx context.Context, f Filter) iter.Seq2[Registration, error] {
	return func(yield func(Registration, error) bool) {
		after, left := f.After, f.Limit
		var page []Registration
		for {
			size := pageSize
			if f.Limit > 0 {
				size = min(size, left)
			}
			var err error
			page, err = r.query(ctx, page[:0], "list", `
				SELECT `+columns+` FROM registrations
				WHERE (username, server) > ($1, $2) AND ($3 = '' OR server = $3) AND ($4 = '' OR state = $4)
				ORDER BY username, server LIMIT $5`,
				after.User, after.Server, f.Server, string(f.State), size)
			if err != nil {
				yield(Registration{}, err)
				return
			}
			for _, reg := range page {
				if err := ctx.Err(); err != nil {
					yield(Registration{}, explain(r.path, "list", err))
					return
				}
				if !yield(reg, nil) {
					return
				}
			}
			if left -= len(page); len(page) < pageSize {
				return
			}
			after = page[len(page)-1].Key()
		}
	}
}

// Version returns a number that is another one once somebody, whether this
// process or another, has changed the registry. Only numbers of the same
// Registry can be compared. It costs some ten microseconds.
// https://www.sqlite.org/pragma.html#pragma_data_version
func (r *Registry) Version(ctx context.Context) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, explain(r.path, "see whether it changed", err)
	}
	// The driver discards a connection that was interrupted, and the next one
	// would count from the start again: a number could come twice.
	ctx = context.WithoutCancel(ctx)
	var version int64
	if err := r.watcher.QueryRowContext(ctx, "PRAGMA data_version").Scan(&version); err != nil {
		return 0, explain(r.path, "see whether it changed", err)
	}
	return version, nil
}

const (
	// withServers hops from server to server in an index.
	withServers = `
	WITH RECURSIVE servers (name) AS (
		SELECT min(server) FROM registrations INDEXED BY registrations_due
		UNION ALL
		SELECT (SELECT min(server) FROM registrations INDEXED BY registrations_due WHERE server > name) FROM servers WHERE name IS NOT NULL)`

	sqlServers = withServers + ` SELECT name FROM servers WHERE name IS NOT NULL`

	// Most rows are registered, and what is left of a server's if the others
	// are taken off. They are not looked at one by one.
	sqlCounts = withServers + `,
		others (server, state, n) AS (
			SELECT server, state, count(*) FROM registrations INDEXED BY registrations_state
			WHERE state <> 'registered' GROUP BY server, state)
		SELECT server, state, n FROM others
		UNION ALL
		SELECT name, 'registered',
			(SELECT count(*) FROM registrations INDEXED BY registrations_due WHERE server = name)
				- (SELECT ifnull(sum(n), 0) FROM others WHERE server = name)
		FROM servers WHERE name IS NOT NULL
		ORDER BY 1, 2`
)

// Servers returns the servers that have rows, in the order of their names. It
// costs no more with a million rows than with one.
func (r *Registry) Servers(ctx context.Context) ([]string, error) {
	return r.names(ctx, "list servers", sqlServers)
}

// Count is how many rows of a server are in a state.
type Count struct {
	Server string
	State  State
	N      int64
}

// Counts counts the rows by server and state, in that order, without zeros.
func (r *Registry) Counts(ctx context.Context) ([]Count, error) {
	rows, err := r.readers.QueryContext(ctx, sqlCounts)
	if err != nil {
		return nil, explain(r.path, "count", err)
	}
	defer rows.Close()
	var counts []Count
	for rows.Next() {
		var c Count
		if err := rows.Scan(&c.Server, &c.State, &c.N); err != nil {
			return nil, explain(r.path, "count", err)
		}
		if c.N > 0 {
			counts = append(counts, c)
		}
	}
	return counts, explain(r.path, "count", rows.Err())
}

// Check reads the whole file and verifies it: that it is still the file that
// was opened, that nobody else can read it, and that it is sound. It fails as
// Open does, with SQLite's findings, or with fs.ErrNotExist if the file is gone.
func (r *Registry) Check(ctx context.Context) (err error) {
	if err := r.still(); err != nil {
		return err
	}
	// A connection of its own sees the file as it now is on the disk, not as
	// pages cached earlier.
	db, err := at(r.path).Pool(1, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, explain(r.path, "check", db.Close())) }()

	if _, err := at(r.path).Version(ctx, db, len(r.steps)); err != nil {
		return err
	}
	findings, err := integrity(ctx, db)
	if err != nil {
		return explain(r.path, "check", err)
	}
	if len(findings) > 0 {
		return at(r.path).Corrupt("check", strings.Join(findings, "; "))
	}
	return nil
}

// still fails if the file that was opened is not at its path any more.
func (r *Registry) still() error { return at(r.path).Still(r.file) }

// integrity returns at most ten findings, none if all is well.
// https://www.sqlite.org/pragma.html#pragma_integrity_check
func integrity(ctx context.Context, db *sql.DB) ([]string, error) {
	rows, err := db.QueryContext(ctx, "PRAGMA integrity_check(10)")
	if err != nil {
		return nil, err
	}
	findings, err := scanStrings(rows)
	return slices.DeleteFunc(findings, func(line string) bool { return line == "ok" }), err
}

// query appends to regs all rows of columns that a statement yields.
func (r *Registry) query(ctx context.Context, regs []Registration, op, query string, args ...any) ([]Registration, error) {
	rows, err := r.readers.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, explain(r.path, op, err)
	}
	defer rows.Close()
	for reader := newRowReader(); rows.Next(); {
		reg, err := reader.read(rows.Scan)
		if err != nil {
			return nil, explain(r.path, op, err)
		}
		regs = append(regs, reg)
	}
	return regs, explain(r.path, op, rows.Err())
}

// names returns the strings that a statement yields.
func (r *Registry) names(ctx context.Context, op, query string) ([]string, error) {
	rows, err := r.readers.QueryContext(ctx, query)
	if err != nil {
		return nil, explain(r.path, op, err)
	}
	names, err := scanStrings(rows)
	return names, explain(r.path, op, err)
}

// scanStrings reads rows of one string, and closes them.
func scanStrings(rows *sql.Rows) (list []string, err error) {
	defer rows.Close()
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	return list, rows.Err()
}
