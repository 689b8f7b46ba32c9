package doveadm

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dovepush/imapmeta"
)

// changes is what Changed was told.
type changes struct {
	mu   sync.Mutex
	told []Endpoint
	over bool // nothing may come any more
	late []Endpoint
}

func (c *changes) add(e Endpoint) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		c.late = append(c.late, e)
	}
	c.told = append(c.told, e)
}

func (c *changes) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
}

// of tells what was told of an endpoint, a word each.
func (c *changes) of(url string) (words []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.told {
		switch {
		case e.URL != url:
		case e.Out:
			words = append(words, "out: "+string(e.Reason))
		default:
			words = append(words, "works")
		}
	}
	return words
}

// inOrder expects that an endpoint's changes follow from one another: it works
// again only after it was set aside.
func (c *changes) inOrder(t testing.TB, url string) {
	t.Helper()
	words := c.of(url)
	for i, word := range words {
		if word == "works" && i > 0 && words[i-1] == "works" {
			t.Errorf("%s works again, though it was not set aside: %q", url, words)
		}
	}
	if len(words) == 0 {
		t.Errorf("nothing was said of %s", url)
	}
}

func TestEndpointsTakeTurns(t *testing.T) {
	dummies := []*dummy{play(t), play(t), play(t)}
	c := to(t, dummies)
	for range 9 {
		update(t, c, "alice", imapmeta.Keep(), imapmeta.Absent)
	}
	for i, d := range dummies {
		if n := len(d.sent()); n != 3 {
			t.Errorf("endpoint %d got %d POSTs", i, n)
		}
	}
	for i, e := range c.Endpoints() {
		if e != (Endpoint{URL: dummies[i].url}) {
			t.Errorf("%+v", e)
		}
	}
}

// down is an address where nobody listens.
func down(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String() + apiPath
}

// hangs is a hook that never answers.
func hangs(d *dummy) {
	d.onPost = func(_ http.ResponseWriter, r *http.Request, _ []command) bool { d.hang(r); return true }
}

func says(status int, text string) func(*dummy) {
	return onPost(func(w http.ResponseWriter, _ *http.Request, _ []command) bool {
		w.WriteHeader(status)
		w.Write([]byte(text))
		return true
	})
}

// One endpoint fails in any way: the same calls go to the other, and so does
// what comes after them.
func TestAnEndpointThatFailsIsSetAside(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		reason Reason
		url    func(t *testing.T) string
		words  string
	}{
		{"nobody listens", Refused, func(t *testing.T) string { return down(t) }, "connection refused"},
		{"no socket", Refused, func(*testing.T) string { return "unix:/nowhere/at/all" }, "no such file"},
		{"hangs", Timeout, func(t *testing.T) string { return play(t, hangs).url }, "no answer within 2s"},
		{"closes", Closed, func(t *testing.T) string {
			return play(t, onPost(func(w http.ResponseWriter, _ *http.Request, _ []command) bool { closeOn(w); return true })).url
		}, "without a word"},
		{"TLS", TLS, func(t *testing.T) string { return strings.Replace(play(t).url, "http:", "https:", 1) }, "TLS handshake"},
		{"HTML", Reply, func(t *testing.T) string { return play(t, says(200, "<html>")).url }, "not a DoveAdm API"},
		{"404", HTTP, func(t *testing.T) string { return play(t, says(404, "no such page")).url }, "HTTP 404: no such page"},
		{"500", HTTP, func(t *testing.T) string { return play(t, says(500, "")).url }, "HTTP 500"},
		{"503", HTTP, func(t *testing.T) string { return play(t, says(503, "")).url }, "HTTP 503"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			good := play(t)
			url := c.url(t)
			client := open(t, Options{Endpoints: []string{url, good.url}, Secret: secretIs(dummyKey), ReadTimeout: 2 * time.Second, CheckInterval: time.Hour})
			before := time.Now()
			for i := range 3 {
				out, err := client.Update(t.Context(), "alice", setTo("user=1"))
				if sent := c.reason != Refused && c.reason != TLS && c.name != "404"; err != nil || out.Resent && !sent {
					t.Errorf("%+v, %v", out, err)
				}
				if i == 0 && out.Had != imapmeta.Absent {
					t.Errorf("had %q", string(out.Had))
				}
			}
			e := client.Endpoints()[0]
			if !e.Out || e.Reason != c.reason || e.Since.Before(before) || e.CheckAt.Sub(e.Since) != time.Hour || e.Connections != 0 ||
				e.Err == nil || !strings.Contains(e.Err.Error(), c.words) {
				t.Errorf("%+v", e)
			}
			if e := client.Endpoints()[1]; e.Out || e.Connections != 0 {
				t.Errorf("the other: %+v", e)
			}
			if n := len(good.sent()); n != 6 {
				t.Errorf("the other got %d POSTs", n)
			}
		})
	}
}

