// Package imapmeta reads and changes one user's http-notify entry over IMAP
// METADATA (RFC 5464), as Dovecot 2.3 and 2.4 speak it.
//
// It knows the entry and the format of its value, how to log in, and what
// Dovecot's replies mean: every failure is an *Error of one of three kinds
// (retry, user, server). It does not know what the entry should hold, nor when
// to look again: that is package agent's, and what was found is written down
// by package registry.
//
// The usual order of calls:
//
//	client, err := imapmeta.New(imapmeta.Options{...})
//	outcome, err := client.Update(ctx, "alice", func(have imapmeta.Value) imapmeta.Change {
//		if have == want {
//			return imapmeta.Keep()
//		}
//		return imapmeta.Set(want)
//	})
//
// An Update costs one round trip after the connection stands if nothing has to
// change, and two otherwise: AUTHENTICATE and GETMETADATA travel together where
// the mechanism allows it (see Mechanism), and so do SETMETADATA and LOGOUT.
package imapmeta
