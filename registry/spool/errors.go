package spool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// ErrFull is Add's when so many events wait for a target that it takes no more.
var ErrFull = errors.New("too many events wait")

// What can be wrong with the spool as a whole, to be told apart with
// errors.Is. Every message names the file and says what to do about it.
var (
	ErrPermission = errors.New("no permission to use it")  // cannot be created, opened or written
	ErrNoSpace    = errors.New("disk full")                // no space left for it
	ErrBusy       = errors.New("locked")                   // another process kept it locked for busyTimeout
	ErrNewer      = errors.New("made by a newer dovepush") // its schema is newer than ours
	ErrForeign    = errors.New("not a dovepush spool")     // not SQLite, or another application's
	ErrCorrupt    = errors.New("damaged")                  // SQLite found it damaged
)

// errClosed answers calls made after Close.
var errClosed = fmt.Errorf("already closed: %w", fs.ErrClosed)

// problem is an error with its class, so that both can be found in it.
type problem struct {
	class error // one of the sentinels above
	text  string
	cause error // may be nil
}

func (p *problem) Error() string {
	if p.cause == nil {
		return p.text
	}
	return p.text + " (" + p.cause.Error() + ")"
}

func (p *problem) Unwrap() []error {
	if p.cause == nil {
		return []error{p.class}
	}
	return []error{p.class, p.cause}
}

// explain turns an error met during op on the file at path into one that names
// both and, where SQLite's result code tells the class, says what to do.
func explain(path, op string, err error) error {
	var known *problem
	if err == nil || errors.As(err, &known) {
		return err
	}
	class := classify(path, err)
	if class == nil {
		return fmt.Errorf("spool %s: %s: %w", path, op, err)
	}
	return &problem{
		class: class,
		text:  fmt.Sprintf("spool %s: %s: %v; %s", path, op, class, remedy(class, path)),
		cause: err,
	}
}

// classify goes by SQLite's result codes (https://www.sqlite.org/rescode.html)
// and errno, never by text. It returns nil for what has no class.
func classify(path string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	var se *sqlite.Error
	if !errors.As(err, &se) {
		switch {
		case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
			return ErrPermission
		case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
			return ErrNoSpace
		}
		return nil
	}
	switch se.Code() {
	case sqlite3.SQLITE_IOERR_SHMSIZE: // no room to lengthen the -shm file
		return ErrNoSpace
	case sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS, sqlite3.SQLITE_IOERR_DATA:
		return ErrCorrupt
	}
	switch se.Code() & 0xff { // the primary code
	case sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY:
		return ErrPermission
	case sqlite3.SQLITE_CANTOPEN: // also when the process has no file descriptor left
		if denied(path) != "" {
			return ErrPermission
		}
	case sqlite3.SQLITE_FULL:
		return ErrNoSpace
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL:
		return ErrBusy
	case sqlite3.SQLITE_NOTADB:
		return ErrForeign
	case sqlite3.SQLITE_CORRUPT:
		return ErrCorrupt
	}
	return nil
}

func remedy(class error, path string) string {
	switch class {
	case ErrPermission:
		what := denied(path)
		if what == "" {
			what = path
		}
		return fmt.Sprintf("uid %d cannot write %s: run dovepush as the user who owns it, or give it to that user with chown, and see that its file system is not mounted read-only",
			syscall.Geteuid(), what)
	case ErrNoSpace:
		return "free space in " + filepath.Dir(path) + " (df -h, df -i, quota); nothing acknowledged is lost"
	case ErrBusy:
		return fmt.Sprintf("another process kept it locked for %v: find it with fuser -v %s and end it if it hangs", busyTimeout, path)
	case ErrForeign:
		return "let the spool be a file of its own; if this one used to be it, it is overwritten: move it away"
	case ErrCorrupt:
		return fmt.Sprintf("stop dovepush and move %[1]s, %[1]s-wal and %[1]s-shm away: a new spool begins empty, and what waited in this one is not forwarded", path)
	}
	return ""
}

// denied returns the first of the spool's files, or its directory, that this
// process may not write, or "". It opens nothing, see prepareFile.
func denied(path string) string {
	const read, write = 4, 2
	for _, suffix := range suffixes {
		if err := syscall.Access(path+suffix, read|write); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return path + suffix
		}
	}
	if dir := filepath.Dir(path); syscall.Access(dir, write) != nil {
		return dir
	}
	return ""
}
