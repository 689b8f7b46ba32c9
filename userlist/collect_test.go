package userlist

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// sequence yields names, and then an error if there is one.
func sequence(err error, names ...string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for _, name := range names {
			if !yield(name, nil) {
				return
			}
		}
		if err != nil {
			yield("", err)
		}
	}
}

func TestNamesOfASequenceAreTakenAsTheyAre(t *testing.T) {
	for _, c := range []struct {
		name  string
		names []string
		want  []Entry
	}{
		{"nobody", nil, nil},
		{"in no order", []string{"bob", "alice", "carol"}, users("alice", "bob", "carol")},
		{"repetitions", []string{"bob", "alice", "bob", "bob", "alice"}, users("alice", "bob")},
		{"no comment", []string{"#bob", "#"}, users("#", "#bob")},
		{"no identity", []string{"a\tb", "a", "\ta", "a\t", "a\tb\tc"}, users("\ta", "a", "a\t", "a\tb", "a\tb\tc")},
		{"no ends of lines", []string{"a\r\n", "a\n", "a\r", "a", "\n", "\r\n", "a\nb"}, users("\n", "\r\n", "a", "a\n", "a\nb", "a\r", "a\r\n")},
		{"no byte order mark", []string{"\ufeffbob", "bob"}, users("bob", "\ufeffbob")},
		{"blanks and control characters", []string{" ", " a ", "\x01", "\x1b[2J"}, users("\x01", "\x1b[2J", " ", " a ")},
		{"not UTF-8", []string{"\xff\xfe", "\x80"}, users("\x80", "\xff\xfe")},
		{"the longest", []string{long, long[1:]}, users(long[1:], long)},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, err := Collect(t.Context(), sequence(nil, c.names...), options(t.TempDir()))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			got, err := all(t.Context(), l)
			if err != nil {
				t.Fatal(err)
			}
			same(t, got, c.want)
			if l.Lines() != int64(len(c.names)) {
				t.Errorf("%d entries, want %d", l.Lines(), len(c.names))
			}
		})
	}
}

func TestNameThatCannotBeTakenNamesTheEntry(t *testing.T) {
	for name, c := range map[string]struct {
		names []string
		want  string
	}{
		"empty":           {[]string{"bob", "", "alice"}, "users.txt entry 2: the name is empty"},
		"a byte too long": {[]string{long + "x"}, `users.txt entry 1: "` + long[:100] + `"... is longer than 4096 bytes`},
		"NUL":             {[]string{"bob", "bob", "b\x00b"}, `users.txt entry 3: "b\x00b" holds a NUL byte`},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := Collect(t.Context(), sequence(errors.New("went on"), c.names...), options(t.TempDir()))
			if l != nil || !errors.Is(err, ErrMalformed) || err.Error() != c.want {
				t.Errorf("list %v\ngot  %v\nwant %s", l, err, c.want)
			}
		})
	}
}

func TestErrorOfTheSequenceEndsIt(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		names []string
		want  string
	}{
		{nil, "users.txt: broken"},
		{[]string{"bob", "bob"}, "users.txt: after entry 2: broken"},
	} {
		went := false
		l, err := Collect(t.Context(), func(yield func(string, error) bool) {
			for user, err := range sequence(broken, c.names...) {
				if !yield(user, err) {
					return
				}
			}
			went = true
		}, options(t.TempDir()))
		if l != nil || !errors.Is(err, broken) || errors.Is(err, ErrMalformed) || err.Error() != c.want {
			t.Errorf("list %v\ngot  %v\nwant %s", l, err, c.want)
		}
		if went {
			t.Error("the sequence went on behind its error")
		}
	}
}

func TestContextEndsCollect(t *testing.T) {
	tired := errors.New("tired")
	for name, after := range map[string]iter.Seq2[string, error]{
		"a sequence that goes on":              sequence(nil, "carol", "dora"),
		"a sequence that ends":                 sequence(nil),
		"a sequence with an error of its own":  sequence(errors.New("broken")),
		"a sequence with a name that is wrong": sequence(nil, ""),
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			asked := 0
			l, err := Collect(ctx, func(yield func(string, error) bool) {
				if !yield("bob", nil) {
					return
				}
				cancel(tired)
				for user, err := range after {
					asked++
					if !yield(user, err) {
						return
					}
				}
			}, options(t.TempDir()))
			if l != nil || !errors.Is(err, tired) || err.Error() != "users.txt: tired" {
				t.Errorf("list %v, error %v", l, err)
			}
			if asked > 1 {
				t.Errorf("%d more names were asked for", asked)
			}
		})
	}
}

func TestContextThatIsOverBeginsNoSequence(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Collect(ctx, func(func(string, error) bool) { t.Error("begun") }, options(""))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestMillionNamesTakeBoundedMemory(t *testing.T) {
	const bound = 10 << 20 // all names would take more than 30 MiB
	n := 1_000_000
	if testing.Short() {
		n /= 2
	}
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before, most := heap(), uint64(0)
	look := func(i int) {
		if i%50_000 == 0 {
			most = max(most, heap())
		}
	}
	name := func(i int) string { return fmt.Sprintf("user%07d@mail.example", i) }
	l, err := Collect(t.Context(), func(yield func(string, error) bool) {
		for i := range n {
			look(i)
			if !yield(name(i*7_919%n), nil) { // a prime: each once, in no order
				return
			}
		}
	}, options(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	i := 0
	for e, err := range l.All(t.Context()) {
		if err != nil || e != (Entry{User: name(i)}) {
			t.Fatalf("the %d. is %q, error %v", i, e, err)
		}
		look(i)
		i++
	}
	if i != n {
		t.Errorf("%d users of %d", i, n)
	}
	if most > before+bound {
		t.Errorf("the heap grew by %d KiB", (most-before)>>10)
	}
}

// FuzzCollect: whatever the names, and however few of them are sorted at a time,
// each comes out once and in order.
func FuzzCollect(f *testing.F) {
	for _, text := range []string{"", "bob|alice|bob", "#a|a\tb|a\r|a\n|a", "a||b", "a|b\x00", "z|" + long + "|" + long + "x|y", "\xff|é|A|a"} {
		for _, chunk := range []uint16{0, 16, 100} {
			f.Add(text, chunk)
		}
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text string, chunk uint16) {
		names, wrong := strings.Split(text, "|"), ""
		for i, name := range names {
			if name == "" || len(name) > 4096 || strings.Contains(name, "\x00") {
				wrong = fmt.Sprintf("users.txt entry %d: ", i+1)
				break
			}
		}
		l, err := collect(t.Context(), sequence(nil, names...), options(dir), int(chunk))
		if wrong != "" {
			if l != nil || !errors.Is(err, ErrMalformed) || !strings.HasPrefix(err.Error(), wrong) {
				t.Fatalf("list %v, error %v, want one that begins with %q", l, err, wrong)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		got, err := all(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(names) // bytewise, too
		same(t, got, users(slices.Compact(names)...))
	})
}
