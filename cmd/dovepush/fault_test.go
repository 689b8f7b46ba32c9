package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dovepush/config"
	"dovepush/internal/dovecot"
	"dovepush/internal/dovecot/dovecottest"
)

// site is a Dovecot with settings for it.
type site struct {
	t         *testing.T
	s         *dovecot.Server
	dir       string
	connector string
}

// newSite has dovepush reach Dovecot over IMAP.
func newSite(t *testing.T, s *dovecot.Server) *site {
	t.Helper()
	return newSiteBy(t, s, config.ConnectorIMAP)
}

// newSiteBy has dovepush reach Dovecot by a connector.
func newSiteBy(t *testing.T, s *dovecot.Server, connector string) *site {
	t.Helper()
	w := &site{t, s, t.TempDir(), connector}
	w.mendSecret()
	if connector == config.ConnectorIMAP {
		w.settings(s.IMAP)
	} else {
		w.endpoints(s.DoveadmURL)
	}
	return w
}

// spoilSecret makes what Dovecot knows dovepush by wrong, and mendSecret right.
func (w *site) spoilSecret() { w.writeSecret("wrong", "wrong") }
func (w *site) mendSecret()  { w.writeSecret(w.s.MasterPassword, w.s.APIKey) }

func (w *site) writeSecret(master, key string) {
	w.t.Helper()
	if w.connector == config.ConnectorIMAP {
		w.write("master.secret", master+"\n")
	} else {
		w.write("doveadm.key", key+"\n")
	}
}

// endpoints points dovepush at a DoveAdm API.
func (w *site) endpoints(urls ...string) {
	w.t.Helper()
	w.write("config.toml", fmt.Sprintf(`
[[server]]
connector = "doveadm"
timeout = "20s"
[server.doveadm]
endpoints = ["%s"]
api_key_file = "doveadm.key"
[registry]
path = "registry.db"
`, strings.Join(urls, `", "`)))
}

func (w *site) write(name, text string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *site) read(name string) string {
	w.t.Helper()
	text, err := os.ReadFile(filepath.Join(w.dir, name))
	if err != nil {
		w.t.Fatal(err)
	}
	return string(text)
}

// settings points dovepush at an address.
func (w *site) settings(address string) {
	w.t.Helper()
	w.write("config.toml", fmt.Sprintf(`
[[server]]
address = %q
tls = "none"
timeout = "20s"
[server.auth]
master_user = %q
password_file = "master.secret"
[registry]
path = "registry.db"
`, address, w.s.MasterUser))
}

func (w *site) command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(w.t.Context(), "dovepush", args...)
	cmd.Env = append(os.Environ(), "DOVEPUSH_CONFIG="+filepath.Join(w.dir, "config.toml"))
	return cmd
}

// run runs dovepush, which must exit with code; it returns what it printed.
func (w *site) run(code int, args ...string) string {
	w.t.Helper()
	return exits(w.t, code, w.command(args...))
}

func exits(t *testing.T, code int, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		t.Fatalf("%v: exit status %d, want %d\n%s", cmd.Args, got, code, out)
	}
	return string(out)
}

func (w *site) entry(user, want string) {
	w.t.Helper()
	value, _, err := w.s.Entry(w.t.Context(), user)
	if err != nil || value != want {
		w.t.Fatalf("the entry of %s holds %q, %v; want %q", user, value, err, want)
	}
}

// Killed between the write and its record, dovepush still knows the value as
// its own: another identity replaces it, and unregistering removes it.
func TestKilledBetweenWriteAndRecordNothingIsForeign(t *testing.T) {
	users := []dovecot.User{{Name: "alice", Password: "x"}, {Name: "bob", Password: "x"}, {Name: "carol", Password: "x"}, {Name: "dave", Password: "x"}}
	dovecottest.Each(t, dovecot.Options{Users: users}, func(t *testing.T, s *dovecot.Server) {
		w := newSite(t, s)
		address, h := holding(t, s.IMAP, "T2 ")
		h.shut()
		killIn := func(args ...string) {
			w.settings(address)
			cmd := w.command(args...)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			<-h.held // Dovecot has answered, dovepush has not heard it
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			cmd.Wait()
			w.settings(s.IMAP)
		}
		killIn("register", "alice")
		w.entry("alice", "user=alice")
		if out := w.run(0, "status", "--json", "alice"); !strings.Contains(out, `"state":"pending"`) {
			t.Errorf("after the kill: %s", out)
		}
		if out := w.run(0, "register", "alice", "--identity", "3@7"); !strings.Contains(out, "another value was replaced") {
			t.Errorf("register after the kill: %s", out)
		}
		w.entry("alice", "user=3@7")

		killIn("register", "bob")
		w.entry("bob", "user=bob")
		w.run(0, "unregister", "bob")
		w.entry("bob", "")
		w.run(67, "status", "bob")

		// What was acknowledged is carried out.
		w.run(0, "register", "carol")
		killIn("unregister", "carol")
		w.entry("carol", "")
		w.run(0, "verify", "carol")
		w.run(67, "status", "carol")

		// With two values that may still come, the removal is not the end of it.
		w.run(0, "register", "dave")
		killIn("register", "dave", "--identity", "9@9")
		w.entry("dave", "user=9@9")
		if out := w.run(75, "unregister", "dave"); !strings.Contains(out, "an earlier write that was not answered may still come through") {
			t.Errorf("unregister in doubt: %s", out)
		}
		w.entry("dave", "")
		if out := w.run(0, "status", "--json", "dave"); !strings.Contains(out, `"wanted":"absent","state":"removing"`) {
			t.Errorf("status in doubt: %s", out)
		}
	})
}

