package dovecotconf_test

import (
	"errors"
	"flag"
	"fmt"
	"net/textproto"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"dovepush/config"
	"dovepush/dovecotconf"
	"dovepush/internal/dovecot"
	"dovepush/internal/dovecot/dovecottest"
)

var update = flag.Bool("update", false, "write testdata/*.conf anew")

// files are the configurations whose settings are kept in testdata, so that a
// change shows in review. What each is about is in its name.
var files = []string{"local", "remote", "doveadm", "sockets", "own", "token", "plain"}

// written is what comes of testdata/NAME.toml.
func written(t *testing.T, name string, o dovecotconf.Options) string {
	t.Helper()
	c, err := config.Load(filepath.Join("testdata", name+".toml"))
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	if err := dovecotconf.Write(&text, c, &c.Servers[0], o); err != nil {
		t.Fatal(err)
	}
	return text.String()
}

func each(t *testing.T, f func(t *testing.T, name string, v dovecotconf.Version)) {
	for _, v := range dovecotconf.Versions() {
		for _, name := range files {
			t.Run(string(v)+"/"+name, func(t *testing.T) { f(t, name, v) })
		}
	}
}

func TestSettingsAreThoseOfTestdata(t *testing.T) {
	each(t, func(t *testing.T, name string, v dovecotconf.Version) {
		got := written(t, name, dovecotconf.Options{Version: v})
		path := fmt.Sprintf("testdata/%s-%s.conf", name, v)
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("differs from %s; if that is meant, run the test with -update and look at the change:\n%s", path, got)
		}
	})
}

// Nothing stands there without a reason: each paragraph behind the head begins
// with one, of one line, and so does what a block has besides.
func TestEverySettingHasItsReason(t *testing.T) {
	each(t, func(t *testing.T, name string, v dovecotconf.Version) {
		text := written(t, name, dovecotconf.Options{Version: v})
		if strings.HasSuffix(text, "\n\n") || !strings.HasSuffix(text, "\n") || strings.Contains(text, "\n\n\n") || strings.Contains(text, " \n") {
			t.Error("blanks or empty lines too many")
		}
		paragraphs := strings.Split(strings.TrimSpace(text), "\n\n")
		if len(paragraphs) < 5 {
			t.Fatalf("only %d paragraphs", len(paragraphs))
		}
		for _, p := range paragraphs[1:] {
			lines := strings.Split(p, "\n")
			before := true // the line before was a reason
			for i, line := range lines {
				reason := strings.HasPrefix(strings.TrimSpace(line), "# ")
				switch {
				case i == 0 && !reason:
					t.Errorf("no reason for:\n%s", p)
				case i > 0 && reason && before, i == len(lines)-1 && reason:
					t.Errorf("a reason of two lines, or for nothing:\n%s", p)
				case reason && (len(line) > 110 || !strings.HasSuffix(line, ".")):
					t.Errorf("a long reason, or no sentence: %s", line)
				}
				before = reason
			}
		}
	})
}

// Each marker among the settings has a step that says what to replace it by, and
// no step is for nothing.
func TestEveryMarkerHasItsStep(t *testing.T) {
	markers := regexp.MustCompile(`\b(PASSWORD|THIS-HOST|PORT|CA-FILE|DOVEPUSH-ADDRESS|KEY)\b`)
	each(t, func(t *testing.T, name string, v dovecotconf.Version) {
		head, body, _ := strings.Cut(written(t, name, dovecotconf.Options{Version: v}), "\n\n")
		marked, steps := make(map[string]bool), make(map[string]bool)
		for _, m := range markers.FindAllString(body, -1) {
			marked[m] = true
		}
		for line := range strings.Lines(head) {
			if step, found := strings.CutPrefix(line, "#   "); found && markers.MatchString(step) {
				marker, _, _ := strings.Cut(step, " ")
				steps[marker] = true
			}
		}
		if fmt.Sprint(marked) != fmt.Sprint(steps) {
			t.Errorf("marked: %v, steps: %v", marked, steps)
		}
	})
}

func TestNoSecretIsWritten(t *testing.T) {
	for _, v := range dovecotconf.Versions() {
		c, err := config.Parse([]byte(`
identity_key = "s3cret-0123456789012345678901234567890123"
[[server]]
address = "imap.example.com:993"
[server.auth]
master_user = "dovepush"
password = "s3cret-m"
[server.doveadm]
api_key = "s3cret-k"
[notify]
listen = "127.0.0.1:8026"
password = "s3cret-n"
`), "config.toml")
		if err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		if err := dovecotconf.Write(&text, c, &c.Servers[0], dovecotconf.Options{Version: v}); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(text.String(), "s3cret") {
			t.Errorf("%s: a secret is in\n%s", v, text.String())
		}
		for _, key := range []string{"notify.password", "server[0].auth.password", "server[0].doveadm.api_key"} {
			if !strings.Contains(text.String(), key) {
				t.Errorf("%s: nothing says where %s belongs", v, key)
			}
		}
	}
}

