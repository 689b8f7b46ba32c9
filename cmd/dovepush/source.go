package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"dovepush/config"
	"dovepush/imapmeta"
	"dovepush/userlist"
)

// errList: the list of users cannot be read.
var errList = errors.New("list of users")

// openList reads the list that the flags name to its end; nil if there is none.
func (a *app) openList(ctx context.Context, f reconcileFlags, c *config.Config) (*list, error) {
	var in io.Reader
	name := f.users
	switch {
	case f.from != "":
		return a.listUsers(ctx, c)
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

// listUsers lists all users whom the servers' Dovecots know. A server that
// cannot tell would have its users unregistered by --prune.
func (a *app) listUsers(ctx context.Context, c *config.Config) (*list, error) {
	var clients []client
	defer func() {
		for _, api := range clients {
			api.Close()
		}
	}()
	for i := range c.Servers {
		s := &c.Servers[i]
		if !s.HasDoveadm() {
			return nil, fmt.Errorf("%w: --users-from doveadm: server %q has no DoveAdm API: set server.doveadm.endpoints and api_key_file", errConfig, s.Name)
		}
		api, err := newDoveadm(i, s, nil)
		if err != nil {
			return nil, err
		}
		clients = append(clients, client{api, s})
	}
	read, err := userlist.Collect(ctx, usersOf(ctx, c, clients), userlist.Options{Name: "--users-from doveadm", Identity: c.IdentityFor})
	switch {
	case err == nil:
		return &list{read}, nil
	case errors.As(err, new(*imapmeta.Error)): // says what is wrong with the server, not with the list
		return nil, err
	}
	return nil, fmt.Errorf("%w: %w", errList, err)
}

// usersOf yields the users of all servers, but for those whom a server knows who
// are another's, or nobody's, by the settings.
func usersOf(ctx context.Context, c *config.Config, clients []client) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for _, api := range clients {
			for user, err := range api.Users(ctx) {
				if err != nil {
					yield("", fmt.Errorf("server %q: %w", api.server.Name, err))
					return
				}
				if server, ok := route(c, user); ok && server == api.server.Name && !yield(user, nil) {
					return
				}
			}
		}
	}
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
