package main

import (
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"dovepush/config"
	"dovepush/internal/dovecot"
	"dovepush/internal/dovecot/dovecottest"
	"dovepush/registry"
)

func TestServiceCarriesOutWhatItIsAskedFor(t *testing.T) {
	everyWay(t, dovecot.Options{Users: []dovecot.User{{Name: "alice"}, {Name: "bob"}}}, func(t *testing.T, w *site) {
		r := w.start()
		if answer := r.ask(http.StatusOK, "PUT", "/v1/registrations/alice?wait=30s", ""); !strings.Contains(answer, `"state":"registered"`) {
			t.Error(answer)
		}
		w.entry("alice", "user=alice")
		r.ask(http.StatusAccepted, "PUT", "/v1/registrations/bob", `{"identity":"3@7"}`)
		eventually(t, "bob's entry", func() error {
			if row, _ := r.row("bob"); row.State != "registered" {
				return errNotYet
			}
			return nil
		})
		w.entry("bob", "user=3@7")
		if err := w.s.UnsetEntry(t.Context(), "bob"); err != nil {
			t.Fatal(err)
		}
		r.ask(http.StatusOK, "POST", "/v1/registrations/bob/verify?wait=30s", "")
		w.entry("bob", "user=3@7")
		r.ask(http.StatusNoContent, "DELETE", "/v1/registrations/alice?wait=30s", "")
		w.entry("alice", "")
		r.stop()
		w.entry("bob", "user=3@7") // stopping unregisters nobody
		if _, _, ok := r.request("GET", "/healthz", ""); ok {
			t.Error("somebody still answers on the socket")
		}
	})
}

func TestServiceTellsSystemdHowItFares(t *testing.T) {
	dovecottest.Each(t, dovecot.Options{Users: []dovecot.User{{Name: "alice"}}}, func(t *testing.T, s *dovecot.Server) {
		w := newSite(t, s)
		r := w.launch()
		r.told("READY=1")
		r.told("STATUS=")
		r.signal(syscall.SIGHUP)
		if state := r.told("RELOADING=1"); !strings.Contains(state, "\nMONOTONIC_USEC=") {
			t.Errorf("Type=notify-reload needs more than %q", state)
		}
		r.told("READY=1")
		r.signal(syscall.SIGTERM)
		r.told("STOPPING=1")
		if <-r.ended; r.err != nil {
			t.Error(r.err)
		}
	})
}

// Whatever NOTIFY_SOCKET names, users are served.
func TestServiceRunsAlthoughSystemdDoesNotListen(t *testing.T) {
	s := onlyOne(t)
	for what, socket := range map[string]string{
		"not there":         filepath.Join(t.TempDir(), "notify"),
		"no socket":         s.Dir,
		"nothing of a path": "nonsense",
		"too long":          "/" + strings.Repeat("x", 200),
	} {
		t.Run(what, func(t *testing.T) {
			w := newSite(t, s)
			r := w.launchWith([]string{"NOTIFY_SOCKET=" + socket})
			r.says("msg=serving", 1)
			r.ask(http.StatusOK, "PUT", "/v1/registrations/alice?wait=30s", "")
			w.entry("alice", "user=alice")
			r.signal(syscall.SIGHUP)
			r.says("settings read again", 1)
			r.ask(http.StatusNoContent, "DELETE", "/v1/registrations/alice?wait=30s", "")
			r.stop()
			if n := strings.Count(r.log.String(), "systemd does not listen"); n != 1 {
				t.Errorf("said %d times that systemd does not listen", n)
			}
		})
	}
}

func TestServiceFeedsTheWatchdog(t *testing.T) {
	t.Setenv("WATCHDOG_USEC", "200000")
	w := newSite(t, onlyOne(t))
	r := w.start()
	for range 3 {
		r.told("WATCHDOG=1")
	}
	r.stop()
}

// onlyOne starts a Dovecot of the version that is there, for what has nothing
// to do with versions.
func onlyOne(t *testing.T) *dovecot.Server {
	t.Helper()
	return dovecottest.Start(t, dovecot.Options{Version: dovecot.V23, Users: []dovecot.User{{Name: "alice"}, {Name: "bob"}}})
}

