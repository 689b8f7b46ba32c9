// Package dbfile opens SQLite files of dovepush's own: readable by their owner
// only, marked as dovepush's, with errors that say what to do about them. It
// knows nothing of what is in them. The usual order of calls is
//
//	f := dbfile.File{What: "registry", Path: path, ...}
//	f.Patiently(ctx, func() error {      // while other processes are in the way
//		info, err := f.Prepare()         // a file of its owner's is there
//		f.Identify(ctx, len(steps))      // it is ours; nothing was changed yet
//		db, err := f.Pool(1, ...)
//		f.WantWAL(ctx, db)
//		f.Migrate(ctx, db, steps)
//	})
//	g := dbfile.NewGroup(...)            // callers share commits
//	f.Still(info)                        // after each commit
//	f.Explain(op, err)                   // each error of SQLite's
package dbfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// File is an SQLite file of dovepush's own, and what to say of it.
type File struct {
	What          string // begins messages; What.path is the setting that names the file
	Path          string // absolute
	ApplicationID uint32 // marks it, https://www.sqlite.org/pragma.html#pragma_application_id
	Pragma        string // run by every connection, as in "temp_store(memory)"; may be empty
	// Overwritten says what to do about a file that was ours and is SQLite's no more.
	Overwritten string
	// Damaged says what to do about a damaged file after "stop dovepush". %s
	// stands for the names of all of its files.
	Damaged string
}

// names are those of the files that make up the database.
func (f File) names() []string { return []string{f.Path, f.Path + "-wal", f.Path + "-shm"} }

// Prepare sees to it that there is a file that only its owner can read, and
// creates an empty one if there is none.
//
// It must never open and close an existing one: closing any descriptor of a
// file drops all POSIX locks that the process holds on it, SQLite's included
// (https://www.sqlite.org/howtocorrupt.html, section 2.2).
func (f File) Prepare() (fs.FileInfo, error) {
	if err := f.checkDir(); err != nil {
		return nil, err
	}
	if _, err := os.Stat(f.Path); errors.Is(err, fs.ErrNotExist) {
		if err := createFile(f.Path); err != nil {
			return nil, f.Explain("create", err)
		}
	}
	info, err := f.inspect()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s %s: a symbolic link that leads nowhere; remove it or create what it points to: %w", f.What, f.Path, err)
	}
	return info, err
}

// inspect is Prepare for a file that must be there.
func (f File) inspect() (fs.FileInfo, error) {
	info, err := os.Stat(f.Path)
	if err != nil {
		return nil, f.Explain("open", err)
	}
	if !info.Mode().IsRegular() {
		return nil, f.problem(ErrForeign, "a %s, not a file; set %s.path to a file", kindOf(info.Mode()), f.What)
	}
	return info, f.tighten()
}

// Still fails with fs.ErrNotExist if the file that Prepare saw is not at its
// path any more: SQLite goes on writing to a file that was removed, and nobody
// would see that again.
func (f File) Still(seen fs.FileInfo) error {
	info, err := f.inspect()
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(info, seen) {
		return fmt.Errorf("%s %s: the file was removed or replaced while dovepush ran, which still uses the old one; run dovepush again: %w", f.What, f.Path, fs.ErrNotExist)
	}
	return err
}

func (f File) checkDir() error {
	dir := filepath.Dir(f.Path)
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s %s: the directory %s does not exist; create it and give it to the user who runs dovepush: %w", f.What, f.Path, dir, fs.ErrNotExist)
	case err != nil:
		return f.Explain("open", err)
	case !info.IsDir():
		return fmt.Errorf("%[1]s %[2]s: %[3]s is not a directory; set %[1]s.path to a file in one", f.What, f.Path, dir)
	}
	return nil
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

// giveToOwnerOf lets a file that root creates belong to the owner of its
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

// tighten takes group's and others' permissions off the files. SQLite gives
// new -wal and -shm files the mode of the main one.
func (f File) tighten() error {
	for _, name := range f.names() {
		info, err := os.Stat(name)
		if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode().Perm()&0o077 == 0 {
			continue
		}
		if err == nil {
			err = os.Chmod(name, info.Mode().Perm()&0o700)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			p := f.problem(ErrPermission, "%s is open to other users and uid %d cannot change that; run chmod 600 on it as its owner", name, os.Geteuid())
			p.cause = err
			return p
		}
	}
	return nil
}

func kindOf(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "directory"
	case m&fs.ModeNamedPipe != 0:
		return "named pipe"
	case m&fs.ModeSocket != 0:
		return "socket"
	}
	return "device"
}
