package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dovepush/internal/dovecot"
	"dovepush/internal/dovecot/dovecottest"
	"dovepush/registry"
)

// What goes wrong around a running service, on real Dovecots. Each test ends
// with every acknowledged wish carried out, as Dovecot and the registry tell:
// see settles.

// both runs f on either Dovecot, at the same time where there is room.
func both(t *testing.T, o dovecot.Options, f func(t *testing.T, s *dovecot.Server)) {
	t.Parallel()
	for _, version := range dovecot.Versions() {
		t.Run(string(version), func(t *testing.T) {
			t.Parallel()
			o := o
			o.Version = version
			f(t, dovecottest.Start(t, o))
		})
	}
}

// names are those of n users.
func names(n int) (list []string) {
	for i := range n {
		list = append(list, fmt.Sprintf("u%04d", i))
	}
	return list
}

// numbered are n users.
func numbered(n int) (users []dovecot.User) {
	for _, name := range names(n) {
		users = append(users, dovecot.User{Name: name, Password: "x"})
	}
	return users
}

// wishes are what was asked of the service, and so what is right in the end:
// for each user one value, or several as long as the service did not
// acknowledge which. "" stands for no entry.
type wishes struct {
	mu    sync.Mutex
	right map[string][]string
	now   func() time.Time // the service's clock
}

func newWishes() *wishes { return &wishes{right: make(map[string][]string), now: time.Now} }

func (ws *wishes) note(user, value string, acknowledged bool) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	before, known := ws.right[user]
	switch {
	case acknowledged:
		ws.right[user] = []string{value}
	case known:
		ws.right[user] = append(before, value)
	default:
		ws.right[user] = []string{"", value}
	}
}

// wish asks the service for a user's entry to notify for identity, or for none
// if identity is empty. It returns whether that was acknowledged, and notes it.
func (r *running) wish(ws *wishes, user, identity string) (acknowledged bool) {
	method, body, value := "DELETE", "", ""
	if identity != "" {
		method, value = "PUT", "user="+identity
		text, err := json.Marshal(map[string]string{"identity": identity})
		if err != nil {
			r.t.Error(err)
			return false
		}
		body = string(text)
	}
	status, answer, ok := r.request(method, "/v1/registrations/"+url.PathEscape(user), body)
	if ok && status != http.StatusOK && status != http.StatusAccepted && status != http.StatusNoContent {
		r.t.Errorf("%s %s: %d %s", method, user, status, answer)
		ok = false
	}
	ws.note(user, value, ok)
	return ok
}

// settles waits until every acknowledged wish is carried out, in the registry
// and in Dovecot, and nothing else is left to do.
func (w *site) settles(ws *wishes) {
	w.t.Helper()
	eventually(w.t, "every registration right", func() error { return w.right(ws) })
	// A removal in doubt is looked at now and then, and is due for a moment.
	eventually(w.t, "nothing left to do", func() error {
		var sum tally
		out := w.run(0, "status", "--json")
		if err := json.Unmarshal([]byte(out), &sum); err != nil {
			return err
		}
		if len(sum.Circuits) > 0 || sum.Due > 0 || sum.States[registry.Failed]+sum.States[registry.Conflict]+sum.States[registry.Pending] > 0 {
			return errors.New(out)
		}
		return nil
	})
	w.run(0, "status")
}

func (w *site) right(ws *wishes) error {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	rows := make(map[string]registry.Registration)
	for _, row := range w.rows() {
		rows[row.User] = row
	}
	var users []string
	for user, right := range ws.right {
		users = append(users, user)
		row, found := rows[user]
		switch {
		case !found && slices.Contains(right, ""):
			continue
		case !found:
			return fmt.Errorf("%s is lost, want %q", user, right)
		case row.ClaimedBy != "":
			return fmt.Errorf("%s is claimed by %s", user, row.ClaimedBy)
		case row.Wanted == registry.Absent && slices.Contains(right, ""):
			// The entry is gone. The row stays for as long as Dovecot may still
			// carry out a write that it did not answer.
			if row.State != registry.Removing || row.Error == nil || !strings.Contains(row.Error.Message, "may still come through") ||
				!row.DoubtUntil.After(ws.now()) {
				return fmt.Errorf("%s is not unregistered: %+v, %+v", user, row, row.Error)
			}
		case row.Wanted == registry.Absent || row.State != registry.Registered || row.Error != nil || !slices.Contains(right, row.Value):
			return fmt.Errorf("%s should be %q: %+v, %+v", user, right, row, row.Error)
		case !row.NextAt.After(ws.now()):
			return fmt.Errorf("%s is due", user)
		}
	}
	if len(rows) > len(users) {
		return fmt.Errorf("%d registrations of %d users", len(rows), len(users))
	}
	entries, err := w.entries(users)
	if err != nil {
		return err
	}
	for _, user := range users {
		want := ""
		if row := rows[user]; row.Wanted == registry.Present {
			want = row.Value
		}
		if entries[user] != want {
			return fmt.Errorf("the entry of %s holds %q, want %q", user, entries[user], want)
		}
	}
	return nil
}

