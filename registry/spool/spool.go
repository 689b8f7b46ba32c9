// Package spool keeps, durably, the notifications that are still to be
// forwarded to webhooks, and those that were given up.
//
// It sends nothing and decides nothing about when to try again. The usual
// order of calls is
//
//	s, err := spool.Open(ctx, path, spool.Options{})
//	s.Recover(ctx)                       // once, by the process that forwards
//	s.Add(ctx, event, targets)           // durable when it returns
//	s.Take(ctx, target, n, lease)        // the oldest of each user that are due
//	s.Done, s.Retry, s.Refuse or s.Kill  // what came of it
//	s.Prune(ctx, spool.Limits{...})      // now and then
//	s.Close()
//
// The file is an SQLite database of its own beside the registry: the
// registry's lock may be held for seconds, and Dovecot holds a delivery while
// its notification is answered. Several processes may use the file at the same
// time; only one of them forwards.
//
// What a call acknowledged survives the end of the process, kill -9 included.
// It is not synced to disk at once, so that a power cut or a crash of the
// kernel may lose the last seconds, but never damages the file.
//
// Bodies are mail: a delivered one is overwritten at once in the file, and
// within seconds it has left the write-ahead log, too.
package spool

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path/filepath"
	"sync"
	"time"
)

// maxReaders bounds the connections that reading takes.
const maxReaders = 2

// Defaults of Options.
const (
	DefaultMost     = 1_000_000
	DefaultSeenFor  = 6 * time.Hour
	DefaultMostSeen = 1_000_000
)

// Options says how a Spool works. Its zero value is usable.
type Options struct {
	// Now is the clock. Default: time.Now.
	Now func() time.Time
	// Most bounds the events that wait for a target. Default: DefaultMost.
	Most int64
	// SeenFor is how long the key of an event is known, so that the same event
	// is recognised when it comes again. Default: DefaultSeenFor.
	SeenFor time.Duration
	// MostSeen bounds the keys that are known. Default: DefaultMostSeen.
	MostSeen int64
}

// Spool is an open spool. Its methods may be called concurrently.
type Spool struct {
	path    string // absolute
	options Options
	file    fs.FileInfo
	readers *sql.DB
	writer  *writer
	cleaner *cleaner
	close   func() error
}

// Open opens the spool at path and creates it if there is none; its directory
// must exist. The file can be read and written by its owner only: wider
// permissions are taken off. A file that root creates belongs to the owner of
// the directory.
//
// It fails with ErrPermission, ErrNoSpace, ErrBusy, ErrNewer, ErrForeign or
// ErrCorrupt, with fs.ErrNotExist if the directory is missing, or with
// ctx's error.
func Open(ctx context.Context, path string, o Options) (*Spool, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Most <= 0 {
		o.Most = DefaultMost
	}
	if o.SeenFor <= 0 {
		o.SeenFor = DefaultSeenFor
	}
	if o.MostSeen <= 0 {
		o.MostSeen = DefaultMostSeen
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("spool %s: %w", path, err)
	}
	s := &Spool{path: abs, options: o}
	if err := at(abs).Patiently(ctx, func() error { return s.open(ctx) }); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Spool) open(ctx context.Context) (err error) {
	file := at(s.path)
	if s.file, err = file.Prepare(); err != nil {
		return err
	}
	if err := file.Identify(ctx, len(schema)); err != nil {
		return err
	}
	var opened []*sql.DB
	defer func() {
		if err == nil {
			return
		}
		for _, db := range opened {
			err = errors.Join(err, db.Close())
		}
	}()
	open := func(size int, more url.Values) *sql.DB {
		if err != nil {
			return nil
		}
		var db *sql.DB
		if db, err = file.Pool(size, more); err == nil {
			opened = append(opened, db)
		}
		return db
	}
	writing := open(1, url.Values{
		// Only an empty file can be told to give room back, and only before
		// anything else is done to it.
		"_auto_vacuum":  {"incremental"},
		"_journal_mode": {"WAL"},
		"_synchronous":  {"NORMAL"},
		"_txlock":       {"immediate"},
		"_pragma":       {"secure_delete(1)", fmt.Sprintf("wal_autocheckpoint(%d)", maxLog)},
	})
	checkpoints := open(1, url.Values{"_synchronous": {"NORMAL"}})
	s.readers = open(maxReaders, url.Values{"_query_only": {"1"}})
	if err != nil {
		return err
	}
	if err := file.WantWAL(ctx, writing); err != nil {
		return err
	}
	if err := file.Migrate(ctx, writing, schema); err != nil {
		return err
	}
	s.cleaner = newCleaner(writing, checkpoints)
	if s.writer, err = newWriter(ctx, s.path, writing, s.still, s.cleaner.wake); err != nil {
		s.cleaner.close()
		return err
	}
	s.close = sync.OnceValue(func() error {
		s.cleaner.close()
		s.writer.Close()
		var errs []error
		for _, db := range opened {
			errs = append(errs, db.Close())
		}
		return explain(s.path, "close", errors.Join(errs...))
	})
	return nil
}

// Close waits for the commit under way, if any, and closes every file. Calls
// made later, or still waiting for their turn, fail with fs.ErrClosed.
func (s *Spool) Close() error { return s.close() }

// still fails if the file that was opened is not at its path any more.
func (s *Spool) still() error { return at(s.path).Still(s.file) }

func (s *Spool) now() time.Time { return s.options.Now() }
