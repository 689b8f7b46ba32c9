package registry

import (
	"errors"

	"dovepush/registry/dbfile"
)

// What can be wrong with the registry as a whole, to be told apart with
// errors.Is. Every message names the file and says what to do about it.
var (
	ErrPermission = dbfile.ErrPermission // cannot be created, opened or written
	ErrFull       = dbfile.ErrFull       // no space left on the disk
	ErrBusy       = dbfile.ErrBusy       // another process kept it locked for dbfile.BusyTimeout
	ErrNewer      = dbfile.ErrNewer      // its schema is newer than ours
	ErrForeign    = dbfile.ErrForeign    // not SQLite, or not a registry
	ErrCorrupt    = dbfile.ErrCorrupt    // SQLite found it damaged, or a row cannot be ours
)

// explain is File.Explain, which cannot know what an unreadable row means.
func explain(path, op string, err error) error {
	if errors.Is(err, errUnreadable) {
		return at(path).ExplainAs(ErrCorrupt, op, err)
	}
	return at(path).Explain(op, err)
}
