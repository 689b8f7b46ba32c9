package main

import (
	"context"

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
		Long: `Without a user, counts the registrations by server and state, tells for how
many registered users a notification has come (proven), and what waits: how many
are due and will be tried again, which servers fail for everybody and which
DoveAdm endpoints are set aside, why, and when they are tried again. With users,
shows a row for each.
Reads the registry only: dovepush verify looks at the mailbox.

WRITTEN, VERIFIED and PROVEN are when the entry was last written, when it was
last read, and when Dovecot last notified of mail for the user.

In the column NEXT, "due" waits for dovepush serve or verify, "now" is being
worked on, "held" waits for a server that fails for everybody.`,
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
		table, err := a.newTable(ctx, r, asObjects)
		if err != nil {
			return err
		}
		code := exitOK
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
				if err := table.print(row); err != nil {
					return err
				}
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
		table, err := a.newTable(ctx, r, asObjects)
		if err != nil {
			return err
		}
		for row, err := range r.List(ctx, registry.Filter{State: state}) {
			if err != nil {
				return err
			}
			if err := table.print(row); err != nil {
				return err
			}
		}
		return nil
	})
}
