package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"dovepush/registry/dbfile"
)

const (
	// maxBatch is how many rows' worth of calls share a commit. A single call
	// with more rows is not split.
	maxBatch = 500
	// Other processes poll for the lock (every 1 to 100 ms), so one that
	// writes without pause would keep them out for seconds. It rests for rest
	// after each slice of writing.
	slice = 20 * time.Millisecond
	rest  = 5 * time.Millisecond
)

// writerStatements are prepared once, for the life of the writer's connection.
var writerStatements = []string{sqlRevision, sqlSelect, sqlClaim, sqlRecord, sqlGone, sqlStillWanted, sqlLearn,
	sqlProve, sqlNamed, sqlProveLogin, sqlLogin, sqlDue, sqlHasten, sqlSpread, sqlRelease, sqlReclaim,
	sqlOpenCircuit, sqlCloseCircuit, sqlSweepEndpoints, sqlSetAside, sqlEndpointWorks}

// writer carries out all changes on one connection, in one goroutine. Calls
// that come while a commit is under way share the next one: a sync to disk
// costs more than the change of a row, so that 16 callers get four times
// the rate of one.
type writer struct {
	path  string
	db    *sql.DB
	still func() error              // fails if commits would go to a file that nobody will see
	stmts map[string]*sql.Stmt      // by SQL text
	rows  []map[rowsQuery]*sql.Stmt // for each of rowsSizes, so far
	queue chan *change              // unbuffered: what waits is bounded by the callers
	stop  chan struct{}
	done  chan struct{} // closed when run has returned
	once  sync.Once
}

// change is one caller's work in a transaction. It may be run twice, so do
// starts from scratch each time.
type change struct {
	ctx  context.Context
	op   string // for messages
	rows int
	do   func(ctx context.Context, tx transaction) error
	err  error
	done chan struct{}
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

// newWriter prepares the statements and starts the goroutine, which close
// ends. It takes over db if it succeeds.
//
// A commit counts only if still finds the registry's file in its place: SQLite
// goes on writing to a file that was removed, and nobody would see it again.
func newWriter(ctx context.Context, path string, db *sql.DB, still func() error) (*writer, error) {
	w := &writer{
		path:  path,
		db:    db,
		still: still,
		stmts: make(map[string]*sql.Stmt),
		queue: make(chan *change),
		stop:  make(chan struct{}),
		done:  make(chan struct{}),
	}
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
	go w.run()
	return w, nil
}

func (w *writer) close() error {
	w.once.Do(func() { close(w.stop) })
	<-w.done
	return w.db.Close() // closes the statements, too
}

// submit has the writer carry out do and waits until it is durable. When ctx
// ends first, the outcome is open: it may or may not have been committed.
func (w *writer) submit(ctx context.Context, op string, rows int, do func(context.Context, transaction) error) error {
	c := &change{ctx: ctx, op: op, rows: rows, do: do, done: make(chan struct{})}
	select {
	case <-w.stop: // first, for select picks at random
		return explain(w.path, op, dbfile.ErrClosed)
	default:
	}
	select {
	case w.queue <- c:
	case <-ctx.Done():
		return explain(w.path, op, ctx.Err())
	case <-w.stop:
		return explain(w.path, op, dbfile.ErrClosed)
	}
	select {
	case <-c.done:
		return explain(w.path, op, c.err)
	case <-ctx.Done():
		return explain(w.path, op, ctx.Err())
	}
}

func (w *writer) run() {
	defer close(w.done)
	var worked time.Duration
	idleSince := time.Now()
	for {
		select {
		case <-w.stop:
			return
		case first := <-w.queue:
			began := time.Now()
			if began.Sub(idleSince) >= rest {
				worked = 0
			}
			w.commit(w.gather(first))
			idleSince = time.Now()
			worked += idleSince.Sub(began)
		}
		if worked < slice {
			continue
		}
		select {
		case <-w.stop:
			return
		case <-time.After(rest):
			worked = 0
		}
	}
}

// gather adds to first what else is waiting.
func (w *writer) gather(first *change) []*change {
	batch, rows := []*change{first}, first.rows
	for rows < maxBatch {
		select {
		case c := <-w.queue:
			batch, rows = append(batch, c), rows+c.rows
		default:
			return batch
		}
	}
	return batch
}

// commit carries out a batch in one transaction. If one of its changes fails,
// each is given a transaction of its own, so that no caller gets another's error.
func (w *writer) commit(batch []*change) {
	live := batch[:0:0]
	for _, c := range batch {
		if c.err = c.ctx.Err(); c.err != nil {
			close(c.done)
			continue
		}
		live = append(live, c)
	}
	err, culprit := w.transact(live)
	if culprit && len(live) > 1 {
		for _, c := range live {
			c.err, _ = w.transact([]*change{c})
			close(c.done)
		}
		return
	}
	for _, c := range live {
		c.err = err
		close(c.done)
	}
}

// transact reports whether the error is that of one change, not of the whole
// transaction. It gives up waiting for a lock when nobody waits for it any more.
func (w *writer) transact(batch []*change) (err error, culprit bool) {
	if len(batch) == 0 {
		return nil, false
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var waiting atomic.Int64
	waiting.Store(int64(len(batch)))
	for _, c := range batch {
		defer context.AfterFunc(c.ctx, func() {
			if waiting.Add(-1) == 0 {
				cancel()
			}
		})()
	}

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
			if rollbackErr := tx.Rollback(); rollbackErr != nil && !errors.Is(rollbackErr, sql.ErrTxDone) {
				err = fmt.Errorf("%w (and roll back: %v)", err, rollbackErr)
			}
			return err, true
		}
	}
	if err := tx.Commit(); err != nil {
		return err, false
	}
	return w.still(), false
}
