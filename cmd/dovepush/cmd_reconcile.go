package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"dovepush/agent"
	"dovepush/config"
	"dovepush/userlist"
)

// reconcileFlags are those of reconcile.
type reconcileFlags struct {
	users    string
	command  string
	from     string
	prune    bool
	maxPrune string
	verify   string
	dryRun   bool
	noWait   bool
	json     bool
	report   string
	verbose  bool
}

func (a *app) reconcileCommand() *cobra.Command {
	var f reconcileFlags
	cmd := &cobra.Command{
		Use:     "reconcile",
		GroupID: "users",
		Short:   "Make everybody's entries what they should be: from cron, after a list",
		Long: `Registers who is listed and is not registered, mends what drifted, finishes what
was left undone, and, with --prune, unregisters who is not listed. It costs a
login for each user for whom something is to be done, and nothing for the others.
Without a list it sees to all registrations that are due.

--users-from doveadm lists the users of each [[server]] by its DoveAdm HTTP API,
which connector "imap" may have beside it; of each it takes those who are that
server's by domains.

A list has a user a line, or a user, a TAB and an identity; # begins a comment
line. Order and repetition do not matter. It is read to its end before anything
is changed, and a COMMAND that fails changes nothing. A pipe hides that its first
part failed: let the list be written to a file, && then read.

A sweep may be stopped at any time: the next one goes on. Several at once, and
dovepush serve, share the work. Users whom Dovecot has refused come last, one
every 16 seconds, as Dovecot delays everybody's logins after each refused one.

Says nothing when all is well, but for -v, --json and a terminal.`,
		Example: `  dovepush reconcile --users /etc/dovepush/users
  dovepush reconcile --users-from doveadm --prune --dry-run
  dovepush reconcile --users-command "doveadm user '*'"
  mysql -BN -e "SELECT user FROM mailboxes" mail >users && dovepush reconcile --users users --prune`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(cmd); err != nil {
				return err
			}
			return a.reconcile(cmd.Context(), f)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.users, "users", "", "who should be registered: a `FILE`, or - for standard input")
	flags.StringVar(&f.command, "users-command", "", "who should be registered: what this `COMMAND` of the shell prints")
	flags.StringVar(&f.from, "users-from", "", "who should be registered: all users whom Dovecot knows, asked by `doveadm`'s HTTP API")
	flags.BoolVar(&f.prune, "prune", false, "unregister who is not listed")
	flags.StringVar(&f.maxPrune, "max-prune", "", "change nothing if --prune would unregister more than `N|P%` users (default 5%, at least 10 users)")
	flags.StringVar(&f.verify, "verify", string(agent.Due), "whose entries to look at though nothing has changed: `due|all|none`")
	flags.BoolVar(&f.dryRun, "dry-run", false, "only say what would be done")
	flags.BoolVar(&f.noWait, "no-wait", false, "only record it; dovepush serve does it, or the next reconcile")
	flags.BoolVar(&f.json, "json", false, "print a JSON object per user for whom something was done or failed, and one that sums up")
	flags.StringVar(&f.report, "report", "", "write the JSON summary to this `FILE`")
	flags.BoolVarP(&f.verbose, "verbose", "v", false, "sum up even if all is well")
	return cmd
}

func (f *reconcileFlags) check(cmd *cobra.Command) error {
	changed := cmd.Flags().Changed
	lists := 0
	for _, name := range []string{"users", "users-command", "users-from"} {
		if changed(name) {
			lists++
		}
	}
	switch {
	case lists > 1:
		return usagef("--users, --users-command and --users-from name several lists: give one")
	case changed("users-from") && f.from != config.ConnectorDoveadm:
		return usagef("--users-from %q: it can only be %s", f.from, config.ConnectorDoveadm)
	case changed("users") && f.users == "", changed("users-command") && strings.TrimSpace(f.command) == "":
		return usagef("the list has no name")
	case f.prune && lists == 0:
		return usagef("--prune needs a list: --users, --users-command or --users-from")
	case changed("max-prune") && !f.prune:
		return usagef("--max-prune is of use with --prune only")
	case f.dryRun && f.noWait:
		return usagef("--dry-run and --no-wait exclude each other")
	case changed("report") && f.report == "":
		return usagef("--report names no file")
	}
	switch agent.Scope(f.verify) {
	case agent.Due, agent.All, agent.None:
	default:
		return usagef("--verify %q is none of due, all, none", f.verify)
	}
	_, err := parseBrake(f.maxPrune)
	return err
}

// brake bounds how many users a sweep may unregister for not being listed.
type brake struct {
	users   int64
	percent float64
	text    string // as it was given
}

// parseBrake reads --max-prune; empty is the default.
func parseBrake(s string) (brake, error) {
	if s == "" {
		return brake{users: 10, percent: 5, text: "5% (at least 10 users)"}, nil
	}
	if number, ok := strings.CutSuffix(s, "%"); ok {
		percent, err := strconv.ParseFloat(number, 64)
		if err != nil || !(percent >= 0 && percent <= 100) {
			return brake{}, usagef("--max-prune %q is no percentage between 0%% and 100%%", s)
		}
		return brake{percent: percent, text: s}, nil
	}
	users, err := strconv.ParseInt(s, 10, 64)
	if err != nil || users < 0 {
		return brake{}, usagef("--max-prune %q is neither a number of users nor a percentage", s)
	}
	return brake{users: users, text: s}, nil
}

