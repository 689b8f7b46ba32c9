package userlist

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// One list for what takes many users, for to read it takes its time under the
// race detector: each user is in it twice, and one of them a third time.
func TestManyUsersAreMerged(t *testing.T) {
	half, want := numbered(many / 2)
	const odd = many/2 - 10
	text := half + want[odd].User + "\tother\n" + half
	l, err := Read(t.Context(), strings.NewReader(text), options(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if l.sorter.runs == nil || l.sorter.runs.Size() < 3 {
		t.Error("not several chunks")
	}
	if l.Lines() != many+1 {
		t.Errorf("%d lines, want %d", l.Lines(), many+1)
	}
	got, err := all(t.Context(), l)
	same(t, got, want[:odd])
	line := strings.Count(half[:strings.Index(half, want[odd].User)], "\n") + 1
	message := fmt.Sprintf("users.txt lines %d and %d: user %q has two identities, %q and %q", line, many/2+1, want[odd].User, want[odd].User, "other")
	if !errors.Is(err, ErrMalformed) || err.Error() != message {
		t.Errorf("got  %v\nwant %s", err, message)
	}
}

func TestSeveralChunksAreMerged(t *testing.T) {
	text, want := numbered(several)
	for name, text := range map[string]string{"once": text, "twice": text + text} {
		t.Run(name, func(t *testing.T) {
			l := open(t, text)
			if l.sorter.runs == nil || l.sorter.runs.Size() < 3 {
				t.Error("not several chunks")
			}
			got, err := all(t.Context(), l)
			if err != nil {
				t.Fatal(err)
			}
			same(t, got, want)
		})
	}
}

func TestLongLinesFillChunksToo(t *testing.T) {
	lines := make([]string, 3*smallChunk/maxLine)
	for i := range lines {
		lines[i] = fmt.Sprintf("%04d%s", len(lines)-i, long[4:])
	}
	l := open(t, strings.Join(lines, "\n"))
	if l.sorter.runs == nil || l.sorter.runs.Size() < 3 {
		t.Error("the chunks are not bounded in bytes")
	}
	got, err := all(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(lines)
	same(t, got, users(lines...))
}

func TestRecordsSortByUserThenLine(t *testing.T) {
	lines := []int64{1, 2, 255, 256, 65535, 65536, 1 << 40, 1<<63 - 1}
	var last []byte
	for _, user := range []string{"a", "a\x01", "aa", "a\xff", "b", "\xff"} {
		for _, line := range lines {
			record := appendRecord(nil, []byte(user), line, []byte("1@2"))
			if slices.Compare(last, record) >= 0 {
				t.Errorf("%q is not before %q", last, record)
			}
			last = record
			u, n, identity := split(record)
			if string(u) != user || n != line || string(identity) != "1@2" {
				t.Errorf("%q is %q %d %q", record, u, n, identity)
			}
		}
	}
	longest := appendRecord(nil, []byte(long), 1<<63-1, nil)
	if len(longest) > maxRecord {
		t.Errorf("a record may have %d bytes", len(longest))
	}
}
