package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/tmaxmax/go-sse"

	"dovepush/imapmeta"
	"dovepush/notify"
)

// Notifications tells of notifications as they come. [*notify.Hub] is one.
type Notifications interface {
	// Subscribe fails with notify.ErrFull if there are too many already. match
	// is called for each event and must not block.
	Subscribe(match func(notify.Event) bool, size int) (*notify.Subscription, error)
}

const (
	// beat is how often a client without news gets a comment, so that proxies
	// keep the connection, and who has gone is found out.
	beat = 15 * time.Second
	// sendTime is how long a client may take to read an event.
	sendTime = 10 * time.Second
	// maxWatched bounds the users that one client may ask for.
	maxWatched = 100
)

// The types of events.
const (
	eventReady        = "ready"        // from now on nothing is missed; the data is {}
	eventNotification = "notification" // a notify.Notification
	eventRefusal      = "refusal"      // a notify.Refusal
)

// notifications sends events (https://html.spec.whatwg.org/multipage/server-sent-events.html)
// until the client goes, is too slow, or the service stops.
func (h *Handler) notifications(w *answer, r *http.Request, _ string) error {
	users, q, err := repeated(r, "user", "refusals")
	if err != nil {
		return err
	}
	refusals, err := q.boolean("refusals")
	if err != nil {
		return err
	}
	if h.options.Notifications == nil {
		return plain(http.StatusNotFound, "dovepush takes no notifications; notify.listen in config.toml is where it would.")
	}
	if len(users) > maxWatched {
		return invalid("Ask for at most 100 users, or for all.")
	}
	for _, user := range users {
		if err := imapmeta.CheckUser(user); err != nil {
			return badUser(err)
		}
	}
	filter := &filter{users: users, refusals: refusals}
	if err := filter.refresh(r.Context(), h); err != nil {
		return err
	}
	news, err := h.options.Notifications.Subscribe(filter.matches, 0)
	switch {
	case errors.Is(err, notify.ErrFull):
		return unavailable("Too many clients watch already; watch once for all users, or end another.")
	case err != nil:
		return unavailable("dovepush stops; send the request again.")
	}
	defer news.Close()
	s := stream{w, http.NewResponseController(w)}
	_ = s.control.SetReadDeadline(time.Time{}) // nothing is read any more; whether the client is there is found out by sending
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would collect events
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}
	if s.send(eventReady, struct{}{}) != nil {
		return nil
	}
	return h.pass(r.Context(), s, news, filter)
}

// pass sends what comes.
func (h *Handler) pass(ctx context.Context, s stream, news *notify.Subscription, filter *filter) error {
	alive := time.NewTicker(beat)
	defer alive.Stop()
	for {
		var err error
		select {
		case event, ok := <-news.Events():
			switch {
			case !ok: // too slow, or the service stops
				return nil
			case event.Notification != nil:
				err = s.send(eventNotification, event.Notification)
			case event.Refusal != nil:
				err = s.send(eventRefusal, event.Refusal)
			}
		case <-alive.C:
			if err := filter.refresh(ctx, h); err != nil && ctx.Err() == nil {
				h.options.Log.Warn("api: cannot look up whom a client watches; names that changed may be missing", "err", err)
			}
			err = s.comment("alive")
		case <-ctx.Done():
			return nil
		case <-h.options.Stopping.Done():
			return nil
		}
		if err != nil { // the client has gone
			return nil
		}
	}
}

// stream sends server-sent events.
type stream struct {
	w       *answer
	control *http.ResponseController
}

func (s stream) send(kind string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	m := &sse.Message{Type: sse.Type(kind)}
	m.AppendData(string(data))
	return s.write(m)
}

func (s stream) comment(text string) error {
	m := &sse.Message{}
	m.AppendComment(text)
	return s.write(m)
}

func (s stream) write(m *sse.Message) error {
	if err := s.control.SetWriteDeadline(time.Now().Add(sendTime)); err != nil {
		return err
	}
	if _, err := m.WriteTo(s.w); err != nil {
		return err
	}
	return s.control.Flush()
}

// filter is whose notifications a client wants.
type filter struct {
	users    []string // none: everybody
	refusals bool
	names    atomic.Pointer[map[string]bool] // under which Dovecot may tell of the users
}

// refresh looks up under which identities the users are registered now.
func (f *filter) refresh(ctx context.Context, h *Handler) error {
	if len(f.users) == 0 {
		return nil
	}
	names := make(map[string]bool, 2*len(f.users))
	for _, user := range f.users {
		names[user] = true
		rows, err := h.options.Registry.Lookup(ctx, user)
		if err != nil {
			return err
		}
		for _, row := range rows {
			if row.Identity != "" {
				names[h.options.Plain(row.Identity)] = true
			}
		}
	}
	f.names.Store(&names)
	return nil
}

func (f *filter) matches(e notify.Event) bool {
	switch {
	case e.Refusal != nil:
		return f.refusals
	case e.Notification == nil:
		return false
	case len(f.users) == 0:
		return true
	}
	return (*f.names.Load())[e.Notification.User]
}
