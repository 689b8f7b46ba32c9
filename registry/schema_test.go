package registry

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// dump is the schema of a file as SQL that makes it: tables come first.
func dump(t *testing.T, path string) string {
	t.Helper()
	rows, err := plain(t, path).QueryContext(t.Context(), "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY type = 'table' DESC, type DESC, name")
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
		// Not opened: today's statements need today's tables.
		if err := at(path).Migrate(t.Context(), plain(t, path), steps[:version]); err != nil {
			t.Fatal(err)
		}
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

// cells returns all rows of registrations, column by column.
func cells(t *testing.T, path string) (got [][]any) {
	t.Helper()
	rows, err := plain(t, path).QueryContext(t.Context(), "SELECT * FROM registrations ORDER BY username, server")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	names, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		row, fields := make([]any, len(names)), make([]any, len(names))
		for i := range row {
			fields[i] = &row[i]
		}
		if err := rows.Scan(fields...); err != nil {
			t.Fatal(err)
		}
		got = append(got, row)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestRegistryOfSchema1GoesOnWithAllItsRows(t *testing.T) {
	frozen, err := os.ReadFile(filepath.Join("testdata", "schema-1.sql"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "registry.db")
	old := plain(t, path)
	exec1(t, old, string(frozen))
	exec1(t, old, fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = 1", applicationID))
	exec1(t, old, `INSERT INTO registrations VALUES
		('alice', 'main', '3@7', 'user=3@7', 'present', 'registered', 9000, 0, 5000, 1000, 2000, 3000, '', '', 0, '["user=3@7"]', NULL, 4, '', NULL),
		('alice', 'far', '', '', 'absent', 'removing', NULL, 2, 6000, NULL, NULL, NULL, 'retry', 'refused', 1, '["a","b"]', 7000, 1, 'agent', 8000),
		('bob', 'main', '', 'user=bob', 'present', 'failed', NULL, 1, NULL, NULL, NULL, NULL, 'user', 'no such user', 0, '[]', NULL, 1, '', NULL)`)
	before := cells(t, path)

	r := reopen(t, path, (&clock{at: noon}).now)
	if diff := cmp.Diff(before, cells(t, path)); diff != "" || len(before) != 3 {
		t.Error(diff)
	}
	// What is new finds the old rows.
	got, err := r.Backlogs(t.Context())
	want := []Backlog{{Server: "far", Due: 1, Oldest: time.UnixMilli(6000).UTC(), Retrying: 1}, {Server: "main", Due: 1, Oldest: time.UnixMilli(5000).UTC()}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
	wantProven(t, r, time.UnixMilli(0), ProvenCount{"main", 1, 1})
	wantProven(t, r, noon, ProvenCount{"main", 1, 0})
	wantUsers(t, takeDue(t, r, "main", 9), "alice")
	wantCircuits(t, r)
	openCircuit(t, r, Circuit{Server: "main", Since: noon, ProbeAt: noon, Failures: 1})
	wantEndpoints(t, r)
	setAside(t, r, Endpoint{Server: "main", URL: urlA, Since: noon, CheckAt: noon, Reason: "refused"})
	if err := r.Check(t.Context()); err != nil {
		t.Error(err)
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
