package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// busyTimeout is how long a statement waits for another process's lock.
const busyTimeout = 20 * time.Second

// suffixes are those of the files that make up a spool.
var suffixes = []string{"", "-wal", "-shm"}

// prepareFile sees to it that path is a file that only its owner can read,
// and creates an empty one if there is none.
//
// It must never open and close an existing spool: closing any descriptor of a
// file drops all POSIX locks that the process holds on it, SQLite's included
// (https://www.sqlite.org/howtocorrupt.html, section 2.2).
func prepareFile(path string) (fs.FileInfo, error) {
	dir := filepath.Dir(path)
	switch info, err := os.Stat(dir); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("spool %s: the directory %s does not exist; create it and give it to the user who runs dovepush: %w", path, dir, fs.ErrNotExist)
	case err != nil:
		return nil, explain(path, "open", err)
	case !info.IsDir():
		return nil, fmt.Errorf("spool %s: %s is not a directory", path, dir)
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := createFile(path); err != nil {
			return nil, explain(path, "create", err)
		}
	}
	return inspectFile(path)
}

// inspectFile is prepareFile for a file that must be there.
func inspectFile(path string) (fs.FileInfo, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, explain(path, "open", err)
	}
	if !info.Mode().IsRegular() {
		return nil, &problem{class: ErrForeign, text: fmt.Sprintf("spool %s: not a regular file (%v)", path, info.Mode().Type())}
	}
	return info, tighten(path)
}

// createFile makes an empty file that nobody else could ever open, whatever
// the umask. It is made under another name and linked into place, so that
// its descriptor is closed before SQLite can hold a lock on it.
func createFile(path string) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	err = errors.Join(f.Chmod(0o600), giveToOwnerOf(dir, f), f.Close()) // the umask may take more away than CreateTemp does
	if err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// giveToOwnerOf lets a spool that root creates belong to the owner of its
// directory. Otherwise one command run by root before the service's first
// start would lock the service out.
func giveToOwnerOf(dir string, f *os.File) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 {
		return f.Chown(int(st.Uid), int(st.Gid))
	}
	return nil
}

// tighten takes group's and others' permissions off the spool's files. SQLite
// gives new -wal and -shm files the mode of the main one.
func tighten(path string) error {
	for _, suffix := range suffixes {
		name := path + suffix
		info, err := os.Stat(name)
		if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode().Perm()&0o077 == 0 {
			continue
		}
		if err == nil {
			err = os.Chmod(name, info.Mode().Perm()&0o700)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return &problem{
				class: ErrPermission,
				text:  fmt.Sprintf("spool %s: %s is open to other users and uid %d cannot change that; run chmod 600 on it as its owner", path, name, os.Geteuid()),
				cause: err,
			}
		}
	}
	return nil
}

// still fails if the file at the path is not the one that is open any more:
// SQLite goes on writing to a file that was removed, and nobody would see
// that again.
func (s *Spool) still() error {
	info, err := os.Stat(s.path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(info, s.file) {
		return fmt.Errorf("spool %s: the file was removed or replaced while dovepush ran, which still uses the old one; run dovepush again: %w", s.path, fs.ErrNotExist)
	}
	return explain(s.path, "look at the file", err)
}

// dsn names the file to the driver. It is always a URI, so that any byte may
// stand in the path, and never creates the file. What SQLite needs to set
// aside for a moment stays in memory, for it may be mail.
func dsn(path string, more url.Values) string {
	q := url.Values{
		"mode":          {"rw"},
		"_busy_timeout": {strconv.FormatInt(busyTimeout.Milliseconds(), 10)},
		"_dqs":          {"0"}, // "x" is a column, never a string
		"_defensive":    {"1"},
		"_error_rc":     {"1"}, // no stale text in messages
		"_pragma":       {"temp_store(memory)"},
	}
	for k, v := range more {
		q[k] = append(q[k], v...)
	}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String()
}