// Killed at whatever moment, dovepush ends in the state that was asked for
// when it is asked again.
func TestKilledAtAnyMomentTheNextRunEndsRight(t *testing.T) {
	everyWay(t, dovecot.Options{Users: []dovecot.User{{Name: "alice", Password: "x"}}}, func(t *testing.T, w *site) {
		for i := range 25 {
			identity := fmt.Sprintf("id%d", i)
			cmd := w.command("register", "alice", "--identity", identity)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(i) * 4 * time.Millisecond)
			cmd.Process.Kill()
			cmd.Wait()
		}
		w.run(0, "register", "alice", "--identity", "last")
		w.entry("alice", "user=last")
		// 75 if a write of one that was killed may still come through.
		cmd := w.command("unregister", "alice")
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != 0 && code != 75 {
			t.Errorf("unregister: exit status %d\n%s", code, out)
		}
		w.entry("alice", "")
	})
}

func TestAnInterruptEndsTheWaitAndKeepsTheWish(t *testing.T) {
	dovecottest.Each(t, dovecot.Options{Users: []dovecot.User{{Name: "alice", Password: "x"}}}, func(t *testing.T, s *dovecot.Server) {
		for _, signal := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
			w := newSite(t, s)
			address, h := holding(t, s.IMAP, "L1 ")
			h.shut()
			w.settings(address)
			cmd := w.command("register", "alice")
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			<-h.held
			cmd.Process.Signal(signal)
			cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != 130 || out.String() != "dovepush: interrupted\n" {
				t.Errorf("%v: exit status %d, printed %q", signal, code, out.String())
			}
			w.settings(s.IMAP)
			if out := w.run(0, "status", "--json", "alice"); !strings.Contains(out, `"state":"pending"`) {
				t.Errorf("after the interrupt: %s", out)
			}
			w.run(0, "verify", "alice")
			w.entry("alice", "user=alice")
			w.run(0, "unregister", "alice")
		}
	})
}

// input gives the command a standard input, and returns the other end. read
// writes to it, and waits until all of that has been read.
func input(t *testing.T, cmd *exec.Cmd) (in *os.File, read func(text string)) {
	t.Helper()
	theirs, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = theirs
	t.Cleanup(func() { theirs.Close(); in.Close() })
	return in, func(text string) {
		t.Helper()
		io.WriteString(in, text)
		eventually(t, "it reads its standard input", func() error {
			left, err := unix.IoctlGetInt(int(in.Fd()), unix.TIOCINQ)
			if err != nil || left > 0 {
				return fmt.Errorf("%d bytes are left, %v", left, err)
			}
			return nil
		})
	}
}

func TestAnInterruptEndsTheWaitForStandardInput(t *testing.T) {
	s := dovecottest.Start(t, dovecot.Options{Version: dovecot.V23, Users: []dovecot.User{{Name: "alice", Password: "x"}}})
	w := newSite(t, s)
	for _, args := range [][]string{{"register", "-"}, {"register", "-", "--no-wait"}, {"verify", "-"}, {"status", "-"}, {"register", "alice", "--password-stdin"}} {
		cmd := w.command(args...)
		in, read := input(t, cmd)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		read("alice\n")
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 130 {
			t.Errorf("%v: exit status %d after SIGTERM", args, code)
		}
		in.Close()
	}
}

