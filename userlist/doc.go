// Package userlist reads lists of users, and gives them back sorted, in bounded
// memory.
//
// A list holds one user a line, or user TAB identity. The order of calls:
//
//	list, err := userlist.Read(ctx, file, userlist.Options{...})
//	defer list.Close()
//	for entry, err := range list.All(ctx) { ... } // once
//
// Collect does for a sequence of names what Read does for text. Both read to the
// end before they return, so that a half-read list changes nothing. Only All sees the lines of a user side by side: until it has come to
// its end without an error, the list may still turn out to be a bad one, and
// nothing should have been changed because of it.
//
// A list of more than some 60,000 users goes through a temporary file of about
// its size. It holds user names: only its owner may read it, and its name is
// removed before anything is written to it, so that it is gone with the
// process, even one that is killed. Killed in the instant between, the process
// leaves an empty file extsort_PID_*. Only where a file system refuses to remove
// the name of an open file does the name go at the end.
//
// The package does not know which users or identities Dovecot accepts.
package userlist
