package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"dovepush/config"
	"dovepush/dovecotconf"
)

func (a *app) dovecotConfigCommand() *cobra.Command {
	var version, name string
	var from []string
	cmd := &cobra.Command{
		Use:     "dovecot-config",
		GroupID: "setup",
		Short:   "Print the Dovecot settings that fit these settings",
		Long: `Prints the settings that Dovecot needs for dovepush as it is set up, as a file
for Dovecot's conf.d, each with its reason. Secrets are not printed: steps at
the top say what to put in their place. Opens no connection, runs no command and
does not look which Dovecot is on this machine.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			options, err := dovecotOptions(version, from)
			if err != nil {
				return err
			}
			c, err := a.load()
			if err != nil {
				return err
			}
			server, err := oneServer(c, name)
			if err != nil {
				return err
			}
			return dovecotconf.Write(a.stdout, c, server, options)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&version, "dovecot", string(dovecotconf.V24), "`VERSION` of Dovecot: 2.3 or 2.4")
	flags.StringVar(&name, "server", "", "the `NAME` of a [[server]]; needed if there are several")
	flags.StringSliceVar(&from, "from", nil, "`ADDRESS` or network that dovepush's connections come from, as Dovecot sees\nthem; by default loopback if the server's address is, else a marker")
	return cmd
}

func dovecotOptions(version string, from []string) (o dovecotconf.Options, err error) {
	if o.Version, err = dovecotconf.ParseVersion(version); err != nil {
		return o, usagef("--dovecot %w", err)
	}
	if o.From, err = dovecotconf.ParseFrom(from); err != nil {
		return o, usagef("--from %w", err)
	}
	return o, nil
}

// oneServer returns the server of that name, or without one the only server.
func oneServer(c *config.Config, name string) (*config.Server, error) {
	var names []string
	for i := range c.Servers {
		if s := &c.Servers[i]; s.Name == name || name == "" && len(c.Servers) == 1 {
			return s, nil
		}
		names = append(names, c.Servers[i].Name)
	}
	known := strings.Join(names, ", ")
	if name == "" {
		return nil, usagef("say which with --server: %s", known)
	}
	return nil, usagef("--server %s is none of %s", fmt.Sprintf("%q", name), known)
}