// A registry that may not be written, has no room, or comes from the future:
// nothing is sent to Dovecot, and the message says what to do.
func TestRegistriesThatCannotBeUsed(t *testing.T) {
	s := dovecottest.Start(t, dovecot.Options{Version: dovecot.V23, Users: []dovecot.User{{Name: "alice", Password: "x"}, {Name: "bob", Password: "x"}, {Name: "carol", Password: "x"}}})

	t.Run("read-only", func(t *testing.T) {
		w := newSite(t, s)
		w.run(0, "register", "alice", "--no-wait")
		if out := exits(t, 77, w.unprivileged("registry.db", 0o444, "register", "bob")); !strings.Contains(out, "registry.db") {
			t.Errorf("printed %s", out)
		}
		w.entry("bob", "")
	})

	t.Run("secret that cannot be read", func(t *testing.T) {
		w := newSite(t, s)
		w.write("config.toml", strings.ReplaceAll(w.read("config.toml"), "registry.db", filepath.Join(forEverybody(t), "registry.db")))
		out := exits(t, 78, w.unprivileged("master.secret", 0, "register", "bob"))
		if !strings.Contains(out, "server[0].auth.password_file") || !strings.Contains(out, "permission denied") {
			t.Errorf("printed %s", out)
		}
		w.entry("bob", "")
	})

	t.Run("disk full", func(t *testing.T) {
		w := newSite(t, s)
		disk := filepath.Join(w.dir, "disk")
		if err := os.Mkdir(disk, 0o755); err != nil {
			t.Fatal(err)
		}
		w.write("full.sh", `set -e
mount -t tmpfs -o size=512k none "$1"
sed -i "s|registry.db|$1/registry.db|" "$DOVEPUSH_CONFIG"
dovepush register alice
head -c 1000000 /dev/zero >"$1/filler" 2>/dev/null || true
for i in 1 2 3 4 5 6 7 8 9; do
	code=0
	dovepush register bob --identity "$(head -c 900 /dev/zero | tr '\0' x)$i" || code=$?
	test $code = 0 || break
done
echo "code $code"
rm "$1/filler"
dovepush status alice
dovepush register bob --identity after
`)
		cmd := w.command()
		cmd.Args = []string{"unshare", "--mount", "sh", filepath.Join(w.dir, "full.sh"), disk}
		if os.Geteuid() != 0 {
			cmd.Args = append([]string{"unshare", "--map-root-user"}, cmd.Args[1:]...)
		}
		path, err := exec.LookPath("unshare")
		if err != nil {
			t.Fatalf("%v: install util-linux", err)
		}
		cmd.Path, cmd.Err = path, nil
		out := exits(t, 0, cmd)
		if !strings.Contains(out, "code 75") || !strings.Contains(out, "full") || !strings.Contains(out, "alice  ") {
			t.Errorf("printed %s", out)
		}
		w.entry("bob", "user=after")
	})

	t.Run("from the future", func(t *testing.T) {
		w := newSite(t, s)
		w.run(0, "register", "alice", "--no-wait")
		f, err := os.OpenFile(filepath.Join(w.dir, "registry.db"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		// The header's user version: https://www.sqlite.org/fileformat.html#user_version_number
		if _, err := f.WriteAt([]byte{0, 0, 3, 231}, 60); err != nil {
			t.Fatal(err)
		}
		if out := w.run(78, "register", "carol"); !strings.Contains(out, "999") {
			t.Errorf("printed %s", out)
		}
		w.entry("carol", "")
	})
}

// unprivileged is a command of a user who has the given rights to the file
// name, and may not write beside it.
func (w *site) unprivileged(name string, mode os.FileMode, args ...string) *exec.Cmd {
	w.t.Helper()
	cmd := w.command(args...)
	files, err := filepath.Glob(filepath.Join(w.dir, "*"))
	if err != nil {
		w.t.Fatal(err)
	}
	if os.Geteuid() == 0 { // whom no mode keeps from anything
		for dir := w.dir; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
			os.Chmod(dir, 0o755)
		}
		for _, file := range files {
			os.Chmod(file, 0o644)
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		cmd.Path, cmd.Err = readableCopy(w.t), nil
	} else {
		os.Chmod(w.dir, 0o555)
		w.t.Cleanup(func() { os.Chmod(w.dir, 0o755) })
	}
	os.Chmod(filepath.Join(w.dir, name), mode)
	return cmd
}

// readableCopy returns a copy of this program that every user may run.
func readableCopy(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("dovepush")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(forEverybody(t), "dovepush")
	if err := os.WriteFile(path, text, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// forEverybody returns a directory in which every user may read and write.
func forEverybody(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dovepush")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}
