package dbfile

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// GroupOptions says how a Group works. All must be given.
type GroupOptions[W any] struct {
	// Transact carries out pieces of work in one transaction. Culprit says that
	// the error is that of one of them, not of the whole. It may be given the
	// same piece twice. Its context ends when nobody waits for it any more.
	Transact func(ctx context.Context, work []W) (err error, culprit bool)
	// Explain turns an error met during op into one that says what to do.
	Explain func(op string, err error) error
	// Most is how many rows' worth of work share a commit. A single piece with
	// more is not split.
	Most int
	// Other processes poll for the lock (every 1 to 100 ms), so one that
	// writes without pause would keep them out for seconds. It rests for Rest
	// after each Slice of writing.
	Slice, Rest time.Duration
}

// Group has work carried out in one goroutine. What comes while a commit is
// under way shares the next one: a sync to disk costs more than the change of
// a row, so that 16 callers get four times the rate of one.
type Group[W any] struct {
	options GroupOptions[W]
	queue   chan *piece[W] // unbuffered: what waits is bounded by the callers
	stop    chan struct{}
	done    chan struct{} // closed when run has returned
	once    sync.Once
}

// piece is one caller's work.
type piece[W any] struct {
	ctx  context.Context
	work W
	rows int
	err  error
	done chan struct{}
}

// NewGroup starts the goroutine, which Close ends.
func NewGroup[W any](o GroupOptions[W]) *Group[W] {
	g := &Group[W]{options: o, queue: make(chan *piece[W]), stop: make(chan struct{}), done: make(chan struct{})}
	go g.run()
	return g
}

// Close waits for the commit under way, if any. Who waits for his turn, or comes
// later, gets ErrClosed.
func (g *Group[W]) Close() {
	g.once.Do(func() { close(g.stop) })
	<-g.done
}

// Submit has work of so many rows carried out, and waits until it is committed.
// When ctx ends first, the outcome is open: it may or may not have been.
func (g *Group[W]) Submit(ctx context.Context, op string, rows int, work W) error {
	p := &piece[W]{ctx: ctx, work: work, rows: rows, done: make(chan struct{})}
	select {
	case <-g.stop: // first, for select picks at random
		return g.options.Explain(op, ErrClosed)
	default:
	}
	select {
	case g.queue <- p:
	case <-ctx.Done():
		return g.options.Explain(op, ctx.Err())
	case <-g.stop:
		return g.options.Explain(op, ErrClosed)
	}
	select {
	case <-p.done:
		return g.options.Explain(op, p.err)
	case <-ctx.Done():
		return g.options.Explain(op, ctx.Err())
	}
}

func (g *Group[W]) run() {
	defer close(g.done)
	var worked time.Duration
	idleSince := time.Now()
	for {
		select {
		case <-g.stop:
			return
		case first := <-g.queue:
			began := time.Now()
			if began.Sub(idleSince) >= g.options.Rest {
				worked = 0
			}
			g.commit(g.gather(first))
			idleSince = time.Now()
			worked += idleSince.Sub(began)
		}
		if worked < g.options.Slice {
			continue
		}
		select {
		case <-g.stop:
			return
		case <-time.After(g.options.Rest):
			worked = 0
		}
	}
}

// gather adds to first what else is waiting.
func (g *Group[W]) gather(first *piece[W]) []*piece[W] {
	batch, rows := []*piece[W]{first}, first.rows
	for rows < g.options.Most {
		select {
		case p := <-g.queue:
			batch, rows = append(batch, p), rows+p.rows
		default:
			return batch
		}
	}
	return batch
}

// commit carries out a batch in one transaction. If one of its pieces fails,
// each is given a transaction of its own, so that no caller gets another's error.
func (g *Group[W]) commit(batch []*piece[W]) {
	live := batch[:0:0]
	for _, p := range batch {
		if p.err = p.ctx.Err(); p.err != nil {
			close(p.done)
			continue
		}
		live = append(live, p)
	}
	if len(live) == 0 {
		return
	}
	err, culprit := g.transact(live)
	if culprit && len(live) > 1 {
		for _, p := range live {
			p.err, _ = g.transact([]*piece[W]{p})
			close(p.done)
		}
		return
	}
	for _, p := range live {
		p.err = err
		close(p.done)
	}
}

// RollBack gives a transaction up because of an error, which it returns.
func RollBack(tx *sql.Tx, because error) error {
	if err := tx.Rollback(); err != nil && !errors.Is(err, sql.ErrTxDone) {
		return fmt.Errorf("%w (and roll back: %v)", because, err)
	}
	return because
}

// transact gives up waiting for a lock when nobody waits for it any more.
func (g *Group[W]) transact(batch []*piece[W]) (err error, culprit bool) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var waiting atomic.Int64
	waiting.Store(int64(len(batch)))
	work := make([]W, len(batch))
	for i, p := range batch {
		work[i] = p.work
		defer context.AfterFunc(p.ctx, func() {
			if waiting.Add(-1) == 0 {
				cancel()
			}
		})()
	}
	return g.options.Transact(ctx, work)
}
