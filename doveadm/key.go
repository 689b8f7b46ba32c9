package doveadm

import (
	"context"
	"encoding/base64"
	"sync"
	"time"

	"dovepush/imapmeta"
)

// keyAge is how long a key is used before it is asked for again: it may come
// from a command, and each POST would start one.
const keyAge = time.Minute

// key is what Dovecot knows us by.
type key struct {
	read  func(ctx context.Context) (string, error)
	basic bool
	now   func() time.Time

	reading chan struct{} // holds one token; a lock that a context can leave

	mu     sync.Mutex
	header string // of Authorization; empty: to be read
	readAt time.Time
}

// authorization returns the header. Its errors are kind server: without a key
// nobody can be asked for.
func (k *key) authorization(ctx context.Context) (string, error) {
	select {
	case k.reading <- struct{}{}:
		defer func() { <-k.reading }()
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	k.mu.Lock()
	header, age := k.header, k.now().Sub(k.readAt)
	k.mu.Unlock()
	if header != "" && 0 <= age && age < keyAge {
		return header, nil
	}
	secret, err := k.read(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		return "", &imapmeta.Error{Kind: imapmeta.Server, Op: opConnect, Err: &imapmeta.SecretError{Err: err}}
	}
	// src/doveadm/client-connection-http.c, doveadm_http_server_auth_api_key
	// and _auth_basic.
	header = "X-Dovecot-API " + base64.StdEncoding.EncodeToString([]byte(secret))
	if k.basic {
		header = "Basic " + base64.StdEncoding.EncodeToString([]byte("doveadm:"+secret))
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.header, k.readAt = header, k.now()
	return header, nil
}

// refused has the key asked for again, if that is the one which was refused: it
// may have been changed.
func (k *key) refused(header string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.header == header {
		k.header = ""
	}
}
