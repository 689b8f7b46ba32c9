package imapmeta

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/emersion/go-imap/v2/imapclient"
)

// ProbeEntry is the entry that Examine writes, reads and removes on mailbox "".
// Nothing but dovepush looks at it: it tells whether attributes can be kept
// without touching the user's registration.
const ProbeEntry = "/private/vendor/vendor.dovepush/doctor"

// Step is a part of an exchange that Examine looks at by itself.
type Step string

// The steps, in their order.
const (
	StepTLS        Step = "tls"        // the handshake, STARTTLS and the greeting before it included; not with TLSNone
	StepGreeting   Step = "greeting"   // the server's first words
	StepLogin      Step = "login"      // up to the reply
	StepCapability Step = "capability" // METADATA (RFC 5464 section 1)
	StepEntry      Step = "entry"      // reading the user's http-notify entry
	StepProbe      Step = "probe"      // writing, reading and removing ProbeEntry
)

// Found is what Examine found at one step.
type Found struct {
	Step Step
	Took time.Duration
	TLS  *tls.ConnectionState // of StepTLS
	Text string               // of StepGreeting: the server's words; of StepCapability: its capabilities
	Have Value                // of StepEntry
	// Err ended the examination; nil: all is well at this step.
	Err error
}

// Examination says what Examine shall do beyond logging in.
type Examination struct {
	// Probe writes ProbeEntry for the user, reads it and removes it, whatever
	// happens in between: also when the context ends.
	Probe bool
	// Token is the probe's value, printable ASCII without quotes: another one
	// each time, so that an old one is not taken for it.
	Token string
}

// errOther: another value was read than was written.
var errOther = errors.New("the probe entry does not hold what was written a moment ago")

// errStayed: the probe may still be there.
var errStayed = fmt.Errorf("%s could not be removed", ProbeEntry)

// cleanTime bounds the removal of a probe after the context has ended.
const cleanTime = 10 * time.Second

// Examine does what Update does, a step at a time, and reports each step as it
// is done; the first that fails is the last. It changes nothing but ProbeEntry,
// and that only if it is asked to. Every error that is reported is an *Error.
func (c *Client) Examine(ctx context.Context, user string, x Examination, report func(Found)) {
	c.examine(ctx, user, report, func(ctx context.Context, e *examiner, s *session) {
		if err := c.options.Auth.checkUser(user); err != nil {
			e.done(Found{Step: StepLogin, Err: err})
		} else if e.logIn(ctx, s) {
			e.look(ctx, s, x)
		}
	})
}

// Greet does of Examine what nobody need log in for: up to the greeting.
func (c *Client) Greet(ctx context.Context, report func(Found)) {
	c.examine(ctx, "", report, func(context.Context, *examiner, *session) {})
}

// examine goes on after the greeting.
func (c *Client) examine(ctx context.Context, user string, report func(Found), on func(context.Context, *examiner, *session)) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.options.Timeout, &timeoutError{c.options.Timeout})
	defer cancel()
	e := &examiner{client: c, user: user, report: report, last: c.options.Now()}
	s, err := c.open(ctx)
	if err != nil {
		first := StepTLS
		if c.options.TLS == TLSNone {
			first = StepGreeting
		}
		e.done(Found{Step: first, Err: unreached(err)})
		return
	}
	defer s.close()
	if e.arrive(ctx, s) {
		on(ctx, e, s)
	}
}

// examiner is an examination under way.
type examiner struct {
	client *Client
	user   string
	report func(Found)
	last   time.Time // when the step before was done
}

// done reports a step, and whether to go on.
func (e *examiner) done(f Found) bool {
	now := e.client.options.Now()
	f.Took, e.last = now.Sub(e.last), now
	var failed *Error
	if errors.As(f.Err, &failed) && failed.User == "" {
		failed.User = e.user
	}
	e.report(f)
	return f.Err == nil
}

// arrive protects the connection and reads the greeting.
func (e *examiner) arrive(ctx context.Context, s *session) bool {
	if err := e.client.protect(ctx, s); err != nil {
		step := StepTLS
		if e.client.options.TLS == TLSNone { // refused off loopback
			step = StepGreeting
		}
		return e.done(Found{Step: step, Err: unreached(err)})
	}
	if conn, ok := s.conn.(*tls.Conn); ok {
		state := conn.ConnectionState()
		e.done(Found{Step: StepTLS, TLS: &state})
	}
	if s.greeted { // before STARTTLS
		return e.done(Found{Step: StepGreeting, Text: s.greets})
	}
	if err := s.greeting(); err != nil {
		return e.done(Found{Step: StepGreeting, Err: unreached(err)})
	}
	return e.done(Found{Step: StepGreeting, Text: s.greets})
}

