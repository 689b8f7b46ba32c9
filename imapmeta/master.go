package imapmeta

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// secretAge is how long a master user's secret is used before it is asked for
// again: it may come from a command, and a login from there costs a process.
const secretAge = time.Minute

// probeUser is whom the master user asks for when only its own fate matters:
// a name that every auth_username_chars allows, and that nobody should have.
const probeUser = "dovepush-probe"

// credential is a secret as it was read once, and what Dovecot's replies have
// told of it since. It is the same for all users of a master user.
type credential struct {
	secret string
	master bool
	readAt time.Time

	accepted atomic.Bool   // a reply has shown that the master user got in
	refused  bool          // the probe was refused; guarded by probing
	probing  chan struct{} // holds one token; a lock that a context can leave
}

// credentialFor returns the password or token for this login.
func (c *Client) credentialFor(ctx context.Context, user string) (*credential, error) {
	auth := c.options.Auth
	if auth.own() {
		secret, err := auth.secret(ctx, user)
		if err != nil {
			return nil, secretError(ctx, User, err)
		}
		return &credential{secret: secret}, nil
	}
	select {
	case c.reading <- struct{}{}:
		defer func() { <-c.reading }()
	case <-ctx.Done():
		return nil, contextError(ctx, "login")
	}
	now := c.options.Now()
	if cred := c.master.Load(); cred != nil {
		if age := now.Sub(cred.readAt); 0 <= age && age < secretAge {
			return cred, nil
		}
	}
	secret, err := auth.secret(ctx, user)
	if err != nil {
		return nil, secretError(ctx, Server, err)
	}
	cred := &credential{secret: secret, master: true, readAt: now, probing: make(chan struct{}, 1)}
	c.master.Store(cred)
	return cred, nil
}

func secretError(ctx context.Context, kind Kind, err error) error {
	// A time limit that runs out here is the secret's source's fault, and not
	// the server's.
	if errors.Is(context.Cause(ctx), context.Canceled) {
		return contextError(ctx, "login")
	}
	return &Error{Kind: kind, Op: "login", Err: &SecretError{err}}
}

// SecretError is the failure to get at a password or token.
type SecretError struct{ Err error }

// Error returns the cause's text.
func (e *SecretError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *SecretError) Unwrap() error { return e.Err }

// judge learns from the outcome of a login as master, and finds out whom a
// refused one concerns: see blamesName. To take a refused name for a wrong
// password would let one odd name stop everybody; to hold a wrong password
// against the user would repeat it for every odd name. So the master user is
// asked for a plain name, once for each secret that was read and not accepted
// since.
func (c *Client) judge(ctx context.Context, cred *credential, user string, err error) error {
	if !cred.master {
		return err
	}
	if masterAccepted(err) {
		cred.accepted.Store(true)
	}
	if KindOf(err) != Server || !errors.Is(err, ErrLogin) {
		return err
	}
	hint := ""
	if masterRefused(err) {
		hint = c.options.Auth.blamesName(user)
	}
	if hint != "" {
		accepted, failed := c.probe(ctx, cred, user)
		switch {
		case failed != nil:
			return failed
		case accepted:
			return badName(err, user, hint)
		}
	}
	// Have the secret asked for again: it may have been changed.
	c.master.CompareAndSwap(cred, nil)
	return err
}

// probe reports whether Dovecot accepts the master user with this secret. An
// error says that it gave no answer.
func (c *Client) probe(ctx context.Context, cred *credential, user string) (accepted bool, err error) {
	select {
	case cred.probing <- struct{}{}:
		defer func() { <-cred.probing }()
	case <-ctx.Done():
		return false, contextError(ctx, "login")
	}
	if cred.accepted.Load() || cred.refused {
		return cred.accepted.Load(), nil
	}
	_, err = c.exchange(ctx, cred, probeUser, func(Value) Change { return Keep() })
	var e *Error
	switch {
	case masterRefused(err):
		cred.refused = true
	case errors.As(err, &e) && !masterAccepted(err) && e.Status != "NO":
		return false, &Error{Kind: Retry, Op: "login",
			Err: fmt.Errorf("login for %q refused, and whether for the name or the master user is not known: %w", user, err)}
	default:
		// Also [UNAVAILABLE]: without result_success = continue, that is
		// Dovecot's answer to a right master user and an unknown name.
		cred.accepted.Store(true)
	}
	return !cred.refused, nil
}

// badName makes a failure of the one user out of a refused login.
func badName(err error, user, hint string) error {
	var e *Error
	errors.As(err, &e)
	return &Error{Kind: User, Op: e.Op, Status: e.Status, Code: e.Code, Text: e.Text, Hint: hint,
		Err: fmt.Errorf("%w: Dovecot accepts the master user, but not for %q", ErrUser, user)}
}

// masterRefused reports whether err is the reply to a wrong master password.
func masterRefused(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Op == "login" && (e.Code == "AUTHENTICATIONFAILED" || e.Code == "EXPIRED")
}

// masterAccepted reports whether the outcome of an exchange proves that the
// master user's password is right.
func masterAccepted(err error) bool {
	var e *Error
	if !errors.As(err, &e) {
		return true
	}
	switch e.Op {
	case "login":
		return e.Code == "AUTHORIZATIONFAILED" || e.Code == "CONTACTADMIN" || e.Code == "LIMIT"
	case "getmetadata", "setmetadata":
		return e.Status == "NO"
	}
	return false
}
