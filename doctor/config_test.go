package doctor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dovepush/config"
	"dovepush/imapmeta"
	"dovepush/registry"
)

const nowhere = "[[server]]\naddress = \"127.0.0.1:1\"\ntls = \"none\"\n[server.auth]\nmaster_user = \"m\"\npassword_file = \"master\"\n[api]\nlisten = \"\"\n"

func plain(t *testing.T, dir, text string) Options {
	t.Helper()
	return Options{
		Config: func() (*config.Config, error) { return config.Parse([]byte(text), filepath.Join(dir, "config.toml")) },
		Path:   "config.toml", IMAP: newIMAP, Doveadm: newDoveadm,
	}
}

func TestWithoutSettingsNothingElseIsLookedAt(t *testing.T) {
	o := plain(t, t.TempDir(), "[[server]]\nadress = \"x\"\n")
	w := run(t, o)
	w.has(t, "config", Fail, "adress", "dovepush config check")
	if len(w.results) != 1 || w.Verdict.Fault != Settings {
		t.Errorf("%d links, fault %d", len(w.results), w.Verdict.Fault)
	}
	o.Config = func() (*config.Config, error) {
		return nil, &fs.PathError{Op: "open", Path: "/etc/dovepush/config.toml", Err: syscall.ENOENT}
	}
	run(t, o).has(t, "config", Fail, "config.toml.example")
}

func TestEachSecretIsReadAndCommandsRun(t *testing.T) {
	dir := t.TempDir()
	text := nowhere + "[registry]\npath = \"registry.db\"\n[[webhook]]\nname = \"x\"\nurl = \"http://127.0.0.1:1/\"\nsecret_command = \"echo no luck >&2; false\"\n"
	w := run(t, plain(t, dir, text))
	w.has(t, "secrets", Fail, "password_file", "create it or correct the name")
	w.has(t, "secrets", Fail, "secret_command", "no luck")
	w.has(t, "login", Skip)
	if w.Verdict.Fault != Settings {
		t.Errorf("fault %d", w.Verdict.Fault)
	}
}

// What serve would not start with is no good secret, however well it can be read.
func TestAKeyOfAWrongFormFails(t *testing.T) {
	dir := t.TempDir()
	o := plain(t, dir, nowhere+"[registry]\npath = \"registry.db\"\n")
	asked := false
	o.Keys = func(context.Context, *config.Config) error {
		asked = true
		return errors.Join(errors.New("identity_key: too short"), errors.New("webhook[0].secret: no whsec_"))
	}
	run(t, o).has(t, "secrets", Fail, "password_file")
	if asked {
		t.Error("secrets that cannot be read were looked at")
	}
	if err := os.WriteFile(filepath.Join(dir, "master"), []byte("x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w := run(t, o)
	w.has(t, "secrets", Fail, "identity_key: too short; webhook[0].secret: no whsec_", "does not start")
	if len(w.of("secrets")) != 1 || w.Verdict.Fault != Settings {
		t.Errorf("%+v, fault %d", w.of("secrets"), w.Verdict.Fault)
	}
}

// The login is not tried with a password that cannot be read, wherever the
// greeting came from.
func TestALoginNeedsItsSecret(t *testing.T) {
	d := &doctor{done: map[string]Status{step{link: "server[0].auth.password_file"}.id(): Fail}}
	if why := d.missing(step{link: "login", server: "main", needs: []string{"greeting", "server[0].auth.password_file"}}); !strings.Contains(why, "password_file failed") {
		t.Errorf("missing: %q", why)
	}
}

func TestAnAbsentRegistryIsWellAndStaysAbsent(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "master"), []byte("x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := plain(t, dir, nowhere+"[registry]\npath = \"registry.db\"\n")
	w := run(t, o)
	w.has(t, "registry", OK, "none yet")
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("doctor left %v, %v", left, err)
	}
}

func TestADamagedOrForeignRegistryFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "registry.db")
	if err := os.WriteFile(path, []byte(strings.Repeat("not SQLite ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	w := run(t, plain(t, dir, nowhere+"[registry]\npath = \"registry.db\"\n"))
	w.has(t, "registry", Fail, "not a dovepush registry")
	if w.Verdict.Fault != Settings {
		t.Errorf("fault %d", w.Verdict.Fault)
	}
}

