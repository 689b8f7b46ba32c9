package userlist

import (
	"context"
	"io"
)

// blockSize is how much of a list is read at a time, in bytes.
const blockSize = 64 << 10

// block is what one r.Read returned.
type block struct {
	data []byte
	err  error
}

// source is an io.Reader whose Read ends with its context, though that of the
// reader beneath may not.
type source struct {
	ctx    context.Context
	blocks chan block
	rest   block // not yet given out
}

// newSource begins to read from r, in a goroutine that ends when r does, or
// after ctx as soon as the r.Read under way returns. The goroutine writes to
// one buffer while the other is given out.
func newSource(ctx context.Context, r io.Reader) *source {
	s := &source{ctx: ctx, blocks: make(chan block)}
	go func() {
		filled, free := make([]byte, blockSize), make([]byte, blockSize)
		for {
			n, err := r.Read(filled)
			select {
			case s.blocks <- block{filled[:n], err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
			filled, free = free, filled
		}
	}()
	return s
}

func (s *source) Read(p []byte) (int, error) {
	if len(s.rest.data) == 0 && s.rest.err == nil && s.ctx.Err() == nil {
		select {
		case s.rest = <-s.blocks:
		case <-s.ctx.Done():
		}
	}
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	n := copy(p, s.rest.data)
	s.rest.data = s.rest.data[n:]
	if len(s.rest.data) > 0 {
		return n, nil
	}
	return n, s.rest.err
}
