package api

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"strconv"
	"strings"

	"dovepush/agent"
	"dovepush/imapmeta"
	"dovepush/registry"
)

// problem is an answer other than success, as RFC 9457 has it.
type problem struct {
	Type   string        `json:"type"`
	Title  string        `json:"title"`
	Status int           `json:"status"`
	Detail string        `json:"detail,omitempty"`
	Kind   imapmeta.Kind `json:"kind,omitempty"` // whom it concerns, if that is known
}

// Error returns the detail, so that handlers can return a problem.
func (p *problem) Error() string { return p.Title + ": " + p.Detail }

// types is where openapi.json describes the problems that have a type.
const types = "/v1/openapi.json#/x-problems/"

// retryAfter is what every 503 says, in seconds. It is about what a commit
// waits for another process's lock.
const retryAfter = 20

// plain is a problem that its status says all about (RFC 9457 section 4.2.1).
func plain(status int, detail string) *problem {
	return &problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail}
}

func invalid(detail string) *problem {
	return &problem{Type: types + "invalid-request", Title: "Invalid request", Status: http.StatusBadRequest, Detail: detail}
}

func badUser(err error) *problem {
	return &problem{Type: types + "bad-user", Title: "Bad user name", Status: http.StatusBadRequest, Kind: imapmeta.User,
		Detail: "Send the name as Dovecot knows it, percent-encoded; " + err.Error() + "."}
}

func unavailable(detail string) *problem {
	return &problem{Type: types + "unavailable", Title: "Unavailable", Status: http.StatusServiceUnavailable, Kind: imapmeta.Retry, Detail: detail}
}

var (
	notFound        = plain(http.StatusNotFound, "There is nothing here; GET /v1/openapi.json describes what there is. Write a slash in a user name as %2F.")
	internalProblem = plain(http.StatusInternalServerError, "This is dovepush's fault; its log has the reason.")
	notRegistered   = &problem{Type: types + "not-registered", Title: "Not registered", Status: http.StatusNotFound, Kind: imapmeta.User,
		Detail: "This user has no registration; PUT makes one."}
	overtaken = &problem{Type: types + "overtaken", Title: "Overtaken", Status: http.StatusConflict, Kind: imapmeta.User,
		Detail: "Somebody else unregistered the user meanwhile; PUT again if he should be registered."}
	noServer = &problem{Type: types + "no-server", Title: "No server for this user", Status: http.StatusBadRequest, Kind: imapmeta.User,
		Detail: "No [[server]] in config.toml has this user's domain; correct the name or add the domain."}
)

// problemFor turns any error into a problem, and logs those that are ours.
func (h *Handler) problemFor(r *http.Request, t target, err error) *problem {
	var p *problem
	switch {
	case errors.As(err, &p):
		return p
	case errors.Is(err, agent.ErrUser):
		return badUser(err)
	case errors.Is(err, agent.ErrIdentity):
		return &problem{Type: types + "bad-identity", Title: "Bad identity", Status: http.StatusBadRequest, Kind: imapmeta.User,
			Detail: "Send another identity; " + err.Error() + "."}
	case errors.Is(err, agent.ErrNoServer):
		return noServer
	case errors.Is(err, agent.ErrNotRegistered):
		return notRegistered
	case r.Context().Err() != nil: // the client has gone, and nobody reads this
		h.options.Log.Debug("api: the client did not wait", "operation", t.operation.name, "user", t.user, "err", err)
		return unavailable("The connection ended before the answer.")
	}
	level := slog.LevelError
	if t.operation.submits && (errors.Is(err, registry.ErrFull) || errors.Is(err, registry.ErrBusy)) {
		level = slog.LevelDebug // the agent says so once, not for each request
	}
	h.options.Log.Log(r.Context(), level, "api: request failed", "operation", t.operation.name, "user", t.user, "err", err)
	return ours(err)
}

// ours says in words what is wrong on our side, without the file names that
// the whole error has.
func ours(err error) *problem {
	switch {
	case errors.Is(err, registry.ErrBusy):
		return unavailable("Another process keeps the registry locked; send the request again.")
	case errors.Is(err, registry.ErrFull):
		return unavailable("The registry's disk is full; free space there, then send the request again.")
	case errors.Is(err, fs.ErrClosed), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return unavailable("dovepush stops, or did not get to it in time; send the request again.")
	}
	p := *internalProblem
	var e *imapmeta.Error
	switch {
	case errors.As(err, &e):
		p.Kind = e.Kind
	case errors.Is(err, registry.ErrPermission):
		p.Detail = "dovepush may not write its registry; its log says to which file it needs access."
	case errors.Is(err, registry.ErrCorrupt):
		p.Detail = "The registry is damaged; dovepush's log says how to restore it."
	case errors.Is(err, registry.ErrForeign), errors.Is(err, registry.ErrNewer), errors.Is(err, fs.ErrNotExist):
		p.Detail = "The registry's file was removed or replaced; dovepush's log says what to do."
	}
	return &p
}

// problem sends p.
func (a *answer) problem(p *problem) {
	header := a.Header()
	header.Del("Content-Length")
	header.Set("Content-Type", "application/problem+json")
	if p.Status == http.StatusServiceUnavailable {
		header.Set("Retry-After", strconv.Itoa(retryAfter))
	}
	a.WriteHeader(p.Status)
	_ = encoder(a).Encode(p) // who does not read it has gone
}

// json sends v.
func (a *answer) json(status int, v any) {
	a.Header().Set("Content-Type", "application/json")
	a.WriteHeader(status)
	_ = encoder(a).Encode(v)
}

func encoder(a *answer) *json.Encoder {
	e := json.NewEncoder(a)
	e.SetEscapeHTML(false) // no browser shows it: nosniff
	return e
}

// words are those of an error that Options.Healthy or Ready returned.
func words(err error) string {
	if p := ours(err); p.Detail != internalProblem.Detail {
		return p.Detail
	}
	text := strings.ToValidUTF8(err.Error(), "?")
	const most = 500
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "..."
	}
	return text
}
