package doveadm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"time"

	"dovepush/imapmeta"
)

// listSilence is how long an endpoint that lists its users may say nothing:
// Dovecot sends nothing before it has iterated through them all.
const listSilence = 5 * time.Minute

// A doveadm process that has served a user's mailbox has that user's rights, and
// may not list users any more: measured on 2.3.19 with service_count = 0.
const hintIterate = "Dovecot's log tells why; its userdb must be able to list users (iterate_query of sql, iterate_attrs of ldap), " +
	"and service doveadm must serve one request a process, as it comes (service_count = 1, in 2.4 restart_request_count = 1)"

// Users lists the users whom Dovecot's userdb knows, in its order, as they come.
// It ends with an *imapmeta.Error unless the list was complete. Names are as
// the userdb has them: check them.
//
// If an endpoint fails before the first user, the next one is asked.
func (c *Client) Users(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		if err := c.enter(); err != nil {
			yield("", err)
			return
		}
		defer c.calls.Done()
		b := &batch{}
		for {
			e := c.lender(b)
			if e == nil {
				yield("", b.failure())
				return
			}
			some, going := false, true
			t := c.list(ctx, e, func(user string) bool {
				some = true
				going = yield(user, nil)
				return going
			})
			switch {
			case !going, t == nil:
				return
			case ctx.Err() != nil:
				yield("", &imapmeta.Error{Kind: imapmeta.Retry, Op: opUser, Err: context.Cause(ctx)})
				return
			case some || t.blame == everybodys || t.blame == nobodys || t.err.Status != "":
				yield("", t.err)
				return
			}
			b.tried = append(b.tried, attempt{endpoint: e, trouble: t})
		}
	}
}

// lender returns the next endpoint that a list has not failed at, those that
// are set aside last; nil: there is none. A list is one connection more than
// MaxConnections, so that it need not wait.
func (c *Client) lender(b *batch) *endpoint {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, out := range []bool{false, true} {
		for _, e := range c.endpoints {
			if e.state.Out == out && !slices.ContainsFunc(b.tried, func(a attempt) bool { return a.endpoint == e }) {
				return e
			}
		}
	}
	return nil
}

// errEnough ends a list that the caller has enough of.
var errEnough = errors.New("enough")

// list has one endpoint list its users.
func (c *Client) list(ctx context.Context, e *endpoint, each func(string) bool) *trouble {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(c.listSilence, func() { cancel(&timeoutError{c.listSilence}) })
	defer silence.Stop()
	text, err := json.Marshal([][3]any{{lookup, users{[]string{"*"}}, "0"}})
	if err != nil {
		return c.trouble(ctx, err)
	}
	t := c.post(ctx, e, 0, text, 0, func(in io.Reader) error {
		return readUsers(&heard{in, silence, c.listSilence}, each)
	})
	var refused *imapmeta.Error
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case t == nil, errors.As(t.cause, &refused):
		c.worksLocked(e)
		if refused != nil {
			return &trouble{blame: commands, reason: Reply, err: refused}
		}
	case errors.Is(t.cause, errEnough):
		c.worksLocked(e)
	}
	return t
}

// heard notes that the endpoint still talks, and does not count the time that
// the reader takes.
type heard struct {
	r       io.Reader
	silence *time.Timer
	limit   time.Duration
}

func (h *heard) Read(p []byte) (int, error) {
	h.silence.Reset(h.limit)
	n, err := h.r.Read(p)
	h.silence.Stop()
	return n, err
}

// readUsers reads [["doveadmResponse",{"userList":["a","b"]},"0"]] to its end,
// a name at a time.
func readUsers(in io.Reader, each func(string) bool) error {
	limit := &bounded{r: in, left: maxReply}
	d := json.NewDecoder(limit)
	want := func(tokens ...json.Token) error {
		for _, want := range tokens {
			switch got, err := d.Token(); {
			case err != nil:
				return malformed(err)
			case got != want:
				return fmt.Errorf("%w: %v where %v should be", errNotJSON, clip(fmt.Sprint(got)), want)
			}
		}
		return nil
	}
	if err := want(json.Delim('['), json.Delim('[')); err != nil {
		return err
	}
	status, err := d.Token()
	switch {
	case err != nil:
		return malformed(err)
	case status == "error":
		var data json.RawMessage
		if err := d.Decode(&data); err != nil {
			return malformed(err)
		}
		r, err := parseReply([]byte(`["error",` + string(data) + `]`))
		if err != nil {
			return fmt.Errorf("%w: %w", errNotJSON, err)
		}
		return listError(&r)
	case status != statusResponse:
		return fmt.Errorf("%w: a reply of type %q", errNotJSON, clip(fmt.Sprint(status)))
	}
	if err := want(json.Delim('{'), "userList", json.Delim('[')); err != nil {
		return err
	}
	for d.More() {
		limit.left = maxReply // for each name, and what was read ahead
		token, err := d.Token()
		if err != nil {
			return malformed(err)
		}
		user, ok := token.(string)
		if !ok {
			return fmt.Errorf("%w: a user of type %T", errNotJSON, token)
		}
		if !each(user) {
			return errEnough
		}
	}
	if err := want(json.Delim(']'), json.Delim('}')); err != nil {
		return err
	}
	if d.More() { // the tag
		if _, err := d.Token(); err != nil {
			return malformed(err)
		}
	}
	if err := want(json.Delim(']'), json.Delim(']')); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("%w: more after its end", errNotJSON)
	}
	return nil
}

// malformed tells what is no JSON from a connection that failed.
func malformed(err error) error {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return fmt.Errorf("%w: %w", errNotJSON, err)
	}
	return cut(err)
}

// listError says what it means that Dovecot could not list its users.
func listError(r *reply) error {
	err := r.err(lookup, false)
	var e *imapmeta.Error
	if errors.As(err, &e) && r.status == statusExitCode {
		// 65 is "user listing failed", whatever the reason.
		return &imapmeta.Error{Kind: imapmeta.Retry, Op: opUser, Status: e.Status, Err: ErrNoList, Hint: hintIterate}
	}
	return err
}

// ErrNoList: Dovecot could not list its users.
var ErrNoList = errors.New("no list of users")
