package api

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	"dovepush/imapmeta"
)

// operation is what a method does at a path.
type operation struct {
	name    string // for Options.Observe
	open    bool   // needs no token
	submits bool   // asks the agent for something
	serve   func(h *Handler, w *answer, r *http.Request, user string) error
}

// other is the name of what is not counted apart.
const other = "other"

// unknown is where there is no operation.
var unknown = operation{name: other}

const registrations = "/v1/registrations"

// routes are all operations, by path and method. HEAD works where GET does.
//
// http.ServeMux would do, but for user names: it cleans paths, so that "a//b"
// or ".." would be redirected to somebody else.
func routes() map[string]map[string]operation {
	return map[string]map[string]operation{
		registrations + "/{user}": {
			http.MethodPut:    {name: "register", submits: true, serve: (*Handler).register},
			http.MethodDelete: {name: "unregister", submits: true, serve: (*Handler).unregister},
			http.MethodGet:    {name: "get", serve: (*Handler).get},
		},
		registrations + "/{user}/verify": {http.MethodPost: {name: "verify", submits: true, serve: (*Handler).verify}},
		registrations:                    {http.MethodGet: {name: "list", serve: (*Handler).list}},
		"/v1/notifications":              {http.MethodGet: {name: "notifications", serve: (*Handler).notifications}},
		"/v1/openapi.json":               {http.MethodGet: {name: "openapi", serve: (*Handler).description}},
		"/healthz":                       {http.MethodGet: {name: other, open: true, serve: (*Handler).health}},
		"/readyz":                        {http.MethodGet: {name: other, open: true, serve: (*Handler).readiness}},
		"/metrics":                       {http.MethodGet: {name: other, serve: (*Handler).metrics}},
	}
}

// Operations are the names that Options.Observe is told, but for "other",
// sorted: for whoever counts requests by them.
func Operations() (names []string) {
	for _, methods := range routes() {
		for _, op := range methods {
			if op.name != other {
				names = append(names, op.name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// target is where a request leads.
type target struct {
	operation operation
	user      string   // empty where there is none in the path
	problem   *problem // why there is no operation, or not for this user
	allow     string   // the methods that there are, if that is the problem
}

// find looks at method and path only.
func (h *Handler) find(r *http.Request) target {
	path, segment := pattern(rawPath(r.URL))
	methods := h.routes[path]
	if methods == nil {
		return target{operation: unknown, problem: notFound}
	}
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	op, ok := methods[method]
	if !ok {
		allow := allowed(methods)
		return target{operation: unknown, allow: allow,
			problem: plain(http.StatusMethodNotAllowed, "This resource takes "+allow+".")}
	}
	t := target{operation: op}
	if strings.Contains(path, "{user}") {
		t.user, t.problem = userName(segment)
	}
	return t
}

func allowed(methods map[string]operation) string {
	var list []string
	for method := range methods {
		list = append(list, method)
		if method == http.MethodGet {
			list = append(list, http.MethodHead)
		}
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

// rawPath returns the path as the client sent it. url.URL.EscapedPath would
// encode anew what holds a character that it would have encoded, with %2F
// taken for a slash.
func rawPath(u *url.URL) string {
	if u.RawPath != "" {
		return u.RawPath
	}
	return u.EscapedPath()
}

// pattern turns a path into one that routes knows, and returns the segment
// that stands for {user}. A user is exactly one segment.
func pattern(path string) (known, user string) {
	rest, below := strings.CutPrefix(path, registrations+"/")
	if !below {
		if strings.Contains(path, "{") {
			return "", "" // no path that a client sends is a pattern
		}
		return path, ""
	}
	user, more, deeper := strings.Cut(rest, "/")
	switch {
	case !deeper:
		return registrations + "/{user}", user
	case more == "verify":
		return registrations + "/{user}/verify", user
	}
	return "", ""
}

// userName decodes a path's segment, and refuses what must not reach Dovecot.
func userName(segment string) (string, *problem) {
	user, err := url.PathUnescape(segment)
	if err == nil {
		err = imapmeta.CheckUser(user)
	}
	if err != nil {
		return "", badUser(err)
	}
	return user, nil
}
