// Package api is the HTTP API of "dovepush serve": JSON over HTTP, with RFC
// 9457 problem details for everything that is refused.
//
// It is a handler and the settings of a server for it. It opens no listener,
// touches no mailbox, and decides nothing about an entry: a request becomes an
// [agent.Request], and what is known comes from the registry. openapi.json
// beside this file is the contract; the tests hold every answer against it.
//
// Usual order of calls: [New], [Server], then Serve on the listeners of the
// service; on reload Options.Token gives the new token; on stop Options.Stopping
// ends, so that whoever waits is answered, and then Shutdown.
package api

import (
	"context"
	"iter"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"dovepush/agent"
	"dovepush/registry"
)

// Agent carries out requests. [*agent.Agent] is one.
type Agent interface {
	// Submit makes what should be out of one request, durably, before it
	// returns, and has it carried out soon. It returns the row as it is
	// afterwards; its zero value if there is none.
	Submit(ctx context.Context, r agent.Request) (registry.Registration, error)
	// Await waits until a submitted request has been worked on, by whomever,
	// the server's circuit is found open, or ctx is over. It returns the row as
	// it is then, and whether there still is one; an open circuit or the end of
	// ctx is no error.
	Await(ctx context.Context, submitted registry.Registration) (reg registry.Registration, found bool, err error)
}

// Registry is what is read of the registry. [*registry.Registry] is one.
type Registry interface {
	Lookup(ctx context.Context, user string) ([]registry.Registration, error)
	List(ctx context.Context, f registry.Filter) iter.Seq2[registry.Registration, error]
}

// Options says what a Handler works with. Agent and Registry must be given.
type Options struct {
	Agent    Agent
	Registry Registry
	// Route names the server of a user, whose row is shown if he has several.
	// Optional: without it, or if he has no row there, it is the first by name.
	Route func(user string) (server string, ok bool)
	// Token returns the bearer token, and whether one is required: over TCP it
	// is, on a UNIX socket the file's mode decides who may. It is asked for
	// each request. Optional: without it no token is required.
	Token func() (token string, required bool)
	// Notifications tells of what Dovecot notifies of. Optional: without it
	// there is nothing to watch.
	Notifications Notifications
	// Plain returns an identity of the registry without its signature, as
	// notifications name it. Optional: without it identities are not signed.
	Plain func(identity string) string
	// Healthy fails if the process does not turn its wheels any more, Ready if
	// it cannot take registrations now; Ready's context ends after 5 seconds.
	// Anybody may ask, without a token, and gets the errors' text, so there
	// should be no path in it. Optional: without them all is well.
	Healthy func() error
	Ready   func(ctx context.Context) error
	// Metrics answers GET /metrics. Optional: without it there is no such page.
	Metrics http.Handler
	// Stopping is over when the service stops: who waits for an outcome is
	// answered without it. Optional.
	Stopping context.Context
	// Observe is told of each request that was answered: which operation (one
	// of Operations, or "other"), with which status, and how long it took.
	// Optional.
	Observe func(operation string, status int, took time.Duration)
	// Log gets what went wrong on our side, once, in full. Optional.
	Log *slog.Logger
}

const (
	// maxWaiting bounds the requests that wait for their outcome at the same
	// time. What comes beyond is answered at once, as if it had not asked.
	maxWaiting = 1024
	// readyTime is how long Options.Ready may take.
	readyTime = 5 * time.Second
)

// Handler answers the API's requests. It may be used by many goroutines at once.
type Handler struct {
	options Options
	routes  map[string]map[string]operation
	waiting chan struct{} // holds one for each request that waits
}

// New returns a Handler.
func New(o Options) *Handler {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Token == nil {
		o.Token = func() (string, bool) { return "", false }
	}
	if o.Route == nil {
		o.Route = func(string) (string, bool) { return "", false }
	}
	if o.Stopping == nil {
		o.Stopping = context.Background()
	}
	if o.Plain == nil {
		o.Plain = func(identity string) string { return identity }
	}
	if o.Observe == nil {
		o.Observe = func(string, int, time.Duration) {}
	}
	return &Handler{options: o, routes: routes(), waiting: make(chan struct{}, maxWaiting)}
}

// ServeHTTP answers one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	a := &answer{ResponseWriter: w}
	t := h.find(r)
	defer func() {
		if v := recover(); v != nil {
			// net/http would write it to Server.ErrorLog, which is for what
			// clients do wrong.
			if v != http.ErrAbortHandler {
				h.options.Log.Error("api: panic", "operation", t.operation.name, "panic", v, "stack", string(debug.Stack()))
			}
			if a.status != 0 {
				h.options.Observe(t.operation.name, http.StatusInternalServerError, time.Since(began))
				panic(http.ErrAbortHandler) // the client must not take half an answer for a whole one
			}
			a.problem(internalProblem)
		}
		h.options.Observe(t.operation.name, a.status, time.Since(began))
	}()
	header := a.Header()
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	if err := h.serve(a, r, t); err != nil {
		a.problem(h.problemFor(r, t, err))
	}
}

func (h *Handler) serve(w *answer, r *http.Request, t target) error {
	if !t.operation.open {
		if err := h.authorize(w, r); err != nil {
			return err
		}
	}
	if t.problem != nil {
		if t.allow != "" {
			w.Header().Set("Allow", t.allow)
		}
		return t.problem
	}
	return t.operation.serve(h, w, r, t.user)
}

// answer remembers which status was sent.
type answer struct {
	http.ResponseWriter
	status int // 0: nothing was sent yet
}

// WriteHeader sends the status.
func (a *answer) WriteHeader(status int) {
	if a.status == 0 && status >= 200 {
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

// Write sends a part of the body.
func (a *answer) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	return a.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }
