package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"iter"
	"strings"
)

// users yields the users named on the command line; "-" stands for those on
// standard input, one a line. Trouble with reading them ends in an error, after
// the users before it; so does ctx.
func (a *app) users(ctx context.Context, args []string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for _, arg := range args {
			if arg != "-" {
				if !yield(arg, nil) {
					return
				}
				continue
			}
			for user, err := range untilDone(ctx, lines(a.stdin)) {
				if !yield(user, err) {
					return
				}
			}
		}
	}
}

// untilDone yields what seq does until ctx is over. Nothing ends a read from
// standard input but its other end: the read that ctx has overtaken ends with
// the process.
func untilDone(ctx context.Context, seq iter.Seq2[string, error]) iter.Seq2[string, error] {
	type line struct {
		user string
		err  error
	}
	return func(yield func(string, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		read := make(chan line, 64) // so that a fast source is not a switch of goroutines a line
		go func() {
			defer close(read)
			for user, err := range seq {
				select {
				case read <- line{user, err}:
				case <-ctx.Done():
					return
				}
			}
		}()
		for {
			select {
			case l, ok := <-read:
				if !ok || !yield(l.user, l.err) {
					return
				}
			case <-ctx.Done():
				yield("", context.Cause(ctx))
				return
			}
		}
	}
}

// maxLine is how much of a line is kept, in bytes: enough to say what was
// wrong with a name that is longer than any user's.
const maxLine = 4096

// lines yields the lines that are not empty, without their ends (LF or CRLF).
// Blanks belong to the name. A line of more than maxLine bytes is cut.
func lines(r io.Reader) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		in, first := bufio.NewReaderSize(r, maxLine), true
		for {
			text, cut, err := in.ReadLine()
			if err == io.EOF {
				return
			}
			user := string(text)
			if first {
				user, first = strings.TrimPrefix(user, "\ufeff"), false // a byte order mark
			}
			for cut && err == nil {
				_, cut, err = in.ReadLine()
			}
			if err != nil && err != io.EOF {
				yield("", fmt.Errorf("standard input: %w", err))
				return
			}
			if user != "" && !yield(user, nil) {
				return
			}
		}
	}
}
