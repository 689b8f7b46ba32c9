package main

import (
	"github.com/spf13/cobra"
)

func (a *app) serveCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "serve",
		GroupID: "users",
		Short:   "Keep all registrations what they should be, and take new ones by HTTP",
		Long: `Runs until SIGTERM or SIGINT: writes entries for those who are registered, by
the HTTP API, by dovepush register or by any other dovepush on this registry;
looks at each again every verify_every and mends what drifted; unregisters what
expired; tries again what failed. Stopping unregisters nobody.

SIGTERM   what is under way is finished, for at most 20 seconds, and recorded
SIGHUP    settings, certificates and secrets are read again; if something is
          wrong with them the old ones stay. registry.path and the listeners
          change with a restart only

Reports to systemd (Type=notify, WatchdogSec=), and takes sockets from it that
are named api and metrics. Logs to standard error, by default from level info
on. The API is described at /v1/openapi.json.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("log-level") {
				a.logLevel = "info"
				if err := a.openLog(); err != nil {
					return err
				}
			}
			return a.serve(cmd.Context())
		},
	}
}
