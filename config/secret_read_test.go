package config

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// place returns a directory and a Secret whose reference stands in a file there.
func place(t *testing.T, s Secret) (Secret, string) {
	t.Helper()
	dir := t.TempDir()
	s.origin = origin{key: "api.token", dir: dir}
	return s, dir
}

func write(t *testing.T, name, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
	return name
}

func TestReadTrimsOneNewline(t *testing.T) {
	for text, want := range map[string]string{
		"hunter2":                           "hunter2",
		"hunter2\n":                         "hunter2",
		"hunter2\r\n":                       "hunter2",
		" hunter 2 \t\n":                    " hunter 2 \t",
		"pässwört\n":                        "pässwört",
		"\xff\xfe\n":                        "\xff\xfe",
		strings.Repeat("x", 65536):          strings.Repeat("x", 65536),
		strings.Repeat("x", 65536) + "\r\n": strings.Repeat("x", 65536),
	} {
		s, dir := place(t, Secret{file: "s"})
		write(t, filepath.Join(dir, "s"), text, 0o600)
		if got, err := s.Read(t.Context()); got != want || err != nil {
			t.Errorf("file %.20q: %.20q, %v", text, got, err)
		}
		c, dir := place(t, Secret{command: "cat \"$F\""})
		write(t, filepath.Join(dir, "s"), text, 0o600)
		if got, err := c.Read(t.Context(), "F="+filepath.Join(dir, "s")); got != want || err != nil {
			t.Errorf("command %.20q: %.20q, %v", text, got, err)
		}
	}
}

func TestReadRefusesWhatIsNoSecret(t *testing.T) {
	for text, want := range map[string]string{
		"":                         "is empty; write the secret into it",
		"\n":                       "is empty; write the secret into it",
		"\r\n":                     "is empty; write the secret into it",
		"hunter2\n\n":              "holds more than one line; a secret is one line",
		"hunter2\nhunter3\n":       "holds more than one line; a secret is one line",
		"hunter2\r":                "holds more than one line; a secret is one line",
		"hunter2\x00\n":            "holds a NUL byte; a secret is text",
		strings.Repeat("x", 65537): "is longer than 64 KiB",
		strings.Repeat("x", 65539): "is longer than 64 KiB",
		strings.Repeat("x", 1<<20): "is longer than 64 KiB",
	} {
		s, dir := place(t, Secret{file: "s"})
		name := write(t, filepath.Join(dir, "s"), text, 0o600)
		wantError(t, s, "api.token_file: "+name+" "+want)
		c, dir := place(t, Secret{command: "cat '" + name + "'"})
		_ = dir
		wantError(t, c, "api.token_command: the command's output "+want)
	}
	wantError(t, Secret{}, "secret: is not set")
	wantError(t, NewSecret("a\nb"), "secret: holds more than one line; a secret is one line")
}

func wantError(t *testing.T, s Secret, want string) {
	t.Helper()
	got, err := s.Read(t.Context())
	var e *Error
	if got != "" || !errors.As(err, &e) || err.Error() != want {
		t.Errorf("got  %q, %v\nwant %s", got, err, want)
	}
	if err != nil && strings.Contains(err.Error(), "hunter") {
		t.Errorf("shows a secret: %v", err)
	}
}

func TestReadRefusesWhatIsNoFile(t *testing.T) {
	s, dir := place(t, Secret{file: "s"})
	name := filepath.Join(dir, "s")

	missing := "api.token_file: open " + name + ": no such file or directory; create it or correct the name"
	wantError(t, s, missing)
	if _, err := s.Read(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("cause is lost: %v", err)
	}

	if err := os.Symlink("nowhere", name); err != nil {
		t.Fatal(err)
	}
	wantError(t, s, missing)

	if err := errors.Join(os.Remove(name), os.Mkdir(name, 0o700)); err != nil {
		t.Fatal(err)
	}
	wantError(t, s, "api.token_file: "+name+" is no regular file")

	// A pipe without a writer must not block.
	if err := errors.Join(os.Remove(name), syscall.Mkfifo(name, 0o600)); err != nil {
		t.Fatal(err)
	}
	wantError(t, s, "api.token_file: "+name+" is no regular file")
}

