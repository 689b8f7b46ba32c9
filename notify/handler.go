package notify

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// Options says what a Handler works with. Path and Credentials must be given.
type Options struct {
	// Path is the only path at which notifications are taken.
	Path string
	// Credentials returns the user name and password that the driver's URL
	// holds, and whether they are required. It is asked for each request.
	Credentials func() (username, password string, required bool)
	// Verify returns the name in what was sent as "user", or an error if it is
	// forged. Optional: without it names are as they were sent.
	Verify func(sent string) (name string, err error)
	// Accept makes a notification durable before Dovecot has its answer. If it
	// fails, Dovecot is told to send again, and the notification counts as not
	// seen. Its context ends after 5 seconds, and does not end when Dovecot has
	// given up: nobody may send it again. Optional.
	Accept func(ctx context.Context, n Notification) error
	// Publish is given each notification once, after its answer was written.
	// Refused is told what was refused, by anybody who can connect. Both must
	// not block. Optional.
	Publish func(n Notification)
	Refused func(r Refusal)
	// Observe is told of each request what came of it, and how long it took
	// until its answer was written, the arrival of the body included. Optional.
	Observe func(result Result, took time.Duration)
	// Now is the clock. Optional: time.Now.
	Now func() time.Time
	// Log gets what went wrong on our side, and at debug what was refused.
	// Optional.
	Log *slog.Logger
}

// acceptTime is how long Options.Accept may take. Dovecot waits for 2 s.
const acceptTime = 5 * time.Second

// Handler answers notifications. It may be used by many goroutines at once.
type Handler struct {
	options   Options
	seen      *seen
	buffers   *sync.Pool
	notKept   atomic.Bool // Accept failed the last time
	emptyBody []string
}

// New returns a Handler.
func New(o Options) *Handler {
	if o.Publish == nil {
		o.Publish = func(Notification) {}
	}
	if o.Refused == nil {
		o.Refused = func(Refusal) {}
	}
	if o.Observe == nil {
		o.Observe = func(Result, time.Duration) {}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Handler{options: o, seen: newSeen(), buffers: newBuffers(), emptyBody: []string{"0"}}
}

// ServeHTTP answers one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := h.options.Now()
	answered := false
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		// net/http would write it to Server.ErrorLog, which is for what
		// clients do wrong.
		h.options.Log.Error("notify: panic", "panic", v, "stack", string(debug.Stack()))
		if !answered {
			h.answerRefusal(w, r, began, refuse(http.StatusInternalServerError, Internal, "the log of dovepush says what went wrong"))
		}
	}()
	n, fresh, refused := h.take(w, r)
	if refused != nil {
		answered = true
		h.answerRefusal(w, r, began, refused)
		return
	}
	answered = true
	w.Header()["Content-Length"] = h.emptyBody
	w.WriteHeader(http.StatusOK)
	// What follows is not for Dovecot to wait for. Has it gone, the next
	// reading or writing finds that out.
	_ = http.NewResponseController(w).Flush()
	if !fresh {
		h.options.Observe(Duplicate, h.options.Now().Sub(began))
		return
	}
	h.options.Observe(Accepted, h.options.Now().Sub(began))
	h.options.Publish(n)
}

// take does everything that comes before the answer. Fresh is whether the
// notification is to be handed on.
func (h *Handler) take(w http.ResponseWriter, r *http.Request) (n Notification, fresh bool, refused *refusal) {
	if refused := h.check(w, r); refused != nil {
		return n, false, refused
	}
	defer occupy(r.Context())()
	body, refused := h.readBody(w, r)
	if refused != nil {
		return n, false, refused
	}
	n, err := decode(body.Bytes(), h.options.Now().UTC())
	h.giveBack(body)
	if err != nil {
		return n, false, malformed(err)
	}
	if h.options.Verify != nil {
		if n.User, err = h.options.Verify(n.Sent); err != nil {
			refused := refuse(http.StatusForbidden, Forged, "the signature of the name in user is missing or wrong")
			refused.cause = err
			return n, false, refused
		}
	}
	fresh, refused = h.accept(r.Context(), n)
	return n, fresh, refused
}

// accept finds out whether the notification is new, and if so has it made
// durable.
func (h *Handler) accept(ctx context.Context, n Notification) (fresh bool, refused *refusal) {
	k, told := n.key()
	if h.options.Accept == nil {
		return !told || h.seen.note(k), nil
	}
	accepted := false
	if told {
		switch fresh, err := h.seen.begin(ctx, k); {
		case err != nil: // Dovecot has gone while the same was under way
			return false, refuse(http.StatusServiceUnavailable, Spool, "the same notification was under way for too long")
		case !fresh:
			return false, nil
		}
		defer func() { h.seen.done(k, accepted) }() // also when Accept panics
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), acceptTime)
	defer cancel()
	err := h.options.Accept(ctx, n)
	if failed := err != nil; h.notKept.Swap(failed) != failed {
		if failed {
			h.options.Log.Error("notify: notifications cannot be kept for the webhooks; Dovecot is told to send them again", "error", err)
		} else {
			h.options.Log.Info("notify: notifications are kept for the webhooks again")
		}
	}
	if err != nil {
		return false, refuse(http.StatusServiceUnavailable, Spool, "the notification could not be kept; send it again")
	}
	accepted = true
	return true, nil
}

func (h *Handler) answerRefusal(w http.ResponseWriter, r *http.Request, began time.Time, refused *refusal) {
	header := w.Header()
	header.Set("Content-Type", "text/plain; charset=utf-8")
	header.Set("X-Content-Type-Options", "nosniff")
	if refused.reason == Spool {
		header.Set("Retry-After", "1")
	}
	switch refused.reason {
	case Forged, Spool: // the body is read
	default:
		if r.ContentLength < 0 || r.ContentLength > maxUnread {
			header.Set("Connection", "close") // or net/http reads on before it answers
		}
	}
	w.WriteHeader(refused.status)
	_, _ = w.Write([]byte("dovepush: " + refused.detail + ".\n"))
	at := h.options.Now()
	remote, _, _ := net.SplitHostPort(r.RemoteAddr)
	log := h.options.Log.With("reason", string(refused.reason), "remote", remote)
	if refused.cause != nil {
		log = log.With("error", refused.cause)
	}
	log.Debug("notify: refused: " + refused.detail)
	h.options.Observe(refused.reason.result(), at.Sub(began))
	h.options.Refused(Refusal{At: at.UTC(), Remote: remote, Status: refused.status, Reason: refused.reason, Detail: refused.detail})
}
