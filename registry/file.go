package registry

import "dovepush/registry/dbfile"

// applicationID marks an SQLite file as a dovepush registry: "dvph".
const applicationID = 0x64767068

// at is the registry's file at an absolute path.
func at(path string) dbfile.File {
	return dbfile.File{
		What:          "registry",
		Path:          path,
		ApplicationID: applicationID,
		Overwritten:   "restore it from a backup",
		Damaged:       ", keep copies of %s, then restore a backup; without one, move them away and give a full list of users to dovepush register -",
	}
}
