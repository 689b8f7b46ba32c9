package main

import (
	"bufio"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"dovepush/doctor"
	"dovepush/internal/dovecot"
	"dovepush/registry/spool"
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

// Whom watch takes for the service doctor does, and nobody else.
func TestDoctorAndWatchAgreeWhoTheServiceIs(t *testing.T) {
	w := newSite(t, onlyOne(t))
	w.certificate(1)
	w.write("token", "a-token\n")
	w.more(fmt.Sprintf("[api]\nlisten = %q\ntoken_file = \"token\"\ntls_cert_file = \"cert.pem\"\ntls_key_file = \"key.pem\"\n", anyPort(t)))
	w.start()
	if text := w.run(exitOK, "doctor", "--user", "alice"); !strings.Contains(text, "ok    service                       runs and is ready") {
		t.Errorf("doctor says %s", text)
	}
	w.certificate(2) // and no reload
	text := w.run(exitUnavailable, "doctor", "--user", "alice")
	if !strings.Contains(text, "FAIL  service ") || !strings.Contains(text, "another certificate than api.tls_cert_file") {
		t.Errorf("doctor says %s", text)
	}
	w.run(exitUnavailable, "watch")
}

func TestDoctorRefusesKeysThatServeRefuses(t *testing.T) {
	w := newSite(t, onlyOne(t))
	settings := w.read("config.toml")
	const hook = "[[webhook]]\nname = \"x\"\nurl = \"http://127.0.0.1:1/\"\nsecret = \"guess\"\n"
	for name, text := range map[string]string{
		"identity_key":      "identity_key = \"short\"\n" + settings,
		"webhook[0].secret": settings + "[notify]\nlisten = \"127.0.0.1:0\"\npassword = \"x\"\n" + hook,
	} {
		w.write("config.toml", text)
		said := w.run(exitConfig, "doctor", "--user", "alice")
		if !strings.Contains(said, "FAIL  secrets") || !strings.Contains(said, name) {
			t.Errorf("%s: doctor says %s", name, said)
		}
	}
}

func TestDoctorFindsADamagedSpool(t *testing.T) {
	w := newSite(t, onlyOne(t))
	w.run(exitOK, "register", "alice")
	path := filepath.Join(w.dir, "spool.db")
	s, err := spool.Open(t.Context(), path, spool.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Add(t.Context(), spool.Event{ID: "msg_1", User: "alice", Body: []byte("{}"), Received: time.Now()}, []spool.Target{{Name: "old"}})
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	if text := w.run(exitOK, "doctor", "--user", "alice"); !strings.Contains(text, "old: 1 waiting, 0 dead letters, not configured any more") || !strings.Contains(text, "dovepush webhooks old --drop") {
		t.Errorf("doctor says %s", text)
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.Exec("UPDATE targets SET waiting = 7")
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	if text := w.run(exitConfig, "doctor", "--user", "alice"); !strings.Contains(text, "FAIL  spool") || !strings.Contains(text, "move "+path) {
		t.Errorf("doctor says %s", text)
	}
}

func TestWhatOthersWroteCannotSteerTheTerminal(t *testing.T) {
	r := doctor.Result{Link: "login", Server: "main", Status: doctor.Fail, Detail: "says \x1b[2J\u0085\rb", Mend: "one\ntwo \x07"}
	var out strings.Builder
	if err := printLines(&out, r.Text()); err != nil {
		t.Fatal(err)
	}
	if want := "FAIL  main: login                   says \\x1b[2J\\u0085\\rb\n      mend: one\n      mend: two \\a\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}
