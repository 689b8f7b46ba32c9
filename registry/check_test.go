package registry

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestInspectTellsOfARegistryAndChangesNothing(t *testing.T) {
	r, _ := fresh(t)
	intend(t, r, present(alice, "user=alice"))
	seen, err := Inspect(t.Context(), r.path) // while another uses it
	if err != nil || seen.Version != seen.Newest || seen.Newest == 0 {
		t.Errorf("seen %+v, %v", seen, err)
	}
	if get(t, r, alice).Value != "user=alice" {
		t.Error("the row is gone")
	}
}

func TestInspectDoesNotMigrate(t *testing.T) {
	steps, err := migrations(embedded)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "registry.db")
	old, err := open(t.Context(), path, nil, steps[:len(steps)-1])
	if err != nil {
		t.Fatal(err)
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	seen, err := Inspect(t.Context(), path)
	if err != nil || seen.Version != len(steps)-1 || seen.Newest != len(steps) {
		t.Errorf("seen %+v, %v", seen, err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file was changed, %v", err)
	}
}

func TestInspectFailsAsOpenDoes(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "registry.db")
	if _, err := Inspect(t.Context(), path); err == nil {
		t.Error("a file that is not there is sound")
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file was made: %v", err)
	}
	if err := os.WriteFile(path, bytes.Repeat([]byte("no SQLite"), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Inspect(t.Context(), path); !errors.Is(err, ErrForeign) {
		t.Errorf("another file: %v", err)
	}
	r, _ := fresh(t)
	for i := range 2000 {
		intend(t, r, present(Key{User: string(rune('a'+i%26)) + filepath.Base(t.Name()) + string(rune('a'+i/26%26)) + string(rune('a'+i/676)), Server: "main"}, "user=x"))
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(r.path)
	if err != nil {
		t.Fatal(err)
	}
	copy(text[len(text)/2:], bytes.Repeat([]byte{0xff}, 8192))
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Inspect(t.Context(), path); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a damaged file: %v", err)
	}
}