func TestReadSeesARotatedFile(t *testing.T) {
	s, dir := place(t, Secret{file: "s"})
	for _, want := range []string{"first", "second"} {
		write(t, filepath.Join(dir, "s"), want+"\n", 0o600)
		if got, err := s.Read(t.Context()); got != want || err != nil {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
}

func TestReadPrefersCredentials(t *testing.T) {
	s, dir := place(t, Secret{file: "s"})
	cred := t.TempDir()
	write(t, filepath.Join(dir, "s"), "beside", 0o600)
	t.Setenv("CREDENTIALS_DIRECTORY", cred)
	check := func(want string) {
		t.Helper()
		if got, err := s.Read(t.Context()); got != want || err != nil {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	check("beside") // no such credential
	write(t, filepath.Join(cred, "s"), "credential", 0o600)
	check("credential")
	s.file = filepath.Join(dir, "s")
	check("beside") // an absolute name is meant as it stands
}

func TestCommandGetsEnvironmentAndNoInput(t *testing.T) {
	t.Setenv("DOVEPUSH_TEST", "inherited")
	s, _ := place(t, Secret{command: `cat; printf '%s-%s' "$DOVEPUSH_TEST" "$DOVEPUSH_USER"`})
	user := `a b"';$(id)`
	if got, err := s.Read(t.Context(), "DOVEPUSH_USER="+user); got != "inherited-"+user || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

func TestCommandFailureShowsOnlyStandardError(t *testing.T) {
	for command, want := range map[string]string{
		"echo hunter2; exit 3": "api.token_command: the command failed: exit status 3",
		"echo hunter2; printf '\\n \\033[31mgpg: no\\tkey\\nsecond' >&2; exit 2": "api.token_command: the command failed: exit status 2: [31mgpg: no key",
		"head -c 100000 /dev/zero | tr '\\0' e >&2; false":                       "api.token_command: the command failed: exit status 1: " + strings.Repeat("e", 200) + "...",
		"kill -9 $$":                 "api.token_command: the command failed: signal: killed",
		"/nonexistent/hunt 2>&1":     "api.token_command: the command failed: exit status 127",
		"echo hunter2; exec >&-; ((": "",
	} {
		s, _ := place(t, Secret{command: command})
		if want != "" {
			wantError(t, s, want)
		} else if _, err := s.Read(t.Context()); err == nil || strings.Contains(err.Error(), "hunter") {
			t.Errorf("%s: %v", command, err)
		}
	}
}

// TestCommandIsKilledWithItsChildren lets the shell and its child write down
// their process numbers, then cancels, runs out of time, or floods.
func TestCommandIsKilledWithItsChildren(t *testing.T) {
	hang := `echo $$ >"$D/pids.new"; sleep 600 & echo $! >>"$D/pids.new"; mv "$D/pids.new" "$D/pids"; wait`
	for name, c := range map[string]struct {
		command string
		limit   time.Duration
		cancel  bool
		want    string
	}{
		"cancelled":   {hang, time.Hour, true, "context canceled"},
		"out of time": {hang, 500 * time.Millisecond, false, "the command did not finish within 500ms"},
		"floods": {`trap "" PIPE; echo $$ >"$D/pids"; while :; do echo hunter2hunter2hunter2hunter2; done`,
			time.Hour, false, "the command's output is longer than 64 KiB"},
		"leaves a child": {`sleep 600 & echo $! >"$D/pids"; echo hunter2`, time.Hour, false,
			"the command left a process running that holds its output open"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			pids := filepath.Join(dir, "pids")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if c.cancel {
				go func() {
					for ctx.Err() == nil {
						if _, err := os.Stat(pids); err == nil {
							cancel()
						}
						time.Sleep(time.Millisecond)
					}
				}()
			}
			got, err := run(ctx, c.command, []string{"D=" + dir}, c.limit)
			if got != nil || err == nil || err.Error() != c.want {
				t.Errorf("%q, %v; want %s", got, err, c.want)
			}
			if c.cancel && !errors.Is(err, context.Canceled) {
				t.Errorf("cause is lost: %v", err)
			}
			data, err := os.ReadFile(pids)
			if err != nil {
				t.Fatal(err)
			}
			for field := range strings.FieldsSeq(string(data)) {
				waitGone(t, field)
			}
		})
	}
}

// waitGone waits until a process is dead: killed children of a killed shell
// are reaped by init in its own time, if there is one that reaps.
func waitGone(t *testing.T, pid string) {
	t.Helper()
	for range 1000 {
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("process %s is still running", pid)
}

func TestReadAfterTheEndDoesNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	mark := filepath.Join(t.TempDir(), "mark")
	s, _ := place(t, Secret{command: fmt.Sprintf("touch '%s'; echo x", mark)})
	if _, err := s.Read(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	f, dir := place(t, Secret{file: "s"})
	write(t, filepath.Join(dir, "s"), "x", 0o600)
	if _, err := f.Read(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("file: got %v", err)
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("the command ran")
	}
}