// entries asks doveadm what many users' entries hold; "" is none.
func (w *site) entries(users []string) (map[string]string, error) {
	values := make(map[string]string, len(users))
	for page := range slices.Chunk(users, 200) {
		var commands [][]any
		for _, user := range page {
			commands = append(commands, []any{"mailboxMetadataGet", map[string]any{"user": user, "mailbox": "", "allowEmptyMailboxName": true,
				"key": "/private/vendor/vendor.dovecot/http-notify"}, user})
		}
		body, err := json.Marshal(commands)
		if err != nil {
			return nil, err
		}
		request, err := http.NewRequestWithContext(w.t.Context(), "POST", w.s.DoveadmURL, bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		request.Header.Set("Content-Type", "application/json")
		request.Header.Set("Authorization", "X-Dovecot-API "+base64.StdEncoding.EncodeToString([]byte(w.s.APIKey)))
		request.Close = true
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return nil, err
		}
		raw, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil {
			return nil, err
		}
		var replies [][3]json.RawMessage
		if err := json.Unmarshal(raw, &replies); err != nil || len(replies) != len(page) {
			return nil, fmt.Errorf("doveadm: %d replies for %d users, %w: %.300s", len(replies), len(page), err, raw)
		}
		for i, reply := range replies {
			var got []struct{ Value string }
			if err := json.Unmarshal(reply[1], &got); err != nil || len(got) != 1 {
				return nil, fmt.Errorf("doveadm says of %s: %s", page[i], reply[1])
			}
			values[page[i]] = got[0].Value
		}
	}
	return values, nil
}

// says waits until the service has logged a text so many times.
func (r *running) says(text string, times int) {
	r.t.Helper()
	eventually(r.t, "the service says "+text, func() error {
		if n := strings.Count(r.log.String(), text); n < times {
			return fmt.Errorf("said %d times, want %d", n, times)
		}
		return nil
	})
}

// relay stands between dovepush and Dovecot, and shows each line before it is
// passed on. see may block until ctx is over; if it returns false, the
// connection is cut.
func relay(t *testing.T, to string, see func(ctx context.Context, connection int, fromDovecot bool, line string) bool) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); l.Close(); wg.Wait() })
	wg.Go(func() {
		for n := 0; ; n++ {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				client.Close()
				continue
			}
			context.AfterFunc(ctx, func() { client.Close(); server.Close() })
			pass := func(from, to net.Conn, fromDovecot bool) {
				defer to.(*net.TCPConn).CloseWrite()
				lines := bufio.NewReader(from)
				for {
					line, err := lines.ReadString('\n')
					if line != "" && !see(ctx, n, fromDovecot, line) {
						from.Close()
						return
					}
					if _, err2 := io.WriteString(to, line); err != nil || err2 != nil {
						return
					}
				}
			}
			wg.Go(func() { pass(client, server, false) })
			wg.Go(func() { pass(server, client, true); client.Close(); server.Close() })
		}
	})
	return l.Addr().String()
}

// A hold keeps replies back while it is shut.
type hold struct {
	mu   sync.Mutex
	open chan struct{} // closed while open
	held chan struct{} // has something for each reply that is kept back
}

// holding makes a relay that keeps back the reply lines that begin so.
func holding(t *testing.T, to, prefix string) (address string, h *hold) {
	h = &hold{open: make(chan struct{}), held: make(chan struct{}, 10_000)}
	close(h.open)
	return relay(t, to, func(ctx context.Context, _ int, fromDovecot bool, line string) bool {
		if !fromDovecot || !strings.HasPrefix(line, prefix) {
			return true
		}
		h.mu.Lock()
		open := h.open
		h.mu.Unlock()
		select {
		case <-open:
			return true
		default:
		}
		h.held <- struct{}{}
		select {
		case <-open:
			return true
		case <-ctx.Done():
			return false
		}
	}), h
}

func (h *hold) shut()    { h.mu.Lock(); defer h.mu.Unlock(); h.open = make(chan struct{}) }
func (h *hold) release() { h.mu.Lock(); defer h.mu.Unlock(); close(h.open) }

