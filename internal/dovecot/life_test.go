package dovecot_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dovepush/internal/dovecot"
	"dovepush/internal/dovecot/dovecottest"
)

// eventually waits for what another process does, at most as long as no
// working system takes.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

func gone(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, fs.ErrNotExist)
}

func listens(addr string) bool {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err == nil {
		_ = c.Close()
	}
	return err == nil
}

func TestCloseLeavesNothing(t *testing.T) {
	dovecottest.Each(t, dovecot.Options{Users: people}, func(t *testing.T, s *dovecot.Server) {
		x := dial(t, s.IMAP)
		wantPrefix(t, "login", x.do(plain("", "bob", "bob")), "OK ")
		pid := dovecot.PID(s)
		if dovecot.GroupOthers(pid) == 0 {
			t.Fatal("no children to leave behind")
		}
		for range 2 {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("master: %v", err)
		}
		if n := dovecot.GroupOthers(pid); n != 0 {
			t.Errorf("%d processes left", n)
		}
		if !gone(s.Dir) {
			t.Errorf("%s is left", s.Dir)
		}
		for _, addr := range []string{s.IMAP, s.IMAPS, s.LMTP} {
			if listens(addr) {
				t.Errorf("%s still answers", addr)
			}
		}
		for name, err := range map[string]error{
			"restart": s.Restart(t.Context()), "stop": s.Stop(t.Context()), "reload": s.Reload(t.Context()),
		} {
			if err == nil {
				t.Errorf("%s after close: no error", name)
			}
		}
	})
}

func TestCloseEndsHungDovecot(t *testing.T) {
	dovecottest.Each(t, dovecot.Options{}, func(t *testing.T, s *dovecot.Server) {
		pid := dovecot.PID(s)
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGCONT) })
		closed := make(chan error, 1)
		go func() { closed <- s.Close() }()
		select {
		case err := <-closed:
			if n := dovecot.GroupOthers(pid); err != nil || n != 0 || !gone(s.Dir) {
				t.Errorf("%v, %d processes left", err, n)
			}
		case <-time.After(30 * time.Second):
			t.Error("not closed within 30 s")
		}
	})
}

func TestEndOfContextCloses(t *testing.T) {
	for _, v := range dovecot.Versions() {
		t.Run(string(v), func(t *testing.T) {
			if testing.Short() {
				t.Skip("needs a real Dovecot")
			}
			ctx, cancel := context.WithCancel(t.Context())
			s, err := dovecot.Start(ctx, dovecot.Options{Version: v})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			cancel()
			eventually(t, "directory removed", func() bool { return gone(s.Dir) })
		})
	}
}

