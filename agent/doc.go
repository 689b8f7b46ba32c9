// Package agent makes http-notify entries what the registry says they should
// be: for one user now, for many, or for ever.
//
// A request only changes what should be, in the registry, durably. Then the
// agent looks at the entry, decides (decide, a pure function), acts through a
// connector's one Update, and records what came of it. Whatever interrupts
// this, the next look at the same registration ends where it should: nothing
// that was acknowledged is lost, and at most one idempotent exchange is
// repeated.
//
// The agent does not know how an entry is reached (packages imapmeta and
// doveadm) and not how registrations are stored (package registry).
//
// The usual order of calls:
//
//	a := agent.New(agent.Options{...})
//	for result := range a.Each(ctx, requests) { ... } // a command
//
// or, in a service,
//
//	go a.Run(ctx)
//	row := a.Submit(ctx, request)
//	row = a.Await(ctx, row)
package agent