// Stopped for a while, Dovecot is left alone but for probes, and gets
// everything that was asked for meanwhile when it is back.
func TestServiceOutlivesAStopOfDovecot(t *testing.T) {
	both(t, dovecot.Options{Users: numbered(100)}, func(t *testing.T, s *dovecot.Server) {
		w, ws := newSite(t, s), newWishes()
		w.more(impatient)
		r := w.start()
		for _, u := range names(100)[:50] {
			r.wish(ws, u, u)
		}
		w.settles(ws)
		if err := s.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		for i, u := range names(100) {
			switch {
			case i >= 50:
				r.wish(ws, u, u)
			case i%3 == 0:
				r.wish(ws, u, "")
			case i%3 == 1:
				r.wish(ws, u, "new "+u)
			}
		}
		r.says("nobody else is tried", 1)
		r.says("still fails for everybody", 2)
		if out := w.run(0, "status"); !strings.Contains(out, "fails for everybody") || !strings.Contains(out, "connection refused") {
			t.Errorf("status says %s", out)
		}
		if err := s.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.settles(ws)
		r.says("server works again", 1)
		r.stop()
	})
}

// master returns the process id of Dovecot's master.
func (w *site) master() int {
	w.t.Helper()
	text, err := os.ReadFile(filepath.Join(w.s.Dir, "run", "master.pid"))
	if err != nil {
		w.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		w.t.Fatal(err)
	}
	return pid
}

// reload gives Dovecot other settings, which need not work.
func (w *site) reload(settings string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.s.Dir, "dovecot.conf"), []byte(settings), 0o600); err != nil {
		w.t.Fatal(err)
	}
	if err := syscall.Kill(w.master(), syscall.SIGHUP); err != nil {
		w.t.Fatal(err)
	}
}

