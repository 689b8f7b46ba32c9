package spool

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"time"

	"dovepush/registry/dbfile"
)

const (
	// maxLog is how many pages of 4 KiB the write-ahead log may have before a
	// commit moves them to the file itself. The cleaner mostly comes first.
	maxLog = 1000
	// What was deleted is out of the log once nothing was deleted for quiet,
	// and in any case after busy.
	quiet = 250 * time.Millisecond
	busy  = 5 * time.Second
	// giveBack is how many free pages are cut off the file at a time.
	giveBack = 256
)

// cleaner empties the write-ahead log after something was deleted: secure_delete
// overwrites it in the file only, and the log still has the page as it was.
type cleaner struct {
	writing *sql.DB // the writer's one connection: who has it, no commit is under way
	db      *sql.DB // its own connection: it syncs to disk while commits go on
	dirty   chan struct{}
	stop    context.CancelFunc
	done    chan struct{}
}

func newCleaner(writing, db *sql.DB) *cleaner {
	ctx, cancel := context.WithCancel(context.Background())
	c := &cleaner{writing: writing, db: db, dirty: make(chan struct{}, 1), stop: cancel, done: make(chan struct{})}
	go c.run(ctx)
	return c
}

// wake tells the cleaner that something was deleted. It does not wait.
func (c *cleaner) wake() {
	select {
	case c.dirty <- struct{}{}:
	default:
	}
}

func (c *cleaner) close() {
	c.stop()
	<-c.done
}

func (c *cleaner) run(ctx context.Context) {
	defer close(c.done)
	var since time.Time // zero: nothing is to be done
	timer := time.NewTimer(busy)
	timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.dirty:
			if since.IsZero() {
				since = time.Now()
			}
			timer.Reset(max(0, min(quiet, busy-time.Since(since))))
		case <-timer.C:
			if c.clean(ctx) {
				since = time.Time{}
			} else {
				timer.Reset(busy) // somebody reads, or the disk is full
			}
		}
	}
}

// clean reports whether the log is empty now. Nobody needs to know why it is
// not: commits say what is wrong with the file.
func (c *cleaner) clean(ctx context.Context) bool {
	// Most is moved, and synced, beside the commits; the rest instead of one.
	if _, err := c.db.ExecContext(ctx, "PRAGMA wal_checkpoint(PASSIVE)"); err != nil {
		return false
	}
	return truncate(ctx, c.writing, giveBack) == nil
}

// truncate gives up to so many free pages back and empties the log, without any
// wait: while somebody reads, there is another time.
func truncate(ctx context.Context, db *sql.DB, pages int) (err error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx) // the driver discards a connection that was interrupted
	restore := sync.OnceValue(func() error {
		_, err := conn.ExecContext(ctx, fmt.Sprintf("PRAGMA busy_timeout = %d", dbfile.BusyTimeout.Milliseconds()))
		return err
	})
	defer func() {
		if restoreErr := restore(); err == nil {
			err = restoreErr
		}
		if closeErr := conn.Close(); err == nil {
			err = closeErr
		}
	}()
	if _, err := conn.ExecContext(ctx, "PRAGMA busy_timeout = 0"); err != nil {
		return err
	}
	if pages > 0 {
		if err := vacuum(ctx, conn, pages); err != nil {
			return err
		}
	}
	var blocked, frames, moved int
	if err := conn.QueryRowContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&blocked, &frames, &moved); err != nil {
		return err
	}
	if blocked != 0 {
		return ErrBusy
	}
	return nil
}

func vacuum(ctx context.Context, conn *sql.Conn, pages int) error {
	rows, err := conn.QueryContext(ctx, fmt.Sprintf("PRAGMA incremental_vacuum(%d)", pages))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() { // a page a row
	}
	return rows.Err()
}
