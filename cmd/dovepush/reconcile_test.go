package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"dovepush/config"
	"dovepush/internal/dovecot"
)

// list writes a list of users, and returns its path.
func (w *site) list(users ...string) string {
	w.t.Helper()
	w.write("users", strings.Join(users, "\n")+"\n")
	return filepath.Join(w.dir, "users")
}

// summary runs reconcile, which must exit with code, and returns its summary.
func (w *site) summary(code int, args ...string) summary {
	w.t.Helper()
	report := filepath.Join(w.dir, "report.json")
	w.run(code, append([]string{"reconcile", "--report", report}, args...)...)
	var sum summary
	if err := json.Unmarshal([]byte(w.read("report.json")), &sum); err != nil {
		w.t.Fatal(err)
	}
	sum.Seconds = 0
	return sum
}

// logins finds the logins that succeeded in a log of Dovecot 2.3 or 2.4.
func logins(log string) [][]int {
	return regexp.MustCompile(`imap-login: Info: (Login|Logged in): user=<u`).FindAllStringIndex(log, -1)
}

// looks is how often dovepush, or a test by DoveAdm, has looked at an entry.
func (w *site) looks() int {
	if w.connector == config.ConnectorIMAP {
		return len(logins(w.s.Log()))
	}
	const v24, v23 = "cmd mailbox metadata get: Executing", "Executing command 'mailbox metadata get'"
	log := w.s.Log()
	return strings.Count(log, v24) + strings.Count(log, v23)
}

// allPresent expects users' entries to be theirs.
func (w *site) allPresent(users []string) {
	w.t.Helper()
	have, err := w.entries(users)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, user := range users {
		if have[user] != "user="+user {
			w.t.Errorf("the entry of %s holds %q", user, have[user])
		}
	}
}

func TestLostRegistryIsRebuiltWithoutAWrite(t *testing.T) {
	const n = 300
	everyWay(t, dovecot.Options{Users: numbered(n)}, func(t *testing.T, w *site) {
		users := w.list(names(n)...)
		if sum := w.summary(exitOK, "--users", users); sum != (summary{Added: n}) {
			t.Errorf("first: %+v", sum)
		}
		written := func() (all string) {
			for _, user := range names(n) {
				info, err := os.Stat(w.s.AttributeFile(user))
				if err != nil {
					t.Fatal(err)
				}
				all += fmt.Sprintln(user, info.ModTime().UnixNano(), info.Sys().(*syscall.Stat_t).Ino)
			}
			return all
		}
		before := written()
		for _, name := range []string{"registry.db", "registry.db-wal", "registry.db-shm"} {
			if err := os.Remove(filepath.Join(w.dir, name)); err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
		}
		if sum := w.summary(exitOK, "--users", users, "--prune"); sum != (summary{Adopted: n}) {
			t.Errorf("second: %+v", sum)
		}
		if written() != before {
			t.Error("entries were written")
		}
		if sum := w.summary(exitOK, "--users", users, "--prune"); sum != (summary{Unchanged: n}) {
			t.Errorf("third: %+v", sum)
		}
		// The rows are good for all: what is unregistered now is known as ours.
		w.run(exitOK, "unregister", "u0000")
		w.entry("u0000", "")
	})
}

func TestSweepIsInterruptedAndGoesOn(t *testing.T) {
	everyWay(t, dovecot.Options{Users: numbered(3000)}, func(t *testing.T, w *site) {
		// As many as are not all under way when the first ones are done.
		n, inFlight := 400, 16
		if w.connector == config.ConnectorDoveadm {
			n, inFlight = 3000, 400
		}
		users := w.list(names(n)...)
		for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
			cmd := w.command("reconcile", "--users", users, "--report", filepath.Join(w.dir, "report.json"))
			var said bytes.Buffer
			cmd.Stdout, cmd.Stderr = &said, &said
			before := w.looks()
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "work is under way", func() error {
				if w.looks() > before+n/10 {
					return nil
				}
				return errNotYet
			})
			cmd.Process.Signal(signal)
			cmd.Wait()
			if signal == syscall.SIGKILL {
				break
			}
			if code := cmd.ProcessState.ExitCode(); code != exitInterrupted || !strings.Contains(said.String(), "dovepush: interrupted") {
				t.Errorf("%v: exit status %d\n%s", signal, code, &said)
			}
			var sum summary
			if err := json.Unmarshal([]byte(w.read("report.json")), &sum); err != nil || sum.Added+sum.Adopted == 0 || sum.Added+sum.Adopted+sum.Unchanged+sum.Deferred != int64(n) {
				t.Errorf("%v: %+v, %v", signal, sum, err)
			}
			for _, row := range w.rows() {
				if row.ClaimedBy != "" {
					t.Errorf("%v: %s is still claimed", signal, row.User)
				}
			}
		}
		w.run(exitOK, "reconcile", "--users", users)
		looks := w.looks()
		w.allPresent(names(n))
		if sum := w.summary(exitOK, "--users", users); sum != (summary{Unchanged: int64(n)}) {
			t.Errorf("afterwards: %+v", sum)
		}
		// Each was written once, but for those under way when they were stopped.
		if looks > n+3*inFlight+n/10 {
			t.Errorf("%d looks at %d users", looks, n)
		}
	})
}

