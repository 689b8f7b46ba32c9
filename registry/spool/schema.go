package spool

import (
	"context"
	"database/sql"
	_ "embed" // for the schema
	"errors"
	"fmt"
)

//go:embed schema/001_spool.sql
var schema001 string

// schema is the changes in order; version n is what the first n of them make.
// One that was released is never edited: add another.
var schema = []string{schema001}

// applicationID marks an SQLite file as a spool: "dvps".
// https://www.sqlite.org/pragma.html#pragma_application_id
const applicationID = 0x64767073

// querier is what *sql.DB and *sql.Tx have in common.
type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// schemaVersion tells what the file is: 0 is an empty one, ours to fill.
// It changes nothing, so it may be asked of another application's file.
func schemaVersion(ctx context.Context, q querier, path string, newest int) (int, error) {
	var app, version int64
	var objects int
	err := q.QueryRowContext(ctx, `
		SELECT (SELECT application_id FROM pragma_application_id),
		       (SELECT user_version FROM pragma_user_version),
		       (SELECT count(*) FROM sqlite_schema)`).Scan(&app, &version, &objects)
	switch {
	case err != nil:
		return 0, explain(path, "read schema version", err)
	case app == 0 && version == 0 && objects == 0:
		return 0, nil
	case app != applicationID:
		return 0, &problem{class: ErrForeign, text: fmt.Sprintf(
			"spool %s: an SQLite database of another application (application_id %#x); let the spool be a file of its own", path, app)}
	case version > int64(newest):
		return 0, &problem{class: ErrNewer, text: fmt.Sprintf(
			"spool %s: its schema is version %d, this dovepush knows versions up to %d; run the newer dovepush", path, version, newest)}
	case version < 1:
		return 0, &problem{class: ErrCorrupt, text: fmt.Sprintf(
			"spool %s: schema version %d is impossible; %s", path, version, remedy(ErrCorrupt, path))}
	}
	return int(version), nil
}

// migrate brings the schema up to date in one transaction. It looks at the
// version again after taking the write lock, for several processes may have
// found the file old at the same time. It fails if the file cannot be written.
func migrate(ctx context.Context, writer *sql.DB, path string, steps []string) (err error) {
	tx, err := writer.BeginTx(ctx, nil) // BEGIN IMMEDIATE
	if err != nil {
		return explain(path, "open for writing", err)
	}
	defer func() {
		if rollbackErr := tx.Rollback(); err == nil && !errors.Is(rollbackErr, sql.ErrTxDone) {
			err = explain(path, "open for writing", rollbackErr)
		}
	}()
	version, err := schemaVersion(ctx, tx, path, len(steps))
	if err != nil {
		return err
	}
	if version == len(steps) {
		// BEGIN IMMEDIATE quietly begins a reading transaction on a file that
		// cannot be written; a change, rolled back, does not.
		_, err := tx.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", version))
		return explain(path, "open for writing", err)
	}
	for n := version + 1; n <= len(steps); n++ {
		if _, err := tx.ExecContext(ctx, steps[n-1]); err != nil {
			return explain(path, fmt.Sprintf("migrate to schema version %d", n), err)
		}
	}
	// Both are part of the file's header and of the transaction.
	mark := fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = %d", applicationID, len(steps))
	if _, err := tx.ExecContext(ctx, mark); err != nil {
		return explain(path, "mark schema version", err)
	}
	return explain(path, "commit schema", tx.Commit())
}
