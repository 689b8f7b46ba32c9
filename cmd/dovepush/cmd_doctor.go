package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/spf13/cobra"

	"dovepush/agent"
	"dovepush/config"
	"dovepush/doctor"
	"dovepush/doveadm"
	"dovepush/imapmeta"
	"dovepush/registry/spool"
)

// doctorFlags are the flags of doctor.
type doctorFlags struct {
	user, lmtp, sendmail, doveconf string
	deliver, asObjects             bool
}

func (a *app) doctorCommand() *cobra.Command {
	var f doctorFlags
	cmd := &cobra.Command{
		Use:     "doctor",
		GroupID: "setup",
		Short:   "Say what is wrong, from the settings to a notification that came",
		Long: `Walks the chain link by link and says of each whether it holds, and how to mend
it if not: settings, secrets, registry, service, Dovecot's name, port,
certificate, login and METADATA, the user's entry, DoveAdm, Dovecot's own
settings where they can be read, the endpoint for notifications, webhooks.

With --deliver it also sends the user a message by LMTP, or by --sendmail, and
waits for its notification. The message stays in the INBOX; its subject says
that it may be deleted. Works whether dovepush serve runs or not; if not, it
listens in its place meanwhile.

Changes nothing else but one entry of the user, of dovepush's own, which it
writes, reads and removes.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return err
			}
			return a.doctor(cmd.Context(), f)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.user, "user", "", "look at the mailbox of this `USER`; by default at that of somebody registered, without writing")
	flags.BoolVar(&f.deliver, "deliver", false, "send the user a message and wait for its notification")
	flags.StringVar(&f.lmtp, "lmtp", "", "deliver by LMTP to `ADDRESS`, HOST:PORT or unix:/path; by default unix:/run/dovecot/lmtp, else port 24 of the server")
	flags.StringVar(&f.sendmail, "sendmail", "", "deliver by this program, such as /usr/sbin/sendmail, given by its `PATH`")
	flags.StringVar(&f.doveconf, "doveconf", "", "`COMMAND` that prints Dovecot's settings, such as \"ssh imap1 doveconf\"; by default doveconf, if Dovecot is on this machine")
	flags.BoolVar(&f.asObjects, "json", false, "print a JSON object per link, and one for the verdict")
	return cmd
}

func (f *doctorFlags) check() error {
	switch {
	case f.deliver && f.user == "":
		return usagef("--deliver needs --user: whom shall the message go to?")
	case f.lmtp != "" && f.sendmail != "":
		return usagef("--lmtp and --sendmail exclude each other")
	case !f.deliver && f.lmtp+f.sendmail != "":
		return usagef("--lmtp and --sendmail go with --deliver")
	}
	if f.user != "" {
		if err := imapmeta.CheckUser(f.user); err != nil {
			return fmt.Errorf("%w: --user: %w", agent.ErrUser, err)
		}
	}
	if network, address := config.ListenAddress(f.lmtp); network == "tcp" {
		if _, _, err := net.SplitHostPort(address); err != nil {
			return usagef("--lmtp: %w; say HOST:PORT or unix:/path", err)
		}
	}
	return nil
}

// doctor walks the chain and prints each link as it is done.
func (a *app) doctor(ctx context.Context, f doctorFlags) error {
	var printing error
	print := func(object any, text string) {
		var err error
		if f.asObjects {
			err = printJSON(a.stdout, object)
		} else {
			err = printLines(a.stdout, text)
		}
		printing = errors.Join(printing, err)
	}
	var settings *config.Config
	verdict := doctor.Run(ctx, doctor.Options{
		Config: func() (*config.Config, error) {
			var err error
			settings, err = a.load()
			return settings, err
		},
		Path: a.path(), User: f.user, Deliver: f.deliver, LMTP: f.lmtp, Sendmail: f.sendmail, Doveconf: f.doveconf,
		IMAP:    func(i int, s *config.Server) (*imapmeta.Client, error) { return newIMAP(i, s, nil) },
		Doveadm: func(i int, s *config.Server) (*doveadm.Client, error) { return newDoveadm(i, s, nil) },
		Service: func(ctx context.Context, path string) (int, string, error) { return askService(ctx, settings, path) },
		Keys:    func(ctx context.Context, c *config.Config) error { return checkKeys(ctx, c, true) },
		Spool:   spoolStats,
		Watch: func(ctx context.Context, serving bool) (*doctor.Feed, error) {
			if serving {
				return serviceFeed(ctx, settings)
			}
			return a.ownFeed(ctx, settings)
		},
		Report: func(r doctor.Result) { print(r, r.Text()) },
	})
	print(doctor.Result{Link: "verdict", Status: verdict.Status(), Detail: verdict.Text()}, verdict.Text()+"\n")
	switch {
	case verdict.Err != nil:
		return verdict.Err
	case printing != nil:
		return printing
	case verdict.Failed > 0:
		return reported{faultCode(verdict.Fault)}
	}
	return nil
}

// faultCode is the exit code for the gravest fault.
func faultCode(f doctor.Fault) int {
	switch f {
	case doctor.Settings:
		return exitConfig
	case doctor.Refused:
		return exitPermission
	case doctor.Transient:
		return exitTemporary
	}
	return exitUnavailable
}

// askService asks the running service, as watch does.
func askService(ctx context.Context, c *config.Config, path string) (status int, body string, err error) {
	service, err := newServiceClient(ctx, c)
	if err != nil {
		return 0, "", err
	}
	defer service.close()
	res, err := service.ask(ctx, path, nil)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 512))
	return res.StatusCode, string(text), err
}

// spoolStats looks for damage, and tells what waits for webhooks.
func spoolStats(ctx context.Context, path string) (list []doctor.Waiting, err error) {
	s, err := spool.Open(ctx, path, spool.Options{Now: time.Now})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if err := s.Check(ctx); err != nil {
		return nil, err
	}
	stats, err := s.Stats(ctx)
	for _, t := range stats {
		list = append(list, doctor.Waiting{Target: t.Target, Waiting: t.Waiting, Dead: t.Dead, Oldest: t.Oldest, LastError: t.LastError})
	}
	return list, err
}
