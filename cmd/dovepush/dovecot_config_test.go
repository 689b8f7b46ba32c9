package main

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"dovepush/internal/dovecot"
)

func everyPlan(t *testing.T, f func(t *testing.T, g *pushStage)) {
	t.Parallel()
	for _, version := range dovecot.Versions() {
		for _, p := range pushPlans {
			t.Run(string(version)+"/"+p.name, func(t *testing.T) {
				t.Parallel()
				f(t, newPushStage(t, version, p, nil))
			})
		}
	}
}

func TestTheSettingsThatArePrintedBringANotification(t *testing.T) {
	everyPlan(t, func(t *testing.T, g *pushStage) {
		s, err := g.start(g.follow(g.settings()))
		if err != nil {
			t.Fatal(err)
		}
		if err := g.prove(s); err != nil {
			t.Error(err)
		}
	})
}

// unit is a reason with its settings: what Dovecot might do without.
type unit struct{ reason, without string }

// units takes a printed text apart. What has the same reason goes together.
func units(text string) (list []unit) {
	_, body, _ := strings.Cut(text, "\n\n")
	lines := strings.Split(body, "\n")
	indent := func(line string) int { return len(line) - len(strings.TrimLeft(line, " ")) }
	drop := make(map[string][]int)
	for i, line := range lines {
		reason, found := strings.CutPrefix(strings.TrimSpace(line), "# ")
		if !found || strings.HasPrefix(reason, "Optional") {
			continue
		}
		if drop[reason] == nil {
			list = append(list, unit{reason: reason})
		}
		for j := i; j < len(lines); j++ {
			another := strings.HasPrefix(strings.TrimSpace(lines[j]), "#") && indent(lines[j]) <= indent(line)
			if lines[j] == "" || j > i && another || indent(lines[j]) < indent(line) {
				break
			}
			drop[reason] = append(drop[reason], j)
		}
	}
	for i, u := range list {
		for n, line := range lines {
			if !slices.Contains(drop[u.reason], n) {
				list[i].without += line + "\n"
			}
		}
	}
	return list
}

// notNeeded are reasons for what brings no notification, but limits somebody, or
// helps in trouble. Other tests are for these.
var notNeeded = []string{
	"From dovepush's host only.",
	"Whoever has the key may reach every mailbox: for this machine only.",
	"No more than dovepush needs, for whoever has the key. Add what others need.",
	"Deliveries wait for the answer; without this for a minute.",
	"A second attempt, as in 2.3.",
}

func TestNothingIsPrintedThatIsNotNeeded(t *testing.T) {
	t.Parallel()
	for _, version := range dovecot.Versions() {
		t.Run(string(version), func(t *testing.T) {
			t.Parallel()
			seen := slices.Clone(notNeeded)
			for _, p := range pushPlans {
				t.Run(p.name, func(t *testing.T) {
					g := newPushStage(t, version, p, nil)
					text := g.follow(g.settings())
					for _, u := range units(text) {
						if !slices.Contains(seen, u.reason) {
							seen = append(seen, u.reason)
							g.needs(u)
						}
					}
				})
			}
			if len(seen) < len(notNeeded)+12 {
				t.Errorf("only these reasons were tried: %q", seen)
			}
		})
	}
}

// needs fails the test if a notification comes without this unit.
func (g *pushStage) needs(u unit) {
	g.t.Helper()
	defer os.Remove(filepath.Join(g.dir, "registry.db"))
	s, err := g.start(u.without)
	if err != nil {
		g.t.Fatalf("without %q: %v", u.reason, err)
	}
	if err = g.prove(s); err == nil {
		g.t.Errorf("all is well without %q", u.reason)
	} else {
		said, _, _ := strings.Cut(err.Error(), "\n")
		g.t.Logf("without %q: %s", u.reason, said)
	}
	if err := s.Close(); err != nil {
		g.t.Error(err)
	}
}

