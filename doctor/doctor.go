package doctor

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"time"

	"dovepush/config"
	"dovepush/doveadm"
	"dovepush/imapmeta"
	"dovepush/notify"
	"dovepush/registry"
)

// Options says what to look at, and by what means. Config and Report must be
// given.
type Options struct {
	// Config reads the settings; Path is where from, for people.
	Config func() (*config.Config, error)
	Path   string

	// User is whose mailbox is looked at. Empty: of each server the first user
	// who is registered, whose mailbox is only read.
	User string
	// Deliver sends User a message and waits for its notification.
	Deliver bool
	// LMTP is where it is delivered, "host:port" or "unix:/path"; Sendmail a
	// program that does it instead. Both empty: Dovecot's usual socket, else
	// port 24 of the server.
	LMTP, Sendmail string
	// Doveconf is a command line of the shell that prints Dovecot's settings.
	// Empty: doveconf, if it is here and tells of the Dovecot that we talk to.
	Doveconf string

	// IMAP and Doveadm make the connectors of the server number i.
	IMAP    func(i int, s *config.Server) (*imapmeta.Client, error)
	Doveadm func(i int, s *config.Server) (*doveadm.Client, error)
	// Service asks the API of the running service for a path, and returns what it
	// answers: at most a line or so. Optional: without it the service counts as
	// not running.
	Service func(ctx context.Context, path string) (status int, body string, err error)
	// Keys says what is wrong with the form of secrets that can be read: identity
	// keys, and those of webhooks. Its error names the key of each. Optional.
	Keys func(ctx context.Context, c *config.Config) error
	// Spool looks for damage in the spool at path, which is there, and tells what
	// waits in it for webhooks. Its error says how to mend it. Optional.
	Spool func(ctx context.Context, path string) ([]Waiting, error)
	// Watch opens a view of what Dovecot sends. Serving says whether the service
	// was found to run. Optional: without it --deliver cannot see anything.
	Watch func(ctx context.Context, serving bool) (*Feed, error)

	// Roots are who may vouch for the notify endpoint. Nil: whom this machine
	// trusts.
	Roots *x509.CertPool
	// Report is told of each link when it is done.
	Report func(Result)

	Wait   Wait             // zero: the usual ones
	Now    func() time.Time // nil: time.Now
	Random func() string    // what tells canaries and probes apart; nil: crypto/rand.Text
}

// Wait is how long to wait for what.
type Wait struct {
	Connect  time.Duration // for a connection, or a name; 5 s
	Accept   time.Duration // for LMTP to take the canary; 75 s: 2.4 gives a notification 60 s
	Arrive   time.Duration // for its notification after that; 5 s, behind sendmail 60 s
	Proof    time.Duration // for the proof in the registry after that; 5 s
	Settings time.Duration // for a run of doveconf; 10 s
}

// Waiting is how a webhook fares in the spool.
type Waiting struct {
	Target    string
	Waiting   int64     // that are still to be sent
	Dead      int64     // that were given up
	Oldest    time.Time // since when the one that waits longest does
	LastError string
}

// Feed is a view of what Dovecot sends.
type Feed struct {
	// Events are the notifications and refusals from now on, closed when there
	// will be no more. Subjects must not be stripped.
	Events <-chan notify.Event
	// Proves says whether somebody notes in the registry who is proven.
	Proves bool
	// Where says what is watched, for people.
	Where string
	// Close ends the view.
	Close func()
}

// doctor is a walk under way.
type doctor struct {
	Options
	done    map[string]Status // by id, see step
	verdict Verdict

	config   *config.Config
	registry *registry.Registry // nil: there is none
	serving  bool               // the service answers
	feed     *Feed
	seen     *follower                 // what it shows
	settings map[string]*settings      // Dovecot's, by server
	entry    entryState                // of User
	read     map[string]imapmeta.Value // by IMAP, by server
}

// Run walks the chain. When ctx ends it stops at the next link.
func Run(ctx context.Context, o Options) Verdict {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Random == nil {
		o.Random = rand.Text
	}
	o.Wait = o.Wait.orUsual(o.Sendmail != "")
	d := &doctor{Options: o, done: make(map[string]Status), settings: make(map[string]*settings), read: make(map[string]imapmeta.Value)}
	defer d.close()
	if !d.checkConfig(ctx) {
		d.verdict.Err = ctx.Err()
		return d.verdict
	}
	d.checkSecrets(ctx)
	d.checkRegistry(ctx)
	d.checkService(ctx)
	for i := range d.config.Servers {
		d.checkServer(ctx, i, &d.config.Servers[i])
	}
	d.watch(ctx)
	d.checkEndpoint(ctx)
	d.checkWebhooks(ctx)
	if d.Deliver {
		d.deliver(ctx)
	}
	d.verdict.Err = ctx.Err()
	return d.verdict
}

func (d *doctor) close() {
	if d.seen != nil {
		d.seen.stop()
	}
	if d.feed != nil && d.feed.Close != nil {
		d.feed.Close()
	}
	if d.registry != nil {
		d.registry.Close()
	}
}

func (w Wait) orUsual(sendmail bool) Wait {
	arrive := 5 * time.Second
	if sendmail {
		arrive = time.Minute
	}
	for _, t := range []struct {
		is    *time.Duration
		usual time.Duration
	}{{&w.Connect, 5 * time.Second}, {&w.Accept, 75 * time.Second}, {&w.Arrive, arrive}, {&w.Proof, 5 * time.Second}, {&w.Settings, 10 * time.Second}} {
		if *t.is == 0 {
			*t.is = t.usual
		}
	}
	return w
}
