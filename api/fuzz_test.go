package api

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"dovepush/agent"
	"dovepush/imapmeta"
	"dovepush/registry"
)

// accepting is an agent that takes every request, remembers it, and does
// nothing.
type accepting struct{ last *agent.Request }

func (a accepting) Submit(_ context.Context, r agent.Request) (registry.Registration, error) {
	*a.last = r
	if err := imapmeta.CheckUser(r.User); err != nil {
		return registry.Registration{}, fmt.Errorf("reached the agent: %w", err)
	}
	if _, err := imapmeta.NewValue(r.Identity); err != nil && r.Identity != "" {
		return registry.Registration{}, err
	}
	return registry.Registration{User: r.User, Server: "main", Identity: r.Identity, Wanted: registry.Present, State: registry.Pending}, nil
}

func (accepting) Await(_ context.Context, reg registry.Registration) (registry.Registration, bool, error) {
	return reg, true, nil
}

// FuzzRequest: whatever a client sends, the answer is one that openapi.json
// knows, none of 3xx or 5xx, and what reaches the agent is what was sent.
func FuzzRequest(f *testing.F) {
	for _, target := range []string{alice, alice + "?wait=5s", alice + "?force=true&wait=1ms", registrations + "/a%2F%2Fb/verify", registrations + "/..",
		registrations + "/%00", registrations + "?state=failed&limit=1&after=YQBi&server=x", "/v1/openapi.json", "/healthz", "*", "http://x/readyz", "//v1//",
		registrations + "/a%2Fb|", registrations + "/%ff", registrations + "/{user}"} {
		for _, method := range []string{"PUT", "GET", "DELETE", "POST", "HEAD"} {
			f.Add(method, target, "application/json", []byte(`{"identity":"a","expires_in":"1h","force":true}`))
		}
		f.Add("PUT", target, "", []byte(nil))
	}
	for _, body := range []string{`{"identity":"\ud800"}`, `{"force":null}`, `[]`, `{} {}`, `{"force":true,"force":true}`} {
		f.Add("PUT", alice, "application/json; charset=utf-8", []byte(body))
	}
	r, err := registry.Open(f.Context(), filepath.Join(f.TempDir(), "registry.db"), nil)
	if err != nil {
		f.Fatal(err)
	}
	defer r.Close()
	var last agent.Request
	h := New(Options{Agent: accepting{&last}, Registry: r})
	f.Fuzz(func(t *testing.T, method, target, kind string, body []byte) {
		if strings.ContainsAny(method+target+kind, "\r\n") || len(target) > 4000 {
			return
		}
		head := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", method, target, kind, len(body))
		req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head + string(body))))
		if err != nil {
			return // net/http refuses it before we see it
		}
		last = agent.Request{}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		got := reply{w.Code, w.Header(), w.Body.String()}
		if got.status >= 500 || got.status >= 300 && got.status < 400 {
			t.Fatalf("%d %s", got.status, got.body)
		}
		path := rawPath(req.URL)
		if req.Method == http.MethodHead {
			got.body = ""
		}
		for _, wrong := range document.check(req.Method, path+"?"+req.URL.RawQuery, string(body), got) {
			t.Errorf("%d %s\n%v", got.status, got.body, wrong)
		}
		if last.User == "" {
			return
		}
		segment, _, _ := strings.Cut(strings.TrimPrefix(path, registrations+"/"), "/")
		if user, err := url.PathUnescape(segment); err != nil || user != last.User {
			t.Errorf("%q became %q", segment, last.User)
		}
		if last.Identity != "" && !bytes.Contains(body, []byte("identity")) && !bytes.Contains(body, []byte(`\u`)) {
			t.Errorf("%s became identity %q", body, last.Identity)
		}
	})
}
