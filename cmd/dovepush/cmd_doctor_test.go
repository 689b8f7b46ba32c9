package main

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"dovepush/doctor"
	"dovepush/internal/dovecot"
)

// doctored is what doctor says, with what differs from run to run taken out.
func doctored(w notified, text string) string {
	for _, r := range []struct{ old, new string }{
		{regexp.QuoteMeta(w.dir), "DIR"},
		{`127\.0\.0\.1:\d+`, "ADDRESS"},
		{` in \d+ ms`, ""},
		{` in \d+\.\d s`, ""},
		{`  \[[^]]* m?s\]`, ""},
		{`\d+ ms after|\d+\.\d s after`, "soon after"},
		{`test [A-Z2-7]{26}`, "test TOKEN"},
		{`\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ`, "NOW"},
		{`OK Dovecot.* ready\.`, "OK Dovecot ready."},
		{`skip  main: dovecot settings .*`, "skip  main: dovecot settings        SETTINGS"},
	} {
		text = regexp.MustCompile(r.old).ReplaceAllString(text, r.new)
	}
	return text
}

func TestDoctorSaysThatAHealthyChainHolds(t *testing.T) {
	options := dovecot.Options{Users: []dovecot.User{{Name: "alice", Password: "x"}}}
	everyNotified(t, options, func(t *testing.T, w notified) {
		w.more("[api]\nlisten = \"unix:" + w.socket() + "\"\n")
		w.run(exitOK, "register", "alice")
		deliver := []string{"doctor", "--user", "alice", "--deliver", "--lmtp", w.s.LMTP}
		alone := w.run(exitOK, deliver...)
		w.start()
		served := w.run(exitOK, deliver...)
		for name, got := range map[string]string{"alone": alone, "served": served} {
			golden := filepath.Join("testdata", "doctor", name+".txt")
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got := doctored(w, got); got != string(want) {
				t.Errorf("doctor says:\n%s\nand %s has:\n%s", got, golden, want)
			}
		}
	})
}

func TestDoctorPrintsAnObjectPerLink(t *testing.T) {
	w := newSite(t, onlyOne(t))
	text := w.run(exitOK, "doctor", "--json", "--user", "alice")
	lines, last := 0, doctor.Result{}
	for in := bufio.NewScanner(strings.NewReader(text)); in.Scan(); lines++ {
		last = doctor.Result{}
		if err := json.Unmarshal(in.Bytes(), &last); err != nil || last.Link == "" || last.Status == "" || last.Detail == "" {
			t.Errorf("%s: %v", in.Bytes(), err)
		}
	}
	if lines < 10 || last.Link != "verdict" || last.Status == doctor.Fail {
		t.Errorf("%d lines, the last is %+v", lines, last)
	}
}

func TestDoctorsExitCodeIsTheGravestFaults(t *testing.T) {
	w := newSite(t, onlyOne(t))
	w.spoilSecret()
	if text := w.run(exitPermission, "doctor", "--user", "alice"); !strings.Contains(text, "FAIL  main: login") {
		t.Errorf("doctor says %s", text)
	}
	if err := os.Remove(filepath.Join(w.dir, "master.secret")); err != nil {
		t.Fatal(err)
	}
	if text := w.run(exitConfig, "doctor", "--user", "alice"); !strings.Contains(text, "FAIL  secrets") {
		t.Errorf("doctor says %s", text)
	}
	w.mendSecret()
	if err := w.s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if text := w.run(exitTemporary, "doctor", "--user", "alice"); !strings.Contains(text, "FAIL  main: tcp") || !strings.Contains(text, "1 link fails") {
		t.Errorf("doctor says %s", text)
	}
	w.write("config.toml", "[[server]]\nadress = \"x\"\n")
	w.run(exitConfig, "doctor")
	for _, args := range [][]string{{"--deliver"}, {"--lmtp", "x:24"}, {"--deliver", "--user", "a", "--lmtp", "nowhere"}, {"--deliver", "--user", "a", "--lmtp", "x:24", "--sendmail", "y"}} {
		w.run(exitUsage, append([]string{"doctor"}, args...)...)
	}
	w.run(exitData, "doctor", "--user", "a\nb")
}

// A program that has the port of notify.listen is no dovepush serve.
func TestDoctorSaysWhoHasItsPort(t *testing.T) {
	w := newSite(t, onlyOne(t))
	w.more("[notify]\nlisten = \"" + w.s.LMTP + "\"\npassword = \"x\"\n")
	w.run(exitOK, "register", "alice")
	text := w.run(exitUnavailable, "doctor", "--user", "alice", "--deliver", "--lmtp", w.s.LMTP)
	if !strings.Contains(text, "yet a program listens at "+w.s.LMTP) || !strings.Contains(text, "skip  main: canary") {
		t.Errorf("doctor says %s", text)
	}
}
