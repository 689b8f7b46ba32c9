package api

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/tmaxmax/go-sse"

	"dovepush/notify"
	"dovepush/registry"
)

// watcher reads a stream of events.
type watcher struct {
	t      testing.TB
	target string
	res    *http.Response
	text   strings.Builder
	next   func() (sse.Event, error, bool)
}

// watch begins to watch, and returns when nothing is missed any more.
func (s *service) watch(query string) *watcher {
	s.t.Helper()
	w := &watcher{t: s.t, target: "/v1/notifications" + query}
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	s.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", "http://dovepush"+w.target, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	if w.res, err = s.client.Do(req); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { w.res.Body.Close() })
	events := sse.Read(io.TeeReader(w.res.Body, &w.text), nil)
	done := make(chan struct{})
	list := make(chan sse.Event)
	var failed error
	go func() {
		defer close(list)
		for e, err := range events {
			if failed = err; err != nil {
				return
			}
			select {
			case list <- e:
			case <-done:
				return
			}
		}
	}()
	s.t.Cleanup(func() { close(done) })
	w.next = func() (sse.Event, error, bool) {
		e, ok := <-list
		if !ok {
			return e, failed, false
		}
		return e, nil, true
	}
	if kind, data := w.event(); kind != eventReady || data != "{}" {
		s.t.Fatalf("the first event is %q %s", kind, data)
	}
	return w
}

// event returns the next event, held against openapi.json.
func (w *watcher) event() (kind, data string) {
	w.t.Helper()
	e, err, ok := w.next()
	if !ok {
		w.t.Fatalf("the stream has ended: %v", err)
	}
	if schema := map[string]string{eventNotification: "Notification", eventRefusal: "Refusal"}[e.Type]; schema != "" {
		if err := document.valid(e.Data, "components", "schemas", schema); err != nil {
			w.t.Errorf("%s: %v", e.Data, err)
		}
	}
	return e.Type, e.Data
}

func (w *watcher) user() string {
	w.t.Helper()
	_, data := w.event()
	var n struct{ User string }
	if err := json.Unmarshal([]byte(data), &n); err != nil {
		w.t.Fatal(err)
	}
	return n.User
}

// ended wants that nothing more comes.
func (w *watcher) ended() {
	w.t.Helper()
	for {
		e, _, ok := w.next()
		if !ok {
			break
		}
		w.t.Errorf("and then came %s", e.Data)
	}
	for _, wrong := range document.check("GET", w.target, "", reply{w.res.StatusCode, w.res.Header, w.text.String()}) {
		w.t.Error(wrong)
	}
}

func mail(user string) notify.Event {
	unseen := int64(3)
	return notify.Event{Notification: &notify.Notification{User: user, Event: "messageNew", Folder: "INBOX", UIDValidity: 7, UID: 9,
		From: "Bob", Subject: "line\nbreak", Snippet: "…", Unseen: &unseen, Received: noon, Fields: map[string]json.RawMessage{"x": json.RawMessage(`1`)}}}
}

func withHub(t testing.TB) (*notify.Hub, func(*Options)) {
	hub := notify.NewHub()
	t.Cleanup(hub.Close)
	return hub, func(o *Options) { o.Notifications = hub }
}

func TestNotificationsAreSeenAsTheyCome(t *testing.T) {
	everywhere(t, func(t *testing.T, network string) {
		hub, withIt := withHub(t)
		stopping, stop := context.WithCancel(context.Background())
		s := start(t, network, withIt, func(o *Options) { o.Stopping = stopping })
		all, refusals := s.watch(""), s.watch("?refusals=true&user=nobody")
		hub.Publish(mail("alice"))
		hub.Publish(notify.Event{Refusal: &notify.Refusal{At: noon, Remote: "::1", Status: 401, Reason: notify.WrongCredentials, Detail: "no"}})
		hub.Publish(mail("bob"))
		const want = `{"user":"alice","event":"messageNew","folder":"INBOX","uidvalidity":7,"uid":9,"from":"Bob","subject":"line\nbreak",` +
			`"snippet":"…","unseen":3,"received_at":"2026-03-01T12:00:00Z","fields":{"x":1}}`
		if kind, data := all.event(); kind != eventNotification || data != want {
			t.Errorf("%s %s", kind, data)
		}
		if user := all.user(); user != "bob" { // not the refusal, which was not asked for
			t.Error(user)
		}
		if kind, data := refusals.event(); kind != eventRefusal || data != `{"at":"2026-03-01T12:00:00Z","remote":"::1","status":401,"reason":"credentials","detail":"no"}` {
			t.Errorf("%s %s", kind, data)
		}
		stop()
		all.ended()
		refusals.ended()
	})
}

