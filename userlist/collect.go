package userlist

import (
	"context"
	"fmt"
	"iter"
)

// Collect reads a sequence of users to its end, such as those that a userdb
// iterates through: in any order, and any of them repeatedly. The list returned
// has to be closed.
//
// Each is a user's name as it stands: there are no comments, no identities, and
// no characters that end it. An error that matches ErrMalformed tells of the
// first name that is empty, has more than 4096 bytes, or holds a NUL byte, which
// no record can.
//
// An error of the sequence ends it, and is returned in place of a list; a
// sequence that ends without one is taken to be complete. When ctx is over,
// Collect returns its cause, at the sequence's next name or at its end: while the
// sequence waits, it has to heed ctx itself.
func Collect(ctx context.Context, users iter.Seq2[string, error], o Options) (*List, error) {
	return collect(ctx, users, o, chunkSize)
}

func collect(ctx context.Context, users iter.Seq2[string, error], o Options, chunk int) (*List, error) {
	return build(o, chunk, func(l *List) error { return l.take(ctx, users) })
}

func (l *List) take(ctx context.Context, users iter.Seq2[string, error]) error {
	if err := l.over(ctx); err != nil {
		return err
	}
	var name []byte // one buffer for all
	for user, err := range users {
		if over := l.over(ctx); over != nil { // the sequence may put it in words of its own
			return over
		}
		if err != nil {
			if l.lines > 0 {
				err = fmt.Errorf("after entry %d: %w", l.lines, err)
			}
			return fmt.Errorf("%s: %w", l.name, err)
		}
		name = append(name[:0], user...)
		wrong := unfit(name)
		if user == "" {
			wrong = "the name is empty"
		}
		number := l.lines + 1
		if wrong != "" {
			return malformed(fmt.Sprintf("%s entry %d: %s", l.name, number, wrong))
		}
		if err := l.put(name, number, nil); err != nil {
			return err
		}
	}
	return l.over(ctx)
}
