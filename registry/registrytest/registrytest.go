// Package registrytest makes registries for benchmarks: large ones in little
// time, and the least that a durable store can be, to compare with.
package registrytest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	_ "modernc.org/sqlite" // the driver "sqlite"

	"dovepush/registry"
)

// Fill makes a registry at path with n users of the server "main": registered,
// verified an hour ago, and due evenly over 20 hours from an hour after now on.
// Their names are User(0) to User(n-1).
func Fill(ctx context.Context, path string, n int, now time.Time) (err error) {
	r, err := registry.Open(ctx, path, func() time.Time { return now })
	if err != nil {
		return err
	}
	if err := r.Close(); err != nil {
		return err
	}
	db, err := sql.Open("sqlite", "file:"+path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	_, err = db.ExecContext(ctx, `
		WITH RECURSIVE seq(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM seq WHERE i + 1 < $1)
		INSERT INTO registrations (username, server, identity, value, wanted, state, expires_at, attempts,
			next_at, written_at, verified_at, proven_at, error_kind, error_message,
			force, written, doubt_until, revision, claimed_by, claimed_until)
		SELECT u, 'main', u, 'user=' || u, 'present', 'registered', NULL, 0,
			$2 + 3600000 + CAST(i * 72000000.0 / $1 AS INTEGER), $2 - 3600000, $2 - 3600000, NULL, '', '',
			0, '["user=' || u || '"]', NULL, 1, '', NULL
		FROM (SELECT i, printf('user%07d@example.com', i) AS u FROM seq)`, n, now.UnixMilli())
	return err
}

// User is the name of one of Fill's users.
func User(i int) string { return fmt.Sprintf("user%07d@example.com", i) }

// Bare is one table, and one durable insert a call.
type Bare struct {
	db     *sql.DB
	insert *sql.Stmt
}

// OpenBare makes a Bare at path.
func OpenBare(ctx context.Context, path string) (*Bare, error) {
	db, err := sql.Open("sqlite", "file:"+path+"?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_txlock=immediate")
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	if _, err := db.ExecContext(ctx, `CREATE TABLE users (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID`); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	insert, err := db.PrepareContext(ctx, `INSERT INTO users VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value`)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &Bare{db, insert}, nil
}

// Insert is durable when it returns.
func (b *Bare) Insert(ctx context.Context, name, value string) error {
	_, err := b.insert.ExecContext(ctx, name, value)
	return err
}

// Close closes the file.
func (b *Bare) Close() error { return b.db.Close() }
