package dovecotconf_test

import (
	"os"
	"strings"
	"testing"

	"dovepush/dovecotconf"
)

// settingLines are the lines that are neither empty nor for the reader.
func settingLines(text string) string {
	var list []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			list = append(list, line)
		}
	}
	return strings.Join(list, "\n")
}

// What docs/dovecot.md shows is what is printed for testdata/local.toml.
func TestTheManualShowsWhatIsPrinted(t *testing.T) {
	manual, err := os.ReadFile("../docs/dovecot.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range dovecotconf.Versions() {
		_, section, _ := strings.Cut(string(manual), "\n## Dovecot "+string(v)+"\n")
		section, _, _ = strings.Cut(section, "\n## ")
		var shown strings.Builder
		for line := range strings.Lines(section) {
			if strings.HasPrefix(line, "    ") {
				shown.WriteString(line)
			}
		}
		if got, want := settingLines(shown.String()), settingLines(written(t, "local", dovecotconf.Options{Version: v})); got != want {
			t.Errorf("docs/dovecot.md shows for %s\n%s\n\nand printed is\n%s", v, got, want)
		}
	}
	// Further down it shows what is printed for others.
	for _, v := range dovecotconf.Versions() {
		for line := range strings.Lines(settingLines(written(t, "doveadm", dovecotconf.Options{Version: v}))) {
			if strings.HasPrefix(line, "doveadm_allowed_commands") && !strings.Contains(string(manual), "    "+strings.TrimSpace(line)+"\n") {
				t.Errorf("docs/dovecot.md lacks, for %s: %s", v, line)
			}
		}
	}
}
