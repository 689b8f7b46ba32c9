package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"dovepush/imapmeta"
	"dovepush/internal/dovecot"
)

func (a *app) demoCommand() *cobra.Command {
	var version string
	cmd := &cobra.Command{
		Use:     "demo",
		GroupID: "setup",
		Short:   "Show the whole story on a throw-away Dovecot",
		Long: `Starts a real Dovecot of its own on loopback, registers a user, delivers
messages, shows which of them Dovecot notifies of, and removes everything again.
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

const (
	demoUser = "alice"
	demoFrom = "bob@example.org"
)

func (a *app) demo(ctx context.Context, version string) error {
	install, err := demoDovecot(version)
	if err != nil {
		return err
	}
	started := time.Now()
	s, err := dovecot.Start(ctx, dovecot.Options{Version: install.Version, Users: []dovecot.User{{Name: demoUser, Password: "secret"}}})
	if err != nil {
		return fmt.Errorf("start a throw-away Dovecot: %w", err)
	}
	story := &story{app: a, ctx: ctx, server: s}
	err = story.tell()
	if closing := s.Close(); closing != nil {
		err = errors.Join(err, fmt.Errorf("stop the throw-away Dovecot: %w", closing))
	}
	if err == nil {
		fmt.Fprintf(a.stdout, "\nDovecot is stopped and its directory removed. %.1f s.\n", time.Since(started).Seconds())
	}
	return err
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

// story is a demonstration under way.
type story struct {
	app    *app
	ctx    context.Context
	server *dovecot.Server
	step   int
	config string
}

func (s *story) tell() error {
	s.say("Dovecot %s on loopback, with IMAP METADATA and the ox push-notification driver.", s.server.Full)
	s.say("What it has to say goes to an HTTP endpoint of ours. %s has a mailbox, and no entry\n  %s", demoUser, imapmeta.Entry)
	if err := s.configure(); err != nil {
		return err
	}
	for _, scene := range []func() error{
		func() error { return s.deliver("Before", false) },
		func() error { return s.command("register", demoUser, "user="+demoUser) },
		func() error { return s.deliver("Lunch at noon?", true) },
		func() error { return s.command("verify", demoUser, "user="+demoUser) },
		func() error { return s.command("unregister", demoUser, "") },
		func() error { return s.deliver("Never mind", false) },
	} {
		if err := scene(); err != nil {
			return err
		}
		if err := s.ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

func (s *story) say(format string, args ...any) {
	fmt.Fprintf(s.app.stdout, format+"\n", args...)
}

func (s *story) title(format string, args ...any) {
	s.step++
	s.say("\n%d. "+format, append([]any{s.step}, args...)...)
}

// configure writes the settings that an admin of this Dovecot would write.
func (s *story) configure() error {
	secret := filepath.Join(s.server.Dir, "master.secret")
	if err := os.WriteFile(secret, []byte(s.server.MasterPassword+"\n"), 0o600); err != nil {
		return err
	}
	s.config = filepath.Join(s.server.Dir, "config.toml")
	text := fmt.Sprintf("[[server]]\naddress = %q\ntls_ca_file = %q\n[server.auth]\nmaster_user = %q\npassword_file = %q\n[registry]\npath = %q\n",
		s.server.IMAPS, s.server.CAFile, s.server.MasterUser, secret, filepath.Join(s.server.Dir, "registry.db"))
	return os.WriteFile(s.config, []byte(text), 0o600)
}

// deliver sends a message and shows whether Dovecot notified of it. Delivery
// returns only after the driver is done, so that silence is an answer.
func (s *story) deliver(subject string, notified bool) error {
	s.title("A message for %s: %q, from %s, by LMTP", demoUser, subject, demoFrom)
	s.server.Drain()
	if err := s.server.Deliver(s.ctx, demoUser, demoFrom, subject, "It is about "+subject); err != nil {
		return fmt.Errorf("deliver %q: %w", subject, err)
	}
	s.say("   Dovecot stored it in INBOX.")
	got := s.server.Drain()
	switch {
	case len(got) == 1 && notified:
		s.say("   Dovecot notified us: PUT %s\n   %s", got[0].Path, got[0].Raw)
	case len(got) == 0 && !notified:
		s.say("   Dovecot notified nobody.")
	default:
		return fmt.Errorf("%d notifications came of %q; Dovecot's log:\n%s", len(got), subject, s.server.Log())
	}
	return nil
}

// command runs dovepush itself, and asks Dovecot what the entry holds then.
func (s *story) command(verb, user, want string) error {
	s.title("$ dovepush %s %s", verb, user)
	var out strings.Builder
	code := run(s.ctx, []string{"-c", s.config, verb, user}, strings.NewReader(""), &out, s.app.stderr)
	s.say("   %s", strings.TrimSpace(out.String()))
	if err := s.ctx.Err(); err != nil {
		return err
	}
	if code != exitOK {
		return fmt.Errorf("dovepush %s %s: exit status %d", verb, user, code)
	}
	value, present, err := s.server.Entry(s.ctx, user)
	if err != nil {
		return fmt.Errorf("ask doveadm for the entry: %w", err)
	}
	if present {
		s.say("   doveadm says that the entry holds: %s", value)
	} else {
		s.say("   doveadm says that the entry is absent.")
	}
	if value != want {
		return fmt.Errorf("the entry holds %q, not %q", value, want)
	}
	return nil
}
