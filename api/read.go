package api

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"unicode/utf8"

	"dovepush/registry"
)

// openapi describes the API: OpenAPI 3.1.
//
//go:embed openapi.json
var openapi []byte

func (h *Handler) description(w *answer, _ *http.Request, _ string) error {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(openapi)
	return nil
}

// get shows one row. Of several it is the one on ?server=, else the one on the
// server that the user's domain has now, else the first by server name.
func (h *Handler) get(w *answer, r *http.Request, user string) error {
	q, err := parameters(r, "server")
	if err != nil {
		return err
	}
	rows, err := h.options.Registry.Lookup(r.Context(), user)
	if err != nil {
		return err
	}
	if len(rows) == 0 {
		return notRegistered
	}
	server, chosen := q["server"]
	if !chosen {
		server, _ = h.options.Route(user)
	}
	for _, row := range rows {
		if row.Server == server {
			w.json(http.StatusOK, row)
			return nil
		}
	}
	if chosen {
		return notRegistered
	}
	w.json(http.StatusOK, rows[0])
	return nil
}

// How many registrations a page has.
const (
	defaultLimit = 100
	maxLimit     = 1000
)

// list shows a page of the registrations, as they come from the registry: only
// one is in our hands at a time. An empty parameter counts as none.
func (h *Handler) list(w *answer, r *http.Request, _ string) error {
	q, err := parameters(r, "state", "server", "after", "limit")
	if err != nil {
		return err
	}
	filter := registry.Filter{Server: q["server"]}
	if text := q["state"]; text != "" {
		if filter.State, err = registry.ParseState(text); err != nil {
			return invalid("Write state as one of pending, registered, removing, conflict, failed.")
		}
	}
	if text := q["after"]; text != "" {
		if filter.After, err = parseCursor(text); err != nil {
			return err
		}
	}
	limit, err := q.whole("limit", defaultLimit, 1, maxLimit)
	if err != nil {
		return err
	}
	return h.page(r.Context(), w, filter, limit)
}

// page writes {"registrations": [...], "next": "..."}. Once a part of it was
// sent, an error can only break the connection off.
func (h *Handler) page(ctx context.Context, w *answer, filter registry.Filter, limit int) error {
	w.Header().Set("Content-Type", "application/json")
	buffer := bufio.NewWriterSize(w, 32<<10) // sends when it is full
	rows := json.NewEncoder(buffer)          // each on a line
	rows.SetEscapeHTML(false)
	_, _ = buffer.WriteString(`{"registrations":[`) // a bufio.Writer keeps its first error for Flush
	n, next := 0, registry.Key{}
	filter.Limit = limit + 1 // one more than is shown tells that there is more
	for row, err := range h.options.Registry.List(ctx, filter) {
		switch {
		case err != nil && w.status == 0:
			return err
		case err != nil:
			if ctx.Err() == nil {
				h.options.Log.Error("api: list broke off", "err", err)
			}
			panic(http.ErrAbortHandler)
		}
		if n == limit { // there is more
			next = filter.After
			break
		}
		if n++; n > 1 {
			_ = buffer.WriteByte(',')
		}
		if err := rows.Encode(row); err != nil {
			return nil // the client has gone
		}
		filter.After = row.Key()
	}
	_ = buffer.WriteByte(']')
	if next.User != "" {
		_, _ = buffer.WriteString(`,"next":"` + cursor(next) + `"`)
	}
	_, _ = buffer.WriteString("}\n")
	_ = buffer.Flush()
	return nil
}

// cursor names the last row of a page. Names hold no NUL: the registry sees to
// that.
func cursor(key registry.Key) string {
	return base64.RawURLEncoding.EncodeToString([]byte(key.User + "\x00" + key.Server))
}

func parseCursor(text string) (registry.Key, error) {
	bad := invalid(`Send as "after" the "next" of the page before, unchanged, or leave it out for the first page.`)
	decoded, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || strings.ContainsAny(text, "\r\n") { // which base64 overlooks
		return registry.Key{}, bad
	}
	user, server, found := strings.Cut(string(decoded), "\x00")
	if !found || !utf8.Valid(decoded) || user == "" || server == "" || strings.Contains(server, "\x00") {
		return registry.Key{}, bad
	}
	return registry.Key{User: user, Server: server}, nil
}

// health says whether the process turns its wheels.
func (h *Handler) health(w *answer, _ *http.Request, _ string) error {
	if h.options.Healthy != nil {
		if err := h.options.Healthy(); err != nil {
			return unavailable(words(err))
		}
	}
	return well(w)
}

// readiness says whether registrations can be taken now.
func (h *Handler) readiness(w *answer, r *http.Request, _ string) error {
	if h.options.Ready != nil {
		ctx, cancel := context.WithTimeout(r.Context(), readyTime)
		defer cancel()
		if err := h.options.Ready(ctx); err != nil {
			return unavailable(words(err))
		}
	}
	return well(w)
}

func well(w *answer) error {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, "ok\n")
	return nil
}

func (h *Handler) metrics(w *answer, r *http.Request, _ string) error {
	if h.options.Metrics == nil {
		return plain(http.StatusNotFound, "There are no metrics here; metrics.listen in config.toml may have them.")
	}
	h.options.Metrics.ServeHTTP(w, r)
	return nil
}
