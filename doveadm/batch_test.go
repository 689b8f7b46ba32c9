package doveadm

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dovepush/imapmeta"
)

func batchOf(n int) func(*Options) { return func(o *Options) { o.Batch = n } }

func connections(n int) func(*Options) { return func(o *Options) { o.MaxConnections = n } }

// known has a client accepted by all its endpoints, so that it sends several
// POSTs at once.
func known(t testing.TB, c *Client) {
	t.Helper()
	for range c.options.Endpoints {
		if _, err := c.Update(t.Context(), "first", keepIt); err != nil {
			t.Fatal(err)
		}
	}
}

func TestManyCallsTravelInFewPOSTs(t *testing.T) {
	const n, batch = 1000, 100
	g := newGate()
	d := play(t, onPost(g.hold))
	c := d.client(batchOf(batch))
	var all sync.WaitGroup
	call := func(user string) {
		all.Go(func() {
			if out, err := c.Update(t.Context(), user, setTo(imapmeta.Value("user="+user))); err != nil || out.Had != imapmeta.Absent {
				t.Errorf("%s: %+v, %v", user, out, err)
			}
		})
	}
	call("first")
	g.next(t)
	users := several(n)
	for _, user := range users {
		call(user)
	}
	queued(t, c, n) // until the key is accepted
	close(g.open)
	all.Wait()
	posts := d.sent()
	commands := 0
	for _, post := range posts {
		if commands += len(post); len(post) > batch {
			t.Errorf("a POST of %d commands", len(post))
		}
	}
	if commands != 2*(n+1) {
		t.Errorf("%d commands were sent", commands)
	}
	// 10 full ones with get. With set the calls come back as they are answered,
	// so that some POSTs are not full; but never one for each.
	if len(posts) > n/batch+1+n/10 {
		t.Errorf("%d POSTs", len(posts))
	}
	for i, post := range posts[1 : 1+n/batch] {
		if len(post) != batch {
			t.Errorf("POST %d: %d commands though more were waiting", i+1, len(post))
		}
	}
	for _, user := range users {
		if got := d.entry(user); got != "user="+user {
			t.Errorf("%s: %q", user, got)
		}
	}
}

// With others under way a call waits for company, for a long time here. Alone
// it does not.
func TestALoneCallDoesNotWait(t *testing.T) {
	g := newGate()
	d := play(t)
	c := d.client()
	c.gatherTime = time.Hour
	for i := range 5 {
		out, err := c.Update(t.Context(), "alice", setTo(imapmeta.Value(fmt.Sprintf("user=%d", i))))
		if err != nil || out.Resent {
			t.Errorf("%+v, %v", out, err)
		}
	}
	if n := len(d.sent()); n != 10 {
		t.Errorf("%d POSTs", n)
	}
	// It is the wait that is long here.
	d.change(onPost(g.hold))
	c.gatherTime = time.Millisecond
	var all sync.WaitGroup
	for i := range 3 {
		all.Go(func() { c.Update(t.Context(), fmt.Sprint(i), keepIt) })
		g.next(t) // each goes by itself when it has waited
	}
	close(g.open)
	all.Wait()
}

// Who comes within the wait goes along.
func TestWhoComesMeanwhileGoesAlong(t *testing.T) {
	g := newGate()
	d := play(t)
	c := d.client(connections(2))
	known(t, c)
	d.change(onPost(g.hold))
	var all sync.WaitGroup
	call := func(user string) { all.Go(func() { c.Update(t.Context(), user, keepIt) }) }
	call("a")
	g.next(t)
	c.mu.Lock()
	c.gatherTime = 300 * time.Millisecond
	c.mu.Unlock()
	call("b")
	queued(t, c, 1)
	call("c")
	call("d")
	queued(t, c, 3)
	if got := g.next(t); len(got) != 3 {
		t.Errorf("%d commands travel together", len(got))
	}
	close(g.open)
	all.Wait()
}

func TestUntilTheKeyIsAcceptedOnePOSTIsUnderWay(t *testing.T) {
	g := newGate()
	a, b := play(t, onPost(g.hold)), play(t, onPost(g.hold))
	c := to(t, []*dummy{a, b}, batchOf(5))
	var all sync.WaitGroup
	all.Go(func() { c.Update(t.Context(), "first", keepIt) })
	g.next(t)
	for _, user := range several(100) {
		all.Go(func() { c.Update(t.Context(), user, keepIt) })
	}
	queued(t, c, 100)
	if n := a.underWay() + b.underWay(); n != 1 {
		t.Errorf("%d POSTs", n)
	}
	close(g.open)
	all.Wait()
	if n := len(a.sent()) + len(b.sent()); n < 20 || n > 30 {
		t.Errorf("%d POSTs", n)
	}
}

