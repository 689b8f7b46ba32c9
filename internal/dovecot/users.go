package dovecot

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const sighup = syscall.SIGHUP

// accounts are the passwd-files that Dovecot reads: users and masters.
type accounts struct {
	dir    string
	group  int // that of the auth process; -1: our own
	master string

	mu       sync.Mutex
	password string // the master's
	lines    map[string]string
	stamp    time.Time // of the newest file
}

// AddUser adds users, or replaces those with the same name. Dovecot knows them
// when it returns, which takes up to a second: add many at once.
func (s *Server) AddUser(users ...User) error {
	return s.files.change(func() error { return s.files.set(users) })
}

// RemoveUser removes users; their mail stays. It takes as long as AddUser.
func (s *Server) RemoveUser(names ...string) error {
	return s.files.change(func() error {
		for _, name := range names {
			delete(s.files.lines, name)
		}
		return nil
	})
}

// SetMasterPassword changes the password of MasterUser; the field
// MasterPassword keeps its first value. It takes as long as AddUser.
func (s *Server) SetMasterPassword(password string) error {
	return s.files.change(func() error {
		s.files.password = password
		return nil
	})
}

// change edits the accounts and waits until Dovecot must see it: it looks at
// the files once in a second of the clock (db_passwd_file_sync in
// src/auth/db-passwd-file.c).
func (a *accounts) change(edit func() error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := edit(); err != nil {
		return err
	}
	if err := a.write(); err != nil {
		return err
	}
	now := time.Now()
	time.Sleep(now.Truncate(time.Second).Add(time.Second + 20*time.Millisecond).Sub(now))
	return nil
}

// set enters all users or none.
func (a *accounts) set(users []User) error {
	next := maps.Clone(a.lines)
	if next == nil {
		next = make(map[string]string)
	}
	for _, u := range users {
		line, err := u.line()
		if err != nil {
			return err
		}
		next[u.Name] = line
	}
	a.lines = next
	return nil
}

// write replaces both files. Dovecot reads one again when its size or its
// modification time in whole seconds differs from before: so each version is
// stamped at least a second after the last.
func (a *accounts) write() error {
	a.stamp = maxTime(time.Now(), a.stamp.Add(time.Second)).Truncate(time.Second)
	var users strings.Builder
	for _, name := range slices.Sorted(maps.Keys(a.lines)) {
		users.WriteString(a.lines[name])
	}
	for name, text := range map[string]string{
		"users":   users.String(),
		"masters": passwdLine(a.master, a.password, ""),
	} {
		path := filepath.Join(a.dir, name)
		if err := a.replace(path, text); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
	}
	return nil
}

func (a *accounts) replace(path, text string) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		return err
	}
	if err := a.share(tmp); err != nil {
		return err
	}
	if err := os.Chtimes(tmp, a.stamp, a.stamp); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// share lets the auth process read the file, and nobody else.
func (a *accounts) share(path string) error {
	if a.group < 0 {
		return nil
	}
	if err := os.Chown(path, -1, a.group); err != nil {
		return err
	}
	return os.Chmod(path, 0o640)
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
