package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// The rules of docs/design.md about who imports whom.
func TestEveryPackageKeepsToItsRoom(t *testing.T) {
	ours := map[string][]string{
		"dovepush/agent":                        {"dovepush/imapmeta", "dovepush/registry"},
		"dovepush/api":                          {"dovepush/agent", "dovepush/imapmeta", "dovepush/notify", "dovepush/registry"},
		"dovepush/bench":                        {"dovepush/internal/dovecot"},
		"dovepush/bench/raw":                    nil,
		"dovepush/bench/rawhttp":                nil,
		"dovepush/bench/rawnotify":              nil,
		"dovepush/config":                       nil,
		"dovepush/doveadm":                      {"dovepush/imapmeta"},
		"dovepush/doctor":                       {"dovepush/config", "dovepush/doveadm", "dovepush/imapmeta", "dovepush/notify", "dovepush/registry"},
		"dovepush/dovecotconf":                  {"dovepush/config"},
		"dovepush/identity":                     nil,
		"dovepush/imapmeta":                     nil,
		"dovepush/internal/dovecot":             nil,
		"dovepush/internal/dovecot/dovecottest": {"dovepush/internal/dovecot"},
		"dovepush/metrics":                      {"dovepush/agent", "dovepush/imapmeta", "dovepush/registry"},
		"dovepush/notify":                       {"dovepush/registry"},
		"dovepush/packaging":                    nil,
		"dovepush/registry":                     {"dovepush/registry/dbfile"},
		"dovepush/registry/dbfile":              nil,
		"dovepush/registry/registrytest":        {"dovepush/registry"},
		"dovepush/registry/spool":               {"dovepush/registry/dbfile"},
		"dovepush/userlist":                     nil,
		"dovepush/webhook":                      {"dovepush/registry/spool"},
	}
	only := map[string]string{ // a module's packages, and who alone may import them
		"github.com/emersion/go-imap":  "dovepush/imapmeta",
		"github.com/emersion/go-sasl":  "dovepush/imapmeta",
		"github.com/emersion/go-smtp":  "dovepush/doctor",
		"github.com/standard-webhooks": "dovepush/webhook",
		"modernc.org/":                 "dovepush/registry",
		"database/sql":                 "dovepush/registry",
		"github.com/BurntSushi/":       "dovepush/config",
		"github.com/spf13/":            "dovepush/cmd/dovepush",
		"github.com/coreos/":           "dovepush/cmd/dovepush",
		"github.com/prometheus/":       "dovepush/metrics",
		"github.com/failsafe-go/":      "dovepush/agent",
		"github.com/lanrat/":           "dovepush/userlist",
		"github.com/schollz/":          "dovepush/cmd/dovepush",
	}
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}}{{range .Imports}} {{.}}{{end}}`, "dovepush/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	seen := 0
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		importer := fields[0]
		allowed, listed := ours[importer]
		if listed {
			seen++
		} else if importer != "dovepush/cmd/dovepush" {
			t.Errorf("package %s has no room in this test", importer)
		}
		for _, imported := range fields[1:] {
			if listed && strings.HasPrefix(imported, "dovepush/") && !slices.Contains(allowed, imported) {
				t.Errorf("%s imports %s", importer, imported)
			}
			for prefix, owner := range only {
				if strings.HasPrefix(imported, prefix) && importer != owner && !strings.HasPrefix(importer, owner+"/") {
					t.Errorf("%s imports %s, which is %s's alone", importer, imported, owner)
				}
			}
		}
	}
	if seen != len(ours) {
		t.Errorf("saw %d of %d packages", seen, len(ours))
	}
}
