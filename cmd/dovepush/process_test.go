package main

import (
	"os/exec"
	"strings"
	"testing"
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
	child.Wait()
	if !self.knowsDead(running.String()) {
		t.Error("one that has ended is not known to be dead")
	}
}
