package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"dovepush/config"
	"dovepush/internal/dovecot"
)

func (a *app) demoCommand() *cobra.Command {
	var version string
	cmd := &cobra.Command{
		Use:     "demo",
		GroupID: "setup",
		Short:   "Show the whole story on a throw-away Dovecot",
		Long: `Starts a real Dovecot and a dovepush serve of its own on loopback, registers a
user, delivers messages, shows which of them Dovecot notifies of and how they
arrive, has dovepush doctor walk the whole chain, and removes everything again.
Touches no other Dovecot and no settings of this machine. Needs Dovecot's
programs: make setup, in dovepush's sources, installs them.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.demo(cmd.Context(), version)
		},
	}
	cmd.Flags().StringVar(&version, "dovecot", "", "`VERSION` of Dovecot: 2.3 or 2.4; by default the first that is installed")
	return cmd
}

// errNoDovecot: the demo has nothing to show itself on.
var errNoDovecot = errors.New("no Dovecot for the demo")

func (a *app) demo(ctx context.Context, version string) error {
	install, err := demoDovecot(version)
	if err != nil {
		return err
	}
	started := time.Now()
	endpoint, err := unusedAddress()
	if err != nil {
		return err
	}
	password := rand.Text()
	s, err := dovecot.Start(ctx, dovecot.Options{
		Version: install.Version,
		Users:   []dovecot.User{{Name: demoUser, Password: "secret"}},
		PushURL: "http://dovecot:" + password + "@" + endpoint + config.Default().Notify.Path,
	})
	if err != nil {
		return fmt.Errorf("start a throw-away Dovecot: %w", err)
	}
	story := &story{app: a, server: s, endpoint: endpoint, password: password}
	err = story.tell(ctx)
	if closing := s.Close(); closing != nil {
		err = errors.Join(err, fmt.Errorf("stop the throw-away Dovecot: %w", closing))
	}
	if err == nil {
		fmt.Fprintf(a.stdout, "\nAll is stopped, and its directory removed. %.1f s.\n", time.Since(started).Seconds())
	}
	return err
}

// unusedAddress returns an address on loopback where nobody listens.
func unusedAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// demoDovecot finds the Dovecot that was asked for, or any.
func demoDovecot(version string) (dovecot.Install, error) {
	versions := dovecot.Versions()
	if version != "" {
		if !slices.Contains(versions, dovecot.Version(version)) {
			return dovecot.Install{}, usagef("--dovecot %q is none of %v", version, versions)
		}
		versions = []dovecot.Version{dovecot.Version(version)}
	}
	var missing []error
	for _, v := range versions {
		install, err := dovecot.Find(v)
		if err == nil {
			return install, nil
		}
		missing = append(missing, err)
	}
	return dovecot.Install{}, fmt.Errorf("%w: %w", errNoDovecot, errors.Join(missing...))
}
