package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Bounds of what doveconf may print: "doveconf" alone prints some 100 KiB.
const (
	maxDoveconf = 4 << 20
	maxBlocks   = 32 // in one another
)

// block is a part of Dovecot's settings: what doveconf prints between braces,
// or all of it.
type block struct {
	name, title string // "push_notification", "ox"
	values      []setting
	blocks      []*block
	comments    []string // of the outermost only
}

type setting struct{ key, value string }

// value returns the value of the first of these keys that is set.
func (b *block) value(keys ...string) string {
	for _, key := range keys {
		for _, v := range b.values {
			if v.key == key && v.value != "" {
				return v.value
			}
		}
	}
	return ""
}

// all returns the blocks of a name.
func (b *block) all(name string) (list []*block) {
	for _, inner := range b.blocks {
		if inner.name == name {
			list = append(list, inner)
		}
	}
	return list
}

var errDoveconf = errors.New("not what doveconf prints")

// parseDoveconf reads what doveconf prints of Dovecot 2.3 and 2.4: "key =
// value", and blocks "name [title] {".
func parseDoveconf(text string) (*block, error) {
	root := &block{}
	open := []*block{root}
	for line := range strings.SplitSeq(text, "\n") {
		line = strings.TrimSpace(line)
		inner := open[len(open)-1]
		switch {
		case line == "":
		case strings.HasPrefix(line, "#"):
			if inner == root {
				root.comments = append(root.comments, strings.TrimSpace(line[1:]))
			}
		case line == "}":
			if inner == root {
				return nil, fmt.Errorf("%w: a } too many", errDoveconf)
			}
			open = open[:len(open)-1]
		case strings.HasSuffix(line, "{") && !strings.Contains(line, " = "):
			if len(open) > maxBlocks {
				return nil, fmt.Errorf("%w: nested more than %d deep", errDoveconf, maxBlocks)
			}
			name, title, _ := strings.Cut(strings.TrimSpace(strings.TrimSuffix(line, "{")), " ")
			if plain, err := strconv.Unquote(title); err == nil {
				title = plain
			}
			next := &block{name: name, title: title}
			inner.blocks = append(inner.blocks, next)
			open = append(open, next)
		default:
			key, value, found := strings.Cut(line, "=")
			if !found {
				return nil, fmt.Errorf("%w: a line without =", errDoveconf) // not shown: it may be a secret's
			}
			inner.values = append(inner.values, setting{strings.TrimSpace(key), strings.TrimSpace(value)})
		}
	}
	if len(open) > 1 {
		return nil, fmt.Errorf("%w: it ends within %s", errDoveconf, open[len(open)-1].name)
	}
	return root, nil
}

// doveconf runs a command line of the shell with further arguments, and reads
// what it prints. Neither that nor its arguments appear in errors, for they hold
// the password of the driver's URL.
func doveconf(ctx context.Context, limit time.Duration, command string, args ...string) (*block, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it took more than %s", limit))
	defer cancel()
	ctx, enough := context.WithCancelCause(ctx)
	defer enough(nil)
	cmd := exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", command + ` "$@"`, "sh"}, args...)...)
	complaint := capped{left: 4 << 10}
	out := capped{left: maxDoveconf, full: func() { enough(fmt.Errorf("%w: more than %d MiB", errDoveconf, maxDoveconf>>20)) }}
	cmd.Stdout, cmd.Stderr = &out, &complaint
	// A group of its own, so that what the shell started is killed with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		if context.Cause(ctx) != nil {
			return nil, context.Cause(ctx)
		}
		if line, _, _ := strings.Cut(strings.TrimSpace(complaint.kept.String()), "\n"); line != "" {
			return nil, fmt.Errorf("%w: %s", err, line)
		}
		return nil, err
	}
	if context.Cause(ctx) != nil {
		return nil, context.Cause(ctx)
	}
	return parseDoveconf(out.kept.String())
}

// capped keeps the first bytes that are written to it. It does not embed the
// buffer, which would read without a bound by itself (io.ReaderFrom).
type capped struct {
	kept bytes.Buffer
	left int
	full func() // optional; called once there is more
}

func (c *capped) Write(p []byte) (int, error) {
	n := min(len(p), c.left)
	c.left -= n
	c.kept.Write(p[:n])
	if n < len(p) && c.full != nil {
		c.full()
	}
	return len(p), nil
}