// most is how many of so many may go.
func (b brake) most(registered int64) int64 {
	return max(b.users, int64(float64(registered)*b.percent/100))
}

// brakeError: a list would unregister too many users.
type brakeError struct{ text, hint string }

func (e *brakeError) Error() string {
	return "the list looks truncated: " + e.text + "; nothing was changed"
}

// apply fails with a brakeError if the plan removes more than it may.
func (b brake) apply(p *agent.Plan) error {
	switch {
	case p.Pruned == 0:
		return nil
	case p.Listed == 0:
		return &brakeError{
			fmt.Sprintf("it is empty, and all %d registered users would be unregistered", p.Pruned),
			"an empty list never unregisters anybody; dovepush unregister - takes names on standard input"}
	case p.Pruned > b.most(p.Registered):
		return &brakeError{
			fmt.Sprintf("%d of %d registered users are not in it for their server, and --max-prune %s allows %d", p.Pruned, p.Registered, b.text, b.most(p.Registered)),
			fmt.Sprintf("--dry-run --json names them; if the list is right, run it again with --max-prune %d", p.Pruned)}
	}
	return nil
}

// reconcile makes a plan and carries it out.
func (a *app) reconcile(ctx context.Context, f reconcileFlags) error {
	out := a.newSweepReport(f)
	code := exitOK
	err := a.sweep(ctx, f, out)
	switch {
	case ctx.Err() != nil:
		code = a.exit(ctx, ctx.Err())
	case err != nil:
		for _, part := range parts(err) {
			if errors.Is(part, agent.ErrStopped) && out.server {
				a.hint(hintFor(part)) // what is wrong was said with the user who met it
				code = graver(code, exitCode(part))
				continue
			}
			code = graver(code, a.exit(ctx, part))
		}
	}
	if failed := out.close(graver(code, out.code)); failed != nil {
		a.complain("", failed)
		out.code = graver(out.code, exitCode(failed))
	}
	if code = graver(code, out.code); code != exitOK {
		return reported{code}
	}
	return nil
}

// parts returns what is wrong with each server.
func parts(err error) []error {
	var several *agent.SweepError
	if errors.As(err, &several) {
		return several.Servers
	}
	return []error{err}
}

func (a *app) sweep(ctx context.Context, f reconcileFlags, out *sweepReport) (err error) {
	c, err := a.load()
	if err != nil {
		return err
	}
	if err := unattended(c); err != nil {
		return err
	}
	a.warn(c)
	list, err := a.openList(ctx, f, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, list.close()) }()
	r, err := a.openRegistry(ctx, c)
	if err != nil {
		return err
	}
	defer r.Close()
	worker, err := a.newCrew(ctx, c, r, nil, nil)
	if err != nil {
		return err
	}
	defer worker.close()
	aim := agent.Aim{Listed: list.users(ctx), Prune: f.prune, Verify: agent.Scope(f.verify)}
	var each func(agent.Step) error
	if f.dryRun {
		each = out.step
	}
	plan, err := worker.Plan(ctx, aim, each)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, plan.Close()) }()
	if f.dryRun {
		if err := out.plan(plan); err != nil {
			return err
		}
	}
	if f.prune {
		limit, err := parseBrake(f.maxPrune)
		if err != nil {
			return err
		}
		if err := limit.apply(plan); err != nil {
			return err
		}
	}
	if f.dryRun {
		return nil
	}
	out.begin(plan)
	untried, err := worker.Sweep(ctx, plan, agent.Sweeping{NoWait: f.noWait, Rows: f.json, Report: out.result})
	out.end(untried)
	return err
}

// unattended fails if users log in with passwords that nobody could give here.
func unattended(c *config.Config) error {
	for i, s := range c.Servers {
		key := s.Auth.Password.Key()
		own := s.Connector == config.ConnectorIMAP && s.Auth.MasterUser == "" && s.Auth.Mechanism != config.MechanismExternal
		if own && (!s.Auth.Password.IsSet() || !strings.HasSuffix(key, "_command")) {
			return fmt.Errorf("%w: server[%d].auth has no master_user: set one, or a password_command that knows each user's password", errConfig, i)
		}
	}
	return nil
}

// list is who should be registered; nil: whoever is in the registry.
type list struct{ *userlist.List }

func (l *list) close() error {
	if l == nil {
		return nil
	}
	return l.Close()
}

// users yields the users in the order that the agent wants them in.
func (l *list) users(ctx context.Context) iter.Seq2[agent.Listed, error] {
	if l == nil {
		return nil
	}
	return func(yield func(agent.Listed, error) bool) {
		for entry, err := range l.All(ctx) {
			if !yield(agent.Listed(entry), err) {
				return
			}
		}
	}
}
