package spool

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// suffixes are those of the files that make up a spool.
var suffixes = []string{"", "-wal", "-shm"}

func TestConnectionsAreSetUp(t *testing.T) {
	s, _ := fresh(t)
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "1", "busy_timeout": "20000", "secure_delete": "1",
		"auto_vacuum": "2", "temp_store": "2", "application_id": "1685483635", "user_version": "1"} {
		var got string
		if err := s.writer.db.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got); err != nil || got != want {
			t.Errorf("writer: %s is %s, want %s, error %v", pragma, got, want, err)
		}
	}
	if _, err := s.readers.ExecContext(t.Context(), "DELETE FROM seen"); err == nil {
		t.Error("a reader writes")
	}
}

func TestFilesThatAreNoSpoolOfOursAreRefused(t *testing.T) {
	dir := t.TempDir()
	made := func(name string, queries ...string) string {
		path := filepath.Join(dir, name)
		db, err := sql.Open("sqlite", path)
		must(t, err)
		for _, query := range queries {
			_, err := db.ExecContext(t.Context(), query)
			must(t, err)
		}
		must(t, db.Close())
		return path
	}
	text := filepath.Join(dir, "text")
	must(t, os.WriteFile(text, []byte("not a database, but long enough to be looked at"), 0o600))
	for path, class := range map[string]error{
		text:                                ErrForeign,
		dir:                                 ErrForeign,
		made("other", "CREATE TABLE t (x)"): ErrForeign,
		made("registry", "PRAGMA application_id = 1685483624", "PRAGMA user_version = 4"):   ErrForeign,
		made("newer", "PRAGMA application_id = 1685483635", "PRAGMA user_version = 2"):      ErrNewer,
		made("impossible", "PRAGMA application_id = 1685483635", "PRAGMA user_version = 0"): ErrCorrupt,
		filepath.Join(dir, "nowhere", "spool.db"):                                           fs.ErrNotExist,
	} {
		before, _ := os.ReadFile(path)
		s, err := Open(t.Context(), path, Options{})
		if err == nil {
			s.Close()
		}
		if !errors.Is(err, class) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: error %v, want %v", path, err, class)
		}
		if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
			t.Errorf("%s was changed", path)
		}
	}
}

func TestAFileThatWasRemovedIsNotWrittenToInSilence(t *testing.T) {
	path := filepath.Join(t.TempDir(), "spool.db")
	s, err := Open(t.Context(), path, Options{})
	must(t, err)
	must(t, os.Remove(path))
	if _, err := s.Add(t.Context(), mail("alice", 1), []Target{hook}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
	must(t, s.Close())
	if _, err := s.Add(t.Context(), mail("alice", 1), []Target{hook}); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("closed: error %v", err)
	}
}

// holds returns which of the spool's files have the text.
func holds(t *testing.T, path, text string) (names []string) {
	t.Helper()
	for _, suffix := range suffixes {
		data, err := os.ReadFile(path + suffix)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		if bytes.Contains(data, []byte(text)) {
			names = append(names, "spool.db"+suffix)
		}
	}
	return names
}

func TestNothingOfADeliveredMailIsLeftInTheFiles(t *testing.T) {
	s, _ := fresh(t)
	// The last one has a body of many pages.
	for n := range 50 {
		e := mail("alice", n)
		if n == 49 {
			e.Body = []byte(`"` + strings.Repeat("secret of many pages ", 5000) + `"`)
		}
		add(t, s, e, hook)
	}
	if len(holds(t, s.path, "secret alice-7")) == 0 || len(holds(t, s.path, "secret of many pages")) == 0 {
		t.Fatal("the bodies cannot be seen in the files: this test cannot fail")
	}
	for range 50 {
		d := take(t, s, "hook", 1)[0]
		must(t, s.Retry(t.Context(), d.ID, s.now(), "moves the row"))
		must(t, s.Done(t.Context(), take(t, s, "hook", 1)[0].ID))
	}
	deadline := time.Now().Add(time.Minute)
	for {
		left := holds(t, s.path, "secret")
		if left == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("still in %q", left)
		}
		time.Sleep(20 * time.Millisecond)
	}
	must(t, s.Check(t.Context()))
}

func TestRoomIsGivenBackWhenTheSpoolIsEmpty(t *testing.T) {
	s, _ := fresh(t)
	e := mail("alice", 1)
	e.Body = make([]byte, MaxBody)
	for n := range 4 {
		e.ID, e.Key = fmt.Sprint(n), ""
		add(t, s, e, hook)
	}
	for range 4 {
		must(t, s.Done(t.Context(), take(t, s, "hook", 1)[0].ID))
	}
	deadline := time.Now().Add(time.Minute)
	for {
		info, err := os.Stat(s.path)
		must(t, err)
		if log, err := os.Stat(s.path + "-wal"); err == nil && log.Size() == 0 && info.Size() < 200<<10 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes", info.Size())
		}
		time.Sleep(20 * time.Millisecond)
	}
}
