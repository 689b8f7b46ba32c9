package doveadm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"time"

	"dovepush/imapmeta"
)

const (
	// gatherTime is how long a POST waits for more calls to join it, if others
	// are under way: each costs Dovecot a process, some 15 ms of one core, where
	// a further command costs it 1 ms. A lone call does not wait.
	gatherTime = 5 * time.Millisecond
	// A batch that failed as a whole is split into this many. A command that
	// hangs is alone after two times ReadTimeout that way if batches are of 100,
	// where halves would take seven.
	splitInto = 10
	// firstBatch is how many commands the first POSTs have at most. A full one that
	// takes a small part of ReadTimeout has the next ones be twice as large, up to
	// Batch, and one that takes most of it half as large: what Dovecot cannot do in
	// time it does in vain, and then once more.
	firstBatch = 10
	// maxPost bounds a POST, in bytes: Dovecot refuses more than 1 MiB.
	maxPost = 1 << 20
	// trusted is how long what has worked is taken to work still.
	trusted = time.Minute
)

// call is a command that somebody waits for.
type call struct {
	command
	answer chan answer // has room for the one
	clock  *clock      // starts when it is sent
	batch  *batch      // it travels in; nil: not yet
	left   bool        // nobody waits any more
	resent bool        // it was sent before, and may be carried out twice
}

// answer is what became of a call.
type answer struct {
	reply  reply
	resent bool
	err    error
}

// batch is what travels as one POST.
type batch struct {
	calls   []*call
	full    bool               // no other call would have found room
	waiting int                // of them
	cancel  context.CancelFunc // of its POST, if one is under way
	tried   []attempt
}

// attempt is an endpoint where a batch failed.
type attempt struct {
	endpoint *endpoint
	trouble  *trouble
	works    bool // it answers others
}

// do has a command carried out and returns the answer to it.
func (c *Client) do(ctx context.Context, clock *clock, what command) (answer, error) {
	call := &call{command: what, clock: clock, answer: make(chan answer, 1)}
	c.mu.Lock()
	began := c.heard
	if ctx.Err() == nil {
		c.wait[what.method.turn()].push(call)
		c.dispatchLocked(false)
	}
	c.mu.Unlock()
	select {
	case a := <-call.answer:
		return a, a.err
	case <-ctx.Done():
	}
	heard := c.leave(call)
	select {
	case a := <-call.answer: // at the last moment: what is known is told
		return a, a.err
	default:
	}
	op, cause := what.method.op(), context.Cause(ctx)
	if op == opGet && heard == began && errors.Is(cause, context.DeadlineExceeded) {
		op = opConnect // nobody else got an answer meanwhile: that is not this user's trouble
	}
	return answer{}, &imapmeta.Error{Kind: imapmeta.Retry, Op: op, Err: cause}
}

// leave notes that nobody waits for a call. A POST that nobody waits for at all
// is broken off. It returns how many answers have been heard by now.
func (c *Client) leave(call *call) (heard int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	call.left = true
	if b := call.batch; b != nil {
		if b.waiting--; b.waiting == 0 && b.cancel != nil {
			b.cancel()
		}
	}
	return c.heard
}

// dispatchLocked sends what can be sent now: first what was sent before, then
// full batches; if gathered is set, also one that is not full. Else somebody is
// set to wait for more to come.
func (c *Client) dispatchLocked(gathered bool) {
	c.again = slices.DeleteFunc(c.again, func(b *batch) bool {
		if b.waiting == 0 {
			return true
		}
		e, any := c.placeLocked(b)
		switch {
		case e != nil:
			c.sendLocked(e, b)
		case !any:
			failLocked(b.calls, b.failure())
		}
		return e != nil || !any
	})
	for c.waitingLocked() > 0 {
		if c.waitingLocked() < c.limit && !gathered {
			if !c.gathering && c.roomLocked() {
				c.gathering = true
				wait := c.posts > 0
				c.work.Go(func() { c.gather(wait) })
			}
			return
		}
		e, _ := c.placeLocked(&batch{})
		if e == nil {
			return
		}
		if b := c.takeLocked(); b.waiting > 0 {
			c.sendLocked(e, b)
		}
	}
}

// waitingLocked is how many calls wait to be sent for the first time.
func (c *Client) waitingLocked() (n int) {
	for _, q := range c.wait {
		n += len(q.calls)
	}
	return n
}

// queue is calls that wait, oldest first.
type queue struct{ calls []*call }

func (q *queue) push(call *call) { q.calls = append(q.calls, call) }

// shift takes the first call off.
func (q *queue) shift() {
	q.calls[0] = nil
	if q.calls = q.calls[1:]; len(q.calls) == 0 {
		q.calls = nil // what was cut off its front is free
	}
}

