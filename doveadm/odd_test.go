package doveadm

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"dovepush/imapmeta"
	"dovepush/internal/dovecot"
	"dovepush/internal/dovecot/dovecottest"
)

// oddNames are names of users that auth_username_chars, as Dovecot ships it,
// does not allow, and victims those that a careless quoting, trimming or
// expansion would reach instead.
var (
	oddNames = []string{
		" alice", "alice ", "ali ce", `quo"te`, `"alice"`, `back\slash`, "a#b", "a+b", "a%b", "a%u", "%u", "o'hara",
		"müller", "日本🕊", "a=b,c", "a/b", "..a", "(alice)", "{5}", "[]", `","`, "a&b<c>", "a\u2028b", "a b@exämple.org", "-a", "--help",
	}
	victims = []string{"alice", "ali", "ce", "quote", "backslash", "a", "b", "ohara", "a,b"}
)

func TestOddNamesReachTheirOwnEntryAndNoOther(t *testing.T) {
	t.Parallel()
	users := named(slices.Concat(oddNames, victims)...)
	dovecottest.Each(t, dovecot.Options{Users: users, Extra: busyDoveadm}, func(t *testing.T, s *dovecot.Server) {
		c := on(t, s)
		value := func(name string) imapmeta.Value { return imapmeta.Encode(imapmeta.Pair{Key: "user", Value: name}) }
		// Many in one POST: a name that is taken for something else would spoil
		// it for the others.
		var all sync.WaitGroup
		for _, name := range oddNames {
			all.Go(func() { update(t, c, name, imapmeta.Set(value(name)), imapmeta.Absent) })
			all.Go(func() {
				if exists, err := c.Exists(t.Context(), name); err != nil || !exists {
					t.Errorf("%q exists: %t, %v", name, exists, err)
				}
			})
		}
		all.Wait()
		for _, name := range oddNames {
			holds(t, s, name, value(name))
		}
		for _, name := range victims {
			holds(t, s, name, imapmeta.Absent)
		}
	})
}

func TestIdentitiesArriveByteForByte(t *testing.T) {
	identities := []string{
		" alice", "ali ce", `quo"te`, `back\slash`, "o'hara", "a#b+c=d%e", "müller", "日本🕊", "\t", "a\tuser=b", "a\nb\r\nc", "\x01", "\x01t\x011", "\x1f\x7f\x1b[31m",
		"\u2028", "<&>", "]}],", strings.Repeat("x", imapmeta.MaxValue-len("user=")), strings.Repeat("é", 500), strings.Repeat("\t", 500), "user=user=",
	}
	together(t, dovecot.Options{Users: people, Extra: busyDoveadm}, shared{"", func(t *testing.T, s *dovecot.Server) {
		c, had := on(t, s), imapmeta.Absent
		for _, identity := range identities {
			value, err := imapmeta.NewValue(identity)
			if err != nil {
				t.Fatal(err)
			}
			update(t, c, "alice", imapmeta.Set(value), had)
			holds(t, s, "alice", value)
			if had = value; t.Failed() {
				t.Fatalf("identity %.60q", identity)
			}
		}
		update(t, c, "alice", imapmeta.Remove(), had)
		holds(t, s, "alice", imapmeta.Absent)
	}})
}

func TestTheLongestName(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", imapmeta.MaxUser)
	dovecottest.Each(t, dovecot.Options{Users: named("alice")}, func(t *testing.T, s *dovecot.Server) {
		// No file name is that long; the user's home has another.
		home := filepath.Join(directory(t, s), "mail", "long")
		if err := s.AddUser(dovecot.User{Name: long, Password: "x", Extra: "userdb_home=" + home}); err != nil {
			t.Fatal(err)
		}
		c := on(t, s)
		update(t, c, long, imapmeta.Set("user=long"), imapmeta.Absent)
		holds(t, s, long, "user=long")
		if exists, err := c.Exists(t.Context(), long); err != nil || !exists {
			t.Errorf("it exists: %t, %v", exists, err)
		}
		update(t, c, long, imapmeta.Remove(), "user=long")
		holds(t, s, "alice", imapmeta.Absent)
		if log := s.Log(); strings.Contains(log, "Error: ") || strings.Contains(log, "BUG") {
			t.Error("it was too long for Dovecot")
		}
	})
}

// directory is where the server's files are as Dovecot sees them.
func directory(t *testing.T, s *dovecot.Server) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.Dir, "dovecot.conf"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "\nbase_dir = ")
	dir, _, ok := strings.Cut(rest, "/run\n")
	if !ok {
		t.Fatal("no base_dir in the settings")
	}
	return dir
}

func TestWhatDovecotMustNotSeeIsNotSent(t *testing.T) {
	d := play(t)
	c := d.client()
	for _, name := range []string{"", "a\x00b", "a\rb", "a\nb", "a\tb", "\xff", "a\xc3", "../x", "a/../b", strings.Repeat("x", imapmeta.MaxUser+1), "*", "ali*e", "?", "a?b"} {
		_, err := c.Update(t.Context(), name, keepIt)
		want := fault{kind: imapmeta.User, is: imapmeta.ErrUser, op: "getmetadata"}
		if strings.ContainsAny(name, "*?") {
			want.words, want.hint = "a pattern of users to DoveAdm", `connector = "imap"`
		}
		want.check(t, name, err)
	}
	if n := len(d.sent()); n != 0 {
		t.Errorf("%d POSTs were made for users", n)
	}
	for value, words := range map[imapmeta.Value]string{
		"user=a\x00":        "holds a NUL",
		"user=\xff":         "is not UTF-8",
		"user=\xc3":         "is not UTF-8",
		"user=\xed\xa0\x80": "is not UTF-8",
		imapmeta.Value(strings.Repeat("x", imapmeta.MaxValue+1)): "1025 bytes, more than 1024",
	} {
		out, err := c.Update(t.Context(), "alice", setTo(value))
		fault{kind: imapmeta.User, op: "setmetadata", words: words}.check(t, "alice", err)
		if !out.Did.Keeps() {
			t.Errorf("yet it claims %s", out.Did)
		}
	}
	for _, post := range d.sent() {
		for _, command := range post {
			if command.method != get {
				t.Errorf("sent %s of %q", command.method, command.value)
			}
		}
	}
}

// What is refused before the wire does the real Dovecot's others no harm, and
// would: a mask reaches every user that fits.
func TestAMaskWouldReachOthers(t *testing.T) {
	together(t, dovecot.Options{Users: people}, shared{"", func(t *testing.T, s *dovecot.Server) {
		refuses(t, s, on(t, s), "ali*", fault{kind: imapmeta.User, is: imapmeta.ErrUser, hint: hintPattern})
		holds(t, s, "alice", imapmeta.Absent)
		if err := s.SetEntry(t.Context(), "ali*", "user=mask"); err != nil {
			t.Fatal(err)
		}
		holds(t, s, "alice", "user=mask")
	}})
}
