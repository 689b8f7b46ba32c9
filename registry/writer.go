package registry

import (
	"context"
	"database/sql"
	"time"

	"dovepush/registry/dbfile"
)

const (
	// maxBatch is how many rows' worth of calls share a commit.
	maxBatch = 500
	// Two processes that write without pause were seen to wait up to 3 s.
	slice = 20 * time.Millisecond
	rest  = 5 * time.Millisecond
)

// writerStatements are prepared once, for the life of the writer's connection.
var writerStatements = []string{sqlRevision, sqlSelect, sqlClaim, sqlRecord, sqlGone, sqlStillWanted, sqlLearn,
	sqlProve, sqlNamed, sqlProveLogin, sqlLogin, sqlDue, sqlHasten, sqlSpread, sqlRelease, sqlReclaim,
	sqlOpenCircuit, sqlCloseCircuit, sqlSweepEndpoints, sqlSetAside, sqlEndpointWorks}

// writer carries out all changes on one connection, several in a commit.
type writer struct {
	*dbfile.Group[change]
	db    *sql.DB
	still func() error              // fails if commits would go to a file that nobody will see
	stmts map[string]*sql.Stmt      // by SQL text
	rows  []map[rowsQuery]*sql.Stmt // for each of rowsSizes, so far
}

// change is one caller's work in a transaction. It may be run twice, so do
// starts from scratch each time.
type change struct {
	rows int
	do   func(ctx context.Context, tx transaction) error
}

// transaction runs prepared statements inside a transaction.
type transaction struct {
	*sql.Tx
	w     *writer
	bound map[*sql.Stmt]*sql.Stmt // by what they were prepared as
}

// bind returns a statement of the transaction's own, made once.
func (tx transaction) bind(stmt *sql.Stmt) *sql.Stmt {
	bound, ok := tx.bound[stmt]
	if !ok {
		bound = tx.Stmt(stmt)
		tx.bound[stmt] = bound
	}
	return bound
}

func (tx transaction) exec(ctx context.Context, query string, args ...any) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	res, err := tx.bind(tx.w.stmts[query]).ExecContext(unwatched(ctx), args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

func (tx transaction) row(ctx context.Context, query string, args ...any) *sql.Row {
	return tx.bind(tx.w.stmts[query]).QueryRowContext(unwatched(ctx), args...)
}

// unwatched is for statements that do not take long: where a context can end,
// the driver starts a goroutine to watch it for each statement, which took a
// sixth of the time. What can take long is to get the lock, when a transaction
// begins.
func unwatched(ctx context.Context) context.Context { return context.WithoutCancel(ctx) }

// call is a statement and what it is about.
type call struct {
	query string
	args  []any
}

// change carries out calls in one transaction, and returns how many rows they
// changed.
func (r *Registry) change(ctx context.Context, op string, calls ...call) (int64, error) {
	if len(calls) == 0 {
		return 0, nil
	}
	var total int64
	err := r.writer.submit(ctx, op, len(calls), func(ctx context.Context, tx transaction) error {
		total = 0
		for _, c := range calls {
			n, err := tx.exec(ctx, c.query, c.args...)
			if err != nil {
				return err
			}
			total += n
		}
		return nil
	})
	if err != nil {
		return 0, err // total may still be written to
	}
	return total, nil
}

// newWriter prepares the statements and starts the writer, which close ends. It
// takes over db if it succeeds.
//
// A commit counts only if still finds the registry's file in its place: SQLite
// goes on writing to a file that was removed, and nobody would see it again.
func newWriter(ctx context.Context, path string, db *sql.DB, still func() error) (*writer, error) {
	w := &writer{db: db, still: still, stmts: make(map[string]*sql.Stmt)}
	for _, query := range writerStatements {
		stmt, err := db.PrepareContext(ctx, query)
		if err != nil {
			return nil, explain(path, "prepare statements", err)
		}
		w.stmts[query] = stmt
	}
	if err := w.prepare(ctx, 1); err != nil {
		return nil, explain(path, "prepare statements", err)
	}
	w.Group = dbfile.NewGroup(dbfile.GroupOptions[change]{
		Transact: w.transact,
		Explain:  func(op string, err error) error { return explain(path, op, err) },
		Most:     maxBatch, Slice: slice, Rest: rest,
	})
	return w, nil
}

func (w *writer) close() error {
	w.Close()
	return w.db.Close() // closes the statements, too
}

// submit has the writer carry out do and waits until it is durable. When ctx
// ends first, the outcome is open: it may or may not have been committed.
func (w *writer) submit(ctx context.Context, op string, rows int, do func(context.Context, transaction) error) error {
	return w.Submit(ctx, op, rows, change{rows, do})
}

// transact is the group's: see dbfile.GroupOptions.
func (w *writer) transact(ctx context.Context, batch []change) (err error, culprit bool) {
	rows := 0
	for _, c := range batch {
		rows = max(rows, c.rows)
	}
	if err := w.prepare(ctx, rows); err != nil {
		return err, false
	}
	tx, err := w.db.BeginTx(ctx, nil)
	if err != nil {
		return err, false
	}
	bound := transaction{tx, w, make(map[*sql.Stmt]*sql.Stmt)}
	for _, c := range batch {
		if err := c.do(ctx, bound); err != nil {
			return dbfile.RollBack(tx, err), true
		}
	}
	if err := tx.Commit(); err != nil {
		return err, false
	}
	return w.still(), false
}
