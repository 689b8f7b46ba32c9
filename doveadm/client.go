package doveadm

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"dovepush/imapmeta"
)

// Options says how to reach one Dovecot, or several with the same users.
// Endpoints and Secret must be given; the zero values of the numbers stand for
// what is said beside them.
type Options struct {
	// Endpoints are the URLs of the API, such as "https://host:8080/doveadm/v1",
	// or "unix:/path" for a UNIX socket. They are used in turn.
	Endpoints []string
	// Secret returns Dovecot's doveadm_api_key or, if Basic is set, its
	// doveadm_password. It is asked at most once a minute, and again after it
	// was refused. Its errors must not hold the secret.
	Secret func(ctx context.Context) (string, error)
	Basic  bool
	// TLSConfig is for https; nil: the system's trust. Without a ServerName
	// each endpoint is checked against its own host.
	TLSConfig *tls.Config

	MaxConnections int           // to each endpoint at once, but for one that looks whether it works; 4
	Batch          int           // commands in one POST; 100
	ConnectTimeout time.Duration // TLS included; 3 s
	// ReadTimeout is how long an answer may take, from the request to its last
	// byte; 10 s. It is at most half of Timeout, or no other endpoint would get
	// its turn.
	ReadTimeout   time.Duration
	CheckInterval time.Duration // between two looks at an endpoint that failed; 1 min
	// Timeout is for one Update, from its first POST; 30 s. Who waits for a
	// connection waits until his context is over.
	Timeout time.Duration

	// Changed is told what became of an endpoint: once when it is first found
	// to work, then whenever it is set aside, found to fail still, or found to
	// work again. It is called by goroutines of the Client's own, for one
	// endpoint in the order in which it happened, and not any more when Close
	// has returned. It must not block: what is to be told waits for it.
	Changed func(Endpoint)
	Now     func() time.Time // nil: time.Now
}

// Client changes entries by DoveAdm. It may be used by many goroutines at once;
// what they ask for is gathered.
type Client struct {
	options Options
	key     key
	life    context.Context // until nobody calls any more; see Close
	end     context.CancelFunc
	calls   sync.WaitGroup // Updates and the like; what they wait for goes on
	work    sync.WaitGroup // all goroutines of ours

	mu        sync.Mutex
	closed    bool
	endpoints []*endpoint
	next      int      // whose turn it is
	wait      [2]queue // to be sent for the first time, by their turn
	again     []*batch // that failed somewhere and go to another endpoint, or were split
	posts     int      // under way
	gathering bool     // somebody waits for more calls to come
	limit     int      // commands in one POST: Batch, or less while they take too long
	accepted  bool     // an endpoint has taken the key
	heard     int      // how often an endpoint has answered as it should
	worked    time.Time

	gatherTime, listSilence time.Duration // the constants, but for tests
}

// New checks the options.
func New(o Options) (*Client, error) {
	for _, d := range []struct {
		is       *time.Duration
		standard time.Duration
	}{{&o.ConnectTimeout, 3 * time.Second}, {&o.ReadTimeout, 10 * time.Second}, {&o.CheckInterval, time.Minute}, {&o.Timeout, 30 * time.Second}} {
		if *d.is == 0 {
			*d.is = d.standard
		}
		if *d.is < 0 {
			return nil, fmt.Errorf("a time limit of %s: must not be negative", *d.is)
		}
	}
	if o.MaxConnections == 0 {
		o.MaxConnections = 4
	}
	if o.Batch == 0 {
		o.Batch = 100
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	switch {
	case o.MaxConnections < 0 || o.Batch < 0:
		return nil, fmt.Errorf("max connections %d and batch %d must not be negative", o.MaxConnections, o.Batch)
	case o.Secret == nil:
		return nil, errors.New("an API key or a password is needed")
	case len(o.Endpoints) == 0:
		return nil, errors.New("an endpoint is needed")
	}
	o.ReadTimeout = min(o.ReadTimeout, o.Timeout/2)
	c := &Client{options: o, key: key{read: o.Secret, basic: o.Basic, now: o.Now, reading: make(chan struct{}, 1)},
		limit: min(firstBatch, o.Batch), gatherTime: gatherTime, listSilence: listSilence}
	c.life, c.end = context.WithCancel(context.Background())
	for _, url := range o.Endpoints {
		e, err := newEndpoint(url, o)
		if err != nil {
			c.end()
			return nil, err
		}
		c.endpoints = append(c.endpoints, e)
	}
	return c, nil
}

// Close waits for all that is under way, and ends the looks at endpoints that
// are set aside. What is called after it fails.
func (c *Client) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.calls.Wait()
	c.end()
	c.work.Wait()
}

// enter notes that somebody calls, until c.calls.Done.
func (c *Client) enter() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return &imapmeta.Error{Kind: imapmeta.Retry, Op: opConnect, Err: errClosed}
	}
	c.calls.Add(1)
	return nil
}

var errClosed = errors.New("the client is closed")

