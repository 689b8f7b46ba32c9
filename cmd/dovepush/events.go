package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/tmaxmax/go-sse"

	"dovepush/agent"
	"dovepush/config"
	"dovepush/notify"
)

// errNoService: no dovepush serve answers where the settings say.
var errNoService = fmt.Errorf("%w: dovepush serve", errUnavailable)

// errServiceRefuses: it answers, but not with what was asked for.
var errServiceRefuses = fmt.Errorf("%w: dovepush serve", errUnavailable)

// errNotAllowed: the service does not take our token, or the socket's file mode
// is against us.
var errNotAllowed = errors.New("dovepush serve does not let us in")

// silence is how long the service may say nothing: it sends a comment every
// 15 seconds.
const silence = time.Minute

// connectTime is how long the service may take to answer.
const connectTime = 10 * time.Second

// serviceClient speaks to the API of the running service.
type serviceClient struct {
	http  *http.Client
	base  string // URL without path
	token string // empty: none
	where string // for messages
}

// newServiceClient makes a client from the settings of the service itself.
func newServiceClient(ctx context.Context, c *config.Config) (*serviceClient, error) {
	network, address := config.ListenAddress(c.API.Listen)
	if network == "" {
		return nil, fmt.Errorf("%w: api.listen is empty: without the API nobody can ask the service", errConfig)
	}
	dialer := &net.Dialer{Timeout: connectTime}
	transport := &http.Transport{
		// No proxy: the service is where the settings say.
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, dialable(address))
			if err != nil {
				return nil, err
			}
			return &listening{Conn: conn}, nil
		},
		ResponseHeaderTimeout: connectTime,
	}
	s := &serviceClient{http: &http.Client{Transport: transport}, base: "http://dovepush", where: c.API.Listen}
	if network != "tcp" {
		return s, nil
	}
	if c.API.Token.IsSet() {
		var err error
		if s.token, err = c.API.Token.Read(ctx); err != nil {
			return nil, err
		}
	}
	served, err := c.API.TLSConfig()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errConfig, err)
	}
	if served != nil {
		s.base = "https://dovepush"
		transport.TLSClientConfig = pinned(served.Certificates[0])
	}
	return s, nil
}

// pinned trusts one certificate, which is that of the settings: its name need
// not be that of the address that the service listens on.
func pinned(cert tls.Certificate) *tls.Config {
	roots := x509.NewCertPool()
	name := "dovepush"
	if leaf, err := x509.ParseCertificate(cert.Certificate[0]); err == nil {
		roots.AddCert(leaf)
		switch {
		case len(leaf.DNSNames) > 0:
			name = leaf.DNSNames[0]
		case len(leaf.IPAddresses) > 0:
			name = leaf.IPAddresses[0].String()
		}
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: name}
}

// dialable is an address to connect to for one to listen on.
func dialable(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil { // a socket's path
		return address
	}
	switch host {
	case "", "0.0.0.0":
		host = "127.0.0.1"
	case "::":
		host = "::1"
	}
	return net.JoinHostPort(host, port)
}

// listening is a connection that ends if nothing comes for too long.
type listening struct{ net.Conn }

// Read fails after a minute of silence.
func (l *listening) Read(p []byte) (int, error) {
	if err := l.SetReadDeadline(time.Now().Add(silence)); err != nil {
		return 0, err
	}
	return l.Conn.Read(p)
}

// close ends idle connections.
func (s *serviceClient) close() { s.http.CloseIdleConnections() }

// get asks for a path; it fails unless the answer is 200.
func (s *serviceClient) get(ctx context.Context, path string, query url.Values) (*http.Response, error) {
	res, err := s.ask(ctx, path, query)
	if err == nil && res.StatusCode != http.StatusOK {
		defer res.Body.Close()
		return nil, refusedBy(res)
	}
	return res, err
}

// ask asks for a path, and takes any answer.
func (s *serviceClient) ask(ctx context.Context, path string, query url.Values) (*http.Response, error) {
	target := s.base + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, err
	}
	if s.token != "" {
		req.Header.Set("Authorization", "Bearer "+s.token)
	}
	res, err := s.http.Do(req)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		var failed *url.Error
		if errors.As(err, &failed) { // the URL is none that anybody knows
			err = failed.Err
		}
		if errors.Is(err, os.ErrPermission) {
			return nil, fmt.Errorf("%w: %w", errNotAllowed, err)
		}
		return nil, fmt.Errorf("%w does not answer at %s: %w", errNoService, s.where, err)
	}
	return res, nil
}

// refusedBy turns a problem into an error.
func refusedBy(res *http.Response) error {
	var p struct{ Title, Detail string }
	text, _ := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	if json.Unmarshal(text, &p) != nil || p.Title == "" {
		p.Title = http.StatusText(res.StatusCode)
	}
	words := strconv.Itoa(res.StatusCode) + " " + p.Title
	if p.Detail != "" {
		words += ": " + p.Detail
	}
	switch res.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("%w: %s", errNotAllowed, words)
	case http.StatusBadRequest:
		return fmt.Errorf("%w: %s", agent.ErrUser, words)
	case http.StatusNotFound:
		return fmt.Errorf("%w: %s", errConfig, words)
	}
	return fmt.Errorf("%w answers %s", errServiceRefuses, words)
}

// watched is what is to be watched.
type watched struct {
	users    []string // none: everybody
	refusals bool     // also what the endpoint refuses
	ready    func()   // is called when nothing is missed any more; may be nil
}

// events yields what the service tells as it comes. It ends with an error: that
// of ctx, errNoService if the connection ends, errNotAllowed, or errConfig if
// the service takes no notifications.
func (s *serviceClient) events(ctx context.Context, w watched) iter.Seq2[notify.Event, error] {
	return func(yield func(notify.Event, error) bool) {
		query := url.Values{"user": w.users}
		if w.refusals {
			query.Set("refusals", "true")
		}
		res, err := s.get(ctx, "/v1/notifications", query)
		if err != nil {
			yield(notify.Event{}, err)
			return
		}
		defer res.Body.Close()
		for event, err := range sse.Read(res.Body, &sse.ReadConfig{MaxEventSize: 1 << 20}) {
			if err != nil {
				break
			}
			var e notify.Event
			switch event.Type {
			case "ready":
				if w.ready != nil {
					w.ready()
				}
				continue
			case "notification":
				e.Notification = new(notify.Notification)
				err = json.Unmarshal([]byte(event.Data), e.Notification)
			case "refusal":
				e.Refusal = new(notify.Refusal)
				err = json.Unmarshal([]byte(event.Data), e.Refusal)
			default: // of a newer service
				continue
			}
			if err != nil {
				yield(e, fmt.Errorf("%w sends what is none of its events: %w", errNoService, err))
				return
			}
			if !yield(e, nil) {
				return
			}
		}
		if ctx.Err() != nil {
			yield(notify.Event{}, ctx.Err())
			return
		}
		yield(notify.Event{}, fmt.Errorf("%w at %s has ended the connection", errNoService, s.where))
	}
}
