package config

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

const (
	maxSecret   = 64 << 10         // bytes, without the newline
	commandTime = 30 * time.Second // for a command to print its secret
	drainTime   = time.Second      // for what a finished or killed command left behind
)

var errTooLong = fmt.Errorf("is longer than %d KiB", maxSecret>>10)

// Read returns the secret. A file is read and a command is run on each call,
// so a new secret counts from the next call on. One newline at the end (LF or
// CRLF) is not part of the secret. An empty one, one of several lines, one
// with a NUL and one over 64 KiB are errors.
//
// A command is run by /bin/sh -c with empty standard input, in the caller's
// environment plus env ("DOVEPUSH_USER=alice"), for at most 30 seconds or
// until ctx is done; then it is killed with its children. Its standard error
// appears in the error, one line of it; its standard output never does.
//
// The error is an [*Error] that names the key, and wraps the cause.
func (s Secret) Read(ctx context.Context, env ...string) (string, error) {
	value, err := s.read(ctx, env)
	if err != nil {
		return "", &Error{Key: s.Key(), Server: s.origin.server, Msg: err.Error(), Err: err}
	}
	return value, nil
}

func (s Secret) read(ctx context.Context, env []string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	switch {
	case s.file != "":
		name := s.origin.resolve(s.file)
		data, err := readFile(name, maxSecret+len("\r\n"))
		if err != nil {
			return "", err
		}
		value, err := clean(chomp(data))
		if err != nil {
			return "", fmt.Errorf("%s %w", name, err)
		}
		return value, nil
	case s.command != "":
		data, err := run(ctx, s.command, env, commandTime)
		if err != nil {
			return "", err
		}
		value, err := clean(chomp(data))
		if err != nil {
			return "", fmt.Errorf("the command's output %w", err)
		}
		return value, nil
	case s.value != nil:
		return clean(*s.value)
	}
	return "", errors.New("is not set")
}

// chomp removes one newline, as an editor or echo leaves it.
func chomp(data []byte) string {
	data, found := bytes.CutSuffix(data, []byte("\n"))
	if found {
		data = bytes.TrimSuffix(data, []byte("\r"))
	}
	return string(data)
}

// clean refuses what cannot be a secret: nothing of it may reach an IMAP or
// HTTP line unseen.
func clean(value string) (string, error) {
	switch {
	case value == "":
		return "", errors.New("is empty; write the secret into it")
	case len(value) > maxSecret:
		return "", errTooLong
	case strings.ContainsAny(value, "\r\n"):
		return "", errors.New("holds more than one line; a secret is one line")
	case strings.ContainsRune(value, 0):
		return "", errors.New("holds a NUL byte; a secret is text")
	}
	return value, nil
}

// readFile reads a regular file of at most limit bytes. Opening does not wait
// for a writer if the file is a named pipe.
func readFile(name string, limit int) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, mend(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", name)
	}
	data, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if len(data) > limit {
		if limit < maxPEM {
			return nil, fmt.Errorf("%s %w", name, errTooLong)
		}
		return nil, fmt.Errorf("%s is longer than %d MiB", name, limit>>20)
	}
	return data, nil
}

// mend adds what to do about a file that cannot be opened.
func mend(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w; create it or correct the name", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w; chown it to the user that dovepush runs as, then chmod 600", err)
	}
	return err
}

// run returns what the command printed, or an error without it.
func run(ctx context.Context, command string, env []string, limit time.Duration) ([]byte, error) {
	ctx, stop := context.WithTimeoutCause(ctx, limit,
		fmt.Errorf("the command did not finish within %s", Duration(limit)))
	defer stop()
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)

	stdout := &bounded{limit: maxSecret + len("\r\n"), full: func() {
		fail(fmt.Errorf("the command's output %w", errTooLong))
	}}
	stderr := &bounded{limit: 1 << 10}
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	// A group of its own, so that what the shell started is killed with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = drainTime

	err := cmd.Run()
	switch {
	case err == nil && !stdout.overflowed:
		return stdout.buf.Bytes(), nil
	case context.Cause(ctx) != nil:
		return nil, context.Cause(ctx)
	case errors.Is(err, exec.ErrWaitDelay):
		_ = cmd.Cancel() // the shell is gone, its group is not
		return nil, errors.New("the command left a process running that holds its output open")
	}
	if line := firstLine(stderr.buf.String()); line != "" {
		return nil, fmt.Errorf("the command failed: %w: %s", err, line)
	}
	return nil, fmt.Errorf("the command failed: %w", err)
}

// bounded keeps the first limit bytes written to it, then calls full.
type bounded struct {
	buf        bytes.Buffer
	limit      int
	full       func() // optional
	overflowed bool
}

func (b *bounded) Write(p []byte) (int, error) {
	room := b.limit - b.buf.Len()
	b.buf.Write(p[:min(room, len(p))])
	if room < len(p) && !b.overflowed {
		b.overflowed = true
		if b.full != nil {
			b.full()
		}
	}
	return len(p), nil
}

// firstLine makes what a command says fit for a message.
func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	s = printable(s)
	if r := []rune(s); len(r) > 200 {
		s = string(r[:200]) + "..."
	}
	return strings.TrimSpace(s)
}
