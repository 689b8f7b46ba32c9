package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dovepush/internal/dovecot"
	"dovepush/internal/dovecot/dovecottest"
)

// terminal returns both ends of a pseudo-terminal.
func terminal(t *testing.T) (ours, theirs *os.File) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close() })
	if err := unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { theirs.Close() })
	return ours, theirs
}

func echoes(t *testing.T, tty *os.File) bool {
	t.Helper()
	state, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return state.Lflag&unix.ECHO != 0
}

// awaitSilence returns when the terminal does not echo any more.
func awaitSilence(t *testing.T, tty *os.File) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); echoes(t, tty); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the terminal still echoes: the password is not asked for")
		}
	}
}

func TestAUsersOwnPasswordIsAskedForWithoutEcho(t *testing.T) {
	dovecottest.Each(t, dovecot.Options{Users: []dovecot.User{{Name: "alice", Password: "alice-secret"}}}, func(t *testing.T, s *dovecot.Server) {
		w := newSite(t, s)
		w.write("config.toml", fmt.Sprintf("[[server]]\naddress = %q\ntls = \"none\"\n[registry]\npath = %q\n", s.IMAP, filepath.Join(w.dir, "registry.db")))
		ask := func() (ours, theirs *os.File, shown *bytes.Buffer, cmd *exec.Cmd, drained *sync.WaitGroup) {
			ours, theirs = terminal(t)
			cmd = w.command("register", "alice")
			shown = new(bytes.Buffer)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, theirs
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			drained = new(sync.WaitGroup)
			drained.Go(func() { io.Copy(shown, ours) })
			awaitSilence(t, theirs)
			return ours, theirs, shown, cmd, drained
		}

		ours, theirs, shown, cmd, drained := ask()
		io.WriteString(ours, "alice-secret\n")
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
		if !echoes(t, theirs) {
			t.Error("the terminal does not echo afterwards")
		}
		theirs.Close()
		drained.Wait()
		if text := shown.String(); strings.Contains(text, "alice-secret") || !strings.Contains(text, "Password of alice: ") || !strings.Contains(text, "alice: registered") {
			t.Errorf("the terminal shows %q", text)
		}
		w.entry("alice", "user=alice")

		// An interrupt ends the wait, and gives the echo back.
		_, theirs, shown, cmd, drained = ask()
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 130 {
			t.Errorf("exit status %d after an interrupt", code)
		}
		if !echoes(t, theirs) {
			t.Error("the terminal does not echo after the interrupt")
		}
		theirs.Close()
		drained.Wait()
		if !strings.Contains(shown.String(), "interrupted") {
			t.Errorf("the terminal shows %q", shown.String())
		}
	})
}
