package spool

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
	// maxBatch is how many calls share a commit.
	maxBatch = 500
	// Other processes poll for the lock (every 1 to 100 ms). It rests for rest
	// after each slice of writing, so that they get it now and then.
	slice = 50 * time.Millisecond
	rest  = 2 * time.Millisecond
)

// writer carries out all changes on one connection, in one goroutine. Calls
// that come while a commit is under way share the next one.
type writer struct {
	path  string
	db    *sql.DB
	still func() error // fails if commits would go to a file that nobody will see
	stmts map[string]*sql.Stmt
	queue chan *change // unbuffered: what waits is bounded by the callers
	stop  chan struct{}
	done  chan struct{} // closed when run has returned
	once  sync.Once
	// dirty is told when something was deleted that the log still has.
	dirty func()
}

// change is one caller's work. It may be run twice, so do starts from scratch
// each time.
type change struct {
	ctx     context.Context
	deletes bool
	do      func(tx *transaction) error
	alone   func() error // instead of do: work outside of a transaction
	err     error
	done    chan struct{}
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

func newWriter(ctx context.Context, path string, db *sql.DB, still func() error) (*writer, error) {
	w := &writer{
		path:  path,
		db:    db,
		still: still,
		stmts: make(map[string]*sql.Stmt),
		queue: make(chan *change),
		stop:  make(chan struct{}),
		done:  make(chan struct{}),
		dirty: func() {},
	}
	for _, query := range statements {
		stmt, err := db.PrepareContext(ctx, query)
		if err != nil {
			return nil, explain(path, "prepare statements", err)
		}
		w.stmts[query] = stmt
	}
	return w, nil
}

// close awaits the goroutine; the connection and its statements remain.
func (w *writer) close() {
	w.once.Do(func() { close(w.stop) })
	<-w.done
}

// submit has the writer carry out a change and waits until it is committed.
// When ctx ends first, the outcome is open: it may or may not have been.
func (w *writer) submit(ctx context.Context, op string, c *change) error {
	c.ctx, c.done = ctx, make(chan struct{})
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
			w.carryOut(first)
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

// carryOut commits what is waiting with first.
func (w *writer) carryOut(first *change) {
	var batch []*change
	for next := first; ; {
		if next.alone != nil {
			w.commit(batch)
			batch = nil
			next.err = next.alone()
			close(next.done)
		} else {
			batch = append(batch, next)
		}
		if len(batch) >= maxBatch {
			break
		}
		select {
		case next = <-w.queue:
			continue
		default:
		}
		break
	}
	w.commit(batch)
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
	if len(live) == 0 {
		return
	}
	err, culprit := w.transact(live)
	if errors.Is(explain(w.path, "commit", err), ErrNoSpace) && truncate(context.Background(), w.db, 0) == nil {
		err, culprit = w.transact(live) // the log took room that it did not need
	}
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
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var waiting atomic.Int64
	waiting.Store(int64(len(batch)))
	deletes := false
	for _, c := range batch {
		deletes = deletes || c.deletes
		if c.ctx.Done() == nil {
			continue
		}
		defer context.AfterFunc(c.ctx, func() {
			if waiting.Add(-1) == 0 {
				cancel()
			}
		})()
	}
	tx, err := w.db.BeginTx(ctx, nil)
	if err != nil {
		return err, false
	}
	t := &transaction{tx, w, make(map[string]*sql.Stmt)}
	for _, c := range batch {
		if err := c.do(t); err != nil {
			if rollbackErr := tx.Rollback(); rollbackErr != nil && !errors.Is(rollbackErr, sql.ErrTxDone) {
				err = fmt.Errorf("%w (and roll back: %v)", err, rollbackErr)
			}
			return err, true
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
