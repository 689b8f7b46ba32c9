package registry

import (
	"embed"
	"io/fs"
)

//go:embed schema/sqlite/*.sql
var embedded embed.FS

// migrations returns the schema changes in order; version n is what the first
// n of them make. One that was released is never edited: add another.
func migrations(dir fs.FS) ([]string, error) {
	names, err := fs.Glob(dir, "schema/sqlite/*.sql") // sorted
	if err != nil {
		return nil, err
	}
	var steps []string
	for _, name := range names {
		text, err := fs.ReadFile(dir, name)
		if err != nil {
			return nil, err
		}
		steps = append(steps, string(text))
	}
	return steps, nil
}