// What is optional fits in as well.
func TestTheOptionalSettingsAreGoodOnes(t *testing.T) {
	t.Parallel()
	for _, version := range dovecot.Versions() {
		t.Run(string(version), func(t *testing.T) {
			t.Parallel()
			g := newPushStage(t, version, pushPlans[0], nil)
			text := g.settings()
			with := regexp.MustCompile(`(?m)^( *)#([^ \n])`).ReplaceAllString(text, "$1$2")
			if strings.Count(with, "\nservice ") != 3 {
				t.Fatalf("not three optional services:\n%s", text)
			}
			s, err := g.start(g.follow(with))
			if err != nil {
				t.Fatal(err)
			}
			if err := g.prove(s); err != nil {
				t.Error(err)
			}
		})
	}
}

// The master user and METADATA are for dovepush's host, also if the master
// password becomes known.
func TestOthersAreKeptOut(t *testing.T) {
	t.Parallel()
	for _, version := range dovecot.Versions() {
		t.Run(string(version), func(t *testing.T) {
			t.Parallel()
			p := pushPlans[0]
			p.args = []string{"--from", "192.0.2.1,2001:db8::/64"}
			g := newPushStage(t, version, p, nil)
			text := g.follow(g.settings())
			s, err := g.start(text)
			if err != nil {
				t.Fatal(err)
			}
			// We are not of 192.0.2.1.
			if out := g.run(exitPermission, "register", "alice"); !strings.Contains(out, "login") {
				t.Errorf("register: %s", out)
			}
			g.write("config.toml", strings.ReplaceAll(strings.ReplaceAll(g.read("config.toml"), `master_user = "agent"`, ""), "master.secret", "alice.secret"))
			g.write("alice.secret", "x\n")
			if out := g.run(exitUnavailable, "register", "alice"); !strings.Contains(out, "METADATA") {
				t.Errorf("register as oneself: %s", out)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestTheDoveadmKeyOpensNoMoreThanIsNeeded(t *testing.T) {
	t.Parallel()
	for _, version := range dovecot.Versions() {
		t.Run(string(version), func(t *testing.T) {
			t.Parallel()
			g := newPushStage(t, version, pushPlans[3], nil)
			if _, err := g.start(g.follow(g.settings())); err != nil {
				t.Fatal(err)
			}
			for command, allowed := range map[string]bool{"user": true, "who": false, "mailboxMetadataList": false} {
				body := fmt.Sprintf(`[[%q,{"userMask":["alice"]},"t"]]`, command)
				if command != "user" {
					body = fmt.Sprintf(`[[%q,{},"t"]]`, command)
				}
				q, err := http.NewRequestWithContext(t.Context(), "POST", g.doveadm, strings.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				q.Header.Set("Authorization", "X-Dovecot-API "+base64.StdEncoding.EncodeToString([]byte(oddKey)))
				q.Close = true
				answer, err := http.DefaultClient.Do(q)
				if err != nil {
					t.Fatal(err)
				}
				text, _ := io.ReadAll(answer.Body)
				answer.Body.Close()
				if done := strings.Contains(string(text), "doveadmResponse"); done != allowed {
					t.Errorf("%s: %s %s", command, answer.Status, text)
				}
			}
		})
	}
}

// An endpoint that leaves one request without an answer is asked again, within
// the time that a delivery may take.
func TestAnEndpointThatHangsOnceIsAskedAgain(t *testing.T) {
	t.Parallel()
	for _, version := range dovecot.Versions() {
		t.Run(string(version), func(t *testing.T) {
			t.Parallel()
			g := newPushStage(t, version, pushPlans[0], func(n int) bool { return n == 1 })
			s, err := g.start(g.follow(g.settings()))
			if err != nil {
				t.Fatal(err)
			}
			g.run(exitOK, "register", "alice")
			if err := s.Deliver(t.Context(), "alice", "bob@example.org", "lunch", "at noon"); err != nil {
				t.Fatal(err)
			}
			if got := g.endpoint.drain(); len(got) != 2 {
				t.Errorf("told %+v", got)
			}
		})
	}
}
