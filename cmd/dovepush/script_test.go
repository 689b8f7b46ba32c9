package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"dovepush/internal/dovecot"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"dovepush": main})
}

// The command line, as a process, against a Dovecot of its own for each script
// and version.
func TestScripts(t *testing.T) {
	for _, version := range dovecot.Versions() {
		t.Run(string(version), func(t *testing.T) {
			if testing.Short() {
				t.Skip("needs a real Dovecot")
			}
			testscript.Run(t, testscript.Params{
				Dir:                 "testdata/script",
				Setup:               func(env *testscript.Env) error { return setUp(t.Context(), version, env) },
				Cmds:                commands(t.Context()),
				RequireExplicitExec: true,
				RequireUniqueNames:  true,
			})
		})
	}
}

type serverKey struct{}

// setUp starts the script's Dovecot and writes settings for it.
func setUp(ctx context.Context, version dovecot.Version, env *testscript.Env) error {
	options, err := scriptOptions(env.WorkDir)
	if err != nil {
		return err
	}
	options.Version = version
	options.Users = []dovecot.User{
		{Name: "alice", Password: "alice-secret"}, {Name: "bob", Password: "bob-secret"}, {Name: "carol", Password: "carol-secret"},
		{Name: "locked", Password: "locked-secret", Extra: "nologin"},
		{Name: "alice@example.org", Password: "x"}, {Name: "o'hara", Password: "x"}, {Name: `quo"te`, Password: "x"}, {Name: `back\slash`, Password: "x"},
		{Name: "müller", Password: "x"}, {Name: "star*agent", Password: "x"},
	}
	s, err := dovecot.Start(ctx, options)
	if err != nil {
		return err
	}
	env.Defer(func() { s.Close() })
	env.Values[serverKey{}] = s
	files := map[string]string{
		"master.secret": s.MasterPassword + "\n",
		"config.toml":   settings,
	}
	for name, text := range files {
		path := filepath.Join(env.WorkDir, name)
		if _, err := os.Stat(path); err == nil {
			continue // the script brings its own
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return err
		}
	}
	_, port, _ := strings.Cut(s.IMAPS, ":")
	env.Setenv("IMAPS", s.IMAPS)
	env.Setenv("IMAPS_PORT", port)
	env.Setenv("IMAP", s.IMAP)
	env.Setenv("CA", s.CAFile)
	env.Setenv("MASTER", s.MasterUser)
	env.Setenv("DOVEPUSH_CONFIG", filepath.Join(env.WorkDir, "config.toml"))
	return expand(filepath.Join(env.WorkDir, "config.toml"), env.Getenv)
}

const settings = `
[[server]]
address = "${IMAPS}"
tls_ca_file = "${CA}"
timeout = "10s"
[server.auth]
master_user = "${MASTER}"
password_file = "master.secret"
[registry]
path = "registry.db"
`

// scriptOptions reads the words of the file "dovecot", if the script has one.
func scriptOptions(dir string) (o dovecot.Options, err error) {
	text, err := os.ReadFile(filepath.Join(dir, "dovecot"))
	if errors.Is(err, os.ErrNotExist) {
		return o, nil
	}
	for word := range strings.FieldsSeq(string(text)) {
		switch word {
		case "NoMetadata":
			o.NoMetadata = true
		case "NoDict":
			o.NoDict = true
		case "NoResultSuccess":
			o.NoResultSuccess = true
		case "PlaintextRefused":
			o.PlaintextRefused = true
		default:
			return o, fmt.Errorf("dovecot: unknown word %q", word)
		}
	}
	return o, err
}

// expand replaces ${NAME} in a file.
func expand(path string, value func(string) string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, []byte(os.Expand(string(text), value)), 0o600)
}

func theServer(ts *testscript.TestScript) *dovecot.Server {
	return ts.Value(serverKey{}).(*dovecot.Server)
}

// commands are what the scripts may say beside testscript's own.
func commands(ctx context.Context) map[string]func(ts *testscript.TestScript, neg bool, args []string) {
	return map[string]func(ts *testscript.TestScript, neg bool, args []string){
		// exits CODE PROGRAM ARG... runs a program that must end with this code.
		"exits": func(ts *testscript.TestScript, neg bool, args []string) {
			want, err := strconv.Atoi(args[0])
			ts.Check(err)
			code := 0
			if err := ts.Exec(args[1], args[2:]...); err != nil {
				var exit *exec.ExitError
				if !errors.As(err, &exit) {
					ts.Fatalf("%v", err)
				}
				code = exit.ExitCode()
			}
			if code != want {
				ts.Fatalf("exit status %d, want %d\n%s%s", code, want, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
			}
		},
		// entry USER [VALUE]: doveadm says that the entry holds VALUE, or is absent.
		"entry": func(ts *testscript.TestScript, neg bool, args []string) {
			value, present, err := theServer(ts).Entry(ctx, args[0])
			ts.Check(err)
			want := append(args, "")[1]
			if value != want || present != (want != "") {
				ts.Fatalf("the entry of %q holds %q (present: %v), want %q", args[0], value, present, want)
			}
		},
		// setentry USER VALUE and unsetentry USER change it behind our back.
		"setentry": func(ts *testscript.TestScript, neg bool, args []string) {
			ts.Check(theServer(ts).SetEntry(ctx, args[0], args[1]))
		},
		"unsetentry": func(ts *testscript.TestScript, neg bool, args []string) {
			ts.Check(theServer(ts).UnsetEntry(ctx, args[0]))
		},
		// dovecot stop|start
		"dovecot": func(ts *testscript.TestScript, neg bool, args []string) {
			if args[0] == "stop" {
				ts.Check(theServer(ts).Stop(ctx))
			} else {
				ts.Check(theServer(ts).Restart(ctx))
			}
		},
		// token USER FILE LIFE writes an OAuth token.
		"token": func(ts *testscript.TestScript, neg bool, args []string) {
			life, err := time.ParseDuration(args[2])
			ts.Check(err)
			ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(theServer(ts).Token(args[0], life)), 0o600))
		},
		// forget USER and remember USER PASSWORD change whom Dovecot knows.
		"forget": func(ts *testscript.TestScript, neg bool, args []string) {
			ts.Check(theServer(ts).RemoveUser(args...))
		},
		"remember": func(ts *testscript.TestScript, neg bool, args []string) {
			ts.Check(theServer(ts).AddUser(dovecot.User{Name: args[0], Password: args[1]}))
		},
		// refusals N: Dovecot has refused so many logins.
		"refusals": func(ts *testscript.TestScript, neg bool, args []string) {
			want, err := strconv.Atoi(args[0])
			ts.Check(err)
			if n := strings.Count(theServer(ts).Log(), "auth failed"); n != want {
				ts.Fatalf("%d logins were refused, want %d\n%s", n, want, theServer(ts).Log())
			}
		},
		// expand FILE replaces ${NAME} in it.
		"expand": func(ts *testscript.TestScript, neg bool, args []string) {
			ts.Check(expand(ts.MkAbs(args[0]), ts.Getenv))
		},
		// bytes FILE GO-STRING writes what a script cannot hold.
		"bytes": func(ts *testscript.TestScript, neg bool, args []string) {
			text, err := strconv.Unquote(`"` + args[1] + `"`)
			ts.Check(err)
			ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
		},
	}
}