// Update reads the user's entry, lets decide look at it, and carries out what
// decide answers. decide is called at most once, and not if the entry could
// not be read.
//
// Every error is an *imapmeta.Error. After a failure in "setmetadata" without a
// reply, the entry may or may not have changed.
func (c *Client) Update(ctx context.Context, user string, decide func(have imapmeta.Value) imapmeta.Change) (imapmeta.Outcome, error) {
	outcome, err := c.update(ctx, user, decide)
	return outcome, about(user, err)
}

func (c *Client) update(ctx context.Context, user string, decide func(have imapmeta.Value) imapmeta.Change) (outcome imapmeta.Outcome, err error) {
	if err := checkUser(user); err != nil {
		return outcome, err
	}
	if err := c.enter(); err != nil {
		return outcome, err
	}
	defer c.calls.Done()
	ctx, clock := c.clock(ctx)
	defer clock.stop()

	got, err := c.do(ctx, clock, command{method: get, user: user})
	if err != nil {
		return outcome, err
	}
	if outcome.Had, err = got.reply.value(); err != nil {
		return outcome, err
	}
	change := decide(outcome.Had)
	value, changes := change.Value()
	if !changes {
		return outcome, nil
	}
	if err := checkValue(value); err != nil {
		return outcome, err
	}
	write := command{method: set, user: user, value: string(value)}
	if value == imapmeta.Absent {
		write.method = unset // set would store an empty string
	}
	written, err := c.do(ctx, clock, write)
	outcome.Resent = written.resent
	if err != nil {
		return outcome, err
	}
	outcome.Did = change
	return outcome, nil
}

// Exists reports whether Dovecot's userdb knows the user: a refusal alone may
// have other reasons. Every error is an *imapmeta.Error.
func (c *Client) Exists(ctx context.Context, user string) (bool, error) {
	if err := checkUser(user); err != nil {
		return false, about(user, err)
	}
	if err := c.enter(); err != nil {
		return false, about(user, err)
	}
	defer c.calls.Done()
	ctx, clock := c.clock(ctx)
	defer clock.stop()
	_, err := c.do(ctx, clock, command{method: lookup, user: user})
	if errors.Is(err, imapmeta.ErrNoUser) {
		return false, nil
	}
	return err == nil, about(user, err)
}

// about names the user whom an error is about.
func about(user string, err error) error {
	var e *imapmeta.Error
	if errors.As(err, &e) && e.User == "" {
		named := *e // one error may be many users'
		named.User = user
		return &named
	}
	return err
}

// checkUser reports users that must not be sent.
func checkUser(user string) error {
	if err := imapmeta.CheckUser(user); err != nil {
		return &imapmeta.Error{Kind: imapmeta.User, Op: opGet, Err: err}
	}
	// Dovecot takes them for a pattern, and does the same to every user that
	// fits (doveadm_cmd_ver2_to_mail_cmd_wrapper in src/doveadm/doveadm-mail.c).
	if strings.ContainsAny(user, "*?") {
		return &imapmeta.Error{Kind: imapmeta.User, Op: opGet, Hint: hintPattern,
			Err: fmt.Errorf("%w: %q is a pattern of users to DoveAdm", imapmeta.ErrUser, user)}
	}
	return nil
}

// checkValue reports values that must not be sent. Dovecot 2.3 ends the
// connection at a NUL, and at text that is not UTF-8, and so a whole batch.
func checkValue(v imapmeta.Value) error {
	fail := func(format string, args ...any) error {
		return &imapmeta.Error{Kind: imapmeta.User, Op: opSet, Err: fmt.Errorf(format, args...)}
	}
	switch {
	case len(v) > imapmeta.MaxValue:
		return fail("value of %d bytes, more than %d", len(v), imapmeta.MaxValue)
	case !utf8.ValidString(string(v)):
		return fail("value %q is not UTF-8", string(v))
	case strings.ContainsRune(string(v), 0):
		return fail("value %q holds a NUL", string(v))
	}
	return nil
}

// clock ends a context some time after it was started: how long others keep us
// waiting says nothing of how long Dovecot takes.
type clock struct {
	client *Client
	end    context.CancelCauseFunc
	timer  *time.Timer // guarded by Client.mu; nil: not started
}

func (c *Client) clock(ctx context.Context) (context.Context, *clock) {
	ctx, end := context.WithCancelCause(ctx)
	return ctx, &clock{client: c, end: end}
}

// startLocked starts the clock, if it is not running yet.
func (k *clock) startLocked() {
	if k.timer == nil {
		limit := k.client.options.Timeout
		k.timer = time.AfterFunc(limit, func() { k.end(&timeoutError{limit}) })
	}
}

func (k *clock) stop() {
	k.client.mu.Lock()
	if k.timer != nil {
		k.timer.Stop()
	}
	k.client.mu.Unlock()
	k.end(nil)
}

// timeoutError is the cause of a context that ran out.
type timeoutError struct{ limit time.Duration }

func (e *timeoutError) Error() string { return fmt.Sprintf("no answer within %s", e.limit) }

// Unwrap lets errors.Is find context.DeadlineExceeded.
func (e *timeoutError) Unwrap() error { return context.DeadlineExceeded }
