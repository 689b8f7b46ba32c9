package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/spf13/cobra"

	"dovepush/agent"
	"dovepush/config"
	"dovepush/imapmeta"
	"dovepush/registry"
)

// requestFlags are those of register, unregister and verify.
type requestFlags struct {
	identity      string
	expires       time.Duration
	force         bool
	noWait        bool
	json          bool
	passwordStdin bool
}

func (a *app) registerCommand() *cobra.Command {
	var f requestFlags
	cmd := &cobra.Command{
		Use:     "register USER...",
		GroupID: "users",
		Short:   "Make Dovecot notify for users",
		Long: `Writes the entry that makes Dovecot send notifications for the users, and
remembers that it should be there. An entry that somebody else wrote is kept and
reported, unless --force or on_conflict = "replace" says otherwise.

Each call says the whole wish: without --identity the user gets the default one
again, without --expires the registration lasts.

USER may be "-": one user a line on standard input.`,
		Example: "  dovepush register alice@example.com\n  dovepush register alice --identity 3@7 --expires 720h",
		Args:    someUsers,
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.identity != "" && (len(args) > 1 || args[0] == "-") {
				return usagef("--identity is one user's: name exactly one USER")
			}
			if cmd.Flags().Changed("identity") && f.identity == "" {
				return usagef("--identity is empty")
			}
			if cmd.Flags().Changed("expires") && f.expires < time.Second {
				return usagef("--expires %s must be at least 1s", f.expires)
			}
			return a.requests(cmd.Context(), agent.Register, args, f)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.identity, "identity", "", "what stands behind user= in the entry, `ID`; by default what the settings say")
	flags.DurationVar(&f.expires, "expires", 0, "the registration ends after this `DURATION`, such as 720h: dovepush serve unregisters then, or the next verify")
	flags.BoolVar(&f.force, "force", false, "replace an entry that somebody else wrote")
	f.shared(cmd)
	f.delayed(cmd)
	return cmd
}

func (a *app) unregisterCommand() *cobra.Command {
	var f requestFlags
	cmd := &cobra.Command{
		Use:     "unregister USER...",
		GroupID: "users",
		Short:   "Make Dovecot stop notifying for users",
		Long: `Removes the entry, and forgets the users once that is confirmed. An entry that
somebody else wrote is kept and reported, unless --force is given. --force also
forgets users whom Dovecot does not know any more.

Dovecot's processes keep the entry for up to a minute (cache_lifetime of the ox
driver, push_notification_ox_cache_ttl in 2.4): notifications may still come
until then.

USER may be "-": one user a line on standard input.`,
		Args: someUsers,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.requests(cmd.Context(), agent.Unregister, args, f)
		},
	}
	cmd.Flags().BoolVar(&f.force, "force", false, "remove an entry that somebody else wrote")
	f.shared(cmd)
	f.delayed(cmd)
	return cmd
}

func (a *app) verifyCommand() *cobra.Command {
	var f requestFlags
	cmd := &cobra.Command{
		Use:     "verify USER...",
		GroupID: "users",
		Short:   "Look at users' entries, and mend what drifted",
		Long: `Reads the entries of registered users and makes them what they should be: an
entry that is gone is written again, one that somebody else wrote is reported.

USER may be "-": one user a line on standard input.`,
		Args: someUsers,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.requests(cmd.Context(), agent.Verify, args, f)
		},
	}
	f.shared(cmd)
	return cmd
}

// someUsers are the arguments of commands that need users.
func someUsers(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usagef("name a USER, or - for users on standard input")
	}
	return nil
}

func (f *requestFlags) shared(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.json, "json", false, "print a JSON object per user")
	cmd.Flags().BoolVar(&f.passwordStdin, "password-stdin", false, "log in with the user's own password, read from standard input")
}

func (f *requestFlags) delayed(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.noWait, "no-wait", false, "only record it; dovepush serve does it, or the next dovepush reconcile")
}

