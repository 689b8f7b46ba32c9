package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"dovepush/config"
	"dovepush/internal/dovecot"
	"dovepush/registry"
)

// What goes wrong around a running service, on real Dovecots. Each test ends
// with every acknowledged wish carried out, as Dovecot and the registry tell:
// see settles.

// Stopped for a while, Dovecot is left alone but for probes, and gets
// everything that was asked for meanwhile when it is back.
func TestServiceOutlivesAStopOfDovecot(t *testing.T) {
	everyWay(t, dovecot.Options{Users: numbered(100)}, func(t *testing.T, w *site) {
		ws := newWishes()
		w.more(impatient)
		r := w.start()
		for _, u := range names(100)[:50] {
			r.wish(ws, u, u)
		}
		w.settles(ws)
		if err := w.s.Stop(t.Context()); err != nil {
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
		if err := w.s.Restart(t.Context()); err != nil {
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
	everyWay(t, dovecot.Options{Users: numbered(30)}, func(t *testing.T, w *site) {
		ws := newWishes()
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
				err = w.s.UnsetEntry(t.Context(), u)
			case 1:
				err = os.Remove(w.s.AttributeFile(u))
			case 2: // a new mailbox has no entry
				err = os.RemoveAll(filepath.Join(w.s.MailDir(u), "Maildir"))
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
		if err := w.s.UnsetEntry(t.Context(), "u0003"); err != nil {
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
	everyWay(t, dovecot.Options{Users: numbered(60)}, func(t *testing.T, w *site) {
		ws := newWishes()
		words := map[string]string{config.ConnectorIMAP: "Internal error occurred", config.ConnectorDoveadm: "exitCode 75"}[w.connector]
		w.more(impatient)
		r := w.start()
		for _, u := range names(40) {
			r.wish(ws, u, u)
		}
		w.settles(ws)
		for _, u := range names(30) { // the dict is replaced by a new file
			if err := os.Chmod(w.s.MailDir(u), 0o555); err != nil {
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
				if locked && (row.Error == nil || row.Error.Kind != "retry" || !strings.Contains(row.Error.Message, words)) {
					return fmt.Errorf("%+v, %+v", row, row.Error)
				}
				if !locked && (row.State != registry.Registered || row.Error != nil) {
					return fmt.Errorf("%+v, %+v", row, row.Error)
				}
			}
			return nil
		})
		for _, u := range names(30) {
			if err := os.Chmod(w.s.MailDir(u), 0o755); err != nil {
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
