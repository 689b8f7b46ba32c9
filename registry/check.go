package registry

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// Inspection is what can be said of a registry without opening it for use.
type Inspection struct {
	Version int // of its schema
	Newest  int // that this program knows; Open brings an older one up to it
}

// Inspect looks at the registry at path, which must exist, and changes nothing:
// neither its schema nor its permissions. It runs SQLite's quick check, which
// reads the whole file but does not compare indices with their tables. It fails
// as Open does, with SQLite's findings, or with fs.ErrNotExist.
// https://www.sqlite.org/pragma.html#pragma_quick_check
func Inspect(ctx context.Context, path string) (seen Inspection, err error) {
	steps, err := migrations(embedded)
	if err != nil {
		return seen, fmt.Errorf("registry: read embedded schema: %w", err)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return seen, fmt.Errorf("registry %s: %w", path, err)
	}
	seen.Newest = len(steps)
	db, err := at(abs).Pool(1, nil)
	if err != nil {
		return seen, err
	}
	defer func() { err = errors.Join(err, explain(abs, "check", db.Close())) }()
	if seen.Version, err = at(abs).Version(ctx, db, len(steps)); err != nil {
		return seen, err
	}
	rows, err := db.QueryContext(ctx, "PRAGMA quick_check(10)")
	if err != nil {
		return seen, explain(abs, "check", err)
	}
	findings, err := scanStrings(rows)
	if err != nil {
		return seen, explain(abs, "check", err)
	}
	if len(findings) != 1 || findings[0] != "ok" {
		return seen, at(abs).Corrupt("check", strings.Join(findings, "; "))
	}
	return seen, nil
}