func TestReloadTakesNewSettingsAndKeepsTheOldOnesIfTheyAreWrong(t *testing.T) {
	w := newSite(t, onlyOne(t))
	r := w.start()
	r.ask(http.StatusOK, "PUT", "/v1/registrations/alice?wait=30s", "")
	good := w.read("config.toml")

	const refused = "the newest settings are wrong"
	w.write("config.toml", "identity = \"{user}@new\"\n"+good)
	if status := r.reload(); len(status) == 0 || strings.Contains(status[len(status)-1], refused) {
		t.Errorf("systemd was told %q", status)
	}
	r.ask(http.StatusOK, "PUT", "/v1/registrations/bob?wait=30s", "")
	w.entry("bob", "user=bob@new")

	wrong := 0
	for what, text := range map[string]string{
		"a key that there is not":    "bogus = 1\n" + good,
		"a secret that there is not": strings.Replace(good, "master.secret", "no.secret", 1),
		"no TOML":                    "[[[",
	} {
		w.write("config.toml", text)
		if status := r.reload(); len(status) == 0 || !strings.Contains(status[len(status)-1], refused) {
			t.Errorf("%s: systemd was told %q", what, status)
		}
		r.ask(http.StatusOK, "PUT", "/v1/registrations/alice?wait=30s", "")
		w.entry("alice", "user=alice@new")
		wrong++
		eventually(t, what+" is said", func() error { // the log comes on its own way
			if strings.Count(r.log.String(), "the old settings stay") != wrong {
				return errNotYet
			}
			return nil
		})
		r.ask(http.StatusNoContent, "DELETE", "/v1/registrations/alice?wait=30s", "")
	}
	w.write("config.toml", strings.Replace(good, "api.sock", "other.sock", 1))
	if status := r.reload(); len(status) == 0 || strings.Contains(status[len(status)-1], refused) {
		t.Errorf("systemd was told %q", status)
	}
	eventually(t, "the setting that needs a restart is named", func() error {
		if !strings.Contains(r.log.String(), `needs a restart" key=api.listen`) {
			return errNotYet
		}
		return nil
	})
	r.ask(http.StatusOK, "GET", "/readyz", "")
	r.stop()
}

// The only connection hangs: bob's. The new settings know a way around, and
// who waits for an outcome does not notice that they have changed.
func TestReloadDoesNotWaitForWhatHangs(t *testing.T) {
	s := onlyOne(t)
	w := newSite(t, s)
	address, h := holding(t, s.IMAP, "* METADATA")
	h.shut()
	w.settings(address)
	w.write("config.toml", strings.Replace(w.read("config.toml"), "[server.auth]", "max_connections = 1\n[server.auth]", 1))
	r := w.start()
	r.ask(http.StatusAccepted, "PUT", "/v1/registrations/bob", "")
	<-h.held
	done := make(chan string, 1)
	go func() {
		_, answer, _ := r.request("PUT", "/v1/registrations/alice?wait=15s", "")
		done <- string(answer)
	}()
	eventually(t, "alice's wish", func() error {
		if _, ok := r.row("alice"); !ok {
			return errNotYet
		}
		return nil
	})
	w.write("config.toml", strings.Replace(w.read("config.toml"), address, s.IMAP, 1))
	r.signal(syscall.SIGHUP)
	if answer := <-done; !strings.Contains(answer, `"state":"registered"`) {
		t.Error(answer)
	}
	w.entry("alice", "user=alice")
}

func TestSecretsAreReadAgainAtReload(t *testing.T) {
	s := onlyOne(t)
	w := newSite(t, s)
	r := w.start()
	r.ask(http.StatusOK, "PUT", "/v1/registrations/alice?wait=30s", "")
	if err := s.SetMasterPassword("changed"); err != nil {
		t.Fatal(err)
	}
	w.write("master.secret", "changed\n")
	r.reload()
	r.ask(http.StatusOK, "PUT", "/v1/registrations/bob?wait=30s", "")
	w.entry("bob", "user=bob")
	if log := r.log.String(); strings.Contains(log, "fails for everybody") || strings.Contains(log, "changed\"") {
		t.Error(log)
	}
	r.stop()
}

// Whichever of the two is first to do the work: the command's words are the same.
func TestCommandLineSaysTheSameBesideAService(t *testing.T) {
	everyWay(t, dovecot.Options{Users: []dovecot.User{{Name: "alice"}}}, func(t *testing.T, w *site) {
		r := w.start()
		for range 8 {
			for _, step := range []struct{ command, says, entry string }{
				{"register", "alice: registered\n", "user=alice"},
				{"verify", "alice: registered, nothing to do\n", "user=alice"},
				{"unregister", "alice: unregistered\n", ""},
			} {
				if text := w.run(exitOK, step.command, "alice"); text != step.says {
					t.Fatalf("%s says %q, want %q", step.command, text, step.says)
				}
				w.entry("alice", step.entry)
			}
		}
		r.stop()
	})
}