// logIn waits for the reply to the login.
func (e *examiner) logIn(ctx context.Context, s *session) bool {
	auth := e.client.options.Auth
	cred, err := e.client.credentialFor(ctx, e.user)
	if err == nil {
		err = s.begin(auth, e.user, cred.secret)
		if err == nil && auth.pipelines() { // else it is done
			s.Write(nil)
			err = s.logIn()
		}
		err = e.client.judge(ctx, cred, e.user, err)
	}
	return e.done(Found{Step: StepLogin, Err: err})
}

// look asks for everything that concerns METADATA.
func (e *examiner) look(ctx context.Context, s *session, x Examination) {
	f := Found{Step: StepCapability, Text: strings.Join(s.caps, " ")}
	if s.caps != nil && !slices.Contains(s.caps, "METADATA") && !slices.Contains(s.caps, "METADATA-SERVER") {
		// The refusal tells which of the two settings is missing.
		client := imapclient.New(s, nil)
		_, f.Err = s.get(client, Entry)
		s.close()
		<-client.Closed()
		if !errors.Is(f.Err, ErrNoMetadata) {
			f.Err = &Error{Kind: Server, Op: "getmetadata", Err: ErrNoMetadata, Hint: hintMetadata}
		}
	}
	if !e.done(f) {
		return
	}
	client := imapclient.New(s, nil)
	defer func() {
		s.close()
		<-client.Closed() // see session.update
	}()
	have, err := s.get(client, Entry)
	if e.done(Found{Step: StepEntry, Have: Value(have), Err: err}) && x.Probe {
		e.done(Found{Step: StepProbe, Err: e.probe(ctx, s, client, x.Token)})
	}
	client.Logout()
}

// probe writes the probe, reads it and removes it.
func (e *examiner) probe(ctx context.Context, s *session, client *imapclient.Client, token string) error {
	err := s.set(client, ProbeEntry, &token)
	var refused *Error
	if errors.As(err, &refused) && refused.Status == "NO" {
		return err // it was not written
	}
	var read string
	if err == nil {
		read, err = s.get(client, ProbeEntry)
	}
	if err == nil {
		if err = s.set(client, ProbeEntry, nil); err == nil {
			if read != token {
				return &Error{Kind: Retry, Op: "getmetadata", Err: errOther, Hint: hintElsewhere}
			}
			return nil
		}
	}
	// It may have been written: remove it on a connection of its own.
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), cleanTime, &timeoutError{cleanTime})
	defer cancel()
	if failed := e.remove(ctx); failed != nil {
		return &Error{Kind: KindOf(err), Op: "setmetadata", Err: errors.Join(err, fmt.Errorf("%w: %w", errStayed, failed)), Hint: hintInternal}
	}
	return err
}

// remove removes the probe over another connection.
func (e *examiner) remove(ctx context.Context) error {
	cred, err := e.client.credentialFor(ctx, e.user)
	if err != nil {
		return err
	}
	s, err := e.client.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.begin(e.client.options.Auth, e.user, cred.secret); err != nil {
		return err
	}
	client := imapclient.New(s, nil)
	defer func() {
		s.close()
		<-client.Closed()
	}()
	return s.set(client, ProbeEntry, nil)
}

// get reads an entry; empty: it is absent.
func (s *session) get(client *imapclient.Client, entry string) (string, error) {
	get := client.GetMetadata("", []string{entry}, nil)
	if s.lost {
		return "", s.commandError("getmetadata", errClosed)
	}
	data, err := get.Wait()
	if err != nil {
		return "", s.commandError("getmetadata", err)
	}
	for name, value := range data.Entries {
		if strings.EqualFold(name, entry) && value != nil {
			return string(*value), nil
		}
	}
	return "", nil
}

// set writes an entry; nil removes it.
func (s *session) set(client *imapclient.Client, entry string, value *string) error {
	entries := map[string]*[]byte{entry: nil}
	if value != nil {
		b := []byte(*value)
		entries[entry] = &b
	}
	set := client.SetMetadata("", entries)
	if s.lost {
		return s.commandError("setmetadata", errClosed)
	}
	if err := set.Wait(); err != nil {
		return s.commandError("setmetadata", err)
	}
	return nil
}
