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
	"net/url"
	"path/filepath"
	"time"
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

func open(ctx context.Context, path string, now func() time.Time, steps []string) (*Registry, error) {
	if now == nil {
		now = time.Now
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("registry %s: %w", path, err)
	}
	r := &Registry{path: abs, now: now, steps: steps}
	if err := at(abs).Patiently(ctx, func() error { return r.openOnce(ctx) }); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *Registry) openOnce(ctx context.Context) error {
	var err error
	file := at(r.path)
	if r.file, err = file.Prepare(); err != nil {
		return err
	}
	if err := file.Identify(ctx, len(r.steps)); err != nil {
		return err
	}
	writing, err := r.openWriter(ctx)
	if err != nil {
		return err
	}
	if err := file.Migrate(ctx, writing, r.steps); err != nil {
		return errors.Join(err, writing.Close())
	}
	if r.readers, err = file.Pool(maxReaders, url.Values{"_query_only": {"1"}}); err != nil {
		return errors.Join(err, writing.Close())
	}
	if r.watcher, err = file.Pool(1, url.Values{"_query_only": {"1"}}); err != nil {
		return errors.Join(err, r.readers.Close(), writing.Close())
	}
	if r.writer, err = newWriter(ctx, r.path, writing, r.still); err != nil {
		return errors.Join(err, r.watcher.Close(), r.readers.Close(), writing.Close())
	}
	return nil
}

// openWriter opens the one connection that writes. Its transactions begin
// IMMEDIATE: a transaction that reads first and then wants to write fails at
// once when another process wrote in between, whatever the busy timeout.
func (r *Registry) openWriter(ctx context.Context) (*sql.DB, error) {
	db, err := at(r.path).Pool(1, url.Values{
		"_journal_mode": {"WAL"},
		"_synchronous":  {"FULL"}, // NORMAL does not sync at commit
		"_txlock":       {"immediate"},
	})
	if err != nil {
		return nil, err
	}
	if err := at(r.path).WantWAL(ctx, db); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// Close waits for the commit under way, if any, and closes every file. Calls
// made later, or still waiting for their turn, fail with fs.ErrClosed.
func (r *Registry) Close() error {
	return explain(r.path, "close", errors.Join(r.writer.close(), r.watcher.Close(), r.readers.Close()))
}
