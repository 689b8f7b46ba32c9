package dovecot

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	maxNotifications    = 10_000  // kept; the oldest go first
	maxNotificationBody = 1 << 20 // bytes; the rest is cut off
	notifyPath          = "/preliminary/http-notify/v1/notify"
	notifyUser          = "dovecot"
)

// A Notification is one PUT of the ox driver.
type Notification struct {
	User    string // the login, or with Options.UserFromMetadata the identity
	Event   string // "messageNew"
	Folder  string // "INBOX"
	From    string // still encoded after RFC 2047, as Subject
	Subject string
	Snippet string
	Unseen  int

	Path       string
	Authorized bool // credentials were right; otherwise the answer was 401
	Received   time.Time
	Raw        []byte // the body
}

// A recorder is an endpoint for the ox driver that keeps what comes.
type recorder struct {
	addr, password string
	server         *http.Server
	served         chan struct{}

	mu      sync.Mutex
	kept    []Notification
	changed chan struct{} // closed and replaced at each arrival
}

func newRecorder() (*recorder, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &recorder{
		addr: l.Addr().String(), password: rand.Text(),
		served: make(chan struct{}), changed: make(chan struct{}),
	}
	r.server = &http.Server{Handler: r, ReadTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10}
	go func() {
		defer close(r.served)
		_ = r.server.Serve(l)
	}()
	return r, nil
}

func (r *recorder) url() string {
	return "http://" + notifyUser + ":" + r.password + "@" + r.addr + notifyPath
}

func (r *recorder) close() error {
	err := r.server.Close()
	<-r.served
	return err
}

// ServeHTTP keeps every PUT, also those it refuses.
func (r *recorder) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	if q.Method != http.MethodPut {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	raw, err := io.ReadAll(io.LimitReader(q.Body, maxNotificationBody))
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	user, password, _ := q.BasicAuth()
	n := Notification{
		Path: q.URL.Path, Received: time.Now(), Raw: raw,
		Authorized: user == notifyUser && subtle.ConstantTimeCompare([]byte(password), []byte(r.password)) == 1,
	}
	var body struct {
		User, Event, Folder, From, Subject, Snippet string
		Unseen                                      int
	}
	// What does not parse is kept nonetheless, in Raw.
	_ = json.Unmarshal(raw, &body)
	n.User, n.Event, n.Folder = body.User, body.Event, body.Folder
	n.From, n.Subject, n.Snippet, n.Unseen = body.From, body.Subject, body.Snippet, body.Unseen
	r.keep(n)
	if !n.Authorized {
		w.WriteHeader(http.StatusUnauthorized)
	}
}

func (r *recorder) keep(n Notification) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.kept = append(r.kept, n); len(r.kept) > maxNotifications {
		r.kept = slices.Delete(r.kept, 0, len(r.kept)-maxNotifications)
	}
	close(r.changed)
	r.changed = make(chan struct{})
}

// Notifications returns what the ox driver has sent, oldest first; at most the
// last 10,000. With Options.PushURL nothing comes here.
func (s *Server) Notifications() []Notification {
	s.notes.mu.Lock()
	defer s.notes.mu.Unlock()
	return slices.Clone(s.notes.kept)
}

// Drain returns what Notifications does and forgets it.
func (s *Server) Drain() []Notification {
	s.notes.mu.Lock()
	defer s.notes.mu.Unlock()
	kept := s.notes.kept
	s.notes.kept = nil
	return kept
}

// WaitNotification returns the first notification, among those kept and those
// to come, that match accepts. It leaves it where it is. The only error is
// ctx's.
func (s *Server) WaitNotification(ctx context.Context, match func(Notification) bool) (Notification, error) {
	r := s.notes
	for {
		r.mu.Lock()
		i := slices.IndexFunc(r.kept, match)
		if i >= 0 {
			n := r.kept[i]
			r.mu.Unlock()
			return n, nil
		}
		changed := r.changed
		r.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return Notification{}, ctx.Err()
		}
	}
}
