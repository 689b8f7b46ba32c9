package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"dovepush/config"
	"dovepush/userlist"
)

// errList: the list of users cannot be read.
var errList = errors.New("list of users")

// openList reads the list that the flags name to its end; nil if there is none.
func (a *app) openList(ctx context.Context, f reconcileFlags, c *config.Config) (*list, error) {
	var in io.Reader
	name := f.users
	switch {
	case f.command != "":
		name = "--users-command"
		source, err := a.startSource(ctx, f.command)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errList, err)
		}
		defer source.close()
		in = source
	case f.users == "-":
		name, in = "standard input", a.stdin
	case f.users != "":
		file, err := os.Open(f.users)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errList, err)
		}
		defer file.Close()
		in = file
	default:
		return nil, nil
	}
	read, err := userlist.Read(ctx, in, userlist.Options{Name: name, Identity: c.IdentityFor})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errList, err)
	}
	return &list{read}, nil
}

// source is a command that prints a list.
type source struct {
	out  io.ReadCloser
	stop context.CancelFunc
	wait func() error // may be called by two at once, as Cmd.Wait may not
}

// startSource starts a command of the shell. What it says on standard error is
// for whoever reads ours.
func (a *app) startSource(ctx context.Context, command string) (*source, error) {
	ctx, stop := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command)
	cmd.Stderr = a.stderr
	// A group of its own, so that what the shell started is killed with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		stop()
		return nil, fmt.Errorf("--users-command: %w", err)
	}
	return &source{out: out, stop: stop, wait: sync.OnceValue(cmd.Wait)}, nil
}

// Read reads what the command prints. Its end is only the end of the list if
// the command succeeds.
func (s *source) Read(p []byte) (int, error) {
	n, err := s.out.Read(p)
	if err == nil || !errors.Is(err, io.EOF) {
		return n, err
	}
	if failed := s.wait(); failed != nil {
		return n, fmt.Errorf("the command failed, its list is not used: %w", failed)
	}
	return n, io.EOF
}

// close ends the command if it has not ended. Somebody may still be reading.
func (s *source) close() {
	s.stop()
	_ = s.wait() // if it was killed, that is why we are here; else Read has told
}