func TestASetAsideEndpointComesBack(t *testing.T) {
	t.Parallel()
	good, bad := play(t), play(t)
	said := &changes{}
	c := to(t, []*dummy{bad, good}, func(o *Options) { o.CheckInterval, o.Changed = 10*time.Millisecond, said.add })
	known(t, c)
	eventually(t, "both are found to work", func() bool { return len(said.of(bad.url)) == 1 && len(said.of(good.url)) == 1 })
	bad.change(says(500, "one"))
	known(t, c)
	since := c.Endpoints()[0].Since
	eventually(t, "it is found to fail still", func() bool { return len(said.of(bad.url)) > 4 })
	bad.change(says(403, "two"))
	eventually(t, "it is found to fail in another way", func() bool {
		return c.Endpoints()[0].Err != nil && strings.Contains(c.Endpoints()[0].Err.Error(), "two")
	})
	if e := c.Endpoints()[0]; !e.Since.Equal(since) || !e.CheckAt.After(since) {
		t.Errorf("%+v, set aside at %s", e, since)
	}
	looks := bad.lookedAt()
	bad.change(func(d *dummy) { d.onPost = nil })
	eventually(t, "it works again", func() bool { return !c.Endpoints()[0].Out })
	if e := c.Endpoints()[0]; e != (Endpoint{URL: bad.url}) {
		t.Errorf("%+v", e)
	}
	for range 4 {
		update(t, c, "alice", imapmeta.Keep(), imapmeta.Absent)
	}
	closed(t, c)
	if n := len(bad.sent()); n != 2+2 {
		t.Errorf("it got %d POSTs", n)
	}
	if looks == 0 {
		t.Error("nobody looked")
	}
	words := said.of(bad.url)
	n := len(words)
	if words[0] != "works" || words[n-1] != "works" || n < 6 || slices.ContainsFunc(words[1:n-1], func(w string) bool { return w != "out: http" }) {
		t.Errorf("%q", words)
	}
	if words := said.of(good.url); !slices.Equal(words, []string{"works"}) {
		t.Errorf("the other: %q", words)
	}
}

// Whatever order the goroutines come in, an endpoint that goes and comes is told
// of once for each, in order.
func TestChangedIsToldInOrder(t *testing.T) {
	t.Parallel()
	d := play(t)
	said := &changes{}
	c := d.client(func(o *Options) { o.Changed = said.add })
	e := c.endpoints[0]
	want := []string{"works"}
	c.mu.Lock()
	c.worksLocked(e)
	c.mu.Unlock()
	for range 500 {
		c.mu.Lock()
		c.setOutLocked(e, &trouble{reason: Closed, err: &imapmeta.Error{}})
		c.mu.Unlock()
		c.mu.Lock()
		c.worksLocked(e)
		c.mu.Unlock()
		want = append(want, "out: closed", "works")
	}
	closed(t, c)
	if got := said.of(d.url); !slices.Equal(got, want) {
		t.Errorf("told %d times, want %d", len(got), len(want))
	}
}

// A look that was under way when the endpoint came back, and went again, does
// not count.
func TestAnEndpointIsNotLookedAtForWhatWasBefore(t *testing.T) {
	t.Parallel()
	d := play(t)
	c := d.client()
	e := c.endpoints[0]
	c.mu.Lock()
	c.setOutLocked(e, &trouble{reason: Closed, err: &imapmeta.Error{}})
	before := e.back
	c.worksLocked(e)
	c.setOutLocked(e, &trouble{reason: Key, err: &imapmeta.Error{}})
	c.mu.Unlock()
	c.check(e, before)
	if e := c.Endpoints()[0]; !e.Out || e.Reason != Key {
		t.Errorf("%+v", e)
	}
}

