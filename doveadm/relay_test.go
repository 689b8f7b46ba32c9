package doveadm

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dovepush/imapmeta"
	"dovepush/internal/dovecot"
)

// relay stands before a Dovecot, counts its connections, and is cut or made to
// hang by a test.
type relay struct {
	t       testing.TB
	address string
	target  string
	url     string
	work    sync.WaitGroup
	count   atomic.Int64 // connections

	mu      sync.Mutex
	l       net.Listener // nil: cut
	conns   map[net.Conn]bool
	hanging bool // nothing is passed on
}

func relayTo(t testing.TB, target string) *relay {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{t: t, target: u.Host, address: "127.0.0.1:0", conns: make(map[net.Conn]bool)}
	r.listen()
	r.url = "http://" + r.address + u.Path
	t.Cleanup(func() {
		r.cut()
		r.work.Wait()
	})
	return r
}

// listen begins to serve, again on the same port.
func (r *relay) listen() {
	r.t.Helper()
	l, err := net.Listen("tcp", r.address)
	if err != nil {
		r.t.Fatal(err)
	}
	r.mu.Lock()
	r.l, r.address = l, l.Addr().String()
	r.mu.Unlock()
	r.work.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			r.count.Add(1)
			r.work.Go(func() { r.serve(conn) })
		}
	})
}

func (r *relay) serve(conn net.Conn) {
	defer conn.Close()
	there, err := net.Dial("tcp", r.target)
	if err != nil {
		return
	}
	defer there.Close()
	r.mu.Lock()
	hanging, cut := r.hanging, r.l == nil
	r.conns[conn], r.conns[there] = true, true
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.conns, conn)
		delete(r.conns, there)
	}()
	if cut {
		return
	}
	if hanging {
		io.Copy(io.Discard, conn)
		return
	}
	// The client closes its end when it has its answer, or has enough.
	r.work.Go(func() {
		io.Copy(there, conn)
		there.Close()
	})
	io.Copy(conn, there)
}

// cut ends the relay and all its connections at once.
func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.l != nil {
		r.l.Close()
		r.l = nil
	}
	for conn := range r.conns {
		conn.Close()
	}
}

func (r *relay) hang(hang bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hanging = hang
}

// A user is known to two Dovecots by name only; so one Dovecot stands behind
// two relays.
func TestDovecotBehindTwoRelays(t *testing.T) {
	inTurn(t, dovecot.Options{Users: append(named(several(200)...), people...)},
		shared{"one is cut in the middle", func(t *testing.T, s *dovecot.Server) {
			throughTrouble(t, s, "cut", Refused, (*relay).cut, (*relay).listen)
		}},
		shared{"one hangs in the middle", func(t *testing.T, s *dovecot.Server) {
			throughTrouble(t, s, "hang", Timeout, func(r *relay) { r.hang(true) }, func(r *relay) { r.hang(false) })
		}},
	)
}

func throughTrouble(t *testing.T, s *dovecot.Server, name string, reason Reason, breaks, mends func(*relay)) {
	a, b := relayTo(t, s.DoveadmURL), relayTo(t, s.DoveadmURL)
	said := &changes{}
	c := on(t, s, func(o *Options) {
		o.Endpoints, o.Batch, o.ReadTimeout, o.CheckInterval = []string{a.url, b.url}, 10, 5*time.Second, 50*time.Millisecond
		o.Changed = said.add
	})
	users := several(200)
	want := func(user string) imapmeta.Value { return imapmeta.Value(fmt.Sprintf("user=%s %s", user, name)) }
	var once sync.Once
	var done atomic.Int64
	atOnceEach(t, c, users, func(user string, out imapmeta.Outcome, err error) {
		if err != nil {
			t.Errorf("%s: %v", user, err)
		}
		if done.Add(1) > 50 {
			once.Do(func() { breaks(a) })
		}
	}, want)
	for _, user := range users {
		stores(t, s, user, want(user))
	}
	if e := c.Endpoints()[1]; e.Out || e.Connections != 0 {
		t.Errorf("the other: %+v", e)
	}
	eventually(t, "the broken one is set aside", func() bool {
		_, err := c.Update(t.Context(), "alice", keepIt)
		if err != nil {
			t.Error(err)
		}
		e := c.Endpoints()[0]
		return e.Out && e.Err != nil && (e.Reason == reason || e.Reason == Closed)
	})
	mends(a)
	eventually(t, "it comes back", func() bool { return !c.Endpoints()[0].Out })
	before := a.count.Load()
	for range 2 {
		update(t, c, "alice", imapmeta.Keep(), imapmeta.Absent)
	}
	if a.count.Load() == before {
		t.Error("it is not used again")
	}
	closed(t, c)
	said.inOrder(t, a.url)
	said.inOrder(t, b.url)
}

// atOnceEach sets each user's entry to a value of his own.
func atOnceEach(t testing.TB, c *Client, users []string, look func(user string, out imapmeta.Outcome, err error), value func(user string) imapmeta.Value) {
	t.Helper()
	var all sync.WaitGroup
	for _, user := range users {
		all.Go(func() {
			out, err := c.Update(t.Context(), user, setTo(value(user)))
			look(user, out, err)
		})
	}
	all.Wait()
}

// Data races, deadlocks and mixed-up answers show under load: 2,000 Updates by
// 200 goroutines, some of which give up at random.
func TestUnderLoadNobodyGetsAnothersAnswer(t *testing.T) {
	const workers, each = 200, 10
	inTurn(t, dovecot.Options{Users: append(named(several(workers*each)...), people[:2]...), Extra: busyDoveadm}, shared{"", func(t *testing.T, s *dovecot.Server) {
		c := on(t, s, func(o *Options) { o.Batch, o.ReadTimeout, o.Timeout = 50, time.Minute, 3*time.Minute })
		value := func(user string) imapmeta.Value { return imapmeta.Value("user=" + user + "'s own") }
		var succeeded sync.Map
		var gaveUp atomic.Int64
		var all sync.WaitGroup
		for w := range workers {
			all.Go(func() {
				for i := range each {
					user := fmt.Sprintf("user%04d", w*each+i)
					ctx, cancel := context.WithCancel(t.Context())
					if (w+i)%3 == 0 { // somewhere between the first wait and the last answer
						time.AfterFunc(time.Duration((w*7919+i*104729)%400)*time.Millisecond, cancel)
					}
					out, err := c.Update(ctx, user, setTo(value(user)))
					switch {
					case err == nil && out.Had == imapmeta.Absent:
						succeeded.Store(user, true)
					case ctx.Err() != nil:
						gaveUp.Add(1)
					default:
						t.Errorf("%s: had %q, %v", user, string(out.Had), err)
					}
					cancel()
				}
			})
		}
		all.Wait()
		n := 0
		for user := range succeeded.Range {
			n++
			stores(t, s, user.(string), value(user.(string)))
		}
		t.Logf("%d succeeded, %d gave up", n, gaveUp.Load())
		if n < workers*each/2 || gaveUp.Load() == 0 {
			t.Errorf("%d succeeded, %d gave up", n, gaveUp.Load())
		}
		closed(t, c)
		c.mu.Lock()
		defer c.mu.Unlock()
		if e := c.endpoints[0]; c.posts != 0 || c.waitingLocked() != 0 || len(c.again) != 0 || c.gathering || e.state.Connections != 0 || e.state.Out {
			t.Errorf("left over: %d posts, %d calls, %d batches, gathering %t, %+v", c.posts, c.waitingLocked(), len(c.again), c.gathering, e.state)
		}
	}})
}
