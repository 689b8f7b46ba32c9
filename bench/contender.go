package main

import (
	_ "embed"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// contender is a way to bring entries into Dovecot.
type contender struct {
	name   string
	most   int          // takes that many users only, being slow; 0: all
	first  command      // for users whose entries are absent
	again  command      // for those whose entries it has made right
	forget func() error // before first; nil: it remembers nothing
}

// command makes a process for the users in the file list, which is also its
// standard input, one a line.
type command func(list string) (*exec.Cmd, error)

//go:embed loop_imaplib.py
var imaplibScript string

//go:embed loop_doveadm.sh
var doveadmScript string

// dovepush has a registry of its own, and forgets it before first. Its command
// lines are made here and in registering, and nowhere else.
func (a *arena) dovepush(name string, connections int) contender {
	d := a.installation(name, connections)
	return contender{
		name: name,
		first: func(list string) (*exec.Cmd, error) {
			return d.command("reconcile", "--users", list)
		},
		again: func(list string) (*exec.Cmd, error) {
			return d.command("reconcile", "--users", list, "--verify", "all")
		},
		forget: d.forget,
	}
}

// registering is dovepush for one user, as an admin calls it.
func (a *arena) registering(name string) contender {
	d := a.installation(name, connections)
	return contender{name: name, forget: d.forget, first: func(list string) (*exec.Cmd, error) {
		user, err := os.ReadFile(list)
		if err != nil {
			return nil, err
		}
		return d.command("register", strings.TrimSpace(string(user)))
	}}
}

// installation is a config.toml and a registry.
type installation struct {
	*arena
	dir         string
	connections int
}

func (a *arena) installation(name string, connections int) installation {
	return installation{a, filepath.Join(a.dir, strings.ReplaceAll(name, " ", "-")), connections}
}

func (d installation) command(args ...string) (*exec.Cmd, error) {
	config := filepath.Join(d.dir, "config.toml")
	settings := fmt.Sprintf("[[server]]\naddress = %q\ntls = \"none\"\nmax_connections = %d\n"+
		"[server.auth]\nmaster_user = %q\npassword = %q\n[registry]\npath = \"registry.db\"\n",
		d.server.IMAP, d.connections, d.server.MasterUser, d.server.MasterPassword)
	err := errors.Join(os.MkdirAll(d.dir, 0o700), os.WriteFile(config, []byte(settings), 0o600))
	return exec.Command(d.program, append([]string{"-c", config}, args...)...), err
}

func (d installation) forget() error {
	registry := filepath.Join(d.dir, "registry.db")
	return errors.Join(remove(registry), remove(registry+"-wal"), remove(registry+"-shm"))
}

// rawClient is the program in raw, with its flags for the first time.
func (a *arena) rawClient(name string, connections int, flags ...string) contender {
	run := func(flags ...string) command {
		return func(string) (*exec.Cmd, error) {
			args := append([]string{"-address", a.server.IMAP, "-connections", strconv.Itoa(connections)}, flags...)
			return a.withSecret(exec.Command(a.raw, args...)), nil
		}
	}
	looking := slices.DeleteFunc(slices.Clone(flags), func(flag string) bool { return flag == "-set" })
	return contender{name: name, first: run(flags...), again: run(looking...)}
}

// imaplib is a loop in Python, with the login that takes one round trip.
func (a *arena) imaplib(most int) contender {
	run := func(mode string) command {
		return func(string) (*exec.Cmd, error) {
			host, port, err := net.SplitHostPort(a.server.IMAP)
			return a.withSecret(exec.Command("python3", "-I", "-c", imaplibScript, host, port, entry, mode)), err
		}
	}
	return contender{name: "imaplib loop", most: most, first: run("set"), again: run("look")}
}

// doveadm is a loop in the shell. Its -c names the socket at which the running
// Dovecot hands out its settings, where doveadm without -c finds them: from
// the file it is slower by half. root is where this Dovecot's tree is, if not
// in the host's own.
func (a *arena) doveadm(most int, root string) contender {
	run := func(mode string) command {
		return func(string) (*exec.Cmd, error) {
			socket := filepath.Join(strings.TrimPrefix(a.server.Dir, root), "run/config")
			cmd := exec.Command("/bin/sh", "-c", doveadmScript, "sh", socket, entry, mode)
			cmd.Dir = "/"
			cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
			return cmd, nil
		}
	}
	return contender{name: "doveadm loop", most: most, first: run("set"), again: run("look")}
}

// withSecret hands over the master user: no secret goes on a command line.
func (a *arena) withSecret(cmd *exec.Cmd) *exec.Cmd {
	cmd.Env = append(os.Environ(), "BENCH_MASTER="+a.server.MasterUser, "BENCH_PASSWORD="+a.server.MasterPassword)
	return cmd
}