// requests carries out one action for all users, and reports each.
func (a *app) requests(ctx context.Context, action agent.Action, args []string, f requestFlags) error {
	if f.noWait && f.passwordStdin {
		return usagef("--password-stdin is of no use with --no-wait: a password is not kept")
	}
	c, err := a.load()
	if err != nil {
		return err
	}
	var password *config.Secret
	if !f.noWait {
		if password, err = a.ownPassword(ctx, c, args, f.passwordStdin); err != nil {
			return err
		}
	}
	a.warn(c)
	r, err := a.openRegistry(ctx, c)
	if err != nil {
		return err
	}
	defer r.Close()
	worker, err := a.newCrew(ctx, c, r, password, nil)
	if err != nil {
		return err
	}
	defer worker.close()

	var input error
	requests := func(yield func(agent.Request) bool) {
		for user, err := range a.users(ctx, args) {
			if err != nil {
				input = err
				return
			}
			if !yield(agent.Request{Action: action, User: user, Identity: f.identity, Expires: f.expires, Force: f.force, NoWait: f.noWait}) {
				return
			}
		}
	}
	code, unwritten := a.reportAll(ctx, action, worker.Each(ctx, requests, parallel(c)), f.json)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	for _, err := range []error{input, unwritten} {
		if err != nil {
			a.complain("", err)
			code = graver(code, exitCode(err))
		}
	}
	if code != exitOK {
		return reported{code}
	}
	return nil
}

// parallel is how many users are worked on at once: enough to use every
// connection of every server.
func parallel(c *config.Config) int {
	n := 0
	for _, s := range c.Servers {
		n += inFlight(&s)
	}
	return n
}

// reportAll reports the results as they come, and returns the gravest code. The
// work goes on when its report cannot be written: the users matter more.
func (a *app) reportAll(ctx context.Context, action agent.Action, results iter.Seq[agent.Result], asObjects bool) (int, error) {
	code, stopped := exitOK, 0
	var unwritten error
	for result := range results {
		code = graver(code, resultCode(result))
		if asObjects {
			unwritten = cmp.Or(unwritten, printJSON(a.stdout, asJSON(action, result)))
			a.hint(hintFor(result.Err))
			continue
		}
		switch {
		case errors.Is(result.Err, agent.ErrStopped):
			if stopped++; stopped > 1 {
				continue // said once, counted below
			}
			a.complain(result.User, result.Err)
		case ctx.Err() != nil && errors.Is(result.Err, context.Canceled):
			// said once, at the end
		case result.Err != nil:
			a.complain(result.User, result.Err)
			a.addAboutUnknown(action, result)
		default:
			unwritten = cmp.Or(unwritten, a.report(action, result))
		}
	}
	if stopped > 1 {
		fmt.Fprintf(a.stderr, "dovepush: %d users were not tried\n", stopped)
	}
	return code, unwritten
}

// addAboutUnknown says what became of the registration of a user to be
// unregistered whom Dovecot does not know.
func (a *app) addAboutUnknown(action agent.Action, r agent.Result) {
	switch {
	case action != agent.Unregister || !errors.Is(r.Err, imapmeta.ErrNoUser):
	case r.Registration == nil:
		fmt.Fprintf(a.stderr, "dovepush: %s: forgotten\n", printable(r.User))
	default:
		a.hint("dovepush unregister --force forgets a user whom Dovecot does not know any more")
	}
}

func resultCode(r agent.Result) int {
	if r.Err == nil && r.Verdict == agent.Conflict {
		return exitConflict
	}
	return exitCode(r.Err)
}

// report says what became of a user.
func (a *app) report(action agent.Action, r agent.Result) error {
	user := printable(r.User)
	if r.Verdict == agent.Conflict {
		fmt.Fprintf(a.stderr, "dovepush: %s: conflict: %s\n", user, printable(r.Conflict))
		if action == agent.Unregister {
			a.hint("--force removes it")
		} else {
			a.hint("dovepush register --force replaces it; on_conflict = \"replace\" does so for everybody")
		}
		return nil
	}
	_, err := fmt.Fprintf(a.stdout, "%s: %s\n", user, words(action, r))
	return err
}

func words(action agent.Action, r agent.Result) string {
	present := r.Registration != nil && r.Registration.Wanted == registry.Present
	switch {
	case r.Verdict == agent.Deferred && present:
		return "will be registered"
	case r.Verdict == agent.Deferred:
		return "will be unregistered"
	case action == agent.Unregister && present:
		return "unregistered, and registered again by somebody else meanwhile"
	case action == agent.Register && !present:
		return "registered, and unregistered by somebody else meanwhile"
	case !present && r.Verdict == agent.Removed:
		return "unregistered"
	case !present:
		return "unregistered, there was no entry"
	case r.Verdict == agent.Added && action == agent.Verify:
		return "the entry was gone, written again"
	case r.Verdict == agent.Added:
		return "registered"
	case r.Verdict == agent.Changed:
		return "registered, another value was replaced"
	case r.Verdict == agent.Adopted:
		return "registered, the entry was there already"
	}
	return "registered, nothing to do"
}
