package userlist

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
)

func users(names ...string) (entries []Entry) {
	for _, name := range names {
		entries = append(entries, Entry{User: name})
	}
	return entries
}

var long = strings.Repeat("x", maxLine)

func TestFormat(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []Entry
		lines      int64
	}{
		{"nothing", "", nil, 0},
		{"a byte order mark alone", "\ufeff", nil, 0},
		{"empty lines and comments", "\n\r\n# alice\tx\ty\n#\n", nil, 0},
		{"users in order", "bob\nalice\ncarol\n", users("alice", "bob", "carol"), 3},
		{"no last newline", "bob\nalice", users("alice", "bob"), 2},
		{"CRLF", "bob\r\n\r\nalice\t3@4\r\n", []Entry{{"alice", "3@4"}, {"bob", ""}}, 2},
		{"mixed ends", "bob\nalice\r\ncarol", users("alice", "bob", "carol"), 3},
		{"a carriage return elsewhere belongs to the name", "a\rb\na\r\r\nc\r", users("a\r", "a\rb", "c\r"), 3},
		{"byte order mark", "\ufeffbob\nalice", users("alice", "bob"), 2},
		{"comment behind a byte order mark", "\ufeff# users\nalice\n", users("alice"), 1},
		{"only the first is a byte order mark", "\ufeff\ufeffbob\n\ufeffbob\n", users("\ufeffbob"), 2},
		{"identities", "bob\t1@2\nalice\n", []Entry{{"alice", ""}, {"bob", "1@2"}}, 2},
		{"blanks belong to the name", " alice \n \n #bob\na b\tc d \n", []Entry{{" ", ""}, {" #bob", ""}, {" alice ", ""}, {"a b", "c d "}}, 4},
		{"a # within belongs to the name", "a#b\n", users("a#b"), 1},
		{"order is bytewise", "é\nz\nZ\na\nab\nA\n\xff\na\x01\n\x7f\na b\n", users("A", "Z", "a", "a\x01", "a b", "ab", "z", "\x7f", "é", "\xff"), 10},
		{"not UTF-8", "\xff\xfe\n\x80", users("\x80", "\xff\xfe"), 2},
		{"the longest line", long + "\r\n" + long[1:] + "y", users(long, long[1:]+"y"), 2},
		{"the longest line behind a byte order mark", "\ufeff" + long, users(long), 1},
		{"one user twice", "alice\nbob\nalice\n", users("alice", "bob"), 3},
		{"one identity twice", "alice\t1\nbob\nalice\t1\n", []Entry{{"alice", "1"}, {"bob", ""}}, 3},
		{"the default identity by name", "alice\nalice\talice\nbob\tbob\nbob\n", []Entry{{"alice", ""}, {"bob", "bob"}}, 4},
	} {
		for how, wrap := range map[string]func(io.Reader) io.Reader{
			"at once":         func(r io.Reader) io.Reader { return r },
			"byte by byte":    iotest.OneByteReader,
			"end beside data": iotest.DataErrReader,
		} {
			t.Run(c.name+" "+how, func(t *testing.T) {
				l, err := Read(t.Context(), wrap(strings.NewReader(c.text)), options(t.TempDir()))
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				got, err := all(t.Context(), l)
				if err != nil {
					t.Fatal(err)
				}
				same(t, got, c.want)
				if l.Lines() != c.lines {
					t.Errorf("%d lines, want %d", l.Lines(), c.lines)
				}
			})
		}
	}
}

