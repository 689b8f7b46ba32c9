package doveadm

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dovepush/imapmeta"
)

// The key goes to the address that was given, and to no other.

func TestNoRedirectIsFollowed(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { asked.Add(1) }))
	defer elsewhere.Close()
	for _, status := range []int{301, 302, 303, 307, 308} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL+apiPath, status)
		}))
		c := open(t, Options{Endpoints: []string{server.URL + apiPath}, Secret: secretIs(dummyKey)})
		_, err := c.Update(t.Context(), "alice", keepIt)
		fault{kind: imapmeta.Server, is: ErrNotDoveadm, words: fmt.Sprintf("HTTP %d: it redirects to %q", status, elsewhere.URL+apiPath), hint: hintMoved}.check(t, "alice", err)
		if e := c.Endpoints()[0]; e.Reason != Redirect {
			t.Errorf("%+v", e)
		}
		closed(t, c)
		server.Close()
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("the other server was asked %d times", n)
	}
}

// The proxy is asked in a process of its own: net/http reads the environment
// once.
func TestNoProxyIsUsed(t *testing.T) {
	t.Parallel()
	if os.Getenv("DOVEADM_TEST_PROXY") != "" {
		// A name that only a proxy could reach: none is used for loopback.
		for _, scheme := range []string{"http", "https"} {
			c := open(t, Options{Endpoints: []string{scheme + "://192.0.2.1:8080" + apiPath}, Secret: secretIs(dummyKey), ConnectTimeout: 100 * time.Millisecond})
			if _, err := c.Update(t.Context(), "alice", keepIt); err == nil {
				t.Error("no error")
			}
		}
		return
	}
	var asked atomic.Int64
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { asked.Add(1) }))
	defer proxy.Close()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestNoProxyIsUsed$", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), "DOVEADM_TEST_PROXY=1", "HTTP_PROXY="+proxy.URL, "HTTPS_PROXY="+proxy.URL, "ALL_PROXY="+proxy.URL,
		"http_proxy="+proxy.URL, "https_proxy="+proxy.URL, "NO_PROXY=", "no_proxy=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("the proxy was asked %d times", n)
	}
}

func TestTLSThatDoesNotFit(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		io.WriteString(w, `[["doveadmResponse",[{"value":"user=tls"}],"0"]]`)
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	_, port, _ := net.SplitHostPort(server.Listener.Addr().String())
	pool := x509.NewCertPool()
	pool.AddCert(server.Certificate())
	good, named, old := &tls.Config{RootCAs: pool}, &tls.Config{RootCAs: pool, ServerName: "dovecot.test"}, &tls.Config{RootCAs: pool, MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}
	plain := play(t)
	silent := saying(t, untilGone)
	untrusted := func(words, hint string) fault {
		return fault{kind: imapmeta.Server, is: imapmeta.ErrTLS, op: "connect", words: words, hint: hint}
	}
	for _, c := range []struct {
		name   string
		url    string
		conf   *tls.Config
		want   fault
		reason Reason
	}{
		{"not trusted", "https://127.0.0.1:" + port, nil, untrusted("unknown authority", "tls_ca_file"), TLS},
		{"another name", "https://127.0.0.1:" + port, named, untrusted("not dovecot.test", "server.tls_server_name"), TLS},
		{"another version", "https://127.0.0.1:" + port, old, untrusted("protocol version", "ssl_min_protocol"), TLS},
		{"https where http is", strings.Replace(plain.url, "http:", "https:", 1), good, untrusted("first record does not look like a TLS handshake", "write http://"), TLS},
		{"http where https is", "http://127.0.0.1:" + port + apiPath, good, fault{kind: imapmeta.Retry, op: "connect", words: "HTTP 400: Client sent an HTTP request to an HTTPS server", unreached: true}, HTTP},
		{"a handshake that hangs", "https://" + silent, good, fault{kind: imapmeta.Retry, op: "connect", words: "no answer within 300ms", hint: "is Dovecot up", unreached: true}, Timeout},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := Options{Endpoints: []string{c.url}, TLSConfig: c.conf, Secret: secretIs(dummyKey), ConnectTimeout: 10 * time.Second}
			if c.reason == Timeout {
				o.ConnectTimeout = 300 * time.Millisecond
			}
			client := open(t, o)
			_, err := client.Update(t.Context(), "alice", keepIt)
			c.want.check(t, "alice", err)
			if e := client.Endpoints()[0]; e.Reason != c.reason {
				t.Errorf("%+v", e)
			}
		})
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("%d requests went to a server that is not trusted", n)
	}
	// One TLSConfig serves several endpoints, each under its own name.
	c := open(t, Options{Endpoints: []string{"https://127.0.0.1:" + port + apiPath, "https://localhost:" + port + apiPath}, TLSConfig: good, Secret: secretIs(dummyKey)})
	update(t, c, "alice", imapmeta.Keep(), "user=tls")
	if good.ServerName != "" {
		t.Error("the caller's TLSConfig was changed")
	}
	_, err := c.Update(t.Context(), "alice", keepIt) // the other: its certificate is for example.com and loopback addresses
	if e := c.Endpoints()[1]; err != nil || e.Reason != TLS {
		t.Errorf("%v, %+v", err, e)
	}
}