// signalAuth sends a signal to Dovecot's authentication service.
func (w *site) signalAuth(signal syscall.Signal) {
	w.t.Helper()
	master, sent := strconv.Itoa(w.master()), 0
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, path := range stats {
		stat, _ := os.ReadFile(path) // it may have ended
		name, rest, _ := strings.Cut(string(stat), ") ")
		fields := strings.Fields(rest)
		if _, comm, _ := strings.Cut(name, " ("); comm != "auth" || len(fields) < 2 || fields[1] != master {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err == nil {
			err = syscall.Kill(pid, signal)
		}
		if err != nil {
			w.t.Fatal(err)
		}
		sent++
	}
	if sent == 0 {
		w.t.Fatal("no auth process")
	}
}

// Dovecot greets, or not, and can let nobody in.
func TestServiceOutlivesAnOutageOfAuthentication(t *testing.T) {
	for what, c := range map[string]struct {
		begin, end func(w *site, settings string)
		said       string // by Dovecot, or of it
	}{
		"cannot start": {
			func(w *site, settings string) {
				w.reload(settings + "\nservice auth {\n  executable = /bin/false\n}\n")
			},
			func(w *site, settings string) { w.reload(settings) },
			"Auth process broken",
		},
		"hangs": {
			func(w *site, settings string) { w.signalAuth(syscall.SIGSTOP) },
			func(w *site, settings string) { w.signalAuth(syscall.SIGCONT) },
			"no answer within 2s",
		},
	} {
		t.Run(what, func(t *testing.T) {
			both(t, dovecot.Options{Users: numbered(60)}, func(t *testing.T, s *dovecot.Server) {
				w, ws := newSite(t, s), newWishes()
				w.write("config.toml", strings.Replace(w.read("config.toml"), `timeout = "20s"`, `timeout = "2s"`, 1))
				w.more(impatient)
				r := w.start()
				for _, u := range names(30) {
					r.wish(ws, u, u)
				}
				w.settles(ws)
				settings, err := os.ReadFile(filepath.Join(s.Dir, "dovecot.conf"))
				if err != nil {
					t.Fatal(err)
				}
				c.begin(w, string(settings))
				for i, u := range names(60) {
					switch {
					case i >= 30:
						r.wish(ws, u, u)
					case i%3 == 0:
						r.wish(ws, u, "")
					case i%3 == 1:
						r.wish(ws, u, "new "+u)
					}
				}
				r.says(c.said, 3)
				c.end(w, string(settings))
				w.settles(ws)
				r.stop()
			})
		})
	}
}

// Dovecot serves fewer at once than dovepush sends, and one user has as many
// connections as he may have.
func TestServiceGetsByWithFewIMAPProcesses(t *testing.T) {
	const few = `
mail_max_userip_connections = 1
service imap {
  process_min_avail = 0
  process_limit = 2
}
`
	o := dovecot.Options{Users: numbered(200), Extra: map[dovecot.Version]string{dovecot.V23: few, dovecot.V24: few}}
	both(t, o, func(t *testing.T, s *dovecot.Server) {
		w, ws := newSite(t, s), newWishes()
		w.more(impatient)
		mailbox, err := net.Dial("tcp", s.IMAP)
		if err != nil {
			t.Fatal(err)
		}
		defer mailbox.Close()
		if _, err := io.WriteString(mailbox, "a LOGIN u0000 x\r\n"); err != nil {
			t.Fatal(err)
		}
		replies := bufio.NewReader(mailbox)
		for line := ""; !strings.HasPrefix(line, "a "); {
			if line, err = replies.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
		r := w.start()
		r.wish(ws, "u0000", "u0000")
		r.says("mail_max_userip_connections", 1)
		for _, u := range names(200) {
			r.wish(ws, u, u)
		}
		eventually(t, "everybody but u0000", func() error {
			states := map[registry.State]int{}
			for _, row := range w.rows() {
				states[row.State]++
			}
			if states[registry.Registered] != 199 || states[registry.Pending] != 1 {
				return fmt.Errorf("%v", states)
			}
			return nil
		})
		if !strings.Contains(s.Log(), "process_limit") {
			t.Error("the limit was never reached")
		}
		mailbox.Close()
		w.settles(ws)
		r.stop()
	})
}

// Whatever becomes of an entry behind the service's back, the next look mends
// it, and no look is later than verify_every.
func TestServiceMendsWhatDrifted(t *testing.T) {
	both(t, dovecot.Options{Users: numbered(30)}, func(t *testing.T, s *dovecot.Server) {
		w, ws := newSite(t, s), newWishes()
		w.write("config.toml", "verify_every = \"1h\"\n"+w.read("config.toml"))
		w.more(impatient)
		r := w.start()
		for _, u := range names(30) {
			r.wish(ws, u, u)
		}
		w.settles(ws)
		for i, u := range names(30) {
			var err error
			switch i % 4 {
			case 0:
				err = s.UnsetEntry(t.Context(), u)
			case 1:
				err = os.Remove(s.AttributeFile(u))
			case 2: // a new mailbox has no entry
				err = os.RemoveAll(filepath.Join(s.MailDir(u), "Maildir"))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := w.right(ws); err == nil {
			t.Fatal("nothing drifted")
		}
		settings := w.read("config.toml")
		verifyEvery := func(d string) {
			w.write("config.toml", strings.Replace(settings, "1h", d, 1))
			r.signal(syscall.SIGHUP)
		}
		verifyEvery("3s")
		r.says("the entry had drifted, mended", 23)
		if err := s.UnsetEntry(t.Context(), "u0003"); err != nil {
			t.Fatal(err)
		}
		r.says("the entry had drifted, mended", 24)
		verifyEvery("1h")
		w.settles(ws)
		r.stop()
	})
}

// Users whose attributes cannot be written hold nobody up, and get their
// entries when they can.
func TestServiceOutlivesAReadOnlyDict(t *testing.T) {
	both(t, dovecot.Options{Users: numbered(60)}, func(t *testing.T, s *dovecot.Server) {
		w, ws := newSite(t, s), newWishes()
		w.more(impatient)
		r := w.start()
		for _, u := range names(40) {
			r.wish(ws, u, u)
		}
		w.settles(ws)
		for _, u := range names(30) { // the dict is replaced by a new file
			if err := os.Chmod(s.MailDir(u), 0o555); err != nil {
				t.Fatal(err)
			}
		}
		for i, u := range names(60) {
			if i%2 == 0 && i < 30 {
				r.wish(ws, u, "")
			} else {
				r.wish(ws, u, "new "+u)
			}
		}
		eventually(t, "those who can be written are, the others wait", func() error {
			for _, row := range w.rows() {
				locked := row.User < "u0030"
				if locked && (row.Error == nil || row.Error.Kind != "retry" || !strings.Contains(row.Error.Message, "Internal error occurred")) {
					return fmt.Errorf("%+v, %+v", row, row.Error)
				}
				if !locked && (row.State != registry.Registered || row.Error != nil) {
					return fmt.Errorf("%+v, %+v", row, row.Error)
				}
			}
			return nil
		})
		for _, u := range names(30) {
			if err := os.Chmod(s.MailDir(u), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		w.settles(ws)
		r.stop()
	})
}

// A service that is stopped while Dovecot hangs ends in time, and the next one
// does what was left.
func TestServiceStopsWhileDovecotHangs(t *testing.T) {
	both(t, dovecot.Options{Users: numbered(40)}, func(t *testing.T, s *dovecot.Server) {
		w, ws := newSite(t, s), newWishes()
		address, h := holding(t, s.IMAP, "* METADATA")
		w.settings(address)
		w.write("config.toml", strings.Replace(w.read("config.toml"), `timeout = "20s"`, `timeout = "5m"`, 1)) // far longer than the drain
		w.more(impatient)
		r := w.start()
		for _, u := range names(20) {
			r.wish(ws, u, u)
		}
		w.settles(ws)
		h.shut()
		for i, u := range names(40) {
			if i%2 == 0 && i < 20 {
				r.wish(ws, u, "")
			} else {
				r.wish(ws, u, "new "+u)
			}
		}
		for range 16 {
			<-h.held
		}
		r.signal(syscall.SIGTERM)
		eventually(t, "the service ends", func() error { // far sooner than Dovecot is given up
			select {
			case <-r.ended:
				return r.err
			default:
				return errNotYet
			}
		})
		for _, row := range w.rows() {
			if row.ClaimedBy != "" {
				t.Errorf("%s is claimed by %s", row.User, row.ClaimedBy)
			}
		}
		h.release()
		r = w.start()
		w.settles(ws)
		r.stop()
	})
}

// One Dovecot that hangs does not hold up another's users.
func TestAHungDovecotHoldsUpNobodyElse(t *testing.T) {
	var users []dovecot.User
	for _, name := range names(40) {
		users = append(users, dovecot.User{Name: name + "@hangs.example", Password: "x"}, dovecot.User{Name: name + "@works.example", Password: "x"})
	}
	both(t, dovecot.Options{Users: users}, func(t *testing.T, s *dovecot.Server) {
		w := newSite(t, s)
		address, h := holding(t, s.IMAP, "* METADATA")
		settings := w.read("config.toml")
		server, registryPart, _ := strings.Cut(strings.Replace(settings, `timeout = "20s"`, `timeout = "5m"`, 1), "[registry]")
		second := strings.Replace(server, s.IMAP, address, 1)
		w.write("config.toml", strings.Replace(server, "[[server]]", "[[server]]\nname = \"works\"\ndomains = [\"works.example\"]", 1)+
			strings.Replace(second, "[[server]]", "[[server]]\nname = \"hangs\"\ndomains = [\"hangs.example\"]", 1)+"[registry]"+registryPart)
		w.more(impatient)
		r, ws := w.start(), newWishes()
		register := func(names []string) {
			for _, name := range names {
				r.wish(ws, name+"@hangs.example", name)
				r.wish(ws, name+"@works.example", name)
			}
		}
		register(names(10))
		w.settles(ws)
		h.shut()
		register(names(40)[10:])
		for range 16 { // all connections
			<-h.held
		}
		eventually(t, "the users of the Dovecot that works", func() error {
			n := 0
			for _, row := range w.rows() {
				if row.Server == "works" && row.State == registry.Registered && row.ClaimedBy == "" {
					n++
				}
			}
			if n != 40 {
				return fmt.Errorf("%d are registered", n)
			}
			return nil
		})
		for _, row := range w.rows() {
			if row.Server == "hangs" && row.User >= "u0010" && row.State != registry.Pending {
				t.Errorf("%s is %s while Dovecot hangs", row.User, row.State)
			}
		}
		h.release()
		w.settles(ws)
		r.stop()
	})
}

// A server that hangs, or breaks off, at the login has not shown that the password is right.
func TestAnOutageOfAuthenticationDoesNotHideAWrongPassword(t *testing.T) {
	both(t, dovecot.Options{Users: numbered(60)}, func(t *testing.T, s *dovecot.Server) {
		w, ws := newSite(t, s), newWishes()
		w.write("config.toml", strings.Replace(w.read("config.toml"), `timeout = "20s"`, `timeout = "2s"`, 1))
		w.more(impatient)
		w.write("master.secret", "wrong\n")
		r := w.start("--log-level", "debug")
		for _, u := range names(60) {
			r.wish(ws, u, u)
		}
		r.says("still fails for everybody", 2)
		w.signalAuth(syscall.SIGSTOP)
		before := strings.Count(r.log.String(), "no answer within 2s")
		r.says("no answer within 2s", before+2)
		w.signalAuth(syscall.SIGCONT)
		if strings.Contains(r.log.String(), "server works again") {
			t.Error("the service took a hung login for one that worked")
		}
		w.write("master.secret", s.MasterPassword+"\n")
		w.settles(ws)
		r.stop()
	})
}
