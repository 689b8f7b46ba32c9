package dbfile

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strconv"
	"time"

	"modernc.org/sqlite"
)

// BusyTimeout is how long a statement waits for another process's lock. Two
// processes that write without pause were seen to wait up to 3 s.
const BusyTimeout = 20 * time.Second

// Patiently repeats the whole of open while it fails with ErrBusy, for
// BusyTimeout: where several processes turn a fresh file to WAL mode, SQLite
// tells some of them without any wait that it is busy, whatever the timeout.
func (f File) Patiently(ctx context.Context, open func() error) error {
	giveUp := time.Now().Add(BusyTimeout)
	for {
		err := open()
		if !errors.Is(err, ErrBusy) || time.Now().After(giveUp) {
			return err
		}
		select {
		case <-ctx.Done():
			return f.Explain("open", ctx.Err())
		case <-time.After(time.Millisecond + rand.N(50*time.Millisecond)):
		}
	}
}

// Identify fails if the file is not ours, see Version. It looks on a
// connection of its own, which changes nothing: another application's file
// must not even be turned to WAL mode.
func (f File) Identify(ctx context.Context, newest int) error {
	db, err := f.Pool(1, nil)
	if err != nil {
		return err
	}
	_, err = f.Version(ctx, db, newest)
	return errors.Join(err, db.Close())
}

// Pool returns up to size connections, which are opened when they are needed.
// more is added to the driver's settings; it never creates the file.
func (f File) Pool(size int, more url.Values) (*sql.DB, error) {
	connector, err := sqlite.NewConnector(f.dsn(more))
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", f.What, f.Path, err)
	}
	db := sql.OpenDB(connector)
	db.SetMaxOpenConns(size)
	db.SetMaxIdleConns(size)
	return db, nil
}

// dsn names the file to the driver. It is always a URI, so that any byte may
// stand in the path.
func (f File) dsn(more url.Values) string {
	q := url.Values{
		"mode":          {"rw"},
		"_busy_timeout": {strconv.FormatInt(BusyTimeout.Milliseconds(), 10)},
		"_dqs":          {"0"}, // "x" is a column, never a string
		"_defensive":    {"1"},
		"_error_rc":     {"1"}, // no stale text in messages
	}
	if f.Pragma != "" {
		q.Add("_pragma", f.Pragma)
	}
	for k, v := range more {
		q[k] = append(q[k], v...)
	}
	return (&url.URL{Scheme: "file", Path: f.Path, RawQuery: q.Encode()}).String()
}

// WantWAL fails where SQLite stayed in the old mode, which it does without an
// error where shared memory does not work.
func (f File) WantWAL(ctx context.Context, db *sql.DB) error {
	var mode string
	if err := db.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&mode); err != nil {
		return f.Explain("open", err)
	}
	if mode != "wal" {
		return fmt.Errorf("%[1]s %[2]s: its file system cannot do SQLite's WAL mode; put the %[1]s on a local disk", f.What, f.Path)
	}
	return nil
}