func TestAUserIsWatchedUnderHisNameAndHisIdentity(t *testing.T) {
	hub, withIt := withHub(t)
	s := start(t, "tcp", withIt, func(o *Options) {
		o.Plain = func(identity string) string { name, _, _ := strings.Cut(identity, "~"); return name }
	})
	if err := s.registry.Intend(t.Context(),
		registry.Intent{Key: registry.Key{User: "a/lice", Server: "main"}, Identity: "3@7~signed", Value: "user=3@7", Wanted: registry.Present},
		registry.Intent{Key: registry.Key{User: "bob", Server: "main"}, Identity: "4@7", Value: "user=4@7", Wanted: registry.Present}); err != nil {
		t.Fatal(err)
	}
	w := s.watch("?user=" + url.QueryEscape("a/lice") + "&user=carol")
	for _, user := range []string{"bob", "4@7", "3@7", "dave", "a/lice", "", "carol", "3@7~signed", "carol"} {
		hub.Publish(mail(user))
	}
	for _, want := range []string{"3@7", "a/lice", "carol", "carol"} {
		if got := w.user(); got != want {
			t.Errorf("%s, not %s", got, want)
		}
	}
	hub.Close()
	w.ended()
}

func TestAStreamOutlivesTheTimeLimitsOfRequests(t *testing.T) {
	hub, withIt := withHub(t)
	s := start(t, "tcp", withIt)
	server := httptest.NewUnstartedServer(s.handler)
	server.Config.ReadTimeout, server.Config.WriteTimeout = 100*time.Millisecond, 100*time.Millisecond
	server.Start()
	defer server.Close()
	s.client = &http.Client{Transport: &http.Transport{Proxy: func(r *http.Request) (*url.URL, error) { return url.Parse(server.URL) }}}
	w := s.watch("")
	for _, user := range []string{"alice", "bob"} {
		time.Sleep(300 * time.Millisecond)
		hub.Publish(mail(user))
		if got := w.user(); got != user {
			t.Error(got)
		}
	}
	hub.Close()
	w.ended()
}

func TestAReaderThatIsTooSlowIsDropped(t *testing.T) {
	hub, withIt := withHub(t)
	s := start(t, "unix", withIt)
	w := s.watch("")
	fat := mail("alice")
	fat.Notification.Snippet = strings.Repeat("x", 4000)
	for range 20_000 { // far more than the socket's buffers take
		hub.Publish(fat)
		if hub.Stats().Slow == 1 {
			break
		}
	}
	if stats := hub.Stats(); stats.Slow != 1 || stats.Subscribers != 0 {
		t.Fatalf("%+v", stats)
	}
	for {
		if _, _, ok := w.next(); !ok {
			break
		}
	}
}

func TestNotEverythingCanBeWatched(t *testing.T) {
	hub, withIt := withHub(t)
	s := start(t, "tcp", withIt)
	for _, query := range []string{"?x=1", "?refusals=1", "?refusals=true&refusals=true", "?user=", "?user=%00", "?user=%ff", "?user=a%0ab",
		"?user=a" + strings.Repeat("&user=a", maxWatched)} {
		s.want(400, "GET", "/v1/notifications"+query, "")
	}
	if got := s.want(200, "HEAD", "/v1/notifications", ""); got.header.Get("Content-Type") != "text/event-stream" {
		t.Error(got.header)
	}
	for {
		if _, err := hub.Subscribe(nil, 0); err != nil {
			break
		}
	}
	s.want(503, "GET", "/v1/notifications", "").holds(t, "Too many clients")
	hub.Close()
	s.want(503, "GET", "/v1/notifications", "").holds(t, "stops")
	start(t, "tcp").want(404, "GET", "/v1/notifications", "").holds(t, "notify.listen")
	locked := start(t, "tcp", withIt, func(o *Options) { o.Token = func() (string, bool) { return "t", true } })
	locked.want(401, "GET", "/v1/notifications", "")
	if err := s.registry.Close(); err != nil {
		t.Fatal(err)
	}
	s.want(500, "GET", "/v1/notifications?user=alice", "")
}
