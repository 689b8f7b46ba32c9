package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"

	"dovepush/agent"
	"dovepush/config"
	"dovepush/doveadm"
	"dovepush/imapmeta"
	"dovepush/registry"
	"dovepush/registry/spool"
	"dovepush/userlist"
)

// Exit codes of sysexits.h, as Dovecot's own tools use them, and the shell's
// for an interrupt.
const (
	exitOK          = 0
	exitUsage       = 64
	exitData        = 65
	exitNoUser      = 67
	exitUnavailable = 69
	exitSoftware    = 70
	exitConflict    = 73
	exitTemporary   = 75
	exitPermission  = 77
	exitConfig      = 78
	exitInterrupted = 130
)

// gravity orders the codes for when several users end differently.
var gravity = []int{exitOK, exitConflict, exitNoUser, exitData, exitTemporary, exitUnavailable, exitSoftware, exitPermission,
	exitConfig, exitUsage, exitInterrupted}

func graver(a, b int) int {
	if slices.Index(gravity, a) >= slices.Index(gravity, b) {
		return a
	}
	return b
}

// reported is an error whose words have been said already.
type reported struct{ code int }

func (r reported) Error() string { return fmt.Sprintf("exit status %d", r.code) }

// exit says what went wrong and returns the exit code.
func (a *app) exit(ctx context.Context, err error) int {
	var done reported
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &done):
		return done.code
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		fmt.Fprintln(a.stderr, "dovepush: interrupted")
		return exitInterrupted
	}
	a.complain("", err)
	return exitCode(err)
}

// complain says what went wrong, and once what to do about it.
func (a *app) complain(user string, err error) {
	text := err.Error()
	if user != "" {
		text = user + ": " + strings.ReplaceAll(text, "\n", "; ") // errors.Join
	}
	for line := range strings.SplitSeq(text, "\n") { // config.Errors
		fmt.Fprintf(a.stderr, "dovepush: %s\n", printable(line))
	}
	a.hint(hintFor(err))
}

// hint says what to do, unless that has been said.
func (a *app) hint(hint string) {
	if hint == "" || a.hinted[hint] {
		return
	}
	a.hinted[hint] = true
	fmt.Fprintf(a.stderr, "hint: %s\n", hint)
}

// exitCode says which of the contract's codes an error is.
func exitCode(err error) int {
	var (
		usage    *usageError
		setting  *config.Error
		secret   *imapmeta.SecretError
		exchange *imapmeta.Error
	)
	is := func(targets ...error) bool {
		return slices.ContainsFunc(targets, func(target error) bool { return errors.Is(err, target) })
	}
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		return exitUsage
	case is(agent.ErrPlanFile), is(errList) && is(syscall.ENOSPC): // no room for temporary files
		return exitTemporary
	case errors.As(err, new(*brakeError)), is(errList, userlist.ErrMalformed):
		return exitData
	case is(agent.ErrStopped, agent.ErrStrained, agent.ErrLate, agent.ErrDoubt, agent.ErrOvertaken, errReplaced):
		return exitTemporary
	case is(errNoService):
		return exitUnavailable
	case errors.As(err, &setting), errors.As(err, &secret), is(errConfig, fs.ErrNotExist, syscall.ENOTDIR, registry.ErrNewer, registry.ErrForeign, registry.ErrCorrupt,
		spool.ErrNewer, spool.ErrForeign, spool.ErrCorrupt):
		return exitConfig
	case is(registry.ErrPermission, spool.ErrPermission, errNotAllowed):
		return exitPermission
	case is(errNoDovecot, errUnavailable):
		return exitUnavailable
	case is(registry.ErrFull, registry.ErrBusy, spool.ErrNoSpace, spool.ErrBusy):
		return exitTemporary
	case is(agent.ErrUser, agent.ErrIdentity, agent.ErrNoServer):
		return exitData
	case is(agent.ErrNotRegistered, agent.ErrRefused, imapmeta.ErrNoUser):
		return exitNoUser
	case errors.As(err, &exchange):
		return exchangeCode(exchange)
	case is(context.Canceled):
		return exitInterrupted
	}
	return exitSoftware
}

func exchangeCode(e *imapmeta.Error) int {
	switch {
	case errors.Is(e, context.Canceled):
		return exitInterrupted
	case e.Kind == imapmeta.Retry:
		return exitTemporary
	case errors.Is(e, imapmeta.ErrPlaintext) && e.Status == "":
		return exitConfig
	case e.Kind == imapmeta.User, errors.Is(e, imapmeta.ErrLogin), errors.Is(e, imapmeta.ErrPlaintext),
		errors.Is(e, doveadm.ErrKey), errors.Is(e, doveadm.ErrForbidden):
		return exitPermission
	}
	return exitUnavailable
}

// hintFor returns what can be done about an error, if it does not say so
// itself.
func hintFor(err error) string {
	var exchange *imapmeta.Error
	var usage *usageError
	var brake *brakeError
	switch {
	case errors.As(err, &brake):
		return brake.hint
	case errors.As(err, &usage):
		return "dovepush help, or dovepush help COMMAND, tells more"
	case errors.Is(err, agent.ErrDoubt):
		return "dovepush verify USER looks again; dovepush status USER tells from when on"
	case errors.Is(err, agent.ErrStopped):
		return "mend the server's trouble and run the same command again; what should be is recorded"
	case errors.As(err, &exchange) && exchange.Kind == imapmeta.Retry && exchange.Op == "connect" && exchange.Hint == "":
		return "is Dovecot up, at server.address? once it is, dovepush verify USER does what is recorded"
	case errors.As(err, &exchange):
		return exchange.Hint
	case errors.Is(err, errNotAllowed):
		return "run as root, or as a user who may write to the API's socket (api.mode); over TCP the token is api.token"
	case errors.Is(err, errNoService):
		return "start it: systemctl start dovepush, or dovepush serve; is api.listen the same for both?"
	case errors.Is(err, errNoConfig):
		return "copy config.toml.example there, or name your file with -c FILE or $DOVEPUSH_CONFIG"
	case errors.Is(err, agent.ErrNoServer):
		return "add the user's domain to the domains of a [[server]], or leave one [[server]] without domains"
	case errors.Is(err, agent.ErrNotRegistered):
		return "dovepush register USER makes it so; dovepush list shows who is registered"
	}
	return ""
}
