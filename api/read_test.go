package api

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"dovepush/registry"
)

func (s *service) intend(keys ...registry.Key) {
	s.t.Helper()
	var intents []registry.Intent
	for _, key := range keys {
		intents = append(intents, registry.Intent{Key: key, Identity: key.User, Value: "user=" + key.User, Wanted: registry.Present})
	}
	if err := s.registry.Intend(s.t.Context(), intents...); err != nil {
		s.t.Fatal(err)
	}
}

func TestAUserOnSeveralServers(t *testing.T) {
	s := start(t, "unix")
	s.intend(registry.Key{User: "bob", Server: "alpha"}, registry.Key{User: "bob", Server: "zeta"})
	bob := registrations + "/bob"
	s.want(200, "GET", bob, "").holds(t, `"server":"alpha"`) // none of his domain's: the first
	s.want(200, "GET", bob+"?server=zeta", "").holds(t, `"server":"zeta"`)
	s.want(404, "GET", bob+"?server=main", "")
	s.want(404, "GET", bob+"?server=", "")
	s.intend(registry.Key{User: "bob", Server: "main"})
	s.want(200, "GET", bob, "").holds(t, `"server":"main"`)
	s.want(404, "GET", registrations+"/bobby", "")
}

func TestHEADIsGETWithoutBody(t *testing.T) {
	everywhere(t, func(t *testing.T, network string) {
		s := start(t, network, func(o *Options) { o.Metrics = http.NotFoundHandler() })
		s.intend(registry.Key{User: "alice", Server: "main"})
		for path, status := range map[string]int{alice: 200, registrations: 200, registrations + "/nobody": 404,
			"/v1/openapi.json": 200, "/healthz": 200, "/readyz": 200, registrations + "?limit=x": 400, "/nowhere": 404} {
			head := s.want(status, "HEAD", path, "")
			get := s.want(status, "GET", path, "")
			if head.body != "" || head.header.Get("Content-Type") != get.header.Get("Content-Type") {
				t.Errorf("HEAD %s: %q %v", path, head.body, head.header)
			}
		}
	})
}

type page struct {
	Registrations []registry.Registration `json:"registrations"`
	Next          string                  `json:"next"`
}

func (s *service) page(query string) page {
	s.t.Helper()
	var p page
	if err := json.Unmarshal([]byte(s.want(200, "GET", registrations+query, "").body), &p); err != nil {
		s.t.Fatal(err)
	}
	return p
}

func TestPagesShowEveryRegistrationOnce(t *testing.T) {
	s := start(t, "unix")
	var want []registry.Key
	for i := range 1003 {
		want = append(want, registry.Key{User: fmt.Sprintf("user%05d@ä.example <&>", i), Server: "main"})
	}
	want = append(want, registry.Key{User: "z", Server: "a"}, registry.Key{User: "z", Server: "b"}, registry.Key{User: "ÿ", Server: "a"})
	s.intend(want...)
	for limit, pages := range map[string]int{"": 11, "&limit=1000": 2, "&limit=503": 2} {
		var got []registry.Key
		after, n := "", 0
		for {
			n++
			p := s.page("?after=" + after + limit)
			for _, reg := range p.Registrations {
				got = append(got, reg.Key())
			}
			if after = p.Next; after == "" {
				break
			}
		}
		if !slices.Equal(got, want) || n != pages {
			t.Errorf("%q: %d pages with %d registrations; want %d with %d", limit, n, len(got), pages, len(want))
		}
	}
	if p := s.page("?limit=1&after=" + cursor(registry.Key{User: "z", Server: "a"})); p.Registrations[0].Server != "b" {
		t.Errorf("after z on a comes %+v", p)
	}
	if p := s.page("?after=" + cursor(registry.Key{User: "\U0010ffff", Server: "x"})); len(p.Registrations) != 0 || p.Next != "" {
		t.Errorf("after the last comes %+v", p)
	}
}

func TestFilters(t *testing.T) {
	s := start(t, "unix")
	s.intend(registry.Key{User: "a", Server: "one"}, registry.Key{User: "b", Server: "main"}, registry.Key{User: "c", Server: "one"})
	s.want(200, "PUT", registrations+"/b?wait=5s", "")
	for query, want := range map[string]string{
		"?state=registered":                 "b",
		"?state=pending":                    "a c",
		"?state=pending&server=one&limit=1": "a",
		"?server=one":                       "a c",
		"?server=none":                      "",
		"?state=&server=":                   "a b c",
		"?server=one&after=" + cursor(registry.Key{User: "a", Server: "one"}): "c",
		"?state=failed": "",
	} {
		var users []string
		for _, reg := range s.page(query).Registrations {
			users = append(users, reg.User)
		}
		if got := strings.Join(users, " "); got != want {
			t.Errorf("%s: %s; want %s", query, got, want)
		}
	}
}

func TestCursorsThatAreNotOurs(t *testing.T) {
	s := start(t, "tcp")
	encode := func(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }
	for _, after := range []string{"x", "!", "alice", encode("alice"), encode("\x00main"), encode("alice\x00"), encode("a\x00b\x00c"),
		encode("\xff\x00main"), encode("a\x00b") + "=", encode("a\x00b") + "%0A", "%2b%2f", encode("a\x00bc")[:5] + "R"} {
		s.want(400, "GET", registrations+"?after="+after, "").holds(t, "x-problems/invalid-request", "after")
	}
}

// broken is a registry whose list ends with an error after some rows.
type broken struct {
	Registry
	rows int
	err  error
}

func (b broken) List(context.Context, registry.Filter) iter.Seq2[registry.Registration, error] {
	return func(yield func(registry.Registration, error) bool) {
		for i := range b.rows {
			user := fmt.Sprintf("user%0200d", i)
			if !yield(registry.Registration{User: user, Server: "main", Wanted: registry.Present, State: registry.Pending}, nil) {
				return
			}
		}
		yield(registry.Registration{}, b.err)
	}
}

func TestAListThatBreaksOff(t *testing.T) {
	everywhere(t, func(t *testing.T, network string) {
		failure := errors.New("registry /secret/path: list: disk I/O error")
		early := start(t, network, func(o *Options) { o.Registry = broken{o.Registry, 3, failure} })
		if got := early.want(500, "GET", registrations, ""); strings.Contains(got.body, "secret") {
			t.Error(got.body)
		}
		statuses := make(chan int, 1)
		late := start(t, network, func(o *Options) {
			o.Registry = broken{o.Registry, 500, failure}
			o.Observe = func(_ string, status int, _ time.Duration) { statuses <- status }
		})
		res, err := late.client.Get("http://dovepush" + registrations + "?limit=1000")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if _, err := io.ReadAll(res.Body); err == nil {
			t.Error("half a list passes for a whole one")
		}
		if status := <-statuses; status != 500 {
			t.Errorf("observed as %d", status)
		}
		for _, s := range []*service{early, late} {
			if log := s.log.String(); strings.Count(log, "level=ERROR") != 1 || !strings.Contains(log, "/secret/path") {
				t.Errorf("log: %s", log)
			}
		}
	})
}

func TestTheDescriptionIsServed(t *testing.T) {
	s := start(t, "tcp")
	if got := s.want(200, "GET", "/v1/openapi.json", ""); got.body != string(openapi) {
		t.Error("another one")
	}
}
