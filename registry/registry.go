// Package registry keeps, durably and per user and server, what a user's
// entry should be and what was last seen of it.
//
// It is the memory of the agent and nothing else: it talks to no server and
// decides nothing about an entry. The usual order of calls is
//
//	reg, err := registry.Open(ctx, path, time.Now)
//	reg.Intend(ctx, intents...)          // what should be; durable when it returns
//	reg.Claim(ctx, key, owner, ...)      // before the network is touched: this row,
//	reg.Take(ctx, server, owner, ...)    // or what is due
//	reg.Record(ctx, owner, results...)   // what came of it
//	reg.Release(ctx, owner)              // when the process stops
//	reg.Close()
//
// The file is an SQLite database in WAL mode. Several processes may use it at
// the same time. What a call acknowledged has been synced to disk.
package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/url"
	"path/filepath"
	"time"

	"modernc.org/sqlite"
)

// maxReaders bounds the connections, and so the descriptors and page caches,
// that reading takes.
const maxReaders = 4

// Registry is an open registry. Its methods may be called concurrently.
type Registry struct {
	path    string // absolute
	file    fs.FileInfo
	now     func() time.Time
	steps   []string // the migrations that this program knows
	readers *sql.DB
	watcher *sql.DB // one connection: PRAGMA data_version compares with what that connection saw before
	writer  *writer
}

// Open opens the registry at path and creates it if there is none; its
// directory must exist. The file can be read and written by its owner only:
// wider permissions are taken off. A file that root creates belongs to the
// owner of the directory. now is the clock; nil means time.Now.
//
// It fails with ErrPermission, ErrFull, ErrBusy, ErrNewer, ErrForeign or
// ErrCorrupt, with fs.ErrNotExist if the directory is missing, or with
// ctx's error.
func Open(ctx context.Context, path string, now func() time.Time) (*Registry, error) {
	steps, err := migrations(embedded)
	if err != nil {
		return nil, fmt.Errorf("registry: read embedded schema: %w", err)
	}
	return open(ctx, path, now, steps)
}

// open repeats the whole of openOnce while other processes are in the way:
// where several turn a fresh file to WAL mode, SQLite tells some of them
// without any wait that it is busy, whatever the busy timeout.
func open(ctx context.Context, path string, now func() time.Time, steps []string) (*Registry, error) {
	if now == nil {
		now = time.Now
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("registry %s: %w", path, err)
	}
	giveUp := time.Now().Add(busyTimeout)
	for {
		r := &Registry{path: abs, now: now, steps: steps}
		err := r.openOnce(ctx)
		if err == nil {
			return r, nil
		}
		if !errors.Is(err, ErrBusy) || time.Now().After(giveUp) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("registry %s: open: %w", abs, ctx.Err())
		case <-time.After(time.Millisecond + rand.N(50*time.Millisecond)):
		}
	}
}

func (r *Registry) openOnce(ctx context.Context) error {
	var err error
	if r.file, err = prepareFile(r.path); err != nil {
		return err
	}
	if err := r.identify(ctx); err != nil {
		return err
	}
	writing, err := r.openWriter(ctx)
	if err != nil {
		return err
	}
	if err := migrate(ctx, writing, r.path, r.steps); err != nil {
		return errors.Join(err, writing.Close())
	}
	if r.readers, err = r.openPool(maxReaders, url.Values{"_query_only": {"1"}}); err != nil {
		return errors.Join(err, writing.Close())
	}
	if r.watcher, err = r.openPool(1, url.Values{"_query_only": {"1"}}); err != nil {
		return errors.Join(err, r.readers.Close(), writing.Close())
	}
	if r.writer, err = newWriter(ctx, r.path, writing, r.still); err != nil {
		return errors.Join(err, r.watcher.Close(), r.readers.Close(), writing.Close())
	}
	return nil
}

// identify looks at the file on a connection of its own, which changes
// nothing: another application's file must not even be turned to WAL mode.
func (r *Registry) identify(ctx context.Context) error {
	db, err := r.openPool(1, nil)
	if err != nil {
		return err
	}
	_, err = schemaVersion(ctx, db, r.path, len(r.steps))
	return errors.Join(err, db.Close())
}

// openWriter opens the one connection that writes. Its transactions begin
// IMMEDIATE: a transaction that reads first and then wants to write fails at
// once when another process wrote in between, whatever the busy timeout.
func (r *Registry) openWriter(ctx context.Context) (*sql.DB, error) {
	db, err := r.openPool(1, url.Values{
		"_journal_mode": {"WAL"},
		"_synchronous":  {"FULL"}, // NORMAL does not sync at commit
		"_txlock":       {"immediate"},
	})
	if err != nil {
		return nil, err
	}
	// SQLite stays in the old mode, without an error, where shared memory
	// does not work.
	var mode string
	if err := db.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&mode); err != nil {
		return nil, errors.Join(explain(r.path, "open", err), db.Close())
	}
	if mode != "wal" {
		return nil, errors.Join(fmt.Errorf("registry %s: its file system cannot do SQLite's WAL mode; put the registry on a local disk", r.path), db.Close())
	}
	return db, nil
}

func (r *Registry) openPool(size int, more url.Values) (*sql.DB, error) {
	connector, err := sqlite.NewConnector(dsn(r.path, more))
	if err != nil {
		return nil, fmt.Errorf("registry %s: %w", r.path, err)
	}
	db := sql.OpenDB(connector)
	db.SetMaxOpenConns(size)
	db.SetMaxIdleConns(size)
	return db, nil
}

// Close waits for the commit under way, if any, and closes every file. Calls
// made later, or still waiting for their turn, fail with fs.ErrClosed.
func (r *Registry) Close() error {
	return explain(r.path, "close", errors.Join(r.writer.close(), r.watcher.Close(), r.readers.Close()))
}
