package registry

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// dump is the schema of a file as SQL.
func dump(t *testing.T, path string) string {
	t.Helper()
	rows, err := plain(t, path).QueryContext(t.Context(), "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY type DESC, name")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var out strings.Builder
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			t.Fatal(err)
		}
		out.WriteString(text + ";\n")
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func openWith(t *testing.T, path string, steps []string) {
	t.Helper()
	r, err := open(t.Context(), path, nil, steps)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestEverySchemaEverReleasedMigratesToTodays compares with schemas frozen in
// testdata, one a version, so that it fails when a released migration is
// edited, and when a new version was not frozen.
func TestEverySchemaEverReleasedMigratesToTodays(t *testing.T) {
	steps, err := migrations(embedded)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "fresh.db")
	openWith(t, path, steps)
	want := dump(t, path)
	for version := 1; version <= len(steps); version++ {
		name := filepath.Join("testdata", fmt.Sprintf("schema-%d.sql", version))
		frozen, err := os.ReadFile(name)
		if err != nil {
			t.Fatalf("freeze version %d there, once, for good: %v\n%s", version, err, want)
		}
		path := filepath.Join(t.TempDir(), "as-made-then.db")
		openWith(t, path, steps[:version])
		if diff := cmp.Diff(string(frozen), dump(t, path)); diff != "" {
			t.Errorf("the first %d migrations no longer make %s; never edit a released one:\n%s", version, name, diff)
		}

		path = filepath.Join(t.TempDir(), "old.db")
		db := plain(t, path)
		exec1(t, db, string(frozen))
		exec1(t, db, fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = %d", applicationID, version))
		openWith(t, path, steps)
		if diff := cmp.Diff(want, dump(t, path)); diff != "" {
			t.Errorf("from version %d: %s", version, diff)
		}
	}
}

func TestMigrationKeepsTheRowsAndTheOlderProgramRefusesThem(t *testing.T) {
	steps, err := migrations(embedded)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "registry.db")
	r := reopen(t, path, nil)
	intend(t, r, present(alice, "v"))

	openWith(t, path, append(steps, "ALTER TABLE registrations ADD COLUMN colour TEXT; UPDATE registrations SET colour = 'red'"))
	var colour string
	if err := plain(t, path).QueryRowContext(t.Context(), "SELECT colour FROM registrations WHERE username = 'alice'").Scan(&colour); err != nil || colour != "red" {
		t.Errorf("colour %q, error %v", colour, err)
	}
	msg := refused(t, path, ErrNewer)
	if want := fmt.Sprintf("version %d, this dovepush knows versions up to %d", len(steps)+1, len(steps)); !strings.Contains(msg, want) {
		t.Error(msg)
	}
}

func TestFailedMigrationChangesNothing(t *testing.T) {
	steps, err := migrations(embedded)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "registry.db")
	openWith(t, path, steps)
	before := dump(t, path)
	if r, err := open(t.Context(), path, nil, append(steps, "CREATE TABLE half (a)", "CREATE TABLE half (a)")); err == nil {
		r.Close()
		t.Fatal("opened")
	}
	if diff := cmp.Diff(before, dump(t, path)); diff != "" {
		t.Error(diff)
	}
	openWith(t, path, steps) // its version is still the old one
}