func TestMalformedListNamesTheLine(t *testing.T) {
	clipped := `"` + strings.Repeat("x", 100) + `"...`
	for _, c := range []struct{ name, text, want string }{
		{"two TABs", "bob\n\nalice\t1\t2\n", `users.txt line 3: "alice\t1\t2" holds more than one TAB`},
		{"two TABs in a row", "alice\t\t2", `users.txt line 1: "alice\t\t2" holds more than one TAB`},
		{"TAB at the end", "alice\t1\t\n", `users.txt line 1: "alice\t1\t" holds more than one TAB`},
		{"no user", "# x\r\n\t1\r\n", `users.txt line 2: "\t1" has no user before the TAB`},
		{"TAB alone", "\ufeff\t\n", `users.txt line 1: "\t" has no user before the TAB`},
		{"no identity", "alice\t\nbob\t\n", `users.txt line 1: "alice\t" has no identity behind the TAB`},
		{"no identity before CRLF", "alice\t\r\n", `users.txt line 1: "alice\t" has no identity behind the TAB`},
		{"NUL", "alice\nb\x00b\n", `users.txt line 2: "b\x00b" holds a NUL byte`},
		{"NUL in a comment", "#\x00\n", `users.txt line 1: "#\x00" holds a NUL byte`},
		{"a byte too long", "alice\n" + long + "x\n", "users.txt line 2: " + clipped + " is longer than 4096 bytes"},
		{"a byte too long at the end", "alice\n" + long + "x", "users.txt line 2: " + clipped + " is longer than 4096 bytes"},
		{"far too long", strings.Repeat(long, 100), "users.txt line 1: " + clipped + " is longer than 4096 bytes"},
		{"hostile", "\x1b[2J\n\x1b[2J\t\n", `users.txt line 2: "\x1b[2J\t" has no identity behind the TAB`},
		{"two identities", "#\nbob\nalice\t1@2\nalice\t3@4\nalice\t1@2\n", `users.txt lines 3 and 4: user "alice" has two identities, "1@2" and "3@4"`},
		{"two identities of several lines", "alice\t1\nalice\t1\nbob\nalice\t2\nalice\t3\nalice\t2", `users.txt lines 1 and 4: user "alice" has two identities, "1" and "2"`},
		{"two identities, one the default", "alice\nalice\talice\nalice\tx", `users.txt lines 1 and 3: user "alice" has two identities, "alice" and "x"`},
		{"two identities, hostile", long[:3000] + "\t\x1b\n" + long[:3000] + "\t\xff", "users.txt lines 1 and 2: user " + clipped + ` has two identities, "\x1b" and "\xff"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, err := Read(t.Context(), strings.NewReader(c.text), options(t.TempDir()))
			if err == nil {
				_, err = all(t.Context(), l)
				l.Close()
			}
			if !errors.Is(err, ErrMalformed) || err.Error() != c.want {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
}

func TestUsersBeforeOneWithTwoIdentitiesComeFirst(t *testing.T) {
	l, err := Read(t.Context(), strings.NewReader("c\nb\t1\nb\t2\na\n"), options(""))
	if err != nil {
		t.Fatal(err)
	}
	got, err := all(t.Context(), l)
	if !errors.Is(err, ErrMalformed) {
		t.Errorf("error %v", err)
	}
	same(t, got, users("a"))
}

func TestHalfReadListIsAnError(t *testing.T) {
	broken := errors.New("broken")
	for _, text := range []string{"", "alice\n", "alice\nbo", strings.Repeat("alice\n", 100_000)} {
		l, err := Read(t.Context(), io.MultiReader(strings.NewReader(text), iotest.ErrReader(broken)), options(t.TempDir()))
		if l != nil || !errors.Is(err, broken) || !strings.HasPrefix(err.Error(), "users.txt line ") {
			t.Errorf("after %d bytes: list %v, error %v", len(text), l, err)
		}
	}
}

func TestReaderThatNeverMovesIsAnError(t *testing.T) {
	_, err := Read(t.Context(), stuck{}, options(""))
	if !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("error %v", err)
	}
}

type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

func TestAbsentDefaultIdentityIsRefused(t *testing.T) {
	if _, err := Read(t.Context(), strings.NewReader(""), Options{}); err == nil {
		t.Error("no error")
	}
	if _, err := Collect(t.Context(), sequence(nil), Options{}); err == nil {
		t.Error("no error from Collect")
	}
}

// What remains of the read is the goroutine in r.Read: the bubble ends only
// when that has ended, too.
func TestContextEndsAReadThatWaits(t *testing.T) {
	tired := errors.New("tired")
	for _, text := range []string{"", "alice\n", "alice"} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			r, w := io.Pipe()
			go io.WriteString(w, text)
			go func() {
				synctest.Wait()
				cancel(tired)
			}()
			l, err := Read(ctx, r, options(""))
			if l != nil || !errors.Is(err, tired) || !strings.HasPrefix(err.Error(), "users.txt") {
				t.Errorf("list %v, error %v", l, err)
			}
			w.Close()
		})
	}
}

func TestBadLineIsToldThoughTheReaderWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		go io.WriteString(w, "alice\n\tx\n")
		if _, err := Read(t.Context(), r, options("")); !errors.Is(err, ErrMalformed) {
			t.Errorf("error %v", err)
		}
		w.Close()
	})
}

func TestContextThatIsOverReadsNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 { // it is a matter of chance if the code is wrong
		if _, err := Read(ctx, strings.NewReader("alice\n"), options("")); !errors.Is(err, context.Canceled) {
			t.Fatalf("error %v", err)
		}
	}
}

func TestContextEndsAll(t *testing.T) {
	for name, text := range lists() {
		t.Run(name, func(t *testing.T) {
			l := open(t, text)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			n := 0
			var last error
			for _, err := range l.All(ctx) {
				if n++; n == 2 {
					cancel()
				}
				last = err
			}
			if n != 3 || !errors.Is(last, context.Canceled) || !strings.HasPrefix(last.Error(), "users.txt: ") {
				t.Errorf("ended with the %d. of %d: %v", n, l.Lines(), last)
			}
		})
	}
}

func TestUsersCanBeHadOnce(t *testing.T) {
	for name, before := range map[string]func(t *testing.T, l *List){
		"after All": func(t *testing.T, l *List) { all(t.Context(), l) },
		"after a broken off All": func(t *testing.T, l *List) {
			for range l.All(t.Context()) {
				break
			}
		},
		"after Close": func(_ *testing.T, l *List) { l.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			l := open(t, "alice\nbob\n")
			before(t, l)
			got, err := all(t.Context(), l)
			if len(got) > 0 || !errors.Is(err, errTaken) || !strings.HasPrefix(err.Error(), "users.txt: ") {
				t.Errorf("got %q, error %v", got, err)
			}
		})
	}
}

func TestCloseEndsAll(t *testing.T) {
	for name, text := range lists() {
		t.Run(name, func(t *testing.T) {
			l := open(t, text)
			var last error
			n := 0
			for _, err := range l.All(t.Context()) {
				if err := l.Close(); err != nil {
					t.Error(err)
				}
				n, last = n+1, err
			}
			if n != 2 || !errors.Is(last, errTaken) {
				t.Errorf("ended with the %d.: %v", n, last)
			}
		})
	}
}

// lists are one that is sorted in memory and one that is merged.
func lists() map[string]string {
	text, _ := numbered(several)
	return map[string]string{"in memory": "dora\nalice\ncarol\nbob\n", "merged": text}
}

// open reads a list in small chunks. It is closed with the test, twice.
func open(t testing.TB, text string) *List {
	t.Helper()
	l, err := read(t.Context(), strings.NewReader(text), options(t.TempDir()), smallChunk)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 2 {
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return l
}
