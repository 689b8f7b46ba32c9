package dovecot_test

import (
	"os/exec"
	"strings"
	"testing"

	"dovepush/internal/dovecot"
)

func TestFind(t *testing.T) {
	if testing.Short() {
		t.Skip("needs a real Dovecot")
	}
	for _, v := range dovecot.Versions() {
		in, err := dovecot.Find(v)
		if err != nil || in.Version != v || !strings.HasPrefix(in.Full, string(v)+".") {
			t.Errorf("%s: %+v, %v", v, in, err)
		}
	}
	if _, err := dovecot.Find("2.2"); err == nil {
		t.Error("2.2 was found")
	}
	// The host has at most one of the two.
	t.Setenv("DOVEPUSH_DOVECOT_ROOTS", t.TempDir())
	missing := 0
	for _, v := range dovecot.Versions() {
		if _, err := dovecot.Find(v); err != nil {
			missing++
			if !strings.Contains(err.Error(), "make setup") {
				t.Errorf("%s: %v", v, err)
			}
		}
	}
	if missing == 0 {
		t.Error("nothing is missing without the trees")
	}
}

// TestInstallScriptAgreesWithFind runs install.sh where nothing is to do: then
// it needs no root, changes nothing, and says what Find finds.
func TestInstallScriptAgreesWithFind(t *testing.T) {
	if testing.Short() {
		t.Skip("needs a real Dovecot")
	}
	out, err := exec.CommandContext(limited(t), "sh", "install.sh").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, v := range dovecot.Versions() {
		in, err := dovecot.Find(v)
		if err != nil {
			t.Fatal(err)
		}
		want := "Dovecot " + string(v) + ": already there, " + map[bool]string{true: "the host's own", false: "in " + in.Root}[in.Root == ""]
		if !strings.Contains(string(out), want) {
			t.Errorf("%q does not say %q", out, want)
		}
	}
	if out, err := exec.CommandContext(limited(t), "sh", "install.sh", "2.2").CombinedOutput(); err == nil || !strings.Contains(string(out), `unknown Dovecot version "2.2"`) {
		t.Errorf("version 2.2: %v, %s", err, out)
	}
}
