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
func (a *arena) dovepush(name, server string) contender {
	d := a.installation(name, server)
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
	d := a.installation(name, a.overIMAP(connections))
	return contender{name: name, forget: d.forget, first: func(list string) (*exec.Cmd, error) {
		user, err := os.ReadFile(list)
		if err != nil {
			return nil, err
		}
		return d.command("register", strings.TrimSpace(string(user)))
	}}
}

// overIMAP is a [[server]] of config.toml.
func (a *arena) overIMAP(connections int) string {
	return fmt.Sprintf("[[server]]\naddress = %q\ntls = \"none\"\nmax_connections = %d\n[server.auth]\nmaster_user = %q\npassword = %q\n",
		a.server.IMAP, connections, a.server.MasterUser, a.server.MasterPassword)
}

// overDoveadm is one with the other connector.
func (a *arena) overDoveadm(l load) string {
	return fmt.Sprintf("[[server]]\nconnector = \"doveadm\"\n[server.doveadm]\nendpoints = [%q]\napi_key = %q\nmax_connections = %d\nbatch = %d\n",
		a.server.DoveadmURL, a.server.APIKey, l.connections, l.batch)
}

// installation is a config.toml and a registry.
type installation struct {
	program, dir, server string
}

func (a *arena) installation(name, server string) installation {
	return installation{a.program, filepath.Join(a.dir, strings.ReplaceAll(name, " ", "-")), server}
}

func (d installation) command(args ...string) (*exec.Cmd, error) {
	config := filepath.Join(d.dir, "config.toml")
	settings := d.server + "[registry]\npath = \"registry.db\"\n"
	err := errors.Join(os.MkdirAll(d.dir, 0o700), os.WriteFile(config, []byte(settings), 0o600))
	return exec.Command(d.program, append([]string{"-c", config}, args...)...), err
}

func (d installation) forget() error {
	registry := filepath.Join(d.dir, "registry.db")
	return errors.Join(remove(registry), remove(registry+"-wal"), remove(registry+"-shm"))
}

// rawClient is the program in raw, with its flags for the first time.
func (a *arena) rawClient(name string, connections int, flags ...string) contender {
	return a.setOrLook(name, flags, a.raw, "-address", a.server.IMAP, "-connections", strconv.Itoa(connections))
}

// rawHTTPClient is the program in rawhttp, likewise.
func (a *arena) rawHTTPClient(name string, l load, flags ...string) contender {
	return a.setOrLook(name, flags, a.rawHTTP, "-url", a.server.DoveadmURL,
		"-connections", strconv.Itoa(l.connections), "-batch", strconv.Itoa(l.batch))
}

// setOrLook is a program that only looks if the flag -set is missing.
func (a *arena) setOrLook(name string, flags []string, program string, args ...string) contender {
	run := func(flags []string) command {
		return func(string) (*exec.Cmd, error) {
			return a.withSecret(exec.Command(program, slices.Concat(args, flags)...)), nil
		}
	}
	looking := slices.DeleteFunc(slices.Clone(flags), func(flag string) bool { return flag == "-set" })
	return contender{name: name, first: run(flags), again: run(looking)}
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

// withSecret hands over the master user and the API key: no secret goes on a
// command line.
func (a *arena) withSecret(cmd *exec.Cmd) *exec.Cmd {
	cmd.Env = append(os.Environ(), "BENCH_MASTER="+a.server.MasterUser, "BENCH_PASSWORD="+a.server.MasterPassword, "BENCH_API_KEY="+a.server.APIKey)
	return cmd
}