// Who waits for a busy endpoint is served by one that comes back meanwhile.
func TestAnEndpointThatComesBackServesThoseWhoWait(t *testing.T) {
	t.Parallel()
	g := newGate()
	busy, back := play(t), play(t)
	c := to(t, []*dummy{busy, back}, batchOf(1), connections(1), func(o *Options) { o.CheckInterval = 50 * time.Millisecond })
	known(t, c)
	busy.change(onPost(g.hold))
	var alice, bob sync.WaitGroup
	alice.Go(func() { c.Update(t.Context(), "alice", keepIt) })
	g.next(t)
	c.mu.Lock()
	c.setOutLocked(c.endpoints[1], &trouble{reason: Closed, err: &imapmeta.Error{}})
	c.mu.Unlock()
	bob.Go(func() {
		if _, err := c.Update(t.Context(), "bob", keepIt); err != nil {
			t.Error(err)
		}
	})
	bob.Wait() // while alice still waits
	close(g.open)
	alice.Wait()
}

// What is under way at an endpoint when it is set aside counts on when it is
// back.
func TestConnectionsOutliveASettingAside(t *testing.T) {
	g := newGate()
	c := play(t, onPost(g.hold)).client()
	var all sync.WaitGroup
	all.Go(func() { c.Update(t.Context(), "alice", keepIt) })
	g.next(t)
	c.mu.Lock()
	c.setOutLocked(c.endpoints[0], &trouble{reason: Closed, err: &imapmeta.Error{}})
	c.worksLocked(c.endpoints[0])
	c.mu.Unlock()
	if e := c.Endpoints()[0]; e.Connections != 1 || e.Out {
		t.Errorf("%+v", e)
	}
	close(g.open)
	all.Wait()
}

func TestAllEndpointsAreGone(t *testing.T) {
	t.Parallel()
	urls := []string{down(t), play(t, says(500, "broken")).url, play(t, func(d *dummy) {
		d.onPost = func(w http.ResponseWriter, _ *http.Request, _ []command) bool { closeOn(w); return true }
	}).url}
	c := open(t, Options{Endpoints: urls, Secret: secretIs(dummyKey), CheckInterval: time.Hour})
	for range 2 { // also when it is known
		_, err := c.Update(t.Context(), "alice", keepIt)
		fault{kind: imapmeta.Retry, op: "connect", words: "no endpoint works; ", unreached: true}.check(t, "alice", err)
		for _, words := range append(slices.Clone(urls), "connection refused", "HTTP 500: broken", "without a word") {
			if err != nil && strings.Count(err.Error(), words) != 1 {
				t.Errorf("%q; want %q in it, once", err, words)
			}
		}
	}
	for _, e := range c.Endpoints() {
		if !e.Out || e.Connections != 0 {
			t.Errorf("%+v", e)
		}
	}
	// For everybody, if each says so.
	c = open(t, Options{Endpoints: []string{play(t, says(404, "")).url, play(t, says(403, "")).url}, Secret: secretIs(dummyKey)})
	_, err := c.Update(t.Context(), "alice", keepIt)
	fault{kind: imapmeta.Server, is: ErrNotDoveadm, op: "connect", words: "no endpoint works; ", hint: "server.doveadm.endpoints"}.check(t, "alice", err)
}

// A change that was sent, and not answered anywhere, may have been made.
func TestAChangeThatWasSentIsNoFailureToConnect(t *testing.T) {
	t.Parallel()
	d := play(t, onCommand(func(c command) string {
		if c.method == set {
			return closes
		}
		return ""
	}))
	d.change(func(d *dummy) {
		d.onPost = func(w http.ResponseWriter, r *http.Request, commands []command) bool {
			if len(commands) > 0 && commands[0].method == get {
				return false
			}
			closeOn(w) // nor does it answer a look
			return true
		}
	})
	out, err := d.client().Update(t.Context(), "alice", setTo("user=1"))
	fault{kind: imapmeta.Retry, op: "setmetadata", words: "without a word", unreached: true}.check(t, "alice", err)
	if !out.Resent || !out.Did.Keeps() {
		t.Errorf("%+v", out)
	}
}

func TestAKeyThatOneEndpointRefuses(t *testing.T) {
	t.Parallel()
	other := func(d *dummy) { d.key = "another s3cr3t" }
	// Nobody is known to take it: it is tried once for all who wait.
	a, b := play(t, other), play(t)
	c := to(t, []*dummy{a, b})
	inOnePost(t, c, several(30), func(user string, _ imapmeta.Outcome, err error) {
		fault{kind: imapmeta.Server, is: ErrKey, op: "connect"}.check(t, user, err)
	}, func(string) imapmeta.Change { return imapmeta.Keep() })
	if n := len(b.sent()); n != 0 {
		t.Errorf("the other was asked %d times", n)
	}
	if e := c.Endpoints(); !e[0].Out || e[0].Reason != Key || e[1].Out {
		t.Errorf("%+v", e)
	}
	// The next call goes to the other, and on with that one.
	update(t, c, "alice", imapmeta.Set("user=1"), imapmeta.Absent)

	// One is known to take it: the calls go there.
	a, b = play(t), play(t)
	c = to(t, []*dummy{a, b})
	known(t, c)
	a.change(other)
	atOnce(t, c, several(30), func(user string, out imapmeta.Outcome, err error) {
		if err != nil || out.Resent { // it was not read
			t.Errorf("%s: %+v, %v", user, out, err)
		}
	}, setTo("user=1"))
	if e := c.Endpoints(); !e[0].Out || e[0].Reason != Key || e[1].Out {
		t.Errorf("%+v", e)
	}
	// Then that one refuses it as well.
	b.change(other)
	_, err := c.Update(t.Context(), "alice", keepIt)
	fault{kind: imapmeta.Server, is: ErrKey, op: "connect"}.check(t, "alice", err)
	if c.accepted {
		t.Error("several POSTs would go out with a key that nobody takes")
	}
}

// What hangs at one endpoint for half of its time has that looked at, once; at
// the end it is known whose fault it is.
func TestAHangingCommandCostsOneLook(t *testing.T) {
	t.Parallel()
	var d *dummy
	var meanwhile atomic.Bool
	d = play(t, onPost(func(_ http.ResponseWriter, r *http.Request, commands []command) bool {
		if len(commands) > 0 {
			d.hang(r)
			return true
		}
		meanwhile.Store(d.underWay() == 1)
		return false
	}))
	c := d.client(func(o *Options) { o.ReadTimeout = 2 * time.Second })
	_, err := c.Update(t.Context(), "alice", keepIt)
	fault{kind: imapmeta.Retry, op: "getmetadata", words: "answers other commands, but not this one: no answer within 2s"}.check(t, "alice", err)
	if n := d.lookedAt(); n != 1 || !meanwhile.Load() {
		t.Errorf("it was looked at %d times, in time: %t", n, meanwhile.Load())
	}
	if e := c.Endpoints()[0]; e.Out {
		t.Errorf("%+v", e)
	}
}

// A command that fails alone is sent to the other endpoints: it may be that one
// which has trouble with it.
func TestACommandThatFailsAtOneEndpointOnly(t *testing.T) {
	t.Parallel()
	bad := play(t, onCommand(func(c command) string {
		if c.user == "alice" {
			return closes
		}
		return ""
	}))
	good := play(t)
	c := to(t, []*dummy{bad, good})
	known(t, c)
	for range 4 {
		if _, err := c.Update(t.Context(), "alice", keepIt); err != nil {
			t.Error(err)
		}
	}
	for _, e := range c.Endpoints() {
		if e.Out {
			t.Errorf("%+v", e)
		}
	}
}

// A list, or an answer to a late POST, shows that an endpoint works.
func TestAListShowsThatAnEndpointWorks(t *testing.T) {
	d := play(t, says(500, ""))
	said := &changes{}
	c := d.client(func(o *Options) { o.Changed = said.add })
	if _, err := c.Update(t.Context(), "alice", keepIt); err == nil {
		t.Fatal("no error")
	}
	d.change(func(d *dummy) { d.onPost = nil })
	if users, err := list(t.Context(), c); err != nil || len(users) != 2 {
		t.Error(users, err)
	}
	if e := c.Endpoints()[0]; e.Out {
		t.Errorf("%+v", e)
	}
	closed(t, c)
	if got := said.of(d.url); !slices.Equal(got, []string{"out: http", "works"}) {
		t.Errorf("%q", got)
	}
}

// A look cannot hang for ever, whatever hangs.
func TestALookEndsWithItsTime(t *testing.T) {
	t.Parallel()
	var hang atomic.Bool
	c := play(t).client(func(o *Options) {
		o.Timeout = 2 * time.Second
		o.Secret = func(ctx context.Context) (string, error) {
			if hang.Load() {
				<-ctx.Done()
				return "", ctx.Err()
			}
			return dummyKey, nil
		}
	})
	hang.Store(true)
	c.mu.Lock()
	p := c.probeLocked(c.endpoints[0])
	if again := c.probeLocked(c.endpoints[0]); again != p {
		t.Error("two looks at once")
	}
	c.mu.Unlock()
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		t.Fatal("it hangs")
	}
	if p.trouble == nil || !errors.Is(p.trouble.err, context.DeadlineExceeded) {
		t.Errorf("%+v", p.trouble)
	}
	hang.Store(false)
	update(t, c, "alice", imapmeta.Keep(), imapmeta.Absent) // the lock on the key is free
}
