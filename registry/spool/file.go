package spool

import "dovepush/registry/dbfile"

// applicationID marks an SQLite file as a spool: "dvps".
const applicationID = 0x64767073

// at is the spool's file at an absolute path. What SQLite needs to set aside
// for a moment stays in memory, for it may be mail.
func at(path string) dbfile.File {
	return dbfile.File{
		What:          "spool",
		Path:          path,
		ApplicationID: applicationID,
		Pragma:        "temp_store(memory)",
		Overwritten:   "move it away",
		Damaged:       " and move %s away: a new spool begins empty, and what waited in this one is not forwarded",
	}
}
