package doveadm

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
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
	url              string // of requests
	network, address string // of connections
	tls              *tls.Config
	limit            time.Duration // for connecting

	state Endpoint
	known bool          // it has been found to work
	back  chan struct{} // closed when it works again; nil: it is not set aside
	probe *probe        // under way; nil: none

	news    []Endpoint // that Changed is still to be told, oldest first
	telling bool       // somebody is at it
}

// apiPath is where Dovecot has the API (doveadm_http_server_mounts in
// src/doveadm/client-connection-http.c).
const apiPath = "/doveadm/v1"

// newEndpoint makes an endpoint. Nothing is sent by way of a proxy that the
// environment names, and no redirect is followed: the key goes to this address
// only.
func newEndpoint(address string, o Options) (*endpoint, error) {
	e := &endpoint{url: address, limit: o.ConnectTimeout, state: Endpoint{URL: address}}
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		if path == "" {
			return nil, fmt.Errorf("endpoint %q names no socket", address)
		}
		e.network, e.address, e.url = "unix", path, "http://localhost"+apiPath
		return e, nil
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
		return nil, errors.New("an endpoint is no URL of a DoveAdm API") // it may hold a password: do not repeat it
	}
	e.network, e.address = "tcp", net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), u.Scheme))
	if u.Scheme == "https" {
		if e.tls = o.TLSConfig.Clone(); e.tls == nil {
			e.tls = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		if e.tls.ServerName == "" {
			e.tls.ServerName = u.Hostname()
		}
	}
	return e, nil
}

// setOutLocked sets an endpoint aside, and has it looked at again and again
// until it works.
func (c *Client) setOutLocked(e *endpoint, t *trouble) {
	e.state.Reason, e.state.Err = t.reason, t.err
	if e.state.Out {
		return
	}
	now, back := c.options.Now(), make(chan struct{})
	e.state.Out, e.state.Since, e.state.CheckAt = true, now, now.Add(c.options.CheckInterval)
	e.back = back
	c.tellLocked(e)
	c.work.Go(func() {
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
				c.check(e, back)
			}
		}
	})
}

// check looks whether an endpoint works that was set aside until back is
// closed.
func (c *Client) check(e *endpoint, back <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.probeLocked(e)
	c.mu.Unlock()
	<-p.done
	c.mu.Lock()
	switch {
	case e.back != back || c.life.Err() != nil: // settled meanwhile
	case p.trouble == nil:
		c.worksLocked(e)
		c.dispatchLocked(false)
	default:
		e.state.Reason, e.state.Err = p.trouble.reason, p.trouble.err
		e.state.CheckAt = c.options.Now().Add(c.options.CheckInterval)
		c.tellLocked(e)
	}
}

// worksLocked notes that an endpoint has answered as it should.
func (c *Client) worksLocked(e *endpoint) {
	c.accepted = true
	c.heard++
	was, known := e.state.Out, e.known
	e.known = true
	if was {
		close(e.back)
		e.back = nil
		e.state = Endpoint{URL: e.state.URL, Connections: e.state.Connections}
	}
	if was || !known {
		c.tellLocked(e)
	}
}

// tellLocked has Changed told how things stand with an endpoint now, when it
// has been told what was before.
func (c *Client) tellLocked(e *endpoint) {
	if c.options.Changed == nil {
		return
	}
	if e.news = append(e.news, e.state); e.telling {
		return
	}
	e.telling = true
	c.work.Go(func() {
		for {
			c.mu.Lock()
			if len(e.news) == 0 {
				e.telling = false
				c.mu.Unlock()
				return
			}
			state := e.news[0]
			e.news = e.news[1:]
			c.mu.Unlock()
			c.options.Changed(state)
		}
	})
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
		ctx, cancel := context.WithTimeout(c.life, c.options.Timeout) // the key may take its time
		defer cancel()
		p.trouble = c.post(ctx, e, c.options.ReadTimeout/2, []byte("[]"), maxBody, func(in io.Reader) error {
			return readReplies(in, func(reply) {})
		})
		c.mu.Lock()
		e.probe = nil
		c.mu.Unlock()
		close(p.done)
	})
	return p
}
