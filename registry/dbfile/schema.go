package dbfile

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// querier is what *sql.DB, *sql.Conn and *sql.Tx have in common.
type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// Version returns the version of the file's schema, at most newest: 0 is an
// empty file, ours to fill. It changes nothing, so it may be asked of another
// application's file, and fails with ErrForeign, ErrNewer or ErrCorrupt.
func (f File) Version(ctx context.Context, q querier, newest int) (int, error) {
	var app, version int64
	var objects int
	err := q.QueryRowContext(ctx, `
		SELECT (SELECT application_id FROM pragma_application_id),
		       (SELECT user_version FROM pragma_user_version),
		       (SELECT count(*) FROM sqlite_schema)`).Scan(&app, &version, &objects)
	switch {
	case err != nil:
		return 0, f.Explain("read schema version", err)
	case app == 0 && version == 0 && objects == 0:
		return 0, nil
	case app != int64(f.ApplicationID):
		return 0, f.problem(ErrForeign, "an SQLite database of another application (application_id %#x); set %s.path to a file of dovepush's own", app, f.What)
	case version > int64(newest):
		return 0, f.problem(ErrNewer, "its schema is version %d, this dovepush knows versions up to %d; run the newer dovepush, or set %s.path to another file", version, newest, f.What)
	case version < 1:
		return 0, f.problem(ErrCorrupt, "schema version %d is impossible; %s", version, f.remedy(ErrCorrupt))
	}
	return int(version), nil
}

// Migrate brings the schema up to date in one transaction: version n is what
// the first n steps make. It looks at the version after taking the write lock,
// for several processes may have found the file old at the same time. writer's
// transactions must begin IMMEDIATE. It fails if the file cannot be written.
func (f File) Migrate(ctx context.Context, writer *sql.DB, steps []string) (err error) {
	tx, err := writer.BeginTx(ctx, nil)
	if err != nil {
		return f.Explain("open for writing", err)
	}
	defer func() {
		if rollbackErr := tx.Rollback(); err == nil && !errors.Is(rollbackErr, sql.ErrTxDone) {
			err = f.Explain("open for writing", rollbackErr)
		}
	}()
	version, err := f.Version(ctx, tx, len(steps))
	if err != nil {
		return err
	}
	if version == len(steps) {
		// BEGIN IMMEDIATE quietly begins a reading transaction on a file that
		// cannot be written; a change, rolled back, does not.
		_, err := tx.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", version))
		return f.Explain("open for writing", err)
	}
	for n := version + 1; n <= len(steps); n++ {
		if _, err := tx.ExecContext(ctx, steps[n-1]); err != nil {
			return f.Explain(fmt.Sprintf("migrate to schema version %d", n), err)
		}
	}
	// Both are part of the file's header and of the transaction.
	mark := fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = %d", f.ApplicationID, len(steps))
	if _, err := tx.ExecContext(ctx, mark); err != nil {
		return f.Explain("mark schema version", err)
	}
	return f.Explain("commit schema", tx.Commit())
}
