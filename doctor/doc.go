// Package doctor walks the chain from config.toml to a notification that has
// come, link by link, and says what is wrong and how to mend it.
//
// It looks and compares; it makes nothing of what it finds. All that it changes
// is imapmeta.ProbeEntry of one user, which it removes again, and with
// Options.Deliver that user's INBOX, where a message stays. It prints nothing:
// each link is reported as it is done.
//
// The usual order of calls:
//
//	verdict := doctor.Run(ctx, doctor.Options{
//		Config: load,
//		User:   "alice",
//		Report: func(r doctor.Result) { print(r.Text()) },
//		...
//	})
//	print(verdict.Text())
//
// A link that fails makes those that depend on it skipped; other branches go on.
// What the outcome of a delivery means is decided by diagnose, a pure function
// of what was seen.
package doctor
