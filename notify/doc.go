// Package notify takes what Dovecot tells us: the PUT that the ox driver of
// the push-notification plugin sends for each mail that arrives in an INBOX.
//
// It checks and decodes a notification, answers at once (Dovecot holds the
// delivery until then), and hands it on: to whoever watches (Hub), to the
// registry as the proof that a registration works (Prover), and, before the
// answer, to whoever must not lose it (Options.Accept). It opens no listener,
// knows no registrations, and keeps no mail: sender, subject and snippet are
// private, are never logged, and stay in memory only until they are read.
//
// Usual order of calls:
//
//	hub := notify.NewHub()
//	prover := notify.NewProver(notify.ProverOptions{Prove: reg.Prove})
//	go prover.Run(ctx)
//	handler := notify.New(notify.Options{Path: ..., Credentials: ..., Publish: func(n notify.Notification) {
//		prover.Add(n)
//		hub.Publish(notify.Event{Notification: &n})
//	}})
//	notify.Server(handler, log).Serve(notify.Bound(listener, 2048))
//
// On stop: Shutdown of the server, then the end of Run's context, then Close
// of the hub.
package notify
