package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dovepush/agent"
	"dovepush/config"
	"dovepush/imapmeta"
	"dovepush/internal/dovecot"
	"dovepush/registry"
)

// turns records when dovepush was at work on whom, as seen between it and
// Dovecot: from the login to the last answer.
type turns struct {
	mu       sync.Mutex
	sessions map[int]*session
}

type session struct {
	user       string
	began, end time.Time
}

// see is for relay. What it notes lies within the claim: the login is sent
// after it, and the answer comes before it is given back.
func (ts *turns) see(_ context.Context, connection int, fromDovecot bool, line string) bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	fields := strings.Fields(line)
	switch {
	case !fromDovecot && len(fields) == 4 && fields[1] == "AUTHENTICATE":
		text, _ := base64.StdEncoding.DecodeString(fields[3])
		user, _, _ := strings.Cut(string(text), "\x00")
		ts.sessions[connection] = &session{user: user, began: time.Now()}
	case fromDovecot && strings.HasPrefix(line, "T") && !strings.Contains(line, "Logout"):
		if s := ts.sessions[connection]; s != nil {
			s.end = time.Now()
		}
	}
	return true
}

// Two services on one registry by mistake, and the command line at the same
// time: everything is right, and nobody is worked on twice at once.
func TestTwoServicesAndTheCommandLineOnOneRegistry(t *testing.T) {
	both(t, dovecot.Options{Users: numbered(64)}, func(t *testing.T, s *dovecot.Server) {
		w, ws := newSite(t, s), newWishes()
		seen := &turns{sessions: make(map[int]*session)}
		w.settings(relay(t, s.IMAP, seen.see))
		twin := &site{t, s, t.TempDir(), w.connector}
		twin.write("master.secret", w.read("master.secret"))
		twin.write("config.toml", strings.Replace(w.read("config.toml"), "registry.db", filepath.Join(w.dir, "registry.db"), 1))
		r := []*running{w.start(), twin.start()}
		if out := w.run(69, "serve"); !strings.Contains(out, "is dovepush serve running already?") {
			t.Errorf("a third one printed %s", out)
		}

		var all sync.WaitGroup
		asked := make([]map[string]int, 4) // by client: how often work was asked for
		for client := range asked {
			asked[client] = make(map[string]int)
			all.Go(func() {
				for i, user := range names(64)[16*client:][:16] {
					for n := range 4 {
						identity := fmt.Sprintf("%d@%s", n, user)
						if (i+n)%5 == 0 {
							identity = ""
						}
						asked[client][user]++
						if n < 3 || i%8 > 0 {
							if !r[(client+n)%2].wish(ws, user, identity) {
								t.Errorf("%s: there was no answer", user)
							}
							continue
						}
						cmd := w.command("register", user, "--identity", identity)
						if identity == "" {
							cmd = twin.command("unregister", user)
						}
						if out, err := cmd.CombinedOutput(); err != nil {
							t.Errorf("%s: %v\n%s", cmd.Args, err, out)
						}
						value := ""
						if identity != "" {
							value = "user=" + identity
						}
						ws.note(user, value, true)
					}
					if i%8 != 3 {
						continue
					}
					asked[client][user]++
					cmd := twin.command("verify", user)
					if out, err := cmd.CombinedOutput(); err != nil && cmd.ProcessState.ExitCode() != exitNoUser {
						t.Errorf("%s: %v\n%s", cmd.Args, err, out)
					}
				}
			})
		}
		all.Wait()
		w.settles(ws)
		for _, r := range r {
			r.ask(200, "GET", "/readyz", "")
			r.stop()
			if !strings.Contains(r.log.String(), "settled") {
				t.Error("one of the services has done nothing")
			}
		}

		seen.mu.Lock()
		defer seen.mu.Unlock()
		of := make(map[string][]*session)
		for _, session := range seen.sessions {
			of[session.user] = append(of[session.user], session)
		}
		for _, asked := range asked {
			for user, times := range asked {
				sessions := of[user]
				if len(sessions) == 0 || len(sessions) > times {
					t.Errorf("%s was worked on %d times, for %d requests", user, len(sessions), times)
				}
				slices.SortFunc(sessions, func(a, b *session) int { return a.began.Compare(b.began) })
				for i := 1; i < len(sessions); i++ {
					if sessions[i].began.Before(sessions[i-1].end) {
						t.Errorf("%s was worked on twice at once, %+v and %+v", user, sessions[i-1], sessions[i])
					}
				}
			}
		}
	})
}

