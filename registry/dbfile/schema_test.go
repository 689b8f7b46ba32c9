package dbfile

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// opened makes the file ready for use, as its callers do.
func opened(t *testing.T, f File, steps ...string) *sql.DB {
	t.Helper()
	_, err := f.Prepare()
	must(t, err)
	must(t, f.Identify(t.Context(), len(steps)))
	db, err := f.Pool(1, url.Values{"_journal_mode": {"WAL"}, "_txlock": {"immediate"}})
	must(t, err)
	t.Cleanup(func() { must(t, db.Close()) })
	must(t, f.WantWAL(t.Context(), db))
	must(t, f.Migrate(t.Context(), db, steps))
	return db
}

// plain opens the file as any other program would.
func plain(t *testing.T, f File, queries ...string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", f.Path)
	must(t, err)
	t.Cleanup(func() { must(t, db.Close()) })
	db.SetMaxOpenConns(1)
	for _, query := range queries {
		_, err := db.ExecContext(t.Context(), query)
		must(t, err)
	}
	return db
}

func TestFilesThatAreNotOursAreRefusedAndNotChanged(t *testing.T) {
	ours := fmt.Sprintf("PRAGMA application_id = %d", fresh(t).ApplicationID)
	for name, c := range map[string]struct {
		text    string
		queries []string
		class   error
		says    string
	}{
		"text":       {"user=alice, and so on for a while", nil, ErrForeign, "not a dovepush thing; set thing.path"},
		"zeros":      {strings.Repeat("\x00", 8192), nil, ErrForeign, "it is overwritten: look for it"},
		"tables":     {"", []string{"CREATE TABLE mails (x)"}, ErrForeign, "(application_id 0x0); set thing.path"},
		"id":         {"", []string{"PRAGMA application_id = 42"}, ErrForeign, "another application (application_id 0x2a)"},
		"version":    {"", []string{"PRAGMA user_version = 1"}, ErrForeign, "another application"},
		"newer":      {"", []string{ours, "PRAGMA user_version = 3"}, ErrNewer, "version 3, this dovepush knows versions up to 2; run the newer dovepush, or set thing.path"},
		"impossible": {"", []string{ours}, ErrCorrupt, "version 0 is impossible; stop dovepush and hide"},
	} {
		t.Run(name, func(t *testing.T) {
			f := fresh(t)
			must(t, os.WriteFile(f.Path, []byte(c.text), 0o600))
			must(t, plain(t, f, c.queries...).Close())
			before, err := os.ReadFile(f.Path)
			must(t, err)
			wantError(t, f, f.Identify(t.Context(), 2), c.class, c.says)
			if after, err := os.ReadFile(f.Path); !bytes.Equal(before, after) {
				t.Errorf("changed, error %v", err)
			}
			if entries, err := os.ReadDir(filepath.Dir(f.Path)); len(entries) != 1 {
				t.Errorf("%v, error %v", entries, err)
			}
		})
	}
}

func TestOnlyTheStepsThatAreMissingAreMade(t *testing.T) {
	f := fresh(t)
	steps := []string{"CREATE TABLE a (x)", "CREATE TABLE b (x)", "CREATE TABLE c (x)"}
	opened(t, f, steps[0])
	opened(t, f, steps...)
	db := opened(t, f, steps...)
	version, err := f.Version(t.Context(), db, 3)
	if version != 3 || err != nil {
		t.Errorf("version %d, error %v", version, err)
	}
	wantError(t, f, f.Migrate(t.Context(), db, steps[:2]), ErrNewer, "versions up to 2")
	if err := f.Migrate(t.Context(), db, append(steps, "CREATE TABLE d (x)", "CREATE TABLE d (x)")); err == nil || !strings.Contains(err.Error(), "migrate to schema version 5") {
		t.Errorf("error %v", err)
	}
	var tables int
	must(t, plain(t, f).QueryRowContext(t.Context(), "SELECT count(*) FROM sqlite_schema").Scan(&tables))
	if tables != 3 {
		t.Errorf("%d tables: a migration that failed was not undone", tables)
	}
}

func TestAFileInTheOldModeIsRefused(t *testing.T) {
	f := fresh(t)
	_, err := f.Prepare()
	must(t, err)
	if err := f.WantWAL(t.Context(), plain(t, f)); err == nil || !strings.Contains(err.Error(), "put the thing on a local disk") {
		t.Errorf("error %v", err)
	}
}

func TestEveryConnectionIsSetUp(t *testing.T) {
	f := fresh(t)
	f.Pragma = "temp_store(memory)"
	_, err := f.Prepare()
	must(t, err)
	db, err := f.Pool(1, url.Values{"_pragma": {"secure_delete(1)"}, "_query_only": {"1"}})
	must(t, err)
	defer db.Close()
	for pragma, want := range map[string]int{"busy_timeout": 20000, "temp_store": 2, "secure_delete": 1, "query_only": 1} {
		var got int
		if err := db.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %d, want %d, error %v", pragma, got, want, err)
		}
	}
	_, err = db.ExecContext(t.Context(), "CREATE TABLE t (x)")
	wantError(t, f, f.Explain("x", err), ErrPermission, "uid ")
	f.Path += ".other"
	other, err := f.Pool(1, nil)
	must(t, err)
	defer other.Close()
	if err := f.Explain("x", other.PingContext(t.Context())); err == nil || errors.Is(err, ErrPermission) {
		t.Errorf("a file that is not there: error %v", err)
	}
	if _, err := os.Stat(f.Path); err == nil {
		t.Error("a connection made a file")
	}
}

func TestOpeningIsRepeatedOnlyWhileItIsLocked(t *testing.T) {
	f := fresh(t)
	odd := errors.New("odd")
	answers := []error{ErrBusy, f.ExplainAs(ErrBusy, "open", odd), odd, nil}
	next := func() error {
		err := answers[0]
		answers = answers[1:]
		return err
	}
	if err := f.Patiently(t.Context(), next); err != odd {
		t.Errorf("error %v", err)
	}
	must(t, f.Patiently(t.Context(), next))
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	wantError(t, f, f.Patiently(ctx, func() error { return ErrBusy }), context.DeadlineExceeded, "open: ")
}