func TestNeverMoreThanMaxConnectionsToEachEndpoint(t *testing.T) {
	const most = 3
	g := newGate()
	a, b := play(t), play(t)
	c := to(t, []*dummy{a, b}, batchOf(2), connections(most))
	known(t, c)
	a.change(onPost(g.hold))
	b.change(onPost(g.hold))
	var all sync.WaitGroup
	for _, user := range several(200) {
		all.Go(func() { c.Update(t.Context(), user, setTo("user=x")) })
	}
	held := 0
	for range 2 * most {
		held += len(g.next(t))
	}
	queued(t, c, 200-held)
	for _, e := range c.Endpoints() {
		if e.Connections != most {
			t.Errorf("%+v", e)
		}
	}
	close(g.open)
	all.Wait()
	if a.most != most || b.most != most {
		t.Errorf("%d and %d at once", a.most, b.most)
	}
	for _, e := range c.Endpoints() {
		if e.Connections != 0 || e.Out {
			t.Errorf("%+v", e)
		}
	}
}

// Who waits for longest goes first; what was sent before, before all.
func TestTheOrderOfCalls(t *testing.T) {
	g := newGate()
	var spoilt atomic.Bool
	spoilt.Store(true)
	d := play(t, onPost(g.hold))
	c := d.client(batchOf(4), connections(1))
	var all sync.WaitGroup
	call := func(user string) { all.Go(func() { c.Update(t.Context(), user, keepIt) }) }
	call("first")
	g.next(t)
	var want []string
	for i := range 20 {
		call(fmt.Sprintf("user%d", i))
		queued(t, c, i+1)
		want = append(want, fmt.Sprintf("user%d", i))
	}
	// The first batch fails once: its four go again, one by one, and then the
	// others.
	d.change(onCommand(func(c command) string {
		if c.user == "user1" && spoilt.Swap(false) {
			return closes
		}
		return ""
	}))
	close(g.open)
	all.Wait()
	var got []string
	for _, post := range d.sent()[1:] {
		for _, c := range post {
			got = append(got, c.user)
		}
	}
	if want = append(want[:4:4], want...); !slices.Equal(got, want) {
		t.Errorf("order %v; want %v", got, want)
	}
}

// Dovecot closes the connection at some commands, when it has carried out those
// before them; other servers answer 500 or 413, say something else, or leave
// replies out.
func TestACommandThatSpoilsItsPOSTIsFoundAndTheOthersSucceed(t *testing.T) {
	bad := map[string]bool{"user0000": true, "user0042": true, "user0043": true, "user0099": true}
	spoils := func(commands []command, m method) bool {
		return slices.ContainsFunc(commands, func(c command) bool { return bad[c.user] && c.method == m })
	}
	for _, way := range []struct {
		name   string
		hook   func(m method) func(*dummy)
		want   fault
		resent bool // what was in the same POST may have been done
	}{
		{"closes", func(m method) func(*dummy) {
			return onCommand(func(c command) string {
				if spoils([]command{c}, m) {
					return closes
				}
				return ""
			})
		}, fault{kind: imapmeta.Retry, words: "not this one: the server closed the connection without a word", hint: hintLog}, true},
		{"500", func(m method) func(*dummy) {
			return onPost(func(w http.ResponseWriter, _ *http.Request, commands []command) bool {
				if !spoils(commands, m) {
					return false
				}
				http.Error(w, "Internal Server Error", http.StatusInternalServerError)
				return true
			})
		}, fault{kind: imapmeta.Retry, words: "not this one: the server says: HTTP 500: Internal", hint: hintLog}, true},
		{"413", func(m method) func(*dummy) {
			return onPost(func(w http.ResponseWriter, _ *http.Request, commands []command) bool {
				if !spoils(commands, m) {
					return false
				}
				http.Error(w, "too large", http.StatusRequestEntityTooLarge)
				return true
			})
		}, fault{kind: imapmeta.Retry, words: "not this one: the server says: HTTP 413: too large", hint: hintTooLarge}, false},
		{"HTML", func(m method) func(*dummy) {
			return onPost(func(w http.ResponseWriter, _ *http.Request, commands []command) bool {
				if !spoils(commands, m) {
					return false
				}
				w.Write([]byte("<html>"))
				return true
			})
		}, fault{kind: imapmeta.Retry, is: ErrNotDoveadm, words: "not this one: not a DoveAdm API", hint: hintLog}, true},
		{"no replies", func(m method) func(*dummy) {
			return onPost(func(w http.ResponseWriter, _ *http.Request, commands []command) bool {
				if !spoils(commands, m) {
					return false
				}
				w.Write([]byte("[]"))
				return true
			})
		}, fault{kind: imapmeta.Retry, is: ErrNoReply, words: "not this one: no reply to this command", hint: hintLog}, true},
	} {
		for m, op := range map[method]string{get: "getmetadata", set: "setmetadata"} {
			t.Run(way.name+" at "+op, func(t *testing.T) {
				t.Parallel()
				d := play(t, way.hook(m))
				c := d.client(batchOf(101))
				known(t, c)
				before := len(d.sent())
				var again atomic.Int64
				inOnePost(t, c, several(100), func(user string, out imapmeta.Outcome, err error) {
					if bad[user] {
						want := way.want
						want.op = op
						want.check(t, user, err)
						return
					}
					if err != nil || out.Did.Keeps() {
						t.Errorf("%s: %+v, %v", user, out, err)
					}
					if out.Resent {
						again.Add(1)
					}
				}, func(user string) imapmeta.Change { return imapmeta.Set(imapmeta.Value("user=" + user)) })
				for _, user := range several(100) {
					if got := d.entry(user); !bad[user] && got != "user="+user {
						t.Errorf("%s: %q", user, got)
					}
				}
				if e := c.Endpoints()[0]; e.Out {
					t.Errorf("%+v", e)
				}
				// Two of 100, 10 parts of 10, of which 3 or 4 of 10 more, and
				// each bad one alone once more, as it is split off when it is.
				if n := len(d.sent()) - before; n > 2+10+40+4 {
					t.Errorf("%d POSTs", n)
				}
				if m == set && way.resent != (again.Load() > 0) {
					t.Errorf("%d have been sent twice", again.Load())
				}
			})
		}
	}
}

