// Package packaging_test lets systemd judge what packaging gives to it.
package packaging_test

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// installed is where the units expect the program.
const installed = "/usr/local/bin/dovepush"

// units copies the units into a directory of their own, in which the program
// is there and nothing of this machine's systemd is. It fails if a kind of
// file has come that no test looks at.
func units(t *testing.T) (dir string, names []string) {
	t.Helper()
	dir = t.TempDir()
	program := filepath.Join(dir, "dovepush")
	write(t, program, "", 0o755)
	entries, err := os.ReadDir("systemd")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		name := entry.Name()
		switch filepath.Ext(name) {
		case ".service", ".socket", ".timer":
		default:
			t.Fatalf("systemd/%s: no test looks at such a file", name)
		}
		text := strings.ReplaceAll(read(t, filepath.Join("systemd", name)), installed, program)
		write(t, filepath.Join(dir, name), text, 0o644)
		names = append(names, name)
	}
	if len(names) == 0 {
		t.Fatal("there are no units")
	}
	// What every unit requires, unless it says otherwise; systemd.special(7).
	write(t, filepath.Join(dir, "sysinit.target"), "[Unit]\nDescription=stands in\n", 0o644)
	return dir, names
}

// verify returns what systemd-analyze has to say about the units in dir: "" if
// all is well.
func verify(t *testing.T, dir string, names []string) string {
	t.Helper()
	args := []string{"verify", "--man=no"}
	for _, name := range names {
		args = append(args, filepath.Join(dir, name))
	}
	out, err := analyze(t, dir, args...)
	if out == "" && err != nil {
		return err.Error()
	}
	return out
}

// analyze runs systemd-analyze on nothing but the units in dir.
func analyze(t *testing.T, dir string, args ...string) (string, error) {
	t.Helper()
	program, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Fatalf("%v; make setup installs it", err)
	}
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "SYSTEMD_UNIT_PATH=" + dir, "SYSTEMD_COLORS=0", "SYSTEMD_PAGER="}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// exposed returns "" if a service's exposure is at most the given one, in
// tenths of systemd's scale of 0 to 10, otherwise systemd's table.
func exposed(t *testing.T, dir, name string, tenths int) string {
	t.Helper()
	out, err := analyze(t, dir, "security", "--offline=true", "--no-pager", fmt.Sprintf("--threshold=%d", tenths), filepath.Join(dir, name))
	if err != nil {
		return fmt.Sprintf("%v\n%s", err, out)
	}
	return ""
}

func TestSystemdHasNothingToSayAboutTheUnits(t *testing.T) {
	dir, names := units(t)
	if said := verify(t, dir, names); said != "" {
		t.Error(said)
	}
}

// systemd-analyze does not miss them.
func TestEveryTimerAndSocketHasItsService(t *testing.T) {
	_, names := units(t)
	for _, name := range names {
		service := strings.TrimSuffix(name, filepath.Ext(name)) + ".service"
		if !slices.Contains(names, service) {
			t.Errorf("there is no %s for %s", service, name)
		}
	}
}

// The table in docs/service.md says each service's exposure.
func TestNoServiceIsMoreExposedThanStated(t *testing.T) {
	stated := map[string]int{}
	rows := regexp.MustCompile(`(?m)^\| (\S+\.service) \| ([0-9.]+) \|$`).FindAllStringSubmatch(read(t, "../docs/service.md"), -1)
	for _, row := range rows {
		score, err := strconv.ParseFloat(row[2], 64)
		if err != nil {
			t.Fatalf("docs/service.md: %s: %v", row[0], err)
		}
		stated[row[1]] = int(math.Round(score * 10))
	}
	dir, names := units(t)
	for _, name := range names {
		if filepath.Ext(name) != ".service" {
			continue
		}
		tenths, ok := stated[name]
		if !ok {
			t.Errorf("docs/service.md does not state the exposure of %s", name)
			continue
		}
		delete(stated, name)
		if out := exposed(t, dir, name, tenths); out != "" {
			t.Errorf("%s: more exposed than docs/service.md states: %s", name, out)
		}
	}
	for name := range stated {
		t.Errorf("docs/service.md states the exposure of %s, which there is not", name)
	}
}

