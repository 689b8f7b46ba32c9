package doveadm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"dovepush/imapmeta"
)

// errOther: another value was read than was written.
var errOther = errors.New("the probe entry does not hold what was written a moment ago")

// Examine asks each endpoint, in the order of the options, whether it works and
// takes the key, by a POST without commands. It sets none aside. Every error
// that is reported is an *imapmeta.Error.
func (c *Client) Examine(ctx context.Context, report func(url string, took time.Duration, err error)) {
	if err := c.enter(); err != nil {
		for _, e := range c.endpoints {
			report(e.state.URL, 0, err)
		}
		return
	}
	defer c.calls.Done()
	for _, e := range c.endpoints {
		began := c.options.Now()
		t := c.post(ctx, e, c.options.ReadTimeout, []byte("[]"), maxBody, func(in io.Reader) error {
			return readReplies(in, func(reply) {})
		})
		report(e.state.URL, c.options.Now().Sub(began), t.asError())
	}
}

func (t *trouble) asError() error {
	if t == nil {
		return nil
	}
	return t.err
}

// Probe writes imapmeta.ProbeEntry for a user, reads it and removes it, in one
// POST to one endpoint: the removal is carried out also if nobody waits for it
// any more. The token is printable ASCII, another one each time. It
// returns an *imapmeta.Error.
func (c *Client) Probe(ctx context.Context, user, token string) error {
	if err := checkUser(user); err != nil {
		return about(user, err)
	}
	if err := c.enter(); err != nil {
		return about(user, err)
	}
	defer c.calls.Done()
	methods := []method{set, get, unset}
	var commands [][3]any
	for i, m := range methods {
		parameters := metadata{User: user, AllowEmpty: true, Key: imapmeta.ProbeEntry}
		if m == set {
			parameters.Value = &token
		}
		commands = append(commands, [3]any{m, parameters, fmt.Sprint(i)})
	}
	text, err := json.Marshal(commands)
	if err != nil {
		return about(user, &imapmeta.Error{Kind: imapmeta.Retry, Op: opSet, Err: err})
	}
	e := c.lender(&batch{})
	var replies []reply
	t := c.post(ctx, e, c.options.ReadTimeout, text, maxBody, func(in io.Reader) error {
		return readReplies(in, func(r reply) { replies = append(replies, r) })
	})
	if t != nil {
		return about(user, t.err)
	}
	return about(user, probed(methods, match(replies, len(methods)), token))
}

// probed says what the replies to a probe mean.
func probed(methods []method, replies []*reply, token string) error {
	for i, m := range methods {
		r := replies[i]
		if r == nil {
			return &imapmeta.Error{Kind: imapmeta.Retry, Op: m.op(), Err: ErrNoReply, Hint: hintLog}
		}
		if err := r.err(m, false); err != nil {
			return err
		}
		if m != get {
			continue
		}
		read, err := r.value()
		if err != nil {
			return err
		}
		if string(read) != token {
			return &imapmeta.Error{Kind: imapmeta.Retry, Op: opGet, Err: errOther, Hint: hintDict}
		}
	}
	return nil
}
