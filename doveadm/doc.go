// Package doveadm reads and changes users' http-notify entries over Dovecot's
// DoveAdm HTTP API, lists the users that Dovecot knows, and tells whether it
// knows one.
//
// It does what package imapmeta does over IMAP, under the same contract, and
// with its types: the value, the change, and an *imapmeta.Error of one of three
// kinds. It logs nobody in. What many goroutines ask for at once travels as one
// POST, for Dovecot starts a process for each; what is not known here is who
// should have an entry, which is package agent's.
//
// The usual order of calls:
//
//	client, err := doveadm.New(doveadm.Options{...})
//	defer client.Close()
//	outcome, err := client.Update(ctx, "alice", func(have imapmeta.Value) imapmeta.Change {
//		if have == want {
//			return imapmeta.Keep()
//		}
//		return imapmeta.Set(want)
//	})
//
// The API is described at https://doc.dovecot.org/2.4.1/core/admin/doveadm.html
// and decided by src/doveadm/client-connection-http.c. Measured on 2.3.19 and
// 2.4.1: one request a connection, closed by Dovecot; commands run one after
// the other, and go on when nobody waits any more; nothing is sent before the
// last one has run.
package doveadm
