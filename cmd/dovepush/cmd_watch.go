package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"dovepush/notify"
)

func (a *app) watchCommand() *cobra.Command {
	var asObjects bool
	cmd := &cobra.Command{
		Use:     "watch [USER...]",
		GroupID: "users",
		Short:   "Show notifications as they arrive",
		Long: `Shows what Dovecot notifies the running dovepush serve of, until it is
interrupted: for all users, or for those named, by their name or identity; "-"
stands for users on standard input.
Without users it also shows what the endpoint refuses, such as a wrong password
in Dovecot's URL. Shows what is in people's mail: senders and subjects.

If the service restarts, watch waits for it; what comes meanwhile is not shown.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.watch(cmd.Context(), args, asObjects)
		},
	}
	cmd.Flags().BoolVar(&asObjects, "json", false, "print a JSON object per line")
	return cmd
}

// How long watch waits before it asks again after the service has gone.
const (
	againFirst = 500 * time.Millisecond
	againMost  = 15 * time.Second
)

// watch shows events until ctx is over.
func (a *app) watch(ctx context.Context, args []string, asObjects bool) error {
	c, err := a.load()
	if err != nil {
		return err
	}
	service, err := newServiceClient(ctx, c)
	if err != nil {
		return err
	}
	defer service.close()
	var users []string
	for user, err := range a.users(ctx, args) {
		if err != nil {
			return err
		}
		users = append(users, user)
	}
	ever, lost := false, false // connected once; and not now
	pause := againFirst
	w := watched{users: users, refusals: len(args) == 0, ready: func() {
		if lost {
			fmt.Fprintln(a.stderr, "dovepush: watching again")
		}
		ever, lost, pause = true, false, againFirst
	}}
	for {
		for event, err := range service.events(ctx, w) {
			switch {
			case err == nil:
				if err := a.showEvent(event, asObjects); err != nil {
					return err
				}
			case ctx.Err() != nil:
				return ctx.Err()
			case !ever || !errors.Is(err, errNoService) && !errors.Is(err, errServiceRefuses):
				return err
			case !lost:
				lost = true
				fmt.Fprintf(a.stderr, "dovepush: %s; waiting for it\n", printable(err.Error()))
			}
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, againMost)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// seen is the JSON of an event: a notification, or a refusal by itself.
type seen struct {
	*notify.Notification
	Refusal *notify.Refusal `json:"refusal,omitempty"`
}

func (a *app) showEvent(e notify.Event, asObjects bool) error {
	if asObjects {
		return printJSON(a.stdout, seen{e.Notification, e.Refusal})
	}
	if e.Refusal != nil {
		_, err := fmt.Fprintln(a.stdout, refusalLine(e.Refusal))
		return err
	}
	_, err := fmt.Fprintln(a.stdout, notificationLine(e.Notification))
	return err
}

// clockFormat is the time of day in the admin's zone.
const clockFormat = "15:04:05"

// notificationLine is a notification for people.
func notificationLine(n *notify.Notification) string {
	b := &strings.Builder{}
	fmt.Fprintf(b, "%s  %-24s", n.Received.Local().Format(clockFormat), printable(n.User))
	if n.Event != "" && n.Event != "messageNew" {
		fmt.Fprintf(b, "  %s", printable(n.Event))
	}
	if n.Folder != "" {
		fmt.Fprintf(b, "  %s", printable(n.Folder))
	}
	if n.UID != 0 {
		fmt.Fprintf(b, " #%d", n.UID)
	}
	if n.From != "" {
		fmt.Fprintf(b, "  from %s", printable(n.From))
	}
	if n.Subject != "" {
		fmt.Fprintf(b, "  %q", n.Subject)
	}
	if n.Unseen != nil {
		fmt.Fprintf(b, "  %d unseen", *n.Unseen)
	}
	return b.String()
}

// refusalLine is a refusal for people.
func refusalLine(r *notify.Refusal) string {
	from := "the UNIX socket"
	if r.Remote != "" {
		from = printable(r.Remote)
	}
	return fmt.Sprintf("%s  refused a request from %s: %d, %s", r.At.Local().Format(clockFormat), from, r.Status, printable(refusalWords(r)))
}

// refusalWords say what was wrong with a request, and what mends it.
func refusalWords(r *notify.Refusal) string {
	switch r.Reason {
	case notify.WrongPath:
		return "wrong path; Dovecot's URL must end with notify.path"
	case notify.WrongCredentials:
		return "wrong user or password; Dovecot's URL must hold notify.username and the notify password"
	case notify.Forged:
		return "the identity is not signed by us; dovepush reconcile signs those of registered users"
	}
	if r.Detail != "" {
		return r.Detail
	}
	return string(r.Reason)
}
