package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"dovepush/config"
	"dovepush/registry/spool"
)

// webhooksFlags are those of "dovepush webhooks".
type webhooksFlags struct {
	dead, revive, forget, drop, asObjects bool
}

func (a *app) webhooksCommand() *cobra.Command {
	var f webhooksFlags
	cmd := &cobra.Command{
		Use:     "webhooks [NAME...]",
		GroupID: "users",
		Short:   "Show what waits for webhooks, and what they did not take",
		Long: `Shows for each webhook how many notifications wait for it and since when, how
many it got, how many were given up (dead letters), how many it misses because
spool.max_events were waiting already, and why the last one failed.

--dead lists dead letters, without what is in the mail. --revive NAME has them
sent again by dovepush serve, --forget NAME deletes them. --drop NAME deletes all
that is kept for a webhook, also what waits: for one that is not configured any
more.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.webhooks(cmd.Context(), args, f)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.dead, "dead", false, "list dead letters")
	flags.BoolVar(&f.revive, "revive", false, "have dead letters sent again")
	flags.BoolVar(&f.forget, "forget", false, "delete dead letters")
	flags.BoolVar(&f.drop, "drop", false, "delete everything that is kept for a webhook")
	flags.BoolVar(&f.asObjects, "json", false, "print a JSON object per line")
	cmd.MarkFlagsMutuallyExclusive("dead", "revive", "forget", "drop")
	return cmd
}

// hook is the JSON of a webhook.
type hook struct {
	spool.TargetStats
	Configured bool `json:"configured"`
}

func (a *app) webhooks(ctx context.Context, names []string, f webhooksFlags) error {
	changes := f.revive || f.forget || f.drop
	if changes && len(names) == 0 {
		return usagef("name the webhook that is meant")
	}
	c, err := a.load()
	if err != nil {
		return err
	}
	s, err := openSpool(ctx, c)
	if err != nil {
		return err
	}
	var stats []spool.TargetStats
	if s != nil {
		defer s.Close()
		if stats, err = s.Stats(ctx); err != nil {
			return err
		}
	}
	hooks, err := chosen(c, stats, names)
	switch {
	case err != nil:
		return err
	case changes:
		return a.changeWebhooks(ctx, s, hooks, f)
	case f.dead:
		return a.deadLetters(ctx, s, hooks, f.asObjects)
	case f.asObjects:
		for _, h := range hooks {
			if err := printJSON(a.stdout, h); err != nil {
				return err
			}
		}
		return nil
	}
	return printWebhooks(a.stdout, hooks, time.Now())
}

// openSpool opens the spool if there is one: it must not be made by whoever
// only looks.
func openSpool(ctx context.Context, c *config.Config) (*spool.Spool, error) {
	if _, err := os.Stat(c.SpoolPath()); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return spool.Open(ctx, c.SpoolPath(), spool.Options{Most: int64(c.Spool.MaxEvents)})
}

// chosen are the webhooks of those names, or all: those of the settings, and
// others for which something is kept.
func chosen(c *config.Config, stats []spool.TargetStats, names []string) (hooks []hook, err error) {
	for i := range c.Webhooks {
		h := hook{spool.TargetStats{Target: c.Webhooks[i].Name}, true}
		if at := slices.IndexFunc(stats, func(s spool.TargetStats) bool { return s.Target == h.Target }); at >= 0 {
			h.TargetStats = stats[at]
		}
		hooks = append(hooks, h)
	}
	for _, s := range stats {
		if !slices.ContainsFunc(hooks, func(h hook) bool { return h.Target == s.Target }) {
			hooks = append(hooks, hook{s, false})
		}
	}
	if len(names) == 0 {
		return hooks, nil
	}
	for _, name := range names {
		if !slices.ContainsFunc(hooks, func(h hook) bool { return h.Target == name }) {
			return nil, usagef("there is no webhook %q; dovepush webhooks lists them", name)
		}
	}
	return slices.DeleteFunc(hooks, func(h hook) bool { return !slices.Contains(names, h.Target) }), nil
}

// changeWebhooks does what the flags say, and says to how many.
func (a *app) changeWebhooks(ctx context.Context, s *spool.Spool, hooks []hook, f webhooksFlags) error {
	for _, h := range hooks {
		var n int64
		var err error
		did := ""
		switch {
		case s == nil:
			did = "nothing is kept for it"
		case f.revive:
			n, err = s.Revive(ctx, h.Target)
			did = fmt.Sprintf("%d dead letters wait to be sent again", n)
		case f.forget:
			n, err = s.Forget(ctx, h.Target)
			did = fmt.Sprintf("%d dead letters are deleted", n)
		default:
			n, err = s.Drop(ctx, h.Target)
			did = fmt.Sprintf("%d notifications are deleted", n)
		}
		if err != nil {
			return err
		}
		if f.asObjects {
			err = printJSON(a.stdout, map[string]any{"target": h.Target, "changed": n})
		} else {
			_, err = fmt.Fprintf(a.stdout, "%s: %s\n", printable(h.Target), did)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// deadLetters lists what was given up.
func (a *app) deadLetters(ctx context.Context, s *spool.Spool, hooks []hook, asObjects bool) error {
	const format = "%-16s %-32s %-12s %-12s %8s  %s\n"
	if !asObjects {
		if _, err := fmt.Fprintf(a.stdout, format, "WEBHOOK", "USER", "CAME", "GIVEN UP", "ATTEMPTS", "ERROR"); err != nil {
			return err
		}
	}
	if s == nil {
		return nil
	}
	now := time.Now()
	for _, h := range hooks {
		for letter, err := range s.Dead(ctx, h.Target) {
			if err == nil && asObjects {
				err = printJSON(a.stdout, letter)
			} else if err == nil {
				_, err = fmt.Fprintf(a.stdout, format, printable(letter.Target), printable(letter.User), since(letter.Received, now),
					since(letter.Died, now), fmt.Sprint(letter.Attempts), printable(letter.Reason))
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func printWebhooks(w io.Writer, hooks []hook, now time.Time) error {
	if len(hooks) == 0 {
		_, err := fmt.Fprintln(w, "There are no webhooks: a [[webhook]] in config.toml makes one.")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "WEBHOOK\tWAITING\tSINCE\tDELIVERED\tLAST\tDEAD\tMISSED\tERROR")
	for _, h := range hooks {
		name, oldest, failed := printable(h.Target), "-", "-"
		if !h.Configured {
			name += " (not configured)"
		}
		if !h.Oldest.IsZero() {
			oldest = since(h.Oldest, now)
		}
		if h.LastErrorAt.After(h.DeliveredAt) {
			failed = since(h.LastErrorAt, now) + ": " + printable(h.LastError)
		}
		fmt.Fprintf(t, "%s\t%d\t%s\t%d\t%s\t%d\t%d\t%s\n", name, h.Waiting, oldest, h.Delivered, since(h.DeliveredAt, now), h.Dead, h.Skipped, failed)
	}
	return t.Flush()
}
