package doveadm

import (
	"context"
	"strings"
	"testing"
	"time"
)

func TestOptionsThatCannotWorkAreRefused(t *testing.T) {
	good := func() Options {
		return Options{Endpoints: []string{"https://dovecot.example.com:8080/doveadm/v1"}, Secret: secretIs("x")}
	}
	for words, spoil := range map[string]func(*Options){
		"an endpoint is needed":                  func(o *Options) { o.Endpoints = nil },
		"an API key or a password is needed":     func(o *Options) { o.Secret = nil },
		"max connections -1 and batch":           func(o *Options) { o.MaxConnections = -1 },
		"batch -1 must not be":                   func(o *Options) { o.Batch = -1 },
		"a time limit of -1s: must":              func(o *Options) { o.Timeout = -time.Second },
		"a time limit of -2s: must":              func(o *Options) { o.ReadTimeout = -2 * time.Second },
		"a time limit of -3s: must":              func(o *Options) { o.ConnectTimeout = -3 * time.Second },
		"a time limit of -4s: must":              func(o *Options) { o.CheckInterval = -4 * time.Second },
		`endpoint "unix:" names no socket`:       func(o *Options) { o.Endpoints = []string{"unix:"} },
		"an endpoint is no URL of a DoveAdm API": func(o *Options) { o.Endpoints[0] = "ftp://host/" },
	} {
		o := good()
		spoil(&o)
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("New = %v; want %q", err, words)
		}
	}
	for _, url := range []string{"", "host:8080", "//host", "http://", "http:///path", "http://:8080/", "http://user:s3cr3t@host/", "https://s3cr3t@host", "http://host:s3cr3t/", "http://[::1", "http://h\x00st/s3cr3t"} {
		o := good()
		o.Endpoints = append(o.Endpoints, url)
		if _, err := New(o); err == nil || strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("endpoint %q: %v", url, err)
		}
	}
}

func TestZeroOptionsStandForWhatIsSaid(t *testing.T) {
	c := open(t, Options{Endpoints: []string{"http://a:1/", "https://[::1]/", "unix:/run/dovecot/doveadm"}, Secret: secretIs("x")})
	o := c.options
	if o.MaxConnections != 4 || o.Batch != 100 || o.ConnectTimeout != 3*time.Second || o.ReadTimeout != 10*time.Second ||
		o.CheckInterval != time.Minute || o.Timeout != 30*time.Second || o.Now == nil || c.gatherTime != gatherTime {
		t.Errorf("%+v", o)
	}
	for batch, want := range map[int]int{0: firstBatch, 3: 3} {
		c, err := New(Options{Endpoints: o.Endpoints, Secret: o.Secret, Batch: batch})
		if err != nil || c.limit != want {
			t.Errorf("batch %d: first batches of %d (%v)", batch, c.limit, err)
		}
	}
	for i, want := range []struct{ network, address string }{{"tcp", "a:1"}, {"tcp", "[::1]:https"}, {"unix", "/run/dovecot/doveadm"}} {
		if e := c.endpoints[i]; e.network != want.network || e.address != want.address || (e.tls != nil) != (i == 1) {
			t.Errorf("endpoint %d: %s %s", i, e.network, e.address)
		}
	}
	if name := c.endpoints[1].tls.ServerName; name != "::1" {
		t.Errorf("its certificate is to be for %q", name)
	}
	// No answer may take more than half of the whole, or no other endpoint would
	// get its turn.
	c = open(t, Options{Endpoints: []string{"http://a:1/"}, Secret: secretIs("x"), Timeout: 8 * time.Second})
	if got := c.options.ReadTimeout; got != 4*time.Second {
		t.Errorf("an answer may take %s of 8 s", got)
	}
	c = open(t, Options{Endpoints: []string{"http://a:1/"}, Secret: secretIs("x"), Timeout: time.Hour, ReadTimeout: time.Second})
	if got := c.options.ReadTimeout; got != time.Second {
		t.Errorf("an answer may take %s", got)
	}
}

// A context that ends tells why.
func TestTheCauseOfAnEndIsKept(t *testing.T) {
	err := error(&timeoutError{3 * time.Second})
	if err.Error() != "no answer within 3s" {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 0, err)
	defer cancel()
	if context.Cause(ctx) != err {
		t.Error(context.Cause(ctx))
	}
}