// Both services see the same secrets, registry and mailboxes.
func TestServicesAreHardenedAlike(t *testing.T) {
	hardening := func(name string) string {
		text := read(t, filepath.Join("systemd", name))
		_, rest, found := strings.Cut(text, "\nNoNewPrivileges=")
		if !found {
			t.Fatalf("%s: its hardening does not begin with NoNewPrivileges=", name)
		}
		rest, _, _ = strings.Cut(rest, "\n[Install]")
		return strings.TrimSpace(rest)
	}
	if a, b := hardening("dovepush.service"), hardening("dovepush-reconcile.service"); a != b {
		t.Errorf("dovepush.service:\n%s\n\ndovepush-reconcile.service:\n%s", a, b)
	}
}

// What the tests above lean on: systemd does say what is wrong.
func TestSystemdSaysWhatIsWrong(t *testing.T) {
	for _, c := range []struct{ what, unit, old, new, want string }{
		{"misspelt key", "dovepush.service", "NoNewPrivileges=", "NoNewPrivilege=", "Unknown key"},
		{"value that is none", "dovepush.socket", "SocketMode=0660", "SocketMode=rw", "Failed to parse mode"},
		{"program that is not there", "dovepush.service", "/dovepush serve", "/absent serve", "not executable"},
		{"date that is none", "dovepush-reconcile.timer", "04:00:00", "28:00:00", "Failed to parse calendar"},
	} {
		t.Run(c.what, func(t *testing.T) {
			dir, names := units(t)
			replace(t, filepath.Join(dir, c.unit), c.old, c.new)
			if said := verify(t, dir, names); !strings.Contains(said, c.want) {
				t.Errorf("it says %q, nothing about %q", said, c.want)
			}
		})
	}
	dir, _ := units(t)
	if exposed(t, dir, "dovepush.service", 20) != "" {
		t.Error("the hardened service is exposed by more than 2.0")
	}
	replace(t, filepath.Join(dir, "dovepush.service"), "CapabilityBoundingSet=\n", "")
	if exposed(t, dir, "dovepush.service", 20) == "" {
		t.Error("the service is no more exposed with all capabilities")
	}
}

func TestSystemdCreatesTheUserAndTheDirectory(t *testing.T) {
	root := t.TempDir()
	for _, kind := range []string{"sysusers.d", "tmpfiles.d"} {
		dir := filepath.Join(root, "etc", kind)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "dovepush.conf"), read(t, filepath.Join(kind, "dovepush.conf")), 0o644)
	}
	silent := func(name string, args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), name, append([]string{"--root=" + root}, args...)...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	silent("systemd-sysusers", "dovepush.conf")
	for file, want := range map[string]*regexp.Regexp{
		"passwd": regexp.MustCompile(`(?m)^dovepush:[^:]*:[1-9]\d*:[1-9]\d*:[^:]*:[^:]*:/usr/sbin/nologin$`),
		"group":  regexp.MustCompile(`(?m)^dovepush:[^:]*:[1-9]\d*:$`),
	} {
		if text := read(t, filepath.Join(root, "etc", file)); !want.MatchString(text) {
			t.Errorf("%s: %q, want %s", file, text, want)
		}
	}
	// Only root can give the directory away: an ordinary user lets it be read.
	args := []string{"--create", "dovepush.conf"}
	if os.Geteuid() != 0 {
		args = append(args, "--exclude-prefix=/")
	}
	silent("systemd-tmpfiles", args...)
	if info, err := os.Stat(filepath.Join(root, "run/dovepush")); os.Geteuid() == 0 && (err != nil || info.Mode() != os.ModeDir|0o755) {
		t.Errorf("run/dovepush: %v %v", info, err)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func write(t *testing.T, name, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func replace(t *testing.T, name, old, new string) {
	t.Helper()
	text := read(t, name)
	if !strings.Contains(text, old) {
		t.Fatalf("%s holds no %q", name, old)
	}
	write(t, name, strings.ReplaceAll(text, old, new), 0o644)
}
