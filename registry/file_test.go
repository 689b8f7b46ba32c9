package registry

import (
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// plain opens a file as any other program would.
func plain(t *testing.T, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func exec1(t testing.TB, db *sql.DB, query string) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), query); err != nil {
		t.Fatal(err)
	}
}

// refused opens what must not be opened, and returns the message.
func refused(t *testing.T, path string, class error) string {
	t.Helper()
	r, err := Open(t.Context(), path, nil)
	if err == nil {
		r.Close()
		t.Fatalf("opened; want %v", class)
	}
	if !errors.Is(err, class) {
		t.Fatalf("error %v; want %v", err, class)
	}
	if !strings.Contains(err.Error(), path) {
		t.Errorf("the message does not name %s: %v", path, err)
	}
	return err.Error()
}

func TestConnectionsAreSetUpForDurability(t *testing.T) {
	r, _ := fresh(t)
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "busy_timeout": "20000", "application_id": "1685483624", "user_version": "5"} {
		var got string
		if err := r.writer.db.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got); err != nil || got != want {
			t.Errorf("writer: %s is %s, want %s, error %v", pragma, got, want, err)
		}
	}
	if _, err := r.readers.ExecContext(t.Context(), "DELETE FROM registrations"); !errors.Is(explain(r.path, "x", err), ErrPermission) {
		t.Errorf("a reader writes: error %v", err)
	}
}

func helpUmask(args []string) error {
	mask, err := strconv.ParseInt(args[1], 8, 0)
	if err != nil {
		return err
	}
	syscall.Umask(int(mask))
	ctx := background()
	r, err := Open(ctx, args[0], nil)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := r.Intend(ctx, present(alice, "v")); err != nil {
		return err
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		info, err := os.Stat(args[0] + suffix)
		if err != nil {
			return err
		}
		if info.Mode() != 0o600 {
			return errors.New(info.Name() + " has mode " + info.Mode().String())
		}
	}
	return nil
}

func TestNewFilesAreThoseOfTheirOwnerWhateverTheUmask(t *testing.T) {
	for _, mask := range []string{"0", "077", "0777"} {
		if out, err := helper(t, "umask", filepath.Join(t.TempDir(), "registry.db"), mask).CombinedOutput(); err != nil {
			t.Errorf("umask %s: %v: %s", mask, err, out)
		}
	}
}

func TestWiderPermissionsAreTakenOff(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	first := reopen(t, path, nil) // keeps -wal and -shm there
	intend(t, first, present(alice, "v"))
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Chmod(path+suffix, 0o664); err != nil {
			t.Fatal(err)
		}
	}
	reopen(t, path, nil)
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if info, err := os.Stat(path + suffix); err != nil || info.Mode() != 0o600 {
			t.Errorf("%q has mode %v, error %v", suffix, info.Mode(), err)
		}
	}
	// The other registry's locks survived that: see dbfile.File.Prepare.
	take(t, first, alice, "agent")
}

func TestPathsMayHoldAnyCharacter(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a b.db", "a?b.db", "a?mode=memory", "a#b.db", "a%20b.db", "a%b", "ä;b&c=d.db", "\xff.db", "file:x", "-", "a\nb"} {
		path := filepath.Join(dir, name)
		r := reopen(t, path, nil)
		intend(t, r, present(alice, "v"))
		if err := r.Check(t.Context()); err != nil {
			t.Errorf("%q: %v", name, err)
		}
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3*11 {
		t.Errorf("%d files, error %v", len(entries), err)
	}
}

func TestRelativePathStaysTheSameFile(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	r := reopen(t, "registry.db", nil)
	if err := os.Chdir("/"); err != nil {
		t.Fatal(err)
	}
	intend(t, r, present(alice, "v"))
	if err := r.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestForeignThingsAreRefusedAndLeftAsTheyAre(t *testing.T) {
	sqliteFile := func(query string) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			db := plain(t, path)
			exec1(t, db, query)
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	file := func(text string) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, make := range map[string]func(*testing.T, string){
		"short text":              file("hello\n"),
		"long text":               file(strings.Repeat("user=alice\n", 10_000)),
		"zeros":                   file(strings.Repeat("\x00", 8192)),
		"another's tables":        sqliteFile("CREATE TABLE mails (id INTEGER)"),
		"another's id":            sqliteFile("PRAGMA application_id = 42"),
		"another's version":       sqliteFile("PRAGMA user_version = 1"),
		"another's registrations": sqliteFile("CREATE TABLE registrations (username TEXT); PRAGMA user_version = 1"),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "registry.db")
			make(t, path)
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			refused(t, path, ErrForeign)
			if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
				t.Errorf("the file was changed, error %v", err)
			}
		})
	}
}

