package doveadm

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Reason is why an endpoint is set aside, in a word.
type Reason string

// The reasons.
const (
	Refused  Reason = "refused"  // nobody answers there
	Timeout  Reason = "timeout"  // no answer in time
	Closed   Reason = "closed"   // the connection ended before the answer did
	TLS      Reason = "tls"      // no trusted connection
	HTTP     Reason = "http"     // an HTTP status other than 200
	Redirect Reason = "redirect" // it names another place, where the key is not sent
	Key      Reason = "key"      // it refuses the key
	Reply    Reason = "reply"    // what it answers is not DoveAdm's
)

// Endpoint is how things stand with one.
type Endpoint struct {
	URL         string
	Out         bool      // set aside: others are asked, if there are
	Since       time.Time // when it was set aside
	CheckAt     time.Time // when it is looked at again
	Reason      Reason
	Err         error // why it is set aside
	Connections int   // under way
}

// Endpoints tells how things stand, in the order of the options.
func (c *Client) Endpoints() []Endpoint {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]Endpoint, len(c.endpoints))
	for i, e := range c.endpoints {
		list[i] = e.state
	}
	return list
}

// endpoint is where POSTs go. Its state is guarded by Client.mu.
type endpoint struct {
	url       string // of requests
	transport *http.Transport

	state  Endpoint
	known  bool          // it has been found to work
	back   chan struct{} // closed when it works again; made anew when it is set aside
	probe  *probe        // under way; nil: none
	saying sync.Mutex    // held while Changed is told
}

// apiPath is where Dovecot has the API (doveadm_http_server_mounts in
// src/doveadm/client-connection-http.c).
const apiPath = "/doveadm/v1"

// newEndpoint makes an endpoint. Nothing is sent by way of a proxy that the
// environment names, and no redirect is followed: the key goes to this address
// only.
func newEndpoint(address string, o Options) (*endpoint, error) {
	network, socket := "tcp", ""
	e := &endpoint{url: address, state: Endpoint{URL: address}}
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, socket, e.url = "unix", path, "http://localhost"+apiPath
		if path == "" {
			return nil, fmt.Errorf("endpoint %q names no socket", address)
		}
	} else if u, err := url.Parse(address); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, errors.New("an endpoint is no URL of a DoveAdm API") // it may hold a password: do not repeat it
	}
	dialer := net.Dialer{KeepAlive: -1} // no connection outlives its time limit
	dial := func(ctx context.Context, _, address string) (net.Conn, error) {
		if socket != "" {
			address = socket
		}
		conn, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, &dialError{err}
		}
		return conn, nil
	}
	limited := func(ctx context.Context) (context.Context, context.CancelFunc) {
		return context.WithTimeoutCause(ctx, o.ConnectTimeout, &timeoutError{o.ConnectTimeout})
	}
	e.transport = &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			ctx, cancel := limited(ctx)
			defer cancel()
			return dial(ctx, network, address)
		},
		DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			ctx, cancel := limited(ctx)
			defer cancel()
			raw, err := dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			conf := o.TLSConfig.Clone()
			if conf == nil {
				conf = &tls.Config{MinVersion: tls.VersionTLS12}
			}
			if conf.ServerName == "" {
				conf.ServerName, _, _ = net.SplitHostPort(address)
			}
			conn := tls.Client(raw, conf)
			if err := conn.HandshakeContext(ctx); err != nil {
				raw.Close()
				return nil, &dialError{err}
			}
			return conn, nil
		},
		DisableKeepAlives:      true, // Dovecot serves one request a connection
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
	}
	return e, nil
}

// dialError is the failure to connect, TLS included.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// setOutLocked sets an endpoint aside, and has it looked at again and again
// until it works.
func (c *Client) setOutLocked(e *endpoint, t *trouble) {
	now := c.options.Now()
	if e.state.Out {
		e.state.Reason, e.state.Err = t.reason, t.err
		return
	}
	e.state.Out, e.state.Since, e.state.CheckAt = true, now, now.Add(c.options.CheckInterval)
	e.state.Reason, e.state.Err = t.reason, t.err
	back := make(chan struct{})
	e.back = back
	c.work.Go(func() {
		c.tell(e)
		for {
			timer := time.NewTimer(c.options.CheckInterval)
			select {
			case <-c.life.Done():
				timer.Stop()
				return
			case <-back:
				timer.Stop()
				return
			case <-timer.C:
			}
			c.check(e)
			select {
			case <-back:
				return
			default:
				c.tell(e)
			}
		}
	})
}

// check looks whether an endpoint that is set aside works.
func (c *Client) check(e *endpoint) {
	c.mu.Lock()
	p := c.probeLocked(e)
	c.mu.Unlock()
	<-p.done
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.trouble == nil {
		c.worksLocked(e)
		c.dispatchLocked(false)
		return
	}
	if e.state.Out && p.trouble.blame != nobodys {
		e.state.Reason, e.state.Err = p.trouble.reason, p.trouble.err
	}
	e.state.CheckAt = c.options.Now().Add(c.options.CheckInterval)
}

// worksLocked notes that an endpoint has answered as it should.
func (c *Client) worksLocked(e *endpoint) {
	c.accepted = true
	was, known := e.state.Out, e.known
	e.known = true
	if was {
		close(e.back)
		e.state = Endpoint{URL: e.state.URL, Connections: e.state.Connections}
	}
	if was || !known {
		c.work.Go(func() { c.tell(e) })
	}
}

// tell tells Changed how things stand with an endpoint now.
func (c *Client) tell(e *endpoint) {
	if c.options.Changed == nil {
		return
	}
	e.saying.Lock()
	defer e.saying.Unlock()
	c.mu.Lock()
	state := e.state
	c.mu.Unlock()
	c.options.Changed(state)
}

// probe is a look whether an endpoint works at all: a POST without commands.
// It tells an endpoint that is down from a command that makes any fail.
type probe struct {
	done    chan struct{}
	trouble *trouble // read when done is closed
}

// probeLocked has an endpoint looked at, once for all who ask for it.
func (c *Client) probeLocked(e *endpoint) *probe {
	if e.probe != nil {
		return e.probe
	}
	p := &probe{done: make(chan struct{})}
	e.probe = p
	c.work.Go(func() {
		p.trouble = c.post(c.life, e, c.options.ReadTimeout/2, []byte("[]"), maxBody, func(in io.Reader) error {
			return readReplies(in, func(reply) {})
		})
		c.mu.Lock()
		e.probe = nil
		c.mu.Unlock()
		close(p.done)
	})
	return p
}
