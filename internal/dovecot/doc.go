// Package dovecot starts a real, throw-away Dovecot 2.3 or 2.4 on loopback, in
// a temporary directory of its own, for tests, benchmarks and the demo. It is
// no client of Dovecot (that is imapmeta and doveadm) and no help in running a
// Dovecot that anybody depends on.
//
// The usual order of calls:
//
//	s, err := dovecot.Start(ctx, dovecot.Options{
//		Version: dovecot.V24,
//		Users:   []dovecot.User{{Name: "alice", Password: "secret"}},
//	})
//	defer s.Close()
//	... talk to s.IMAP, s.IMAPS, s.LMTP, s.DoveadmURL ...
//	s.Deliver(ctx, "alice", "bob@example.com", "lunch?", "at noon")
//	s.WaitNotification(ctx, func(n dovecot.Notification) bool { return n.User == "alice" })
//	s.Entry(ctx, "alice")   // what Dovecot itself says the entry holds
//
// Tests go through the package dovecottest, which starts, stops and explains.
//
// The Dovecots come from install.sh beside this file: the host's own package
// where it is the wanted version, otherwise a Debian tree below [Roots] into
// which the process changes its root. It runs as root and as an ordinary
// user; see [Find] for what an ordinary user needs.
//
// Everything that a Server owns ends with it: the Dovecot processes, the
// notification endpoint, the directory. When the calling process is killed
// outright, the kernel stops Dovecot; only the directory (dp*, in the
// temporary directory) is then left behind.
package dovecot