func TestEmptyFileIsFresh(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	intend(t, reopen(t, path, nil), present(alice, "v"))
}

// damaged makes a registry of several hundred pages, closes and damages it.
func damaged(t *testing.T, damage func(f *os.File, size int64) error) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "registry.db")
	r, err := Open(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	seed(t, r, 5000)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(damage(f, info.Size()), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestPagesOverwrittenInTheMiddleAreFound(t *testing.T) {
	path := damaged(t, func(f *os.File, size int64) error {
		_, err := f.WriteAt([]byte(strings.Repeat("\xa5", 50*4096)), size/2/4096*4096)
		return err
	})
	r := reopen(t, path, nil)
	if err := r.Check(t.Context()); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), path) {
		t.Errorf("check: %v", err)
	}
	var last error
	for _, err := range r.List(t.Context(), Filter{}) {
		last = err
	}
	if !errors.Is(last, ErrCorrupt) {
		t.Errorf("list: %v", last)
	}
}

func TestUnreadableRowIsDamage(t *testing.T) {
	r, _ := fresh(t)
	intend(t, r, present(alice, "v"))
	exec1(t, r.writer.db, `UPDATE registrations SET written = '{"'`)
	if _, _, err := r.Get(t.Context(), alice); !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
}

func TestTruncatedFileIsDamage(t *testing.T) {
	path := damaged(t, func(f *os.File, size int64) error { return f.Truncate(size / 2 / 4096 * 4096) })
	refused(t, path, ErrCorrupt)
}

func TestOverwrittenHeaderIsRefused(t *testing.T) {
	path := damaged(t, func(f *os.File, _ int64) error {
		_, err := f.WriteAt(make([]byte, 4096), 0)
		return err
	})
	if msg := refused(t, path, ErrForeign); !strings.Contains(msg, "restore it from a backup") {
		t.Error(msg)
	}
}

func TestCheckOfASoundRegistry(t *testing.T) {
	r, _ := fresh(t)
	seed(t, r, 1000)
	if err := r.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestCheckFindsTheFileRemovedOrReplaced(t *testing.T) {
	r, _ := fresh(t)
	if err := os.Rename(r.path, r.path+".old"); err != nil {
		t.Fatal(err)
	}
	if err := r.Check(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removed: %v", err)
	}
	if _, err := os.Stat(r.path); err == nil {
		t.Error("check made a new file")
	}
	if err := os.WriteFile(r.path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.Check(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("replaced: %v", err)
	}
}

// SQLite does not wait for another writer when it turns a file to WAL mode:
// it holds a read lock by then, and two such waiting for each other would
// wait for ever.
func TestOpenWaitsForAnotherProcessThatFillsTheFreshFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	other := plain(t, path)
	other.SetMaxOpenConns(1)
	exec1(t, other, "BEGIN IMMEDIATE")
	opened := make(chan error)
	go func() {
		r, err := Open(t.Context(), path, nil)
		if err == nil {
			err = r.Close()
		}
		opened <- err
	}()
	select {
	case err := <-opened:
		t.Fatalf("did not wait: error %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	exec1(t, other, "ROLLBACK")
	if err := <-opened; err != nil {
		t.Error(err)
	}
}

func TestNothingIsAcknowledgedOnceTheFileIsGoneOrReplaced(t *testing.T) {
	for name, lose := range map[string]func(path string) error{
		"removed": os.Remove,
		"replaced": func(path string) error {
			if err := os.Rename(path, path+".old"); err != nil {
				return err
			}
			return os.WriteFile(path, nil, 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := fresh(t)
			intend(t, r, present(alice, "user=alice"))
			if err := lose(r.path); err != nil {
				t.Fatal(err)
			}
			if err := r.Intend(t.Context(), present(alice, "user=other")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Intend = %v", err)
			}
		})
	}
}
