package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "config",
		GroupID: "setup",
		Short:   "Check or show the settings",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usagef("say config check or config show")
		},
	}
	var asObject bool
	show := &cobra.Command{
		Use:   "show",
		Short: "Print the effective settings, with secrets masked",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			c, err := a.load()
			if err != nil {
				return err
			}
			if asObject {
				return printJSON(a.stdout, c)
			}
			return c.WriteTOML(a.stdout)
		},
	}
	show.Flags().BoolVar(&asObject, "json", false, "print a JSON object")
	check := &cobra.Command{
		Use:   "check",
		Short: "Say what is wrong with the settings",
		Long: `Reads the settings and every secret, certificate and key file that they name,
and says all that is wrong with them. Opens no connection and runs no command.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return a.checkConfig() },
	}
	cmd.AddCommand(check, show)
	return cmd
}

func (a *app) checkConfig() error {
	c, err := a.load()
	if err != nil {
		return err
	}
	a.warn(c)
	if err := c.Check(); err != nil {
		return fmt.Errorf("%w: %s: %w", errConfig, a.path(), err)
	}
	if err := checkKeys(context.Background(), c, false); err != nil {
		return err
	}
	var unused crew
	defer unused.close()
	for i := range c.Servers {
		if _, err := a.connect(c, i, nil, nil, nil, &unused); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(a.stdout, "%s: ok\n", a.path())
	return err
}