func TestWhatTheRegistryNotesIsTold(t *testing.T) {
	c := newChain(t)
	c.row(t, "alice", "user=alice")
	now := time.Now()
	err := errors.Join(
		c.registry.OpenCircuit(t.Context(), registry.Circuit{Server: "main", Since: now, ProbeAt: now, Failures: 3, Failure: registry.Failure{Kind: "server", Message: "login refused"}}),
		c.registry.SetAside(t.Context(), registry.Endpoint{Server: "main", URL: "http://h/doveadm/v1", Since: now, CheckAt: now.Add(time.Minute), Reason: "refused", Failure: registry.Failure{Kind: "retry", Message: "nobody there"}}),
	)
	if err != nil {
		t.Fatal(err)
	}
	w := run(t, plain(t, c.dir, nowhere+"[registry]\npath = \"registry.db\"\n"))
	w.has(t, "registry", OK, "1 registered (0 proven")
	w.has(t, "registry", Warn, "fails for everybody", "login refused", "3 attempts")
	w.has(t, "registry", Warn, "http://h/doveadm/v1", "set aside", "nobody there")
}

// Registries of root's making would lock the service out.
func TestARegistryKeepsItsOwner(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give files away")
	}
	c := newChain(t)
	c.row(t, "alice", "user=alice")
	if err := c.registry.Close(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chown(c.dir, 4711, 4711), os.Chown(filepath.Join(c.dir, "registry.db"), 4711, 4711)); err != nil {
		t.Fatal(err)
	}
	run(t, plain(t, c.dir, nowhere+"[registry]\npath = \"registry.db\"\n")).has(t, "registry", OK)
	files, err := os.ReadDir(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if info, err := f.Info(); err != nil || strings.HasPrefix(f.Name(), "registry") && info.Sys().(*syscall.Stat_t).Uid != 4711 {
			t.Errorf("%s: %+v, %v", f.Name(), info, err)
		}
	}
}

func TestAnEntryIsHeldAgainstTheRegistry(t *testing.T) {
	const ours = imapmeta.Value("user=alice")
	row := func(w registry.Wanted, s registry.State) entryState {
		return entryState{found: true, row: registry.Registration{User: "alice", Value: string(ours), Wanted: w, State: s}}
	}
	agrees := row(registry.Present, registry.Registered)
	agrees.agrees = true
	for _, test := range []struct {
		name string
		entryState
		have   imapmeta.Value
		status Status
		words  string
	}{
		{"as registered", agrees, ours, OK, "as registered"},
		{"gone", row(registry.Present, registry.Registered), "", Fail, "dovepush verify alice"},
		{"somebody else's", row(registry.Present, registry.Registered), "user=x", Fail, "--force"},
		{"pending, another value before", row(registry.Present, registry.Pending), "user=old", Warn, "not carried out yet"},
		{"neither", entryState{}, "", OK, "not registered"},
		{"still there", row(registry.Absent, registry.Removing), ours, Warn, "removal is not carried out"},
		{"unknown here", entryState{}, ours, Warn, "dovepush register alice"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := compared("alice", test.entryState, test.have)
			if f.status != test.status || !strings.Contains(f.detail+f.mend, test.words) {
				t.Errorf("%s: %+v", test.name, f)
			}
		})
	}
}

func TestATextHasALineAndOneForEachMend(t *testing.T) {
	r := Result{Link: "login", Server: "main", Status: Fail, Detail: "says a\nb", Mend: "one\ntwo", Seconds: 0.25}
	want := "FAIL  main: login                   says a; b  [250 ms]\n      mend: one\n      mend: two\n"
	if got := r.Text(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestTheVerdictIsOneLine(t *testing.T) {
	for _, test := range []struct {
		Verdict
		want string
	}{
		{Verdict{}, "all is well"},
		{Verdict{Warned: 1}, "all links hold, with 1 warning"},
		{Verdict{Failed: 1, First: "main: tls", Warned: 2}, "1 link fails: main: tls, with 2 warnings"},
		{Verdict{Failed: 3, First: "config"}, "3 links fail; begin with the first: config"},
		{Verdict{Err: errors.New("x")}, "interrupted; nothing failed until then"},
	} {
		if got := test.Text(); got != test.want {
			t.Errorf("%+v: %q, want %q", test.Verdict, got, test.want)
		}
	}
}

func TestWordsAreQuotedForTheShell(t *testing.T) {
	for word, want := range map[string]string{"alice@example.org": "alice@example.org", "o'hara": `'o'\''hara'`, "": "''", "-x": "'-x'", "a b": "'a b'"} {
		if got := shell(word); got != want {
			t.Errorf("%q: %s, want %s", word, got, want)
		}
	}
}