// due makes registrations due, as "dovepush register --no-wait" does.
func (w *site) due(users []string) {
	w.t.Helper()
	r, err := registry.Open(w.t.Context(), filepath.Join(w.dir, "registry.db"), time.Now)
	if err != nil {
		w.t.Fatal(err)
	}
	defer r.Close()
	for page := range slices.Chunk(users, 5000) {
		var intents []registry.Intent
		for _, user := range page {
			intents = append(intents, registry.Intent{Key: registry.Key{User: user, Server: "main"}, Identity: user,
				Wanted: registry.Present, Value: "user=" + user})
		}
		if err := r.Intend(w.t.Context(), intents...); err != nil {
			w.t.Fatal(err)
		}
	}
}

// With a wrong password and very many registrations due, one login at a time
// is refused, at growing intervals. The right password needs no restart.
func TestAWrongMasterPasswordIsTriedNowAndThen(t *testing.T) {
	const due = 10_000
	everyWay(t, dovecot.Options{Users: numbered(due)}, func(t *testing.T, w *site) {
		w.spoilSecret()
		w.more("[retry]\ninitial = \"200ms\"\nmax = \"1h\"\n")
		refusal := map[string]string{config.ConnectorIMAP: "AUTHENTICATIONFAILED", config.ConnectorDoveadm: "HTTP 401"}[w.connector]
		w.due(names(due))
		r := w.start("--log-level", "debug")
		refused := func() int { return refusals(w.s) }
		eventually(t, "several tries", func() error {
			if refused() < 6 {
				return errNotYet
			}
			return nil
		})
		// The last one may not have been logged yet.
		refusals := refused()
		tries := regexp.MustCompile(`level=(?:ERROR|INFO|DEBUG) msg="server (?:still )?fails for everybody.* probe=(\S+)`).FindAllStringSubmatch(r.log.String(), -1)
		if refusals > len(tries)+1 {
			t.Errorf("%d logins were refused, but the service says %d", refusals, len(tries))
		}
		// Each try comes when the one before said, at the earliest, and says for
		// twice as long that there shall be none, at least.
		var before time.Time
		for i, try := range tries {
			probe, err := time.Parse(time.RFC3339Nano, try[1])
			if err != nil {
				t.Fatal(err)
			}
			if least := 200 * time.Millisecond << i; i > 0 && probe.Sub(before) < least {
				t.Errorf("try %d puts the next one off by %s, want %s at least", i+1, probe.Sub(before), least)
			}
			before = probe
		}
		var sum tally
		if err := json.Unmarshal([]byte(w.run(0, "status", "--json")), &sum); err != nil {
			t.Fatal(err)
		}
		if sum.States[registry.Pending] != due || sum.Circuits["main"] == nil || !strings.Contains(sum.Circuits["main"].Error.Message, refusal) {
			t.Errorf("meanwhile: %+v", sum)
		}

		w.mendSecret()
		r.says("server works again", 1)
		eventually(t, "the first users are registered", func() error {
			if n := strings.Count(r.log.String(), "msg=settled"); n < 300 {
				return fmt.Errorf("%d are", n)
			}
			return nil
		})
		r.stop()
		if n := refused(); n > refusals+2 {
			t.Errorf("%d logins were refused after the password was right", n-refusals)
		}
	})
}