func TestSweepsAtOnceAndAServiceShareTheWork(t *testing.T) {
	const n = 400
	everyWay(t, dovecot.Options{Users: numbered(n)}, func(t *testing.T, w *site) {
		w.start()
		users := w.list(names(n)...)
		var sweeps sync.WaitGroup
		for range 2 {
			sweeps.Go(func() {
				if out, err := w.command("reconcile", "--users", users, "--verify", "none").CombinedOutput(); err != nil || len(out) > 0 {
					t.Errorf("%v: %s", err, out)
				}
			})
		}
		sweeps.Wait()
		looks := w.looks()
		w.allPresent(names(n))
		for _, row := range w.rows() {
			if row.State != "registered" || row.ClaimedBy != "" {
				t.Errorf("%+v", row)
			}
		}
		if looks > n+n/10 {
			t.Errorf("%d looks at %d users", looks, n)
		}
	})
}

func TestUsersWhomDovecotRefusedDoNotHoldUpTheOthers(t *testing.T) {
	const n = 60
	unknown := []string{"a0", "u0020x", "u0040x"}
	both(t, dovecot.Options{Users: numbered(n), Penalty: true}, func(t *testing.T, s *dovecot.Server) {
		w := newSite(t, s)
		users := w.list(append(names(n), unknown...)...)
		if sum := w.summary(exitNoUser, "--users", users); sum != (summary{Added: n, Failed: 3}) {
			t.Errorf("first: %+v", sum)
		}
		w.list(append(names(n), unknown[:2]...)...)
		before := len(s.Log())
		if sum := w.summary(exitNoUser, "--users", users, "--verify", "all"); sum != (summary{Unchanged: n, Failed: 2}) {
			t.Errorf("second: %+v", sum)
		}
		log := s.Log()[before:]
		good := logins(log)
		refused := regexp.MustCompile(`authorization failed.*user=<(a0|u0020x)>`).FindAllStringIndex(log, -1)
		if len(refused) != 2 || len(good) != n || refused[0][0] < good[n-1][0] {
			t.Errorf("refused at %v, logins at %v", refused, good)
		}
	})
}

func TestProgressIsDrawnOnATerminalOnly(t *testing.T) {
	both(t, dovecot.Options{Users: numbered(30)}, func(t *testing.T, s *dovecot.Server) {
		w := newSite(t, s)
		users := w.list(append(names(30), "nobody", "bad\x1b[31mname")...)
		ours, theirs := terminal(t)
		cmd := w.command("reconcile", "--users", users)
		cmd.Stdout, cmd.Stderr = theirs, theirs
		var shown bytes.Buffer
		var drained sync.WaitGroup
		drained.Go(func() { io.Copy(&shown, ours) })
		err := cmd.Run()
		theirs.Close()
		drained.Wait()
		text := shown.String()
		for _, want := range []string{"users/s", "%", "dovepush: nobody: login: no such user", `bad\x1b[31mname`, "added 30, changed 0,", "failed 2,"} {
			if !strings.Contains(text, want) {
				t.Errorf("the terminal does not show %q: %q", want, text)
			}
		}
		if cmd.ProcessState.ExitCode() != exitData || strings.Contains(text, "\x1b[31mname") {
			t.Errorf("%v, %q", err, text)
		}
		out := w.run(exitData, "reconcile", "--users", users, "--verify", "all")
		if strings.Contains(out, "users/s") || strings.Contains(out, "\r") {
			t.Errorf("without a terminal: %q", out)
		}
	})
}

func TestCommandThatListsUsersEndsWithUs(t *testing.T) {
	w := &site{t: t, dir: t.TempDir()}
	w.write("config.toml", "[[server]]\naddress = \"127.0.0.1:1\"\n[server.auth]\nmaster_user = \"agent\"\npassword = \"x\"\n[registry]\npath = \"registry.db\"\n")
	pid := filepath.Join(w.dir, "pid")
	cmd := w.command("reconcile", "--users-command", "echo alice; sleep 1000 & echo $! > "+pid+"; wait")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var sleeper int
	eventually(t, "the command runs", func() error {
		text, err := os.ReadFile(pid)
		if err != nil {
			return err
		}
		_, err = fmt.Sscan(string(text), &sleeper)
		return err
	})
	cmd.Process.Signal(syscall.SIGTERM)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != exitInterrupted {
		t.Errorf("exit status %d", code)
	}
	eventually(t, "the command's child has ended", func() error {
		if now, err := startOf(sleeper); err == nil {
			return fmt.Errorf("it runs since %s", now)
		}
		return nil
	})
	if _, err := os.Stat(filepath.Join(w.dir, "registry.db")); err == nil {
		t.Error("the registry was made before the list was read")
	}
}

func TestListOnAPipeThatStaysOpenEndsWithUs(t *testing.T) {
	w := &site{t: t, dir: t.TempDir()}
	w.write("config.toml", "[[server]]\naddress = \"127.0.0.1:1\"\n[server.auth]\nmaster_user = \"agent\"\npassword = \"x\"\n[registry]\npath = \"registry.db\"\n")
	cmd := w.command("reconcile", "--users", "-")
	_, read := input(t, cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read("alice\n")
	cmd.Process.Signal(syscall.SIGTERM)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != exitInterrupted {
		t.Errorf("exit status %d", code)
	}
}

func TestCommandWhoseListIsMalformedIsEnded(t *testing.T) {
	w := &site{t: t, dir: t.TempDir()}
	w.write("config.toml", "[[server]]\naddress = \"127.0.0.1:1\"\n[server.auth]\nmaster_user = \"agent\"\npassword = \"x\"\n[registry]\npath = \"registry.db\"\n")
	for range 30 { // who reads and who ends it may meet in many ways
		w.run(exitData, "reconcile", "--users-command", "printf 'a\\t\\n'; sleep 0.01; printf 'b\\n'; sleep 1000")
	}
}
