// Command bench measures dovepush against other ways to write the same entries
// into a real Dovecot, in turns, and prints tables. `make bench` runs it.
//
//	go run ./bench                                   all tables, Dovecot 2.3 and 2.4
//	go run ./bench -only users -dovecot 2.4 -rounds 9
//
// The tables, and the names under which -only knows them:
//
//	users        -users users on 16 connections: dovepush, raw socket clients,
//	             a Python imaplib loop, a shell loop of doveadm
//	connections  dovepush and raw on 1 and on 64 connections
//	stock        the same on Dovecot's stock process settings: one process a login
//	start        one user, the whole process
//	doveadm      -users users: dovepush and raw clients over the DoveAdm HTTP API
//	             and over IMAP; then fewer on stock process settings
//	batches      dovepush and raw clients over that API on 1, 2 and 4
//	             connections, 10, 100 and 1000 users in a request
//
// Each table is measured in rounds. In a round every contender has its turn,
// in an order that differs from round to round: first all its users' entries
// are absent, then all are as they should be and it looks again. The absolute
// numbers are this machine's, on which Dovecot, the clients and whoever else
// is at work share the cores; what counts are the ratios, each taken within a
// round. Nothing is counted unless the entries were right afterwards.
//
// All contenders are processes of their own, so that their CPU time can be
// told from Dovecot's, and the time that they take to start is theirs. They
// speak plain IMAP and plain HTTP on loopback. Dovecot starts a process for
// each request of the HTTP API, with all the settings that are used here.
package main
