package spool

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"dovepush/registry/dbfile"
)

const (
	// maxBatch is how many calls share a commit.
	maxBatch = 500
	// Others only look, and revive: Dovecot waits for us.
	slice = 50 * time.Millisecond
	rest  = 2 * time.Millisecond
)

// writer carries out all changes on one connection, several in a commit.
type writer struct {
	*dbfile.Group[*change]
	path  string
	db    *sql.DB
	still func() error // fails if commits would go to a file that nobody will see
	stmts map[string]*sql.Stmt
	// dirty is told when something was deleted that the log still has.
	dirty func()
}

// change is one caller's work. It may be run twice, so do starts from scratch
// each time.
type change struct {
	deletes bool
	do      func(tx *transaction) error
}

// transaction runs statements that were prepared once, for the life of the
// writer's connection. None takes long, and none is watched by a context: for
// one that can end, the driver starts a goroutine for each statement.
type transaction struct {
	tx    *sql.Tx
	w     *writer
	bound map[string]*sql.Stmt // the transaction's own, by text
}

func (t *transaction) stmt(query string) *sql.Stmt {
	bound, ok := t.bound[query]
	if !ok {
		bound = t.tx.Stmt(t.w.stmts[query])
		t.bound[query] = bound
	}
	return bound
}

// exec returns how many rows it changed.
func (t *transaction) exec(query string, args ...any) (int64, error) {
	res, err := t.stmt(query).Exec(args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

func (t *transaction) row(query string, args ...any) *sql.Row {
	return t.stmt(query).QueryRow(args...)
}

func (t *transaction) query(query string, args ...any) (*sql.Rows, error) {
	return t.stmt(query).Query(args...)
}

// newWriter prepares the statements and starts the writer, which Close ends.
// Dirty must not wait.
func newWriter(ctx context.Context, path string, db *sql.DB, still func() error, dirty func()) (*writer, error) {
	w := &writer{path: path, db: db, still: still, stmts: make(map[string]*sql.Stmt), dirty: dirty}
	for _, query := range statements {
		stmt, err := db.PrepareContext(ctx, query)
		if err != nil {
			return nil, explain(path, "prepare statements", err)
		}
		w.stmts[query] = stmt
	}
	w.Group = dbfile.NewGroup(dbfile.GroupOptions[*change]{
		Transact: w.transactWithRoom,
		Explain:  func(op string, err error) error { return explain(path, op, err) },
		Most:     maxBatch, Slice: slice, Rest: rest,
	})
	return w, nil
}

// submit has the writer carry out a change and waits until it is committed.
// When ctx ends first, the outcome is open: it may or may not have been.
func (w *writer) submit(ctx context.Context, op string, c *change) error {
	return w.Submit(ctx, op, 1, c)
}

// transactWithRoom tries again where the log takes room on a full disk that it
// does not need.
func (w *writer) transactWithRoom(ctx context.Context, batch []*change) (err error, culprit bool) {
	err, culprit = w.transact(ctx, batch)
	if errors.Is(explain(w.path, "commit", err), ErrNoSpace) && truncate(ctx, w.db, 0) == nil {
		err, culprit = w.transact(ctx, batch)
	}
	return err, culprit
}

func (w *writer) transact(ctx context.Context, batch []*change) (err error, culprit bool) {
	tx, err := w.db.BeginTx(ctx, nil)
	if err != nil {
		return err, false
	}
	t := &transaction{tx, w, make(map[string]*sql.Stmt)}
	deletes := false
	for _, c := range batch {
		deletes = deletes || c.deletes
		if err := c.do(t); err != nil {
			return dbfile.RollBack(tx, err), true
		}
	}
	if err := tx.Commit(); err != nil {
		return err, false
	}
	if deletes {
		w.dirty()
	}
	return w.still(), false
}
