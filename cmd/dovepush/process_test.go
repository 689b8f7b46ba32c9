package main

import (
	"errors"
	"io/fs"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Only a process of this machine that has certainly ended is dead: its claims
// are taken over at once, and anybody else's are waited for.
func TestWhichProcessesAreKnownToBeDead(t *testing.T) {
	self := thisProcess()
	child := exec.Command("cat")
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	running := process{where: self.where, pid: child.Process.Pid}
	if running.started, err = startOf(running.pid); err != nil {
		t.Fatal(err)
	}
	reused := running // another process has had this PID before
	reused.started = "1"
	for _, c := range []struct {
		what string
		name string
		dead bool
	}{
		{"this process", self.String(), false},
		{"a running one", running.String(), false},
		{"one whose PID is another's by now", reused.String(), true},
		{"one of another machine", strings.Replace(reused.String(), self.where, "elsewhere", 1), false},
		{"one that cannot be told", ":1:", false},
		{"no name of ours", "somebody", false},
		{"no name", "", false},
	} {
		if got := self.knowsDead(c.name); got != c.dead {
			t.Errorf("%s, %q: dead %t", c.what, c.name, got)
		}
	}
	in.Close()
	// It has ended, and nobody has asked how: /proc has it still.
	if err := unix.Waitid(unix.P_PID, running.pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if !self.knowsDead(running.String()) {
		t.Error("a zombie is not known to be dead")
	}
	child.Wait()
	if !self.knowsDead(running.String()) {
		t.Error("one that has ended is not known to be dead")
	}
}

func TestStartOfAProcess(t *testing.T) {
	const rest = " 1 7 7 0 -1 4194304 96 0 0 0 0 0 0 0 20 0 1 0 4711 2400256 225"
	for stat, want := range map[string]struct {
		started string
		ended   bool
	}{
		"7 (cat) S" + rest:        {"4711", false},
		"7 (cat) R" + rest:        {"4711", false},
		"7 (a) Z (b c) D" + rest:  {"4711", false},
		"7 (cat) Z" + rest:        {"", true},
		"7 (cat) X" + rest:        {"", true},
		"7 (a) S (b c) Z" + rest:  {"", true},
		"7 (cat) S 1 7 7 0 -1 41": {"", false},
		"":                        {"", false},
	} {
		started, err := startIn(stat)
		if started != want.started || errors.Is(err, fs.ErrNotExist) != want.ended || (err == nil) != (started != "") {
			t.Errorf("%q: %q, %v; want %+v", stat, started, err, want)
		}
	}
}
