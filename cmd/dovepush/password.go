package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"

	"dovepush/config"
)

// maxPassword bounds a password on standard input, in bytes.
const maxPassword = 4096

// ownPassword asks for a user's own password if it is needed: with
// --password-stdin, or at the terminal when the settings name no master user
// and no other source. It returns nil if the settings suffice.
func (a *app) ownPassword(ctx context.Context, c *config.Config, users []string, fromStdin bool) (*config.Secret, error) {
	single := len(users) == 1 && users[0] != "-"
	if !fromStdin && !needsPassword(c, users) {
		if key := fixedPassword(c); key != "" && !single {
			// A refused login for everybody else, and Dovecot's penalty for it.
			return nil, fmt.Errorf("%w: %s is one password, and there is no master_user: name exactly one USER, or use password_command", errConfig, key)
		}
		return nil, nil
	}
	if !single {
		return nil, usagef("a password is one user's own: name exactly one USER")
	}
	if s, ok := c.ServerFor(users[0]); ok && s.Connector != config.ConnectorIMAP {
		return nil, usagef("server %q has connector %q, which logs nobody in: a user's own password is of no use", s.Name, s.Connector)
	}
	password, err := a.readPassword(ctx, users[0], fromStdin)
	if err != nil {
		return nil, err
	}
	if password == "" {
		return nil, usagef("the password is empty")
	}
	secret := config.NewSecret(password)
	return &secret, nil
}

// fixedPassword names the key of a password that is every user's own, and
// cannot be; empty if there is none.
func fixedPassword(c *config.Config) string {
	for _, s := range c.Servers {
		key := s.Auth.Password.Key()
		if s.Connector == config.ConnectorIMAP && s.Auth.MasterUser == "" && s.Auth.Password.IsSet() && !strings.HasSuffix(key, "_command") {
			return key
		}
	}
	return ""
}

func needsPassword(c *config.Config, users []string) bool {
	for _, user := range users {
		s, ok := c.ServerFor(user)
		if ok && s.Connector == config.ConnectorIMAP && s.Auth.MasterUser == "" && !s.Auth.Password.IsSet() && s.Auth.Mechanism != config.MechanismExternal {
			return true
		}
	}
	return false
}

func (a *app) readPassword(ctx context.Context, user string, fromStdin bool) (string, error) {
	if !fromStdin {
		return a.prompt(ctx, user)
	}
	text, err := await(ctx, func() ([]byte, error) { return io.ReadAll(io.LimitReader(a.stdin, maxPassword+1)) })
	if err != nil {
		return "", fmt.Errorf("password on standard input: %w", err)
	}
	if len(text) > maxPassword {
		return "", usagef("the password is longer than %d bytes", maxPassword)
	}
	password, _ := strings.CutSuffix(string(text), "\n")
	password, _ = strings.CutSuffix(password, "\r")
	if strings.ContainsAny(password, "\r\n\x00") {
		return "", usagef("the password on standard input must be one line")
	}
	return password, nil
}

// prompt asks at the terminal, without echo.
func (a *app) prompt(ctx context.Context, user string) (string, error) {
	in, ok := a.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return "", usagef("the settings name no master user: give the password of %s with --password-stdin", printable(user))
	}
	fd := int(in.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return "", fmt.Errorf("read the password: %w", err)
	}
	fmt.Fprintf(a.stderr, "Password of %s: ", printable(user))
	text, err := await(ctx, func() ([]byte, error) { return term.ReadPassword(fd) })
	fmt.Fprintln(a.stderr)
	switch {
	case ctx.Err() != nil:
		term.Restore(fd, before)
		return "", ctx.Err()
	case errors.Is(err, io.EOF):
		return "", usagef("no password was given")
	case err != nil:
		return "", fmt.Errorf("read the password: %w", err)
	}
	return string(text), nil
}

// await reads until ctx is over. Nothing ends a read from a terminal or pipe
// but its other end: the read that ctx has overtaken ends with the process.
func await(ctx context.Context, read func() ([]byte, error)) ([]byte, error) {
	type result struct {
		text []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		text, err := read()
		done <- result{text, err}
	}()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case r := <-done:
		return r.text, r.err
	}
}
