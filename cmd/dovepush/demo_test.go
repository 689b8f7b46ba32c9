package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"dovepush/internal/dovecot"
)

// demoCommand is a demo whose processes are a group of their own, and whose
// files, if it runs the host's own Dovecot, lie in dir.
func demoCommand(t *testing.T, version dovecot.Version, dir string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), "dovepush", "demo", "--dovecot", string(version))
	cmd.Env = append(os.Environ(), "TMPDIR="+dir, "DOVEPUSH_CONFIG=/nonexistent") // it needs no settings of ours
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// tidy fails the test if the demo has left a process or a file.
func tidy(t *testing.T, cmd *exec.Cmd, dir string) {
	t.Helper()
	if err := syscall.Kill(-cmd.Process.Pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("processes are left: %v", err)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) > 0 {
		t.Errorf("files are left: %v, %v", files, err)
	}
}

func TestTheDemoTellsItsStoryAndTidiesUp(t *testing.T) {
	if testing.Short() {
		t.Skip("needs a real Dovecot")
	}
	for _, version := range dovecot.Versions() {
		t.Run(string(version), func(t *testing.T) {
			dir := forEverybody(t)
			cmd := demoCommand(t, version, dir)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			tidy(t, cmd, dir)
			told := string(out)
			for _, scene := range []string{
				"Dovecot " + string(version), "Dovecot notified nobody.",
				"alice: registered", "the entry holds: user=alice",
				"dovepush watch shows", "alice", `INBOX #2  from bob@example.org  "Lunch at noon?"  2 unseen`,
				"$ dovepush status alice", "s ago",
				"$ dovepush doctor --user alice --deliver", "ok    main: notification", "all is well\n",
				"alice: unregistered", "the entry is absent.", "Dovecot notified nobody.",
				"All is stopped, and its directory removed.",
			} {
				_, rest, found := strings.Cut(told, scene)
				if !found {
					t.Fatalf("the story lacks %q, or has it too early:\n%s", scene, out)
				}
				told = rest
			}
		})
	}
}

func TestAnInterruptedDemoTidiesUp(t *testing.T) {
	if testing.Short() {
		t.Skip("needs a real Dovecot")
	}
	for _, version := range dovecot.Versions() {
		t.Run(string(version), func(t *testing.T) {
			for _, after := range []time.Duration{30, 100, 200, 300} {
				dir := forEverybody(t)
				cmd := demoCommand(t, version, dir)
				var out bytes.Buffer
				cmd.Stdout, cmd.Stderr = &out, &out
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(after * time.Millisecond)
				cmd.Process.Signal(os.Interrupt)
				cmd.Wait()
				switch code := cmd.ProcessState.ExitCode(); code {
				case 130: // as it should
				case 0: // it was done already
				case -1: // the signal came before it was caught: nothing had begun
				default:
					t.Errorf("interrupted after %d ms: exit status %d\n%s", after, code, out.String())
				}
				tidy(t, cmd, dir)
			}
		})
	}
}
