package dovecot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// stopGrace is how long Dovecot has to stop after SIGTERM. 2.3 takes 1.1 s;
	// either takes 5 s when an imap process was being made ready meanwhile.
	stopGrace = 2 * time.Second
	// discardGrace is the same where nobody looks at the log afterwards.
	discardGrace = 300 * time.Millisecond
	// restGrace is how long the children have when the master is gone.
	restGrace = time.Second
)

// A process is one Dovecot master and its children, a process group of its own.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the whole group is gone

	mu     sync.Mutex
	reaped bool  // the process id may belong to somebody else by now
	err    error // how the master ended; after done
}

// startProcess starts Dovecot with the settings file conf (Dovecot's path) and
// its start-up complaints going to the file out.
func startProcess(in Install, conf, out string) (*process, error) {
	f, err := os.OpenFile(out, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd := exec.Command(in.binary, "-F", "-c", conf)
	cmd.Dir = "/"
	cmd.Env = environment()
	cmd.Stdout, cmd.Stderr = f, f
	cmd.SysProcAttr = in.ids.attributes(in.Root)
	cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM
	p := &process{cmd: cmd, done: make(chan struct{})}

	started := make(chan error)
	go func() {
		// The kernel sends Pdeathsig when the thread that forked ends, not
		// the process. So that thread is kept for as long as Dovecot lives.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", in.binary, err)
	}
	return p, nil
}

// wait ends when no process of the group is left. The dead master stays
// unreaped until then: it keeps its id, the group's, from being given away.
func (p *process) wait() {
	defer close(p.done)
	pid := p.cmd.Process.Pid
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	for deadline := time.Now().Add(restGrace); groupOthers(pid) > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.kill()
		}
	}
	p.mu.Lock()
	p.reaped = true
	p.mu.Unlock()
	p.err = p.cmd.Wait()
}

// signal sends sig to the master.
func (p *process) signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return os.ErrProcessDone
	}
	return syscall.Kill(p.cmd.Process.Pid, sig)
}

// kill ends the whole group at once.
func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.reaped {
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	}
}

// stop ends the group in order, and by force when ctx or stopGrace is over. It
// returns when all is gone.
func (p *process) stop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, stopGrace)
	defer cancel()
	_ = p.signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-ctx.Done():
		p.kill()
		<-p.done
	}
}

// discard is a stop after which nobody reads the log. The master of 2.3 lets
// the log process live for another second when all others are gone; discard
// kills those two.
func (p *process) discard() {
	_ = p.signal(syscall.SIGTERM)
	limit := time.After(discardGrace)
	for waiting := true; waiting && groupOthers(p.cmd.Process.Pid) > 1; {
		select {
		case <-p.done:
			return
		case <-limit:
			waiting = false
		case <-time.After(5 * time.Millisecond):
		}
	}
	p.kill()
	<-p.done
}

func (p *process) exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// groupOthers counts the processes in the group other than its leader and mere
// zombies.
func groupOthers(pgid int) int {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	group, leader := strconv.Itoa(pgid), fmt.Sprintf("/proc/%d/stat", pgid)
	n := 0
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil || path == leader {
			continue // gone meanwhile
		}
		// proc(5): pid (comm) state ppid pgrp ...; comm may hold anything.
		f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		if len(f) > 2 && string(f[2]) == group && string(f[0]) != "Z" {
			n++
		}
	}
	return n
}
