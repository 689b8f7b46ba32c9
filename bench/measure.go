package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// limit bounds one process, for a contender that hangs.
const limit = 10 * time.Minute

// sample is one run of one process.
type sample struct {
	users    int
	wall     time.Duration // from before the fork until it is gone
	client   time.Duration // CPU time, its children's included
	server   time.Duration // CPU time of all Dovecot's processes
	others   float64       // cores that were busy with neither
	segments uint64        // of TCP, sent by anybody on this machine
}

func (s sample) rate() float64 { return float64(s.users) / s.wall.Seconds() }

// The CPU times are in microseconds.
func (s sample) clientPerUser() float64 { return float64(s.client.Microseconds()) / float64(s.users) }
func (s sample) serverPerUser() float64 { return float64(s.server.Microseconds()) / float64(s.users) }

// run measures one process that is given users.
func (a *arena) run(ctx context.Context, c command, users []string) (sample, error) {
	list := filepath.Join(a.dir, "users")
	if err := os.WriteFile(list, []byte(strings.Join(users, "\n")+"\n"), 0o600); err != nil {
		return sample{}, err
	}
	made, err := c(list)
	if err != nil {
		return sample{}, err
	}
	stdin, err := os.Open(list)
	if err != nil {
		return sample{}, err
	}
	defer stdin.Close()
	var stderr bytes.Buffer
	made.Stdin, made.Stderr = stdin, &stderr
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()

	before, err := a.look()
	if err != nil {
		return sample{}, err
	}
	began := time.Now()
	if err := made.Start(); err != nil {
		return sample{}, err
	}
	stop := context.AfterFunc(ctx, func() { _ = made.Process.Signal(syscall.SIGTERM) })
	err = made.Wait()
	wall := time.Since(began)
	stop()
	if err != nil {
		text := stderr.Bytes()
		return sample{}, errors.Join(fmt.Errorf("%s: %w: %s", filepath.Base(made.Path), err, text[:min(len(text), 1000)]), ctx.Err())
	}
	after, err := a.look()
	if err != nil {
		return sample{}, err
	}
	s := sample{users: len(users), wall: wall, segments: after.segments - before.segments, server: after.server - before.server,
		client: made.ProcessState.UserTime() + made.ProcessState.SystemTime()}
	s.others = max((after.busy-before.busy-s.server-s.client).Seconds()/wall.Seconds(), 0)
	return s, nil
}

// counters are what the kernel has counted so far.
type counters struct {
	server, busy time.Duration
	segments     uint64
}

// tick is the unit of CPU times in /proc: USER_HZ is 100 wherever Go runs.
const tick = 10 * time.Millisecond

func (a *arena) look() (c counters, err error) {
	var errs [3]error
	c.segments, errs[0] = sentSegments()
	c.busy, errs[1] = busyTime()
	pid, err := os.ReadFile(filepath.Join(a.server.Dir, "run/master.pid"))
	errs[2] = err
	c.server = groupTime(strings.TrimSpace(string(pid)))
	return c, errors.Join(errs[:]...)
}

// sentSegments is OutSegs of proc_net_snmp: the second line that begins with
// "Tcp:" holds the values for the names in the first.
func sentSegments() (uint64, error) {
	text, err := os.ReadFile("/proc/net/snmp")
	if err != nil {
		return 0, err
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		switch fields := strings.Fields(line); {
		case fields[0] != "Tcp:":
		case names == nil:
			names = fields
		default:
			for i, name := range names {
				if name == "OutSegs" {
					return strconv.ParseUint(fields[i], 10, 64)
				}
			}
		}
	}
	return 0, errors.New("/proc/net/snmp tells no Tcp OutSegs")
}

// busyTime is the time that all cores were not idle (proc_stat(5)).
func busyTime() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	var ticks int
	for i, field := range strings.Fields(line) {
		if i == 1 || i == 2 || i == 3 || i == 6 || i == 7 { // user, nice, system, irq, softirq
			n, err := strconv.Atoi(field)
			if err != nil {
				return 0, err
			}
			ticks += n
		}
	}
	return time.Duration(ticks) * tick, nil
}

// groupTime is the CPU time of a process group, and of those who were in it and
// are gone (proc_pid_stat(5)).
func groupTime(group string) time.Duration {
	paths, _ := filepath.Glob("/proc/[0-9]*/stat")
	var ticks int
	for _, path := range paths {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // gone meanwhile
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // from state, field 3
		if len(fields) < 15 || fields[2] != group {
			continue
		}
		for _, field := range fields[11:15] { // utime, stime, cutime, cstime
			n, _ := strconv.Atoi(field)
			ticks += n
		}
	}
	return time.Duration(ticks) * tick
}