func TestCommandLineWakesTheService(t *testing.T) {
	everyWay(t, dovecot.Options{Users: []dovecot.User{{Name: "alice"}}}, func(t *testing.T, w *site) {
		r := w.start()
		w.run(exitOK, "register", "--no-wait", "alice")
		eventually(t, "alice is registered", func() error {
			if row, _ := r.row("alice"); row.State != registry.Registered {
				return errNotYet
			}
			return nil
		})
		w.entry("alice", "user=alice")
		w.run(exitOK, "register", "--expires", "1s", "alice") // now it is the service's
		eventually(t, "alice's registration has expired", func() error {
			if _, ok := r.row("alice"); ok {
				return errNotYet
			}
			return nil
		})
		w.entry("alice", "")
		w.run(exitOK, "register", "alice")
		w.run(exitOK, "unregister", "--no-wait", "alice")
		eventually(t, "alice is unregistered", func() error {
			if _, ok := r.row("alice"); ok {
				return errNotYet
			}
			return nil
		})
		w.entry("alice", "")
		r.stop()
	})
}

// From the registry alone: what is due, why nobody is tried, and that the
// service goes on as soon as a command has found the server to work.
func TestStatusTellsWhatTheServiceWaitsFor(t *testing.T) {
	everyWay(t, dovecot.Options{Users: []dovecot.User{{Name: "alice"}, {Name: "bob"}}}, func(t *testing.T, w *site) {
		w.more("[retry]\ninitial = \"1h\"\n")
		w.spoilSecret()
		r := w.start()
		w.run(exitOK, "register", "--no-wait", "alice", "bob")
		eventually(t, "the circuit is open", func() error {
			if !strings.Contains(r.log.String(), "fails for everybody") {
				return errNotYet
			}
			return nil
		})
		reason := map[string]string{config.ConnectorIMAP: "login: login refused: server says: NO [AUTHENTICATIONFAILED]",
			config.ConnectorDoveadm: "connect: " + w.s.DoveadmURL + ": API key or password refused: the server says: HTTP 401"}[w.connector]
		if text := w.run(exitOK, "status"); !regexp.MustCompile(`(?m)^main +2 +\d+s ago +1$`).MatchString(text) ||
			!strings.Contains(text, "server main fails for everybody, since ") || !strings.Contains(text, "tried once, next try in 1h:\n  "+reason) {
			t.Errorf("status:\n%s", text)
		}
		if text := w.run(exitOK, "list"); strings.Count(text, " held ") != 2 || strings.Count(text, "server: "+reason) != 2 {
			t.Errorf("list:\n%s", text)
		}
		if text := w.run(exitOK, "list", "--json"); strings.Count(text, `"circuit":{"since":"`) != 2 {
			t.Errorf("list:\n%s", text)
		}
		if text := w.run(exitOK, "status", "--json"); !strings.Contains(text, `"due":2,"retrying":1`) || !strings.Contains(text, `"circuits":{"main":{"since":"`) {
			t.Errorf("status:\n%s", text)
		}
		if n := refusals(w.s); n == 0 || n > 3 {
			t.Errorf("%d logins were refused\n%s", n, w.s.Log())
		}
		w.mendSecret()
		w.run(exitOK, "verify", "alice")
		eventually(t, "bob is registered", func() error {
			if row, _ := r.row("bob"); row.State != registry.Registered {
				return errNotYet
			}
			return nil
		})
		w.entry("bob", "user=bob")
		if text := w.run(exitOK, "status"); strings.Contains(text, "fails for everybody") {
			t.Errorf("status:\n%s", text)
		}
		r.stop()
	})
}

// systemd starts a service again that ended with 75, not one with 78.
func TestServiceWhoseRegistryWasReplacedEndsForARestart(t *testing.T) {
	w := newSite(t, onlyOne(t))
	r := w.start()
	r.ask(http.StatusOK, "PUT", "/v1/registrations/alice?wait=30s", "")
	for _, name := range []string{"registry.db", "registry.db-wal", "registry.db-shm"} {
		if err := os.Remove(filepath.Join(w.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	r.ask(http.StatusInternalServerError, "PUT", "/v1/registrations/bob", "")
	<-r.ended
	if code := r.cmd.ProcessState.ExitCode(); code != exitTemporary {
		t.Errorf("exit status %d\n%s", code, r.log)
	}
	r = w.start()
	r.ask(http.StatusOK, "PUT", "/v1/registrations/bob?wait=30s", "")
	r.stop()
}
