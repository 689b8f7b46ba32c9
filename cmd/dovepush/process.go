package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// process names a process so that another one on this machine can tell whether
// it has ended: host, PID namespace, PID, and start time, which a later process
// with the same PID does not share.
type process struct {
	where   string // host and PID namespace; empty if not known
	pid     int
	started string // in clock ticks since boot; proc_pid_stat(5)
}

func thisProcess() process {
	p := process{pid: os.Getpid()}
	host, err := os.Hostname()
	namespace, err2 := os.Readlink("/proc/self/ns/pid")
	boot, err3 := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if errors.Join(err, err2, err3) == nil {
		p.where = fmt.Sprintf("%s/%.8s/%s", host, boot, strings.Trim(namespace, "pid:[]"))
	}
	p.started, _ = startOf(p.pid)
	return p
}

// String is how the process stands in the registry and in messages.
func (p process) String() string { return fmt.Sprintf("%s:%d:%s", p.where, p.pid, p.started) }

// knowsDead reports whether the process of that name has certainly ended.
func (p process) knowsDead(name string) bool {
	where, rest, _ := strings.Cut(name, ":")
	id, started, _ := strings.Cut(rest, ":")
	var pid int
	if _, err := fmt.Sscanf(id, "%d", &pid); err != nil || started == "" || where == "" || where != p.where {
		return false
	}
	now, err := startOf(pid)
	return errors.Is(err, fs.ErrNotExist) || err == nil && now != started
}

// startOf returns when a process started; fs.ErrNotExist if it has ended.
func startOf(pid int) (string, error) {
	path := fmt.Sprintf("/proc/%d/stat", pid)
	stat, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	started, err := startIn(string(stat))
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return started, nil
}

// startIn finds it in /proc/PID/stat: field 22, counted behind the name, which
// may hold blanks and parentheses. Field 3 tells whether the process has ended.
func startIn(stat string) (string, error) {
	_, rest, _ := strings.Cut(stat, ") ")
	for strings.Contains(rest, ") ") {
		_, rest, _ = strings.Cut(rest, ") ")
	}
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return "", fmt.Errorf("%d fields behind the name", len(fields))
	}
	if fields[0] == "Z" || fields[0] == "X" { // ended, and nobody has asked how
		return "", fs.ErrNotExist
	}
	return fields[19], nil
}