// Set back by an hour, the clock makes nobody wait for an hour: neither who is
// to be tried again, nor whose claim seems to last, nor who is to be verified.
func TestTheClockIsSetBack(t *testing.T) {
	both(t, dovecot.Options{Users: numbered(60)}, func(t *testing.T, s *dovecot.Server) {
		var offset atomic.Int64
		now := func() time.Time { return time.Now().Round(0).Add(time.Duration(offset.Load())) }
		w, ws := newSite(t, s), newWishes()
		ws.now = now
		address, h := holding(t, s.IMAP, "* METADATA")
		r, err := registry.Open(t.Context(), filepath.Join(w.dir, "registry.db"), now)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		client, err := imapmeta.New(imapmeta.Options{Address: address, TLS: imapmeta.TLSNone, Timeout: time.Minute, Now: now, Auth: imapmeta.Auth{
			Mechanism: imapmeta.Plain, MasterUser: s.MasterUser,
			Secret: func(context.Context, string) (string, error) { return s.MasterPassword, nil },
		}})
		if err != nil {
			t.Fatal(err)
		}
		log := new(lockedBuffer)
		const verifyEvery = 24 * time.Hour
		a, err := agent.New(agent.Options{
			Registry: r,
			Servers:  []agent.Server{{Name: "main", Entries: client, Timeout: time.Minute, MaxConnections: 16}},
			Route:    func(string) (string, bool) { return "main", true },
			Identity: func(user string) string { return user },
			Owner:    "a", Drain: time.Second, Poll: 20 * time.Millisecond,
			VerifyEvery: verifyEvery, RetryInitial: 500 * time.Millisecond, RetryMax: 5 * time.Second,
			Now: now, Random: rand.Float64, Log: slog.New(slog.NewTextHandler(log, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { a.Run(ctx) })
		defer running.Wait()
		defer stop()
		defer func() {
			if t.Failed() {
				t.Logf("the agent logged:\n%s", log)
			}
		}()
		register := func(users []string) {
			for _, user := range users {
				if _, err := a.Submit(t.Context(), agent.Request{Action: agent.Register, User: user}); err != nil {
					t.Fatal(err)
				}
				ws.note(user, "user="+user, true)
			}
		}
		settled := func(what string) {
			eventually(t, what, func() error { return w.right(ws) })
		}

		users := names(60)
		register(users[:30])
		settled("before")
		for _, user := range users[:10] {
			if err := os.Chmod(s.MailDir(user), 0o555); err != nil {
				t.Fatal(err)
			}
			if err := s.UnsetEntry(t.Context(), user); err == nil {
				t.Fatal("the directory is not read-only")
			}
			if _, err := a.Submit(t.Context(), agent.Request{Action: agent.Register, User: user, Identity: "new"}); err != nil {
				t.Fatal(err)
			}
			ws.note(user, "user=new", true)
		}
		eventually(t, "some are tried again and again", func() error {
			n := 0
			for _, row := range w.rows() {
				if row.Attempts >= 2 {
					n++
				}
			}
			if n < 10 {
				return fmt.Errorf("%d are", n)
			}
			return nil
		})
		h.shut()
		register(users[30:45])
		for range 10 {
			<-h.held // claimed, and being worked on
		}
		offset.Store(int64(-time.Hour))
		register(users[45:])
		for _, user := range users[:10] {
			if err := os.Chmod(s.MailDir(user), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		h.release()
		settled("with the clock set back")
		for _, row := range w.rows() {
			if row.NextAt.After(now().Add(verifyEvery)) {
				t.Errorf("%s is looked at only at %s", row.User, row.NextAt)
			}
		}
		if n := strings.Count(log.String(), "the clock was set"); n != 1 {
			t.Errorf("the clock was set %d times", n)
		}
		offset.Store(0)
		register(users[:5])
		w.settles(ws)
	})
}