// gather lets those who are about to call do so.
func (c *Client) gather(wait bool) {
	if wait {
		timer := time.NewTimer(c.gatherTime)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-c.life.Done():
		}
	} else {
		for range 4 { // others who were woken with us have their turn
			runtime.Gosched()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gathering = false
	c.dispatchLocked(true)
}

// takeLocked makes a batch of those who wait for longest, those first whose
// Updates are under way already.
func (c *Client) takeLocked() *batch {
	b, size := &batch{}, 0
	for turn := range c.wait {
		for q := &c.wait[turn]; len(q.calls) > 0 && !b.full; q.shift() {
			first := q.calls[0]
			if first.left {
				continue
			}
			if size += first.size(); size > maxPost {
				b.full = true
				break
			}
			first.batch = b
			b.calls = append(b.calls, first)
			b.full = len(b.calls) >= c.limit
		}
	}
	b.waiting = len(b.calls)
	return b
}

// roomLocked reports whether a batch could be sent at once.
func (c *Client) roomLocked() bool {
	e, _ := c.peekLocked(&batch{})
	return e != nil
}

// placeLocked returns the endpoint whose turn it is among those that a batch
// has not failed at, if it may be sent at once; and whether there is any to
// wait for. Those that are set aside come last. Until the key was accepted only
// one POST is under way: a wrong one is refused once.
func (c *Client) placeLocked(b *batch) (e *endpoint, any bool) {
	e, any = c.peekLocked(b)
	if e != nil {
		c.next = (slices.Index(c.endpoints, e) + 1) % len(c.endpoints)
	}
	return e, any
}

func (c *Client) peekLocked(b *batch) (e *endpoint, any bool) {
	for _, out := range []bool{false, true} {
		for i := range c.endpoints {
			e := c.endpoints[(c.next+i)%len(c.endpoints)]
			if e.state.Out != out || slices.ContainsFunc(b.tried, func(a attempt) bool { return a.endpoint == e }) {
				continue
			}
			any = true
			if e.state.Connections < c.options.MaxConnections && (c.accepted || c.posts == 0) {
				return e, true
			}
		}
		if any {
			break
		}
	}
	return nil, any
}

// sendLocked sends a batch to an endpoint and sees to what comes of it.
func (c *Client) sendLocked(e *endpoint, b *batch) {
	b.calls = slices.DeleteFunc(b.calls, func(call *call) bool { return call.left })
	e.state.Connections++
	c.posts++
	ctx, cancel := context.WithCancel(context.Background())
	b.cancel = cancel
	for _, call := range b.calls {
		call.clock.startLocked()
	}
	c.work.Go(func() {
		defer cancel()
		began := time.Now()
		replies, t := c.exchange(ctx, e, b.calls)
		c.settle(e, b, replies, t, time.Since(began))
	})
}

// exchange sends commands and returns the replies that came, by their place.
// What is doubtful about a failure is decided: commands or endpoints.
func (c *Client) exchange(ctx context.Context, e *endpoint, calls []*call) ([]*reply, *trouble) {
	text, err := body(calls)
	if err != nil {
		return match(nil, len(calls)), &trouble{blame: everybodys, reason: Reply, err: &imapmeta.Error{Kind: imapmeta.Retry, Op: opConnect, Err: err}}
	}
	// An endpoint that takes its time is looked at when half of it is over, so
	// that it is known at the end whether it hangs.
	var early *probe
	slow := time.AfterFunc(c.options.ReadTimeout/2, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if ctx.Err() == nil {
			early = c.probeLocked(e)
		}
	})
	defer slow.Stop()
	var replies []reply
	t := c.post(ctx, e, c.options.ReadTimeout, text, maxBody+int64(len(calls))*maxReply, func(in io.Reader) error {
		return readReplies(in, func(r reply) {
			if len(replies) < len(calls) {
				replies = append(replies, r)
			}
		})
	})
	found := match(replies, len(calls))
	if t != nil && !slices.Contains(found, nil) {
		return found, nil // what came after them is nobody's
	}
	if t != nil && t.blame == doubtful {
		c.mu.Lock()
		p := early
		if p == nil || t.reason != Timeout {
			p = c.probeLocked(e)
		}
		c.mu.Unlock()
		select {
		case <-p.done:
		case <-ctx.Done():
			t.blame = nobodys
			return found, t
		}
		if p.trouble == nil {
			t.blame = commands
		} else {
			t.blame = endpoints
		}
	}
	return found, t
}

