package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"dovepush/config"
	"dovepush/internal/dovecot"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"dovepush": main})
}

// The command line, as a process, against a Dovecot of its own for each script,
// version and connector. What is one connector's alone is in a directory of its
// name; where the others differ they say [imap] or [doveadm].
func TestScripts(t *testing.T) {
	for _, version := range dovecot.Versions() {
		for _, connector := range connectors {
			for _, dir := range []string{"testdata/script", "testdata/script/" + connector} {
				t.Run(fmt.Sprintf("%s/%s/%s", version, connector, filepath.Base(dir)), func(t *testing.T) {
					if testing.Short() {
						t.Skip("needs a real Dovecot")
					}
					testscript.Run(t, testscript.Params{
						Dir:                 dir,
						Setup:               func(env *testscript.Env) error { return setUp(t.Context(), version, connector, env) },
						Cmds:                commands(t.Context()),
						Condition:           func(name string) (bool, error) { return isConnector(name, connector) },
						RequireExplicitExec: true,
						RequireUniqueNames:  true,
					})
				})
			}
		}
	}
}

// connectors are the ways to reach an entry.
var connectors = []string{config.ConnectorIMAP, config.ConnectorDoveadm}

func isConnector(name, connector string) (bool, error) {
	if !slices.Contains(connectors, name) {
		return false, fmt.Errorf("unknown condition %q", name)
	}
	return name == connector, nil
}

type serverKey struct{}

// setUp starts the script's Dovecot and writes settings for it.
func setUp(ctx context.Context, version dovecot.Version, connector string, env *testscript.Env) error {
	options, plain, err := scriptOptions(env.WorkDir)
	if err != nil {
		return err
	}
	options.Version = version
	options.Users = []dovecot.User{
		{Name: "alice", Password: "alice-secret"}, {Name: "bob", Password: "bob-secret"}, {Name: "carol", Password: "carol-secret"},
		{Name: "locked", Password: "locked-secret", Extra: "nologin"},
		{Name: "alice@example.org", Password: "x"}, {Name: "müller", Password: "x"},
	}
	if !plain {
		options.Users = append(options.Users, dovecot.User{Name: "o'hara", Password: "x"}, dovecot.User{Name: `quo"te`, Password: "x"},
			dovecot.User{Name: `back\slash`, Password: "x"}, dovecot.User{Name: "star*agent", Password: "x"})
	}
	s, err := dovecot.Start(ctx, options)
	if err != nil {
		return err
	}
	env.Defer(func() { s.Close() })
	env.Values[serverKey{}] = s
	files := map[string]string{
		"master.secret": s.MasterPassword + "\n",
		"doveadm.key":   s.APIKey + "\n",
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
	env.Setenv("DOVEADM", s.DoveadmURL)
	env.Setenv("DOVECOT_DIR", s.Dir)
	env.Setenv("KEY", s.APIKey)
	env.Setenv("PASSWORD", s.DoveadmPassword)
	env.Setenv("DOVEPUSH_CONFIG", filepath.Join(env.WorkDir, "config.toml"))
	env.Setenv("SERVER", os.Expand(serverSettings[connector], env.Getenv))
	env.Setenv("SECRET", map[string]string{config.ConnectorIMAP: "master.secret", config.ConnectorDoveadm: "doveadm.key"}[connector])
	return expand(filepath.Join(env.WorkDir, "config.toml"), env.Getenv)
}

const settings = `
[[server]]
timeout = "10s"
${SERVER}
[registry]
path = "registry.db"
`

// serverSettings is what follows the line [[server]].
var serverSettings = map[string]string{
	config.ConnectorIMAP: `
address = "${IMAPS}"
tls_ca_file = "${CA}"
[server.auth]
master_user = "${MASTER}"
password_file = "master.secret"
`,
	config.ConnectorDoveadm: `
connector = "doveadm"
[server.doveadm]
endpoints = ["${DOVEADM}"]
api_key_file = "doveadm.key"
`,
}

// scriptOptions reads the words of the file "dovecot", if the script has one.
func scriptOptions(dir string) (o dovecot.Options, plain bool, err error) {
	text, err := os.ReadFile(filepath.Join(dir, "dovecot"))
	if errors.Is(err, os.ErrNotExist) {
		return o, false, nil
	}
	for word := range strings.FieldsSeq(string(text)) {
		switch word {
		case "PlainNames": // a passwd-file lists odd ones as it has them, escaped
			plain = true
		case "NoMetadata":
			o.NoMetadata = true
		case "NoDict":
			o.NoDict = true
		case "NoResultSuccess":
			o.NoResultSuccess = true
		case "PlaintextRefused":
			o.PlaintextRefused = true
		case "AllowedCommands": // as docs/dovecot.md has it
			o.Extra = map[dovecot.Version]string{
				dovecot.V23: "doveadm_allowed_commands = mailbox metadata get,mailbox metadata set,mailbox metadata unset,user\n",
				dovecot.V24: `doveadm_allowed_commands = "mailbox metadata get" "mailbox metadata set" "mailbox metadata unset" user` + "\n",
			}
		case "OnlyGet":
			o.Extra = map[dovecot.Version]string{
				dovecot.V23: "doveadm_allowed_commands = mailbox metadata get\n",
				dovecot.V24: `doveadm_allowed_commands = "mailbox metadata get" reload` + "\n", // quotes around the whole would be taken away
			}
		case "UnixListener":
			o.Extra = everyVersion("service doveadm {\n unix_listener http {\n }\n}\n")
		default:
			return o, false, fmt.Errorf("dovecot: unknown word %q", word)
		}
	}
	return o, plain, err
}

func everyVersion(settings string) map[dovecot.Version]string {
	extra := make(map[dovecot.Version]string)
	for _, version := range dovecot.Versions() {
		extra[version] = settings
	}
	return extra
}

// expand replaces ${NAME} in a file.
func expand(path string, value func(string) string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, []byte(os.Expand(string(text), value)), 0o600)
}

// refusals is how many logins Dovecot has refused, or requests for their key.
func refusals(s *dovecot.Server) int {
	log := s.Log()
	return strings.Count(log, "auth failed") + strings.Count(log, `HTTP/1.1" 401 `)
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
		// refusals N: Dovecot has refused so many logins, or requests for their key.
		"refusals": func(ts *testscript.TestScript, neg bool, args []string) {
			want, err := strconv.Atoi(args[0])
			ts.Check(err)
			if n := refusals(theServer(ts)); n != want {
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
