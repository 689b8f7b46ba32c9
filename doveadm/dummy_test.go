package doveadm

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"dovepush/imapmeta"
)

const dummyKey = "the dummy's s3cr3t"

// dummy is a DoveAdm API for what a real Dovecot cannot be made to say, and to
// count what it is asked. It carries commands out one after the other and
// answers when the last one is done, as Dovecot does; a test changes that by
// its hooks. It holds every POST against what Dovecot wants.
type dummy struct {
	t       testing.TB
	server  *httptest.Server
	url     string
	stopped chan struct{} // ends what hangs

	mu        sync.Mutex
	entries   map[string]string
	key       string
	posts     [][]command // that held commands, in the order of their arrival
	looks     int         // POSTs without commands
	refused   int         // POSTs with another key
	now, most int         // POSTs with commands under way, and how many at most
	onPost    func(w http.ResponseWriter, r *http.Request, commands []command) (done bool)
	onCommand func(c command) string
}

// closes is what onCommand answers to end the connection without an answer.
const closes = "close"

func play(t testing.TB, change ...func(*dummy)) *dummy {
	t.Helper()
	d := &dummy{t: t, entries: make(map[string]string), key: dummyKey, stopped: make(chan struct{})}
	for _, f := range change {
		f(d)
	}
	d.server = httptest.NewServer(d)
	d.url = d.server.URL + apiPath
	t.Cleanup(func() {
		close(d.stopped)
		d.server.Close()
	})
	return d
}

// onPost is asked before a POST is carried out, whether it has answered by
// itself. It may wait for r's context to end.
func onPost(f func(w http.ResponseWriter, r *http.Request, commands []command) bool) func(*dummy) {
	return func(d *dummy) { d.onPost = f }
}

// onCommand is asked for the reply to a command, without its tag; "" is the
// usual one.
func onCommand(f func(c command) string) func(*dummy) {
	return func(d *dummy) { d.onCommand = f }
}

func (d *dummy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	commands, ok := d.read(w, r)
	if !ok {
		return
	}
	d.mu.Lock()
	onPost, onCommand := d.onPost, d.onCommand
	if len(commands) == 0 {
		d.looks++
	} else {
		d.posts = append(d.posts, commands)
		d.now++
		d.most = max(d.most, d.now)
	}
	d.mu.Unlock()
	if len(commands) > 0 {
		defer func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.now--
		}()
	}
	if onPost != nil && onPost(w, r, commands) {
		return
	}
	text := "["
	for i, c := range commands {
		reply := ""
		if onCommand != nil {
			reply = onCommand(c)
		}
		switch reply {
		case closes:
			closeOn(w)
			return
		case "":
			reply = d.run(c)
		}
		if i > 0 {
			text += ","
		}
		text += fmt.Sprintf("[%s,%q]", reply, strconv.Itoa(i))
	}
	io.WriteString(w, text+"]")
}

func authorization(key string) string {
	return "X-Dovecot-API " + base64.StdEncoding.EncodeToString([]byte(key))
}

// read returns the commands of a POST that is as it should be.
func (d *dummy) read(w http.ResponseWriter, r *http.Request) ([]command, bool) {
	d.mu.Lock()
	key := d.key
	if r.Header.Get("Authorization") != authorization(key) {
		d.refused++
	}
	d.mu.Unlock()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, false // broken off
	}
	if r.Method != http.MethodPost || r.URL.Path != apiPath || r.Header.Get("Content-Type") != "application/json" || r.Close {
		d.t.Errorf("%s %s, %q, close %t: not what Dovecot wants", r.Method, r.URL, r.Header.Get("Content-Type"), r.Close)
	}
	if r.Header.Get("Authorization") != authorization(key) {
		http.Error(w, "wrong key", http.StatusUnauthorized)
		return nil, false
	}
	var list [][]json.RawMessage
	if err := json.Unmarshal(text, &list); err != nil {
		d.t.Errorf("a POST of %.200q: %v", text, err)
	}
	var commands []command
	for i, parts := range list {
		var c command
		var tag string
		var p struct {
			User, Mailbox, Key    string
			Value                 *string
			AllowEmptyMailboxName bool
			UserMask              []string
		}
		for at, to := range []any{&c.method, &p, &tag} {
			if err := json.Unmarshal(parts[at], to); err != nil {
				d.t.Errorf("a command %.200q: %v", parts[at], err)
			}
		}
		c.user = p.User
		if c.method == lookup && len(p.UserMask) == 1 {
			c.user = p.UserMask[0]
		} else if p.Mailbox != "" || !p.AllowEmptyMailboxName || p.Key != imapmeta.Entry || (p.Value != nil) != (c.method == set) {
			d.t.Errorf("%s with %+v: not the entry", c.method, p)
		}
		if p.Value != nil {
			c.value = *p.Value
		}
		if tag != strconv.Itoa(i) {
			d.t.Errorf("tag %q for command %d", tag, i)
		}
		commands = append(commands, c)
	}
	return commands, true
}