// replaced are the markers, and a user whom this machine need not have. Of the
// CA's file Dovecot wants only that it is there, until it is used.
var replaced = strings.NewReplacer("PASSWORD", "x", "KEY", "x", "DOVEPUSH-ADDRESS", "192.0.2.7",
	"THIS-HOST", "192.0.2.8", ":PORT/", ":8026/", "CA-FILE", "/etc/passwd", "user = dovepush", "user = root")

// Dovecot takes the settings of every file, once the steps are done.
func TestDovecotTakesTheSettings(t *testing.T) {
	for _, v := range dovecotconf.Versions() {
		for _, name := range files {
			t.Run(string(v)+"/"+name, func(t *testing.T) {
				text := written(t, name, dovecotconf.Options{Version: v})
				for _, part := range []string{text, regexp.MustCompile(`(?m)^( *)#([^ \n])`).ReplaceAllString(text, "$1$2")} {
					s := dovecottest.Start(t, dovecot.Options{
						Version: dovecot.Version(v), Bare: true, Extra: map[dovecot.Version]string{dovecot.Version(v): replaced.Replace(part)},
					})
					out, err := s.Command(t.Context(), "doveconf", "-n").CombinedOutput()
					if err != nil || strings.Contains(string(out), "Warning") {
						t.Errorf("doveconf -n: %v\n%s", err, out)
					}
					if err := s.Close(); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
}

// noRoom lets a plugin refuse every message over 10 bytes.
var noRoom = map[dovecotconf.Version]string{
	dovecotconf.V23: "plugin {\n  quota = count:User quota\n  quota_vsizes = yes\n  quota_rule = *:bytes=10\n}\n",
	dovecotconf.V24: "quota all {\n  quota_storage_size = 10 B\n  quota_storage_grace = 0\n}\n",
}

// Plugins that were there before stay: those for all and those of the protocol.
// So the quota plugin still refuses what is too much.
func TestPluginsThatAreThereStay(t *testing.T) {
	plugin := map[dovecotconf.Version]string{
		dovecotconf.V23: "mail_plugins = $mail_plugins quota\n",
		dovecotconf.V24: "mail_plugins {\n  quota = yes\n}\n",
	}
	for _, v := range dovecotconf.Versions() {
		for where, before := range map[string]string{
			"for all":  plugin[v],
			"for lmtp": "protocol lmtp {\n" + plugin[v] + "}\n",
		} {
			t.Run(string(v)+"/"+where, func(t *testing.T) {
				s := dovecottest.Start(t, dovecot.Options{
					Version: dovecot.Version(v), Bare: true, Users: []dovecot.User{{Name: "alice"}},
					Extra: map[dovecot.Version]string{
						dovecot.Version(v): noRoom[v] + before + replaced.Replace(written(t, "local", dovecotconf.Options{Version: v})),
					}})
				var refused *textproto.Error
				if err := s.Deliver(t.Context(), "alice", "bob@example.org", "lunch", "at noon"); !errors.As(err, &refused) ||
					!strings.Contains(strings.ToLower(refused.Msg), "quota") {
					t.Errorf("not refused by the quota plugin: %v", err)
				}
			})
		}
	}
}

func TestWhatIsUnknownIsRefused(t *testing.T) {
	c := config.Default()
	s := config.DefaultServer()
	if err := dovecotconf.Write(&strings.Builder{}, &c, &s, dovecotconf.Options{Version: "2.2"}); err == nil {
		t.Error("settings for 2.2")
	}
	if _, err := dovecotconf.ParseVersion("2.2"); err == nil {
		t.Error("2.2 is a version")
	}
	for _, from := range []string{"", "host", "1.2.3.4/33", "fe80::1%eth0", "1.2.3.4,5.6.7.8"} {
		if nets, err := dovecotconf.ParseFrom([]string{from}); err == nil {
			t.Errorf("%q is %v", from, nets)
		}
	}
	if err := dovecotconf.Write(full{}, &c, &s, dovecotconf.Options{}); !errors.Is(err, errFull) {
		t.Errorf("a writer that fails: %v", err)
	}
}

var errFull = errors.New("full")

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errFull }