func TestStartOnEndedContext(t *testing.T) {
	if testing.Short() {
		t.Skip("needs a real Dovecot")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := dovecot.Start(ctx, dovecot.Options{Version: dovecot.V23}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestBadSettingsSayWhatIsWrong(t *testing.T) {
	if testing.Short() {
		t.Skip("needs a real Dovecot")
	}
	for _, v := range dovecot.Versions() {
		_, err := dovecot.Start(t.Context(), dovecot.Options{Version: v, Extra: map[dovecot.Version]string{v: "no_such_setting = yes"}})
		if err == nil || !strings.Contains(err.Error(), "no_such_setting") {
			t.Errorf("%s: error %v", v, err)
		}
	}
	if _, err := dovecot.Start(t.Context(), dovecot.Options{Version: "1.0"}); err == nil {
		t.Error("version 1.0 starts")
	}
}

func TestStopAndRestartKeepPortsAndEntries(t *testing.T) {
	dovecottest.Each(t, dovecot.Options{Users: people}, func(t *testing.T, s *dovecot.Server) {
		ctx := limited(t)
		if err := s.SetEntry(ctx, "alice", "user=alice"); err != nil {
			t.Fatal(err)
		}
		before := s.IMAP + s.IMAPS + s.LMTP + s.DoveadmURL
		if err := s.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		if listens(s.IMAP) || listens(s.LMTP) {
			t.Error("answers while stopped")
		}
		if _, _, err := s.Entry(ctx, "alice"); err == nil {
			t.Error("doveadm answers while stopped")
		}
		for range 2 { // from stopped, and from running
			if err := s.Restart(ctx); err != nil {
				t.Fatal(err)
			}
			if now := s.IMAP + s.IMAPS + s.LMTP + s.DoveadmURL; now != before {
				t.Errorf("addresses %s, before %s", now, before)
			}
			if value, _, err := s.Entry(ctx, "alice"); value != "user=alice" || err != nil {
				t.Errorf("entry %q, %v", value, err)
			}
		}
		x := dial(t, s.IMAP)
		wantPrefix(t, "login", x.do(plain("", "bob", "bob")), "OK ")
		if err := s.Reload(ctx); err != nil {
			t.Fatal(err)
		}
		wantPrefix(t, "session over a reload", x.do("NOOP"), "OK ")
		if !strings.Contains(s.Log(), "starting up") {
			t.Errorf("log %q", s.Log())
		}
	})
}

func TestManyAtOnce(t *testing.T) {
	if testing.Short() {
		t.Skip("needs a real Dovecot")
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	addresses := make(map[string]bool)
	for i := range 6 {
		wg.Go(func() {
			s, err := dovecot.Start(t.Context(), dovecot.Options{Version: dovecot.Versions()[i%2], Users: people})
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			if err := s.SetEntry(t.Context(), "bob", fmt.Sprint(i)); err != nil {
				t.Error(err)
			}
			if value, _, err := s.Entry(t.Context(), "bob"); value != fmt.Sprint(i) || err != nil {
				t.Errorf("entry %q, %v", value, err)
			}
			mu.Lock()
			defer mu.Unlock()
			addresses[s.IMAP] = true
		})
	}
	wg.Wait()
	if len(addresses) != 6 {
		t.Errorf("%d addresses of 6 servers", len(addresses))
	}
}

// A port that somebody took between choosing and listening costs a try, not
// the start.
func TestTakenPortIsNoFailure(t *testing.T) {
	taken := ""
	o := dovecot.Interfering(dovecot.Options{Users: people}, func(s *dovecot.Server) {
		if taken != "" {
			return
		}
		l, err := net.Listen("tcp", s.LMTP)
		if err != nil {
			t.Error(err)
			return
		}
		taken = s.LMTP
		t.Cleanup(func() { _ = l.Close() })
	})
	dovecottest.Each(t, o, func(t *testing.T, s *dovecot.Server) {
		if taken == "" || s.LMTP == taken {
			t.Errorf("taken %q, chosen %q", taken, s.LMTP)
		}
		taken = "" // for the next version
		if strings.Contains(s.Log(), "Address already in use") {
			t.Error("the log tells of the failed try")
		}
		ctx := limited(t)
		if err := s.Deliver(ctx, "bob", "a@example.com", "s", "b"); err != nil {
			t.Error(err)
		}
		// Restart promises the same ports, so it must fail.
		if err := s.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", s.LMTP)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if err := s.Restart(ctx); err == nil || !strings.Contains(err.Error(), "Address already in use") {
			t.Errorf("restart on a taken port: %v", err)
		}
	})
}

const orphanEnv = "DOVEPUSH_TEST_ORPHAN"

// TestKilledParentTakesDovecotAlong starts a server in another process and
// kills that.
func TestKilledParentTakesDovecotAlong(t *testing.T) {
	if v := os.Getenv(orphanEnv); v != "" {
		s, err := dovecot.Start(context.Background(), dovecot.Options{Version: dovecot.Version(v)})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("started %d %s\n", dovecot.PID(s), s.Dir)
		select {}
	}
	if testing.Short() {
		t.Skip("needs a real Dovecot")
	}
	for _, v := range dovecot.Versions() {
		t.Run(string(v), func(t *testing.T) {
			cmd := exec.CommandContext(limited(t), os.Args[0], "-test.run=^TestKilledParentTakesDovecotAlong$")
			cmd.Env = append(os.Environ(), orphanEnv+"="+string(v))
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var pid int
			var dir string
			for lines := bufio.NewScanner(out); lines.Scan(); {
				if _, err := fmt.Sscanf(lines.Text(), "started %d %s", &pid, &dir); err == nil {
					break
				}
			}
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			if pid == 0 {
				t.Fatal("the other process started no server")
			}
			t.Cleanup(func() {
				if t.Failed() {
					_ = syscall.Kill(-pid, syscall.SIGKILL)
				}
				_ = os.RemoveAll(dir)
			})
			eventually(t, "Dovecot ended", func() bool {
				stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
				return dovecot.GroupOthers(pid) == 0 && (err != nil || strings.Contains(string(stat), ") Z "))
			})
		})
	}
}

// TestOrdinaryUser runs the other tests' essence as an ordinary user, also in
// the tree that Dovecot has to change its root to.
func TestOrdinaryUser(t *testing.T) {
	if testing.Short() {
		t.Skip("needs a real Dovecot")
	}
	if os.Getuid() != 0 {
		return // then all tests have run as one
	}
	exe := filepath.Join(t.TempDir(), "dovecot.test")
	tmp := copyExecutable(t, exe)
	cmd := exec.CommandContext(t.Context(), exe, "-test.timeout=3m", "-test.v",
		"-test.run=^(TestLogins|TestEntryRoundTrip|TestDeliveryNotifiesRegisteredUsersOnly|TestCloseLeavesNothing|TestPlaintextRefused|TestClientCertificateLogsInAsMaster)$")
	cmd.Dir = tmp
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp, "HOME="+tmp)
	const nobody, nogroup = 65534, 65534 // Debian's base-passwd
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nogroup}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestCloseLeavesNothing/2.4") {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
}

// copyExecutable puts this program where anybody may run it, and returns a
// directory that anybody may write to.
func copyExecutable(t *testing.T, to string) string {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, self, 0o755); err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Dir(to); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	tmp, err := os.MkdirTemp("", "nb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(tmp) })
	if err := os.Chmod(tmp, 0o777); err != nil {
		t.Fatal(err)
	}
	return tmp
}
