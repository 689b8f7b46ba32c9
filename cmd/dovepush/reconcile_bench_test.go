package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"dovepush/internal/dovecot"
	"dovepush/registry/registrytest"
)

// binaryFor builds the binary as make build does, with settings for a server at
// an address, in a directory of its own.
func binaryFor(b *testing.B, address, master, password string) (dir string, command func(args ...string) *exec.Cmd) {
	b.Helper()
	dir = b.TempDir()
	binary := filepath.Join(dir, "dovepush")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	settings := fmt.Sprintf("[[server]]\naddress = %q\ntls = \"none\"\n[server.auth]\nmaster_user = %q\npassword = %q\n[registry]\npath = \"registry.db\"\n",
		address, master, password)
	if err := os.WriteFile(filepath.Join(dir, "config.toml"), []byte(settings), 0o600); err != nil {
		b.Fatal(err)
	}
	return dir, func(args ...string) *exec.Cmd {
		cmd := exec.CommandContext(b.Context(), binary, args...)
		cmd.Env = append(os.Environ(), "DOVEPUSH_CONFIG="+filepath.Join(dir, "config.toml"))
		cmd.Stderr = os.Stderr
		return cmd
	}
}

func writeList(b *testing.B, path string, users []string) {
	b.Helper()
	if err := os.WriteFile(path, []byte(strings.Join(users, "\n")+"\n"), 0o600); err != nil {
		b.Fatal(err)
	}
}

func removeRegistry(b *testing.B, dir string) {
	b.Helper()
	for _, name := range []string{"registry.db", "registry.db-wal", "registry.db-shm"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !os.IsNotExist(err) {
			b.Fatal(err)
		}
	}
}

// BenchmarkReconcileMillion compares a shuffled list of a million users with a
// registry of the same of whom none is due, and takes such a list into a fresh
// registry. No server is asked. Whole processes.
func BenchmarkReconcileMillion(b *testing.B) {
	const n = 1_000_000
	users := make([]string, n)
	for i := range users {
		users[i] = registrytest.User(i)
	}
	random := rand.New(rand.NewPCG(1, 2))
	random.Shuffle(n, func(i, j int) { users[i], users[j] = users[j], users[i] })
	for _, row := range []struct {
		name, said string
		fill       bool
		args       []string
	}{
		{"none-due", "unchanged 1000000", true, nil},
		{"all-new", "recorded 1000000 users", false, []string{"--no-wait"}},
	} {
		b.Run(row.name, func(b *testing.B) {
			dir, command := binaryFor(b, "127.0.0.1:1", "agent", "x")
			writeList(b, filepath.Join(dir, "users"), users)
			if row.fill {
				if err := registrytest.Fill(b.Context(), filepath.Join(dir, "registry.db"), n, time.Now()); err != nil {
					b.Fatal(err)
				}
			}
			var took, memory []float64
			for b.Loop() {
				if !row.fill {
					removeRegistry(b, dir)
				}
				cmd := command(append([]string{"reconcile", "-v", "--users", filepath.Join(dir, "users")}, row.args...)...)
				began := time.Now()
				out, peak, err := outputAndPeak(cmd)
				if err != nil || !bytes.Contains(out, []byte(row.said)) {
					b.Fatalf("%v: %s", err, out)
				}
				took = append(took, time.Since(began).Seconds())
				memory = append(memory, peak)
			}
			b.ReportMetric(median(took), "s")
			b.ReportMetric(slices.Max(took), "s-worst")
			b.ReportMetric(slices.Max(memory), "MiB-peak")
		})
	}
}

// outputAndPeak runs a command and returns, besides what it prints, the most
// memory that it had, in MiB. The rusage of a child is of no use for that: it
// counts what the parent had when it forked.
func outputAndPeak(cmd *exec.Cmd) (out []byte, peak float64, err error) {
	var text bytes.Buffer
	cmd.Stdout = &text
	if err := cmd.Start(); err != nil {
		return nil, 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case err := <-ended:
			return text.Bytes(), peak, err
		case <-time.After(5 * time.Millisecond):
		}
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid)) // it may have ended
		if _, rest, found := strings.Cut(string(status), "VmHWM:"); found {
			var kB float64
			if _, err := fmt.Sscan(rest, &kB); err == nil {
				peak = kB / 1024
			}
		}
	}
}

// BenchmarkUnknownUsers has a Dovecot with its default penalty, and 2,000 users
// of whom 50, or none, do not exist. It measures the time until the last good
// one was seen to, in turns, and reports the ratio: with all users known to the
// registry, and with all of them new.
func BenchmarkUnknownUsers(b *testing.B) {
	const n, unknown, rounds = 2000, 50, 2
	for _, version := range dovecot.Versions() {
		b.Run(string(version), func(b *testing.B) {
			s, err := dovecot.Start(b.Context(), dovecot.Options{Version: version, Users: numbered(n), Penalty: true})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			dir, command := binaryFor(b, s.IMAP, s.MasterUser, s.MasterPassword)
			good := names(n)
			mixed := slices.Clone(good)
			for i := range unknown {
				mixed[i*(n/unknown)] += "x"
			}
			lists := map[bool]string{false: filepath.Join(dir, "good"), true: filepath.Join(dir, "mixed")}
			writeList(b, lists[false], good)
			writeList(b, lists[true], mixed)
			// untilLast returns how long it takes until the entry of the last good
			// user of a list is written. Then it has the rest done, or stops it.
			untilLast := func(list string, left int, rest bool) float64 {
				for _, user := range good {
					if err := os.Remove(s.AttributeFile(user)); err != nil && !os.IsNotExist(err) {
						b.Fatal(err)
					}
				}
				time.Sleep(20 * time.Second) // for the penalty to be over
				cmd := command("reconcile", "--json", "--verify", "all", "--users", list)
				cmd.Stderr = nil
				out, err := cmd.StdoutPipe()
				if err != nil {
					b.Fatal(err)
				}
				began := time.Now()
				if err := cmd.Start(); err != nil {
					b.Fatal(err)
				}
				for lines := bufio.NewScanner(out); left > 0 && lines.Scan(); {
					if strings.HasPrefix(lines.Text(), `{"result":"added"`) {
						left--
					}
				}
				took := time.Since(began).Seconds()
				if left > 0 {
					b.Fatalf("%d good users are left", left)
				}
				if !rest { // what is left is for the slow lane
					cmd.Process.Signal(syscall.SIGTERM)
				}
				io.Copy(io.Discard, out)
				cmd.Wait() // 130, or 67
				return took
			}
			ratios := map[string][]float64{}
			var base []float64
			for b.Loop() {
				for range rounds {
					removeRegistry(b, dir)
					fresh := untilLast(lists[false], n, true)
					known := untilLast(lists[false], n, true)
					removeRegistry(b, dir)
					met := untilLast(lists[true], n-unknown, true)
					later := untilLast(lists[true], n-unknown, false)
					base = append(base, known)
					ratios["x-new"] = append(ratios["x-new"], met/fresh)
					ratios["x-known"] = append(ratios["x-known"], later/known)
				}
			}
			b.ReportMetric(median(base), "s-without")
			for name, list := range ratios {
				b.ReportMetric(median(list), name)
				b.ReportMetric(slices.Max(list), name+"-worst")
			}
		})
	}
}
