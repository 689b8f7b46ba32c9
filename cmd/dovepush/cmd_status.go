package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"dovepush/agent"
	"dovepush/registry"
)

func (a *app) statusCommand() *cobra.Command {
	var state string
	var asObjects bool
	cmd := &cobra.Command{
		Use:     "status [USER...]",
		GroupID: "users",
		Short:   "Show what should be and what is, from the registry",
		Long: `Without a user, counts the registrations by server and state. With users, shows
a row for each. Reads the registry only: dovepush verify looks at the mailbox.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.status(cmd.Context(), args, state, asObjects)
		},
	}
	cmd.Flags().StringVar(&state, "state", "", "only those in this `STATE`: pending, registered, removing, conflict or failed")
	cmd.Flags().BoolVar(&asObjects, "json", false, "print JSON: one object, or one per user")
	return cmd
}

func (a *app) listCommand() *cobra.Command {
	var state string
	var asObjects bool
	cmd := &cobra.Command{
		Use:     "list",
		GroupID: "users",
		Short:   "List all registrations",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.list(cmd.Context(), state, asObjects)
		},
	}
	cmd.Flags().StringVar(&state, "state", "", "only those in this `STATE`: pending, registered, removing, conflict or failed")
	cmd.Flags().BoolVar(&asObjects, "json", false, "print a JSON object per line")
	return cmd
}

// parseState reads --state; empty means every state.
func parseState(s string) (registry.State, error) {
	if s == "" {
		return "", nil
	}
	state, err := registry.ParseState(s)
	if err != nil {
		return "", usagef("--state: %w", err)
	}
	return state, nil
}

// withRegistry opens settings and registry for a command that only reads.
func (a *app) withRegistry(ctx context.Context, do func(*registry.Registry) error) error {
	c, err := a.load()
	if err != nil {
		return err
	}
	r, err := a.openRegistry(ctx, c)
	if err != nil {
		return err
	}
	defer r.Close()
	return do(r)
}

func (a *app) status(ctx context.Context, args []string, only string, asObjects bool) error {
	state, err := parseState(only)
	if err != nil {
		return err
	}
	return a.withRegistry(ctx, func(r *registry.Registry) error {
		if len(args) == 0 {
			return a.counts(ctx, r, state, asObjects)
		}
		code, header := exitOK, !asObjects
		for user, err := range a.users(ctx, args) {
			if err != nil {
				return err
			}
			rows, err := r.Lookup(ctx, user)
			if err != nil {
				return err
			}
			if len(rows) == 0 {
				a.complain(user, agent.ErrNotRegistered)
				code = exitNoUser
			}
			for _, row := range rows {
				if state != "" && row.State != state {
					continue
				}
				if err := a.printOne(row, asObjects, header); err != nil {
					return err
				}
				header = false
			}
		}
		if code != exitOK {
			return reported{code}
		}
		return nil
	})
}

func (a *app) list(ctx context.Context, only string, asObjects bool) error {
	state, err := parseState(only)
	if err != nil {
		return err
	}
	return a.withRegistry(ctx, func(r *registry.Registry) error {
		header := !asObjects
		for row, err := range r.List(ctx, registry.Filter{State: state}) {
			if err != nil {
				return err
			}
			if err := a.printOne(row, asObjects, header); err != nil {
				return err
			}
			header = false
		}
		return nil
	})
}

func (a *app) printOne(row registry.Registration, asObjects, header bool) error {
	if asObjects {
		return printJSON(a.stdout, row)
	}
	if header {
		if err := printHeader(a.stdout); err != nil {
			return err
		}
	}
	return printRow(a.stdout, row, time.Now())
}

// tally is the JSON of status without a user.
type tally struct {
	Total   int64                               `json:"total"`
	States  map[registry.State]int64            `json:"states"`
	Servers map[string]map[registry.State]int64 `json:"servers"`
}

func (a *app) counts(ctx context.Context, r *registry.Registry, state registry.State, asObjects bool) error {
	counts, err := r.Counts(ctx)
	if err != nil {
		return err
	}
	sum := tally{States: map[registry.State]int64{}, Servers: map[string]map[registry.State]int64{}}
	var table []registry.Count
	for _, c := range counts {
		if state != "" && c.State != state {
			continue
		}
		table = append(table, c)
		sum.Total += c.N
		sum.States[c.State] += c.N
		if sum.Servers[c.Server] == nil {
			sum.Servers[c.Server] = map[registry.State]int64{}
		}
		sum.Servers[c.Server][c.State] += c.N
	}
	if asObjects {
		return printJSON(a.stdout, sum)
	}
	return printCounts(a.stdout, table, sum.Total)
}

func printCounts(w io.Writer, counts []registry.Count, total int64) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SERVER\tSTATE\tUSERS")
	for _, c := range counts {
		fmt.Fprintf(t, "%s\t%s\t%d\n", printable(c.Server), c.State, c.N)
	}
	fmt.Fprintf(t, "all\t\t%d\n", total)
	return t.Flush()
}
