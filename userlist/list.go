package userlist

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"sync/atomic"
)

// Entry is a user of a list.
type Entry struct {
	User     string // never empty
	Identity string // empty: the default one
}

// Options says how to read a list.
type Options struct {
	// Name of the list, for messages: its path, "standard input", or where a
	// sequence comes from.
	Name string
	// Dir is where the temporary file goes. It has to exist. Empty:
	// os.TempDir().
	Dir string
	// Identity returns a user's default identity. It is asked only about users
	// of several lines that differ, to tell whether these ask for the same: never
	// about those of a sequence. Required.
	Identity func(user string) string
}

// List is a list that was read to its end.
type List struct {
	name     string
	identity func(user string) string
	lines    int64
	sorter   sorter
	record   []byte      // put's, for the next one
	taken    atomic.Bool // by All or Close: who takes it closes the sorter
	closed   atomic.Bool // All is to end
}

// Read reads a list to its end. The list returned has to be closed.
//
// One user a line, or user TAB identity; lines end with LF or CRLF, the last
// one need not. Blanks belong to the name. Empty lines, lines that begin with
// #, and a UTF-8 byte order mark at the start are skipped. An error that
// matches ErrMalformed tells of the first line with more than one TAB, nothing
// on either side of the TAB, a NUL byte, or more than 4096 bytes.
//
// When ctx is over, Read returns its cause. If it fails for this or another
// reason, an r.Read may still be under way, and with it a goroutine that ends
// when it returns; nothing else remains. After success nothing uses r.
//
// From Read or Collect to the end of All, a list takes some 5 MiB of memory, and the
// buffers of the temporary file: a 32nd of its size, but at most 64 MiB. With
// what the garbage collector has not yet seen, 7 MiB were measured for a million
// users, and 22 for ten.
func Read(ctx context.Context, r io.Reader, o Options) (*List, error) {
	return read(ctx, r, o, chunkSize)
}

func read(ctx context.Context, r io.Reader, o Options, chunk int) (*List, error) {
	return build(o, chunk, func(l *List) error { return l.fill(ctx, r) })
}

// build makes a list of what fill puts into it. It is closed unless all went
// well.
func build(o Options, chunk int, fill func(l *List) error) (list *List, err error) {
	if o.Identity == nil {
		return nil, errors.New("userlist: no Options.Identity")
	}
	if o.Dir == "" {
		o.Dir = os.TempDir()
	}
	l := &List{name: o.Name, identity: o.Identity, sorter: sorter{dir: o.Dir, limit: chunk}}
	defer func() {
		if list == nil { // also if a sequence panics
			err = errors.Join(err, l.Close())
		}
	}()
	if err := fill(l); err != nil {
		return nil, err
	}
	if err := l.sorter.finish(); err != nil {
		return nil, l.unsorted(err)
	}
	return l, nil
}

// put takes in a user, who stands in the line or is the entry of this number.
func (l *List) put(user []byte, number int64, identity []byte) error {
	l.lines++
	l.record = appendRecord(l.record[:0], user, number, identity)
	if err := l.sorter.put(l.record); err != nil {
		return l.unsorted(err)
	}
	return nil
}

func (l *List) fill(ctx context.Context, r io.Reader) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in := bufio.NewReaderSize(newSource(ctx, r), blockSize)
	var end error
	for line := int64(1); end == nil; line++ {
		var text []byte
		text, end = in.ReadSlice('\n')
		if end == bufio.ErrBufferFull {
			end = nil // far longer than a line may be
		}
		if end != nil && end != io.EOF {
			return fmt.Errorf("%s line %d: %w", l.name, line, end)
		}
		text = chomp(text)
		if line == 1 {
			text = bytes.TrimPrefix(text, byteOrderMark)
		}
		user, identity, wrong := parse(text)
		if wrong != "" {
			return malformed(fmt.Sprintf("%s line %d: %s", l.name, line, wrong))
		}
		if len(user) == 0 {
			continue
		}
		if err := l.put(user, line, identity); err != nil {
			return err
		}
	}
	return nil
}

func (l *List) unsorted(err error) error {
	return fmt.Errorf("%s: cannot sort it in %s: %w", l.name, l.sorter.dir, err)
}

// Lines returns how many lines named a user, or how many entries a sequence had.
func (l *List) Lines() int64 { return l.lines }

// All yields the users sorted bytewise by name, each once. Lines of a user
// that ask for the same identity are one entry, as the first of them has it.
// An error comes last: one that matches ErrMalformed and names the lines where
// a user has two identities, trouble with the temporary file, or ctx's cause.
//
// The users can be had once: after that, and after Close, All yields an error
// alone. Whether it ends by itself or is broken off, the list is closed by it.
func (l *List) All(ctx context.Context) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		if l.taken.Swap(true) {
			yield(Entry{}, fmt.Errorf("%s: %w", l.name, errTaken))
			return
		}
		defer l.sorter.close() // what was only read has nothing to lose
		var first Entry        // of the lines of the user at hand
		var firstLine int64
		for record, err := range l.sorter.records() {
			if err != nil {
				err = l.unsorted(err)
			} else {
				err = l.over(ctx)
			}
			if err != nil {
				yield(Entry{}, err)
				return
			}
			user, line, identity := split(record)
			if firstLine > 0 && string(user) == first.User {
				if err := l.same(first, firstLine, string(identity), line); err != nil {
					yield(Entry{}, err)
					return
				}
				continue
			}
			if firstLine > 0 && !yield(first, nil) {
				return
			}
			first, firstLine = Entry{User: string(user), Identity: string(identity)}, line
		}
		if firstLine > 0 {
			yield(first, nil)
		}
	}
}

// over returns an error when All or Collect has to end.
func (l *List) over(ctx context.Context) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", l.name, context.Cause(ctx))
	}
	if l.closed.Load() {
		return fmt.Errorf("%s: %w", l.name, errTaken)
	}
	return nil
}

// same returns an error unless another line of a user asks for the same
// identity as the first.
func (l *List) same(first Entry, firstLine int64, identity string, line int64) error {
	if identity == first.Identity {
		return nil
	}
	effective := func(identity string) string {
		if identity == "" {
			return l.identity(first.User)
		}
		return identity
	}
	a, b := effective(first.Identity), effective(identity)
	if a == b {
		return nil
	}
	return malformed(fmt.Sprintf("%s lines %d and %d: user %s has two identities, %s and %s",
		l.name, firstLine, line, quote(first.User), quote(a), quote(b)))
}

// Close releases the list and its temporary file. An All under way ends with
// an error instead of its next entry, and releases them itself. Close may be
// called more than once.
func (l *List) Close() error {
	l.closed.Store(true)
	if l.taken.Swap(true) {
		return nil
	}
	if err := l.sorter.close(); err != nil {
		return fmt.Errorf("%s: %w", l.name, err)
	}
	return nil
}
