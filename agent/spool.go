package agent

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
)

// ErrPlanFile: the temporary file that a plan is kept in cannot be used.
var ErrPlanFile = errors.New("temporary file of the plan")

// step is one user's part of a plan.
type step struct {
	kind     Planned
	intend   bool // what should be has to change first
	user     string
	identity string // of who should be registered; empty: the default one
	revision int64  // of the row that the plan saw, of who should not; 0: there was none
}

// spool holds steps in a temporary file without a name, for there may be
// millions: nothing is left of it, whatever ends the process. First all are
// added, then they are read, as often as need be.
type spool struct {
	file *os.File
	out  *bufio.Writer
	n    int64
	buf  []byte
}

// newSpool makes a spool in a directory; empty: where temporary files belong.
func newSpool(dir string) (*spool, error) {
	file, err := os.CreateTemp(dir, "dovepush-plan-*")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPlanFile, err)
	}
	if err := os.Remove(file.Name()); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrPlanFile, err), file.Close())
	}
	return &spool{file: file, out: bufio.NewWriterSize(file, 64<<10)}, nil
}

func (s *spool) add(st step) error {
	flags := uint64(st.kind) << 1
	if st.intend {
		flags |= 1
	}
	s.buf = binary.AppendUvarint(s.buf[:0], flags)
	s.buf = binary.AppendUvarint(s.buf, uint64(st.revision))
	for _, text := range []string{st.user, st.identity} {
		s.buf = binary.AppendUvarint(s.buf, uint64(len(text)))
		s.buf = append(s.buf, text...)
	}
	if _, err := s.out.Write(s.buf); err != nil {
		return fmt.Errorf("%w: write: %w", ErrPlanFile, err)
	}
	s.n++
	return nil
}

// steps yields what was added, in order. Nothing may be added while it does.
func (s *spool) steps() iter.Seq2[step, error] {
	return func(yield func(step, error) bool) {
		err := s.out.Flush()
		if err == nil {
			_, err = s.file.Seek(0, io.SeekStart)
		}
		in := bufio.NewReaderSize(s.file, 64<<10)
		for range s.n {
			var st step
			if err == nil {
				st, err = readStep(in)
			}
			if err != nil {
				yield(step{}, fmt.Errorf("%w: read: %w", ErrPlanFile, err))
				return
			}
			if !yield(st, nil) {
				return
			}
		}
	}
}

// turned yields the steps from somewhere on, and then those before: users who
// fail stand together in a list, and who comes after them must have his turn
// some day although the sweep gives up. random, in [0, 1), says from where. Few
// steps are not turned, as a sweep does not give up among them.
func (s *spool) turned(random float64) iter.Seq2[step, error] {
	if s.n <= strainWindow {
		return s.steps()
	}
	from := int64(random * float64(s.n))
	return func(yield func(step, error) bool) {
		for _, late := range []bool{true, false} {
			at := int64(0)
			for st, err := range s.steps() {
				if wanted := (at >= from) == late; (wanted || err != nil) && !yield(st, err) || err != nil {
					return
				}
				at++
			}
		}
	}
}

func readStep(in *bufio.Reader) (step, error) {
	var numbers [2]uint64
	for i := range numbers {
		var err error
		if numbers[i], err = binary.ReadUvarint(in); err != nil {
			return step{}, err
		}
	}
	st := step{kind: Planned(numbers[0] >> 1), intend: numbers[0]&1 != 0, revision: int64(numbers[1])}
	for _, text := range []*string{&st.user, &st.identity} {
		size, err := binary.ReadUvarint(in)
		if err != nil {
			return step{}, err
		}
		buf := make([]byte, size)
		if _, err := io.ReadFull(in, buf); err != nil {
			return step{}, err
		}
		*text = string(buf)
	}
	return st, nil
}

func (s *spool) close() error { return s.file.Close() }