// settle passes on the replies to a batch, and sees to what is left of it.
func (c *Client) settle(e *endpoint, b *batch, replies []*reply, t *trouble, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.state.Connections--
	c.posts--
	b.cancel = nil
	if t == nil {
		c.worksLocked(e)
		switch {
		case !b.full: // a smaller one says nothing of the limit
		case took < c.options.ReadTimeout/4:
			c.limit = max(c.limit, min(2*len(b.calls), c.options.Batch))
		case took > c.options.ReadTimeout/2:
			c.limit = min(c.limit, max(len(b.calls)/2, 1))
		}
	}
	rest := c.passOnLocked(b.calls, replies)
	if t == nil || t.sent {
		for _, call := range rest {
			call.resent = true
		}
	}
	switch {
	case len(rest) == 0:
	case t == nil: // it answers, but not to these
		c.blameLocked(e, b, rest, &trouble{blame: commands, reason: Reply,
			err: &imapmeta.Error{Kind: imapmeta.Retry, Op: opConnect, Err: ErrNoReply, Hint: hintLog}})
	case t.blame == nobodys:
	case t.blame == everybodys:
		c.stopLocked(rest, t.err)
	case t.reason == Key:
		c.setOutLocked(e, t)
		if !slices.ContainsFunc(c.endpoints, func(e *endpoint) bool { return e.known && !e.state.Out }) {
			c.accepted = false
			c.stopLocked(rest, attempt{e, t, false}.failure())
			break
		}
		c.againLocked(rest, append(b.tried, attempt{e, t, false})) // others take it
	case t.blame == commands:
		c.worksLocked(e)
		if t.reason == Timeout && b.full {
			c.limit = min(c.limit, max(len(b.calls)/2, 1))
		}
		c.blameLocked(e, b, rest, t)
	default:
		c.setOutLocked(e, t)
		c.againLocked(rest, append(b.tried, attempt{e, t, false}))
	}
	c.dispatchLocked(false)
}

// passOnLocked answers calls, and returns those that have no reply and are
// waited for.
func (c *Client) passOnLocked(calls []*call, replies []*reply) (rest []*call) {
	now := c.options.Now()
	for i, r := range replies {
		if r != nil && calls[i].method != lookup && (r.status == statusResponse || r.long) {
			c.worked = now
		}
	}
	others := now.Sub(c.worked) < trusted
	for i, call := range calls {
		r := replies[i]
		switch {
		case call.left:
		case r == nil:
			rest = append(rest, call)
		case r.long && call.method == get:
			call.answer <- answer{reply: *r}
		default:
			call.answer <- answer{*r, call.resent, r.err(call.method, others)}
		}
	}
	return rest
}

// blameLocked finds the command that makes a POST fail: it splits a batch until
// it is alone. A command that failed alone is sent to the other endpoints.
func (c *Client) blameLocked(e *endpoint, b *batch, rest []*call, t *trouble) {
	if len(b.calls) == 1 {
		c.againLocked(rest, append(b.tried, attempt{e, t, true}))
		return
	}
	for part := range slices.Chunk(rest, max((len(rest)+splitInto-1)/splitInto, 1)) {
		c.againLocked(part, nil)
	}
}

// againLocked has calls sent again.
func (c *Client) againLocked(calls []*call, tried []attempt) {
	b := &batch{calls: calls, waiting: len(calls), tried: tried}
	for _, call := range calls {
		call.batch = b
	}
	c.again = append(c.again, b)
}

// stopLocked fails all calls, for it is no use to send any.
func (c *Client) stopLocked(calls []*call, failure *imapmeta.Error) {
	failLocked(calls, failure)
	for _, b := range c.again {
		failLocked(b.calls, failure)
	}
	for turn := range c.wait {
		failLocked(c.wait[turn].calls, failure)
		c.wait[turn] = queue{}
	}
	c.again = nil
}

func failLocked(calls []*call, failure *imapmeta.Error) {
	for _, call := range calls {
		if call.left {
			continue
		}
		e := *failure
		made := call.resent && call.method.op() == opSet // perhaps; so it is not that nobody was there
		if e.Op == opConnect && e.Kind == imapmeta.Retry && (made || !e.Unreached) {
			e.Op = call.method.op()
		}
		call.answer <- answer{resent: call.resent, err: &e}
	}
}

// failure is why an attempt failed, with the endpoint's name.
func (a attempt) failure() *imapmeta.Error {
	e := *a.trouble.err
	e.Err = fmt.Errorf("%s: %w", a.endpoint.state.URL, e.Err)
	return &e
}

// failure is why a batch has failed everywhere.
func (b *batch) failure() *imapmeta.Error {
	var errs []error
	all := &imapmeta.Error{Kind: imapmeta.Server, Op: opConnect, Unreached: true}
	for _, a := range b.tried {
		e := a.trouble.err
		if a.works { // then it is this command's fault
			found := *e
			if e.Kind != imapmeta.Retry { // not everybody's
				found.Kind, found.Hint = imapmeta.Retry, hintLog
			}
			found.Err = fmt.Errorf("this endpoint answers other commands, but not this one: %w", e.Err)
			return &found
		}
		if e.Kind == imapmeta.Retry {
			all.Kind = imapmeta.Retry
		}
		if all.Hint == "" || e.Kind == all.Kind {
			all.Hint = e.Hint
		}
		errs = append(errs, a.failure().Err)
	}
	all.Unreached = all.Kind == imapmeta.Retry
	if all.Err = errs[0]; len(errs) > 1 {
		all.Err = &everywhere{errs}
	}
	return all
}

// everywhere is what is wrong with several endpoints.
type everywhere struct{ errs []error }

func (e *everywhere) Error() string {
	text := "no endpoint works"
	for _, err := range e.errs {
		text += "; " + err.Error()
	}
	return text
}

func (e *everywhere) Unwrap() []error { return e.errs }
