package userlist

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"

	"github.com/lanrat/extsort/queue"
	"github.com/lanrat/extsort/tempfile"
)

// chunkSize is how many bytes of records are sorted in memory at a time: enough
// for short merges, little enough for a processor's cache.
const chunkSize = 2 << 20

// sorter sorts records bytewise: they are put, then there is finish, and then
// they can be had once. Chunks are sorted in memory and, if there are several,
// written to a temporary file as one run each, and merged from there.
//
// File and queue are extsort's. Its sorters are not used (v1.5.0): they bound a
// chunk by its records and not by its bytes, so that 200,000 lines of 4 KiB took
// 290 MB; they cost a third more processor time and twice the memory for a
// million short ones; and cancelled, they leave behind a goroutine that sorts.
type sorter struct {
	dir   string               // for the file
	limit int                  // of a chunk, in bytes
	chunk []byte               // records, one behind the other
	refs  []ref                // where they are
	file  *tempfile.FileWriter // nil as long as one chunk is enough
	runs  tempfile.TempReader  // the file again, for reading; nil before finish
	count int64                // records put
}

// ref is where in its chunk a record is.
type ref struct{ at, size uint32 }

// put takes in a record of at most maxRecord bytes, and copies it.
func (s *sorter) put(record []byte) error {
	if s.chunk == nil {
		s.chunk = make([]byte, 0, s.limit)
	}
	if len(s.refs) > 0 && len(s.chunk)+len(record) > s.limit {
		if err := s.spill(); err != nil {
			return err
		}
	}
	s.refs = append(s.refs, ref{uint32(len(s.chunk)), uint32(len(record))})
	s.chunk = append(s.chunk, record...)
	s.count++
	return nil
}

// record returns a record of the chunk.
func (s *sorter) record(r ref) []byte { return s.chunk[r.at:][:r.size] }

func (s *sorter) sortChunk() {
	slices.SortFunc(s.refs, func(a, b ref) int { return bytes.Compare(s.record(a), s.record(b)) })
}

// spill writes the chunk to the file as a run: records in order, the size of
// each before it.
func (s *sorter) spill() error {
	if s.file == nil {
		if _, err := os.Stat(s.dir); err != nil { // else tempfile would make it
			return err
		}
		file, err := tempfile.New(s.dir, true)
		if err != nil {
			return err
		}
		s.file = file
	}
	s.sortChunk()
	var size [binary.MaxVarintLen32]byte
	for _, r := range s.refs {
		if _, err := s.file.Write(size[:binary.PutUvarint(size[:], uint64(r.size))]); err != nil {
			return err
		}
		if _, err := s.file.Write(s.record(r)); err != nil {
			return err
		}
	}
	s.chunk, s.refs = s.chunk[:0], s.refs[:0]
	_, err := s.file.Next()
	return err
}

// finish says that no more records come.
func (s *sorter) finish() error {
	if s.file == nil {
		s.sortChunk()
		return nil
	}
	if err := s.spill(); err != nil {
		return err
	}
	s.chunk, s.refs = nil, nil
	runs, err := s.file.Save()
	if err != nil {
		return err
	}
	s.file, s.runs = nil, runs
	return nil
}

// records yields the records in order, after finish and once. Each is valid
// until the next. An error comes last.
func (s *sorter) records() iter.Seq2[[]byte, error] {
	if s.runs != nil {
		return s.merge
	}
	return func(yield func([]byte, error) bool) {
		for _, r := range s.refs {
			if !yield(s.record(r), nil) {
				return
			}
		}
	}
}

func (s *sorter) merge(yield func([]byte, error) bool) {
	count := int64(0)
	q := queue.NewPriorityQueue(func(a, b *run) int { return bytes.Compare(a.record, b.record) })
	for i := range s.runs.Size() {
		r := &run{in: s.runs.Read(i)}
		if more, err := r.next(); err != nil {
			yield(nil, err)
			return
		} else if more {
			q.Push(r)
		}
	}
	for q.Len() > 0 {
		r := q.Peek()
		if !yield(r.record, nil) {
			return
		}
		count++
		if more, err := r.next(); err != nil {
			yield(nil, err)
			return
		} else if more {
			q.PeekUpdate()
		} else {
			q.Pop()
		}
	}
	if count != s.count { // a file cut short between two records
		yield(nil, fmt.Errorf("%w: %d of %d records are left", errDamaged, count, s.count))
	}
}

// errDamaged is what a file is that somebody else has written to.
var errDamaged = errors.New("temporary file damaged")

// close removes the file.
func (s *sorter) close() error {
	var err error
	if s.file != nil {
		err = s.file.Close()
	}
	if s.runs != nil {
		err = s.runs.Close()
	}
	s.file, s.runs, s.chunk, s.refs = nil, nil, nil, nil
	return err
}

// run is one run of the file, and its first record that was not yet merged.
type run struct {
	in     *bufio.Reader
	record []byte
}

// next goes to the next record. It returns false behind the last.
func (r *run) next() (bool, error) {
	size, err := binary.ReadUvarint(r.in)
	if err == io.EOF {
		return false, nil
	}
	if err == nil && size > maxRecord {
		err = errDamaged
	}
	if err != nil {
		return false, err
	}
	r.record = slices.Grow(r.record[:0], int(size))[:size]
	if _, err := io.ReadFull(r.in, r.record); err != nil {
		return false, err
	}
	return true, nil
}