func TestAProxyThatTakesSmallPOSTsOnly(t *testing.T) {
	d := play(t, onPost(func(w http.ResponseWriter, _ *http.Request, commands []command) bool {
		if len(commands) <= 7 {
			return false
		}
		http.Error(w, "too large", http.StatusRequestEntityTooLarge)
		return true
	}))
	c := d.client(batchOf(101))
	known(t, c)
	inOnePost(t, c, several(100), func(user string, out imapmeta.Outcome, err error) {
		if err != nil || out.Resent { // it was not read
			t.Errorf("%s: %+v, %v", user, out, err)
		}
	}, func(user string) imapmeta.Change { return imapmeta.Set(imapmeta.Value("user=" + user)) })
	for _, user := range several(100) {
		if got := d.entry(user); got != "user="+user {
			t.Errorf("%s: %q", user, got)
		}
	}
}

// Dovecot 2.3 refuses POSTs of more than 1 MiB.
func TestAPOSTIsNoLongerThanDovecotTakes(t *testing.T) {
	t.Parallel()
	d := play(t, onPost(func(w http.ResponseWriter, r *http.Request, commands []command) bool {
		if r.ContentLength > 1<<20 {
			t.Errorf("%d commands in %d bytes", len(commands), r.ContentLength)
		}
		return false
	}))
	c := d.client(batchOf(10_000))
	known(t, c)
	var all sync.WaitGroup
	hold(c)
	for i := range 400 {
		all.Go(func() {
			if _, err := c.doAlone(t.Context(), command{method: set, user: fmt.Sprint(i), value: strings.Repeat("\x01", imapmeta.MaxValue)}); err != nil {
				t.Error(err)
			}
		})
	}
	queued(t, c, 400)
	release(c)
	all.Wait()
}

// decide is asked once, with what was read, and not if nothing was.
func TestDecideIsAskedOnce(t *testing.T) {
	d := play(t, onCommand(func(c command) string {
		if c.user == "bad" {
			return `"error",{"type":"exitCode","exitCode":75}`
		}
		return ""
	}))
	c := d.client()
	asked := 0
	out, err := c.Update(t.Context(), "alice", func(have imapmeta.Value) imapmeta.Change {
		asked++
		return imapmeta.Set("user=1")
	})
	if err != nil || asked != 1 || out.Did != imapmeta.Set("user=1") {
		t.Errorf("asked %d times: %+v, %v", asked, out, err)
	}
	if _, err := c.Update(t.Context(), "alice", setTo(imapmeta.Absent)); err != nil {
		t.Error(err)
	}
	if last := d.sent()[3]; last[0].method != unset { // set would leave an empty entry
		t.Errorf("removed by %v", last)
	}
	if _, err := c.Update(t.Context(), "bad", func(imapmeta.Value) imapmeta.Change { asked++; return imapmeta.Remove() }); err == nil || asked != 1 {
		t.Errorf("asked %d times, %v", asked, err)
	}
}
