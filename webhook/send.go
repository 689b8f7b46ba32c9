package webhook

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"dovepush/registry/spool"
)

const (
	// maxDrain is how much of an answer is read, so that the connection can be
	// used again. None of it is kept.
	maxDrain = 64 << 10
	// maxHeader bounds the head of an answer in bytes.
	maxHeader = 64 << 10
	// idleTime is how long a connection waits for the next event.
	idleTime = 90 * time.Second
)

// errProxy stands for an error that may hold a proxy's password.
var errProxy = errors.New("the proxy that the environment names (HTTPS_PROXY, HTTP_PROXY) is no URL")

// newClient returns a client that stays with its target.
func newClient(t Target) *http.Client {
	transport := t.Transport
	if transport == nil {
		transport = &http.Transport{
			Proxy: func(r *http.Request) (*url.URL, error) {
				proxy, err := http.ProxyFromEnvironment(r)
				if err != nil {
					return nil, errProxy
				}
				return proxy, nil
			},
			DialContext:            (&net.Dialer{Timeout: t.Timeout}).DialContext,
			TLSClientConfig:        t.TLSConfig.Clone(),
			TLSHandshakeTimeout:    t.Timeout,
			ForceAttemptHTTP2:      true, // net/http does not try by itself with a TLSClientConfig
			MaxConnsPerHost:        t.MaxConnections,
			MaxIdleConnsPerHost:    t.MaxConnections,
			IdleConnTimeout:        idleTime,
			MaxResponseHeaderBytes: maxHeader,
			DisableCompression:     true, // nobody reads the answer
		}
	}
	return &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// send makes one attempt.
func (l *lane) send(ctx context.Context, d spool.Delivery, s signer) verdict {
	ctx, cancel := context.WithTimeout(ctx, l.target.Timeout)
	defer cancel()
	now := l.options.Now()
	signature, err := s.sign(d.Event, now, d.Body)
	if err != nil {
		return verdict{kind: targetFails, reason: "cannot sign: " + err.Error()}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.target.URL, bytes.NewReader(d.Body))
	if err != nil {
		return verdict{kind: targetFails, reason: words(err, l.target.Timeout)}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "dovepush/"+l.options.Version)
	req.Header.Set(standardwebhooks.HeaderWebhookID, d.Event)
	req.Header.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(now.Unix(), 10))
	req.Header.Set(standardwebhooks.HeaderWebhookSignature, signature)
	res, err := l.client.Do(req)
	if err != nil {
		return verdict{kind: targetFails, reason: words(err, l.target.Timeout)}
	}
	_, _ = io.CopyN(io.Discard, res.Body, maxDrain) // the status has said all
	_ = res.Body.Close()
	return judgeAnswer(res, now)
}
