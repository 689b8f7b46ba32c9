package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"dovepush/internal/dovecot"
)

const entry = "/private/vendor/vendor.dovecot/http-notify"

// value is what a user's entry shall hold.
func value(user string) string { return "user=" + user }

// programs are what is measured, in a directory that also has room for
// registries: on a disk, for a sync to memory would cost nothing.
type programs struct {
	dir                   string
	program, raw, rawHTTP string
}

// build makes the programs in a new directory in parent, dovepush as the
// Makefile does. The caller removes dir.
func build(ctx context.Context, parent string) (programs, error) {
	parent, err := filepath.Abs(parent)
	if err != nil {
		return programs{}, err
	}
	dir, err := os.MkdirTemp(parent, "dovepush-bench")
	if err != nil {
		return programs{}, err
	}
	p := programs{dir: dir, program: filepath.Join(dir, "dovepush"), raw: filepath.Join(dir, "raw"), rawHTTP: filepath.Join(dir, "rawhttp")}
	for path, pkg := range map[string]string{p.program: "dovepush/cmd/dovepush", p.raw: "dovepush/bench/raw", p.rawHTTP: "dovepush/bench/rawhttp"} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return programs{}, errors.Join(fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out), os.RemoveAll(dir))
		}
	}
	return p, nil
}

// onDisk returns the first directory that is not in memory, or the last.
func onDisk(dirs ...string) string {
	for _, dir := range dirs {
		var fs unix.Statfs_t
		if err := unix.Statfs(dir, &fs); err == nil && fs.Type != unix.TMPFS_MAGIC {
			return dir
		}
	}
	return dirs[len(dirs)-1]
}

// arena is one Dovecot with its users, and the contenders' own files.
type arena struct {
	programs
	server *dovecot.Server
	users  []string
}

// stock is what Dovecot ships for the services that a login meets.
var stock = map[dovecot.Version]string{
	dovecot.V23: "service imap-login {\n  service_count = 1\n  process_min_avail = 0\n}\n" +
		"service imap {\n  service_count = 1\n  process_min_avail = 0\n}\n",
	dovecot.V24: "service imap-login {\n  restart_request_count = 1\n  process_min_avail = 0\n}\n" +
		"service imap {\n  restart_request_count = 1\n  process_min_avail = 0\n}\n",
}

// newArena starts a Dovecot with n users, each of whom has logged in before:
// the mailboxes are there. The caller closes it.
func newArena(ctx context.Context, p programs, v dovecot.Version, extra map[dovecot.Version]string, n int) (*arena, error) {
	a := &arena{programs: p}
	o := dovecot.Options{Version: v, Extra: extra}
	for i := range n {
		user := fmt.Sprintf("user%06d@bench.example", i)
		a.users = append(a.users, user)
		o.Users = append(o.Users, dovecot.User{Name: user, Password: "x"})
	}
	var err error
	if a.server, err = dovecot.Start(ctx, o); err != nil {
		return nil, err
	}
	if a.dir, err = os.MkdirTemp(p.dir, "arena"); err != nil {
		return nil, errors.Join(err, a.server.Close())
	}
	if _, err := a.run(ctx, a.rawClient("warm-up", connections, "-set").first, a.users); err != nil {
		return nil, errors.Join(err, a.close())
	}
	return a, nil
}

func (a *arena) close() error { return errors.Join(a.server.Close(), os.RemoveAll(a.dir)) }

// reset makes the users' entries absent.
func (a *arena) reset(users []string) error {
	for _, user := range users {
		if err := remove(a.server.AttributeFile(user)); err != nil {
			return err
		}
	}
	return nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// check reports a user whose entry is not what it should be: all by the files
// that hold them, the first and the last by what Dovecot says itself.
func (a *arena) check(ctx context.Context, users []string) error {
	for _, user := range users {
		text, err := os.ReadFile(a.server.AttributeFile(user))
		if err != nil {
			return fmt.Errorf("%s has no entry: %w", user, err)
		}
		if !bytes.HasSuffix(text, []byte("/http-notify\n"+value(user)+"\n")) {
			return fmt.Errorf("%s has another entry: %q", user, text)
		}
	}
	for _, user := range []string{users[0], users[len(users)-1]} {
		if have, _, err := a.server.Entry(ctx, user); err != nil || have != value(user) {
			return fmt.Errorf("%s: Dovecot says %q, %v", user, have, err)
		}
	}
	return nil
}
