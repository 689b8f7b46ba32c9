package dbfile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// What can be wrong with a file as a whole, to be told apart with errors.Is.
// Every message names the file and says what to do about it.
var (
	ErrPermission = errors.New("no permission to use it")  // cannot be created, opened or written
	ErrFull       = errors.New("disk full")                // no space left for it
	ErrBusy       = errors.New("locked")                   // another process kept it locked for BusyTimeout
	ErrNewer      = errors.New("made by a newer dovepush") // its schema is newer than ours
	ErrForeign    = errors.New("not dovepush's")           // not SQLite, or another application's
	ErrCorrupt    = errors.New("damaged")                  // SQLite found it damaged
)

// ErrClosed answers calls made after Close. It is fs.ErrClosed, too.
var ErrClosed = fmt.Errorf("already closed: %w", fs.ErrClosed)

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

func (f File) problem(class error, format string, args ...any) *problem {
	return &problem{class: class, text: f.What + " " + f.Path + ": " + fmt.Sprintf(format, args...)}
}

// Explain turns an error met during op into one that names both and, where
// SQLite's result code tells the class, says what to do. It leaves nil, and
// what was explained before, as it is.
func (f File) Explain(op string, err error) error {
	if err == nil {
		return nil
	}
	return f.ExplainAs(f.classify(err), op, err)
}

// ExplainAs is Explain for an error whose class is known: one of this
// package's, or nil.
func (f File) ExplainAs(class error, op string, err error) error {
	var known *problem
	if err == nil || errors.As(err, &known) {
		return err
	}
	if class == nil {
		return fmt.Errorf("%s %s: %s: %w", f.What, f.Path, op, err)
	}
	name := class.Error()
	if class == ErrForeign {
		name = "not a dovepush " + f.What
	}
	p := f.problem(class, "%s: %s; %s", op, name, f.remedy(class))
	p.cause = err
	return p
}

// Corrupt is the error for damage that op found.
func (f File) Corrupt(op, finding string) error {
	return f.problem(ErrCorrupt, "%s: %v: %s; %s", op, ErrCorrupt, finding, f.remedy(ErrCorrupt))
}

// classify goes by SQLite's result codes (https://www.sqlite.org/rescode.html)
// and errno, never by text. It returns nil for what has no class.
func (f File) classify(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	var se *sqlite.Error
	if !errors.As(err, &se) {
		switch {
		case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
			return ErrPermission
		case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
			return ErrFull
		}
		return nil
	}
	switch se.Code() {
	case sqlite3.SQLITE_IOERR_SHMSIZE: // no room to lengthen the -shm file
		return ErrFull
	case sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS, sqlite3.SQLITE_IOERR_DATA:
		return ErrCorrupt
	}
	switch se.Code() & 0xff { // the primary code
	case sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY:
		return ErrPermission
	case sqlite3.SQLITE_CANTOPEN: // also when the process has no file descriptor left
		if f.denied() != "" {
			return ErrPermission
		}
	case sqlite3.SQLITE_FULL:
		return ErrFull
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL:
		return ErrBusy
	case sqlite3.SQLITE_NOTADB:
		return ErrForeign
	case sqlite3.SQLITE_CORRUPT:
		return ErrCorrupt
	}
	return nil
}

func (f File) remedy(class error) string {
	switch class {
	case ErrPermission:
		what := f.denied()
		if what == "" {
			what = f.Path
		}
		return fmt.Sprintf("uid %d cannot write %s: run dovepush as the user who owns it, or give it to that user with chown, and see that its file system is not mounted read-only",
			syscall.Geteuid(), what)
	case ErrFull:
		return "free space in " + filepath.Dir(f.Path) + " (df -h, df -i, quota); nothing acknowledged is lost"
	case ErrBusy:
		return fmt.Sprintf("another process kept it locked for %v: find it with fuser -v %s and end it if it hangs", BusyTimeout, f.Path)
	case ErrForeign:
		return fmt.Sprintf("set %[1]s.path to a file of dovepush's own; if this one used to be the %[1]s, it is overwritten: %[2]s", f.What, f.Overwritten)
	case ErrCorrupt:
		n := f.names()
		return "stop dovepush" + strings.ReplaceAll(f.Damaged, "%s", n[0]+", "+n[1]+" and "+n[2])
	}
	return ""
}

// denied returns the first of the files, or their directory, that this process
// may not write, or "". It opens nothing, see Prepare.
func (f File) denied() string {
	const read, write = 4, 2
	for _, name := range f.names() {
		if err := syscall.Access(name, read|write); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return name
		}
	}
	if dir := filepath.Dir(f.Path); syscall.Access(dir, write) != nil {
		return dir
	}
	return ""
}
