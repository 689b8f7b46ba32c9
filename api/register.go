package api

import (
	"context"
	"net/http"
	"time"

	"dovepush/agent"
	"dovepush/registry"
)

// register says the whole wish, as "dovepush register" does: what the body
// leaves out is the default again.
func (h *Handler) register(w *answer, r *http.Request, user string) error {
	q, err := parameters(r, "wait")
	if err != nil {
		return err
	}
	wish, err := readWish(w, r)
	if err != nil {
		return err
	}
	return h.submit(w, r, q, overtaken, agent.Request{
		Action: agent.Register, User: user, Identity: wish.identity, Expires: wish.expires, Force: wish.force})
}

// unregister is done when the row is gone, whether there was one or not.
func (h *Handler) unregister(w *answer, r *http.Request, user string) error {
	q, err := parameters(r, "force", "wait")
	if err != nil {
		return err
	}
	force, err := q.boolean("force")
	if err != nil {
		return err
	}
	if err := noBody(r); err != nil {
		return err
	}
	return h.submit(w, r, q, nil, agent.Request{Action: agent.Unregister, User: user, Force: force})
}

func (h *Handler) verify(w *answer, r *http.Request, user string) error {
	q, err := parameters(r, "wait")
	if err != nil {
		return err
	}
	if err := noBody(r); err != nil {
		return err
	}
	return h.submit(w, r, q, notRegistered, agent.Request{Action: agent.Verify, User: user})
}

// submit hands a request to the agent, waits for as long as q says, and answers
// with the row. That there is none any more is the problem gone; if gone is nil,
// it is what was asked for.
func (h *Handler) submit(w *answer, r *http.Request, q query, gone *problem, request agent.Request) error {
	wait, err := q.wait()
	if err != nil {
		return err
	}
	submitted, err := h.options.Agent.Submit(r.Context(), request)
	if err != nil {
		return err
	}
	switch o := h.outcome(r, submitted, wait); {
	case o.found:
		w.json(o.status(), o.reg)
	case gone != nil:
		return gone
	default:
		w.WriteHeader(http.StatusNoContent)
	}
	return nil
}

// outcome is what is known of a submitted request when it is answered.
type outcome struct {
	reg    registry.Registration
	found  bool // there is a row
	worked bool // the row says what came of it, or of a newer request
}

func (o outcome) status() int {
	if o.worked {
		return http.StatusOK
	}
	return http.StatusAccepted
}

// outcome waits for what comes of a request, if wait is not 0. The request is
// durable by now, so whatever keeps us from waiting, it was accepted: too many
// wait already, the service stops, the row cannot be read.
func (h *Handler) outcome(r *http.Request, submitted registry.Registration, wait time.Duration) outcome {
	accepted := outcome{reg: submitted, found: submitted.User != ""}
	if wait == 0 || !accepted.found {
		return accepted
	}
	select {
	case h.waiting <- struct{}{}:
		defer func() { <-h.waiting }()
	default:
		return accepted
	}
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	defer context.AfterFunc(h.options.Stopping, cancel)()
	reg, found, err := h.options.Agent.Await(ctx, submitted)
	if err != nil {
		if r.Context().Err() == nil {
			h.options.Log.Error("api: cannot tell what came of a request", "user", submitted.User, "server", submitted.Server, "err", err)
		}
		return accepted
	}
	return outcome{reg: reg, found: found, worked: found && agent.Worked(submitted, reg)}
}