// run carries out a command.
func (d *dummy) run(c command) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch c.method {
	case get:
		text, _ := json.Marshal(d.entries[c.user])
		return `"doveadmResponse",[{"value":` + string(text) + `}]`
	case set:
		d.entries[c.user] = c.value
	case unset:
		delete(d.entries, c.user)
	case lookup:
		if c.user == "*" {
			return `"doveadmResponse",{"userList":["alice","bob"]}`
		}
		return fmt.Sprintf(`"doveadmResponse",{%q:{"uid":"1"}}`, c.user)
	}
	return `"doveadmResponse",[]`
}

func closeOn(w http.ResponseWriter) {
	if conn, _, err := w.(http.Hijacker).Hijack(); err == nil {
		conn.Close()
	}
}

// hang waits until the client has gone, or the test is over.
func (d *dummy) hang(r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-d.stopped:
	}
}

// change changes how the dummy behaves from the next POST on.
func (d *dummy) change(f func(*dummy)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f(d)
}

// sent returns the POSTs that held commands.
func (d *dummy) sent() [][]command {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.posts)
}

func (d *dummy) lookedAt() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.looks
}

func (d *dummy) underWay() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.now
}

func (d *dummy) entry(user string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.entries[user]
}

// to returns a client for dummies.
func to(t testing.TB, dummies []*dummy, change ...func(*Options)) *Client {
	t.Helper()
	o := Options{Secret: secretIs(dummyKey), Timeout: 20 * time.Second, CheckInterval: time.Hour}
	for _, d := range dummies {
		o.Endpoints = append(o.Endpoints, d.url)
	}
	return open(t, o, change...)
}

// client returns a client for the dummy.
func (d *dummy) client(change ...func(*Options)) *Client {
	d.t.Helper()
	return to(d.t, []*dummy{d}, change...)
}

// gate holds POSTs back until it is opened.
type gate struct {
	held chan []command // each POST that came to it
	step chan struct{}  // lets one of them go
	open chan struct{}
}

func newGate() *gate {
	return &gate{make(chan []command, 1000), make(chan struct{}), make(chan struct{})}
}

// hold is an onPost.
func (g *gate) hold(_ http.ResponseWriter, r *http.Request, commands []command) bool {
	if len(commands) == 0 {
		return false
	}
	select {
	case <-g.open:
		return false
	default:
	}
	g.held <- commands
	select {
	case <-g.open:
	case <-g.step:
	case <-r.Context().Done():
		return true
	}
	return false
}

// next waits for a POST to be held.
func (g *gate) next(t testing.TB) []command {
	t.Helper()
	select {
	case commands := <-g.held:
		return commands
	case <-time.After(20 * time.Second):
		t.Fatal("no POST within 20 s")
		return nil
	}
}

// waiting returns how many calls wait for their first POST.
func (c *Client) waiting() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.waitingLocked()
}

// queued waits until n calls wait for their first POST.
func queued(t testing.TB, c *Client, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d calls wait", n), func() bool { return c.waiting() == n })
}

// several returns n names of users.
func several(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("user%04d", i)
	}
	return names
}

// doAlone has one command carried out, within the client's time limit.
func (c *Client) doAlone(ctx context.Context, what command) (answer, error) {
	ctx, clock := c.clock(ctx)
	defer clock.stop()
	return c.do(ctx, clock, what)
}
