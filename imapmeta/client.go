package imapmeta

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"
)

// Options says how to reach one Dovecot. The zero values of MaxConnections and
// Timeout stand for 16 and 30 s.
type Options struct {
	Address        string // host:port
	TLS            TLSMode
	TLSConfig      *tls.Config // trust, server name, client certificate; nil: the system's trust and the host of Address
	AllowPlaintext bool        // TLSNone to other machines too
	Auth           Auth
	Timeout        time.Duration    // for one Update, from the first packet to the last
	MaxConnections int              // at once; further Updates wait
	Now            func() time.Time // nil: time.Now
}

// Client changes entries on one server. It may be used by many goroutines at
// once. It keeps no connection open between Updates: Dovecot serves one user
// per login.
type Client struct {
	options Options
	tls     *tls.Config
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	slots   chan struct{}

	master  atomic.Pointer[credential] // the master user's; nil: to be read
	reading chan struct{}              // holds one token; a lock that a context can leave
}

// New checks the options.
func New(o Options) (*Client, error) {
	host, _, err := net.SplitHostPort(o.Address)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", o.Address, err)
	}
	switch o.TLS {
	case TLSImplicit, TLSStart, TLSNone:
	default:
		return nil, fmt.Errorf("unknown TLS mode %q", o.TLS)
	}
	if err := o.Auth.check(); err != nil {
		return nil, err
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	if o.MaxConnections == 0 {
		o.MaxConnections = 16
	}
	if o.Timeout < 0 || o.MaxConnections < 0 {
		return nil, fmt.Errorf("timeout %s and max connections %d must not be negative", o.Timeout, o.MaxConnections)
	}
	conf := o.TLSConfig.Clone()
	if conf == nil {
		conf = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if conf.ServerName == "" {
		conf.ServerName = host
	}
	dialer := net.Dialer{KeepAlive: -1} // no connection outlives its time limit
	return &Client{options: o, tls: conf, dial: dialer.DialContext,
		slots:   make(chan struct{}, o.MaxConnections),
		reading: make(chan struct{}, 1)}, nil
}

// Update reads the user's entry, lets decide look at it, and carries out what
// decide answers. decide is called at most once, and not if the entry could
// not be read.
//
// Every error is an *Error. After a failure in "setmetadata" without a reply,
// the entry may or may not have changed.
func (c *Client) Update(ctx context.Context, user string, decide func(have Value) Change) (Outcome, error) {
	outcome, err := c.update(ctx, user, decide)
	var e *Error
	if errors.As(err, &e) && e.User == "" {
		e.User = user
	}
	return outcome, err
}

func (c *Client) update(ctx context.Context, user string, decide func(have Value) Change) (Outcome, error) {
	if err := c.options.Auth.checkUser(user); err != nil {
		return Outcome{}, err
	}
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return Outcome{}, contextError(ctx, "connect")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.options.Timeout, &timeoutError{c.options.Timeout})
	defer cancel()

	cred, err := c.credentialFor(ctx, user)
	if err != nil {
		return Outcome{}, err
	}
	outcome, err := c.exchange(ctx, cred, user, decide)
	return outcome, c.judge(ctx, cred, user, err)
}

// exchange has one connection, from connecting to closing.
func (c *Client) exchange(ctx context.Context, cred *credential, user string, decide func(have Value) Change) (Outcome, error) {
	s, err := c.connect(ctx)
	if err != nil {
		return Outcome{}, unreached(err)
	}
	defer s.close()
	outcome, err := func() (Outcome, error) {
		if err := s.begin(c.options.Auth, user, cred.secret); err != nil {
			return Outcome{}, err
		}
		return s.update(decide)
	}()
	if !s.greeted {
		err = unreached(err)
	}
	return outcome, err
}

// unreached marks a failure that came before the greeting.
func unreached(err error) error {
	var e *Error
	if errors.As(err, &e) && e.Kind == Retry && e.Status == "" && !errors.Is(e, context.Canceled) {
		e.Unreached = true
	}
	return err
}

// update spends one round trip on login and reading, and another on the change.
func (s *session) update(decide func(have Value) Change) (outcome Outcome, err error) {
	client := imapclient.New(s, nil)
	defer func() {
		s.close()
		<-client.Closed() // the reader has ended: nothing of go-imap's outlives the session
	}()

	// No options: go-imap puts them behind the mailbox, where neither RFC 5464
	// nor Dovecot wants them.
	get := client.GetMetadata("", []string{Entry}, nil)
	if s.lost {
		return Outcome{}, s.commandError("getmetadata", errClosed)
	}
	data, err := get.Wait()
	if err != nil {
		return Outcome{}, s.commandError("getmetadata", err)
	}
	if s.caps != nil && !slices.Contains(s.caps, "METADATA") && !slices.Contains(s.caps, "METADATA-SERVER") {
		return Outcome{}, &Error{Kind: Server, Op: "getmetadata", Err: ErrNoMetadata, Hint: hintMetadata}
	}
	outcome.Had = valueOf(data)
	change := decide(outcome.Had)
	value, changes := change.Value()
	if !changes {
		client.Logout()
		return outcome, nil
	}
	if len(value) > MaxValue {
		return outcome, &Error{Kind: User, Op: "setmetadata", Err: fmt.Errorf("value of %d bytes, more than %d", len(value), MaxValue)}
	}
	entries := map[string]*[]byte{Entry: nil} // nil deletes; an empty string would be stored
	if value != Absent {
		b := []byte(value)
		entries[Entry] = &b
	}
	// Held back, it travels with LOGOUT. But go-imap sends 8-bit values as
	// literals, and may wait for the server's leave to go on (RFC 9051 section 4.3).
	s.hold = !strings.ContainsFunc(string(value), func(r rune) bool { return r < ' ' || r > '~' })
	set := client.SetMetadata("", entries)
	s.hold = false
	if s.lost {
		return outcome, s.commandError("setmetadata", errClosed)
	}
	client.Logout()
	if err := set.Wait(); err != nil {
		return outcome, s.commandError("setmetadata", err)
	}
	outcome.Did = change
	return outcome, nil
}

// valueOf finds our entry, whose name the server may spell in its own case.
// NIL, an empty string and no answer at all are the same: absent.
func valueOf(data *imapclient.GetMetadataData) Value {
	for name, value := range data.Entries {
		if strings.EqualFold(name, Entry) && value != nil {
			return Value(*value)
		}
	}
	return Absent
}

// commandError finds the best reason for a failed command: what the session
// read, the server's reply, or what became of the connection.
func (s *session) commandError(op string, err error) error {
	var refused *imap.Error
	if errors.As(err, &refused) {
		r := reply{status: string(refused.Type), code: string(refused.Code), text: refused.Text}
		return r.metadataError(op)
	}
	if failed := s.failed.Load(); failed != nil {
		var e *Error
		if errors.As(*failed, &e) && e.Op == "getmetadata" {
			e.Op = op
		}
		return *failed
	}
	if e := contextError(s.ctx, op); e != nil {
		return e
	}
	return &Error{Kind: Retry, Op: op, Err: err}
}

// timeoutError is the cause of a context that ran out.
type timeoutError struct{ limit time.Duration }

func (e *timeoutError) Error() string { return fmt.Sprintf("no answer within %s", e.limit) }

// Unwrap lets errors.Is find context.DeadlineExceeded.
func (e *timeoutError) Unwrap() error { return context.DeadlineExceeded }
