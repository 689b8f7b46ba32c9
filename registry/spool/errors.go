package spool

import (
	"errors"

	"dovepush/registry/dbfile"
)

// ErrFull is Add's when so many events wait for a target that it takes no more.
var ErrFull = errors.New("too many events wait")

// What can be wrong with the spool as a whole, to be told apart with
// errors.Is. Every message names the file and says what to do about it.
var (
	ErrPermission = dbfile.ErrPermission // cannot be created, opened or written
	ErrNoSpace    = dbfile.ErrFull       // no space left on the disk
	ErrBusy       = dbfile.ErrBusy       // another process kept it locked for dbfile.BusyTimeout
	ErrNewer      = dbfile.ErrNewer      // its schema is newer than ours
	ErrForeign    = dbfile.ErrForeign    // not SQLite, or not a spool
	ErrCorrupt    = dbfile.ErrCorrupt    // SQLite found it damaged, or its rows contradict one another
)

func explain(path, op string, err error) error { return at(path).Explain(op, err) }
