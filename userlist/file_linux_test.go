package userlist

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
)

// temporary returns the files below dir that a process has open, under the
// names by which they can be opened again.
func temporary(pid, dir string) (files []string) {
	links, err := filepath.Glob("/proc/" + pid + "/fd/*")
	if err != nil {
		panic(err) // a bad pattern
	}
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && strings.HasPrefix(target, dir+"/") {
			files = append(files, link)
		}
	}
	return files
}

func empty(t *testing.T, dir string) {
	t.Helper()
	if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
		t.Errorf("%s holds %v, error %v", dir, names, err)
	}
}

func TestTemporaryFileIsPrivateAndHasNoName(t *testing.T) {
	text, _ := numbered(several)
	l := open(t, text)
	empty(t, l.sorter.dir)
	files := temporary("self", l.sorter.dir)
	if len(files) != 1 {
		t.Fatalf("%d temporary files are open", len(files))
	}
	info, err := os.Stat(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o600 || info.Size() < int64(len(text)) {
		t.Errorf("mode %v, %d bytes", info.Mode(), info.Size())
	}
}

func TestSmallListNeedsNoTemporaryFile(t *testing.T) {
	l := open(t, "alice\nbob\n")
	if files := temporary("self", l.sorter.dir); len(files) > 0 {
		t.Errorf("%d temporary files are open", len(files))
	}
}

func TestTemporaryFileIsClosedHoweverItEnds(t *testing.T) {
	text, _ := numbered(several)
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, end := range map[string]func(l *List){
		"All": func(l *List) { all(context.Background(), l) },
		"All broken off": func(l *List) {
			for range l.All(context.Background()) {
				break
			}
		},
		"All, context over": func(l *List) { all(canceled, l) },
		"Close":             func(l *List) { l.Close() },
		"Close in All": func(l *List) {
			for range l.All(context.Background()) {
				l.Close()
			}
		},
		"a consumer that panics": func(l *List) {
			defer func() { recover() }()
			for range l.All(context.Background()) {
				panic("consumer")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l, err := read(t.Context(), strings.NewReader(text), options(dir), smallChunk)
			if err != nil {
				t.Fatal(err)
			}
			end(l)
			if files := temporary("self", dir); len(files) > 0 {
				t.Errorf("%d temporary files are open", len(files))
			}
		})
	}
	for name, r := range map[string]io.Reader{
		"bad line":   strings.NewReader(text + "\t\n"),
		"read error": io.MultiReader(strings.NewReader(text), iotest.ErrReader(errors.New("broken"))),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if _, err := read(t.Context(), r, options(dir), smallChunk); err == nil {
				t.Error("no error")
			}
			if files := temporary("self", dir); len(files) > 0 {
				t.Errorf("%d temporary files are open", len(files))
			}
		})
	}
	names := strings.Fields(text)
	for name, users := range map[string]iter.Seq2[string, error]{
		"bad name":              sequence(nil, append(names, "")...),
		"error of the sequence": sequence(errors.New("broken"), names...),
		"a sequence that panics": func(yield func(string, error) bool) {
			sequence(nil, names...)(yield)
			panic("sequence")
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			func() {
				defer func() { recover() }()
				l, err := collect(t.Context(), users, options(dir), smallChunk)
				if l != nil || err == nil {
					t.Errorf("list %v, error %v", l, err)
				}
			}()
			if files := temporary("self", dir); len(files) > 0 {
				t.Errorf("%d temporary files are open", len(files))
			}
		})
	}
}

func TestDamagedTemporaryFileIsAnError(t *testing.T) {
	text, _ := numbered(several)
	for name, damage := range map[string]func(file string) error{
		"empty":           func(file string) error { return os.Truncate(file, 0) },
		"within a record": func(file string) error { return os.Truncate(file, 100_000) },
		"overwritten": func(file string) error {
			f, err := os.OpenFile(file, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte(strings.Repeat("\xff", 8)+"\x01"), 0)
			return errors.Join(err, f.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := open(t, text)
			if err := damage(temporary("self", l.sorter.dir)[0]); err != nil {
				t.Fatal(err)
			}
			got, err := all(t.Context(), l)
			if err == nil || len(got) == several || !strings.HasPrefix(err.Error(), "users.txt: cannot sort it in "+l.sorter.dir+": ") {
				t.Errorf("%d users, error %v", len(got), err)
			}
		})
	}
}

func TestDirectoryThatCannotBeUsedIsNamed(t *testing.T) {
	text, _ := numbered(several)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]error{file + "-missing": fs.ErrNotExist, file: syscall.ENOTDIR} {
		_, err := read(t.Context(), strings.NewReader(text), options(dir), smallChunk)
		if !errors.Is(err, want) || !strings.HasPrefix(err.Error(), "users.txt: cannot sort it in "+dir+": ") {
			t.Errorf("error %v, want %v", err, want)
		}
		if _, err := os.Stat(file + "-missing"); err == nil {
			t.Error("the directory was made")
		}
	}
}

func TestFullDiskAndReadOnlyDiskAreNamed(t *testing.T) {
	dir := t.TempDir()
	cmd := helper(t, "disk trouble", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if uid := os.Geteuid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("in a mount namespace of its own: %v\n%s", err, out)
	}
}

func helpDiskTrouble(dir string) error {
	// Nothing of this may reach the other namespaces.
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		return err
	}
	text, _ := numbered(several)
	fails := func(want error) error {
		_, err := read(context.Background(), strings.NewReader(text), options(dir), smallChunk)
		if !errors.Is(err, want) || !strings.HasPrefix(err.Error(), "users.txt: cannot sort it in "+dir+": ") {
			return fmt.Errorf("error %v, want %v", err, want)
		}
		if files := temporary("self", dir); len(files) > 0 {
			return fmt.Errorf("%d temporary files are open", len(files))
		}
		return nil
	}
	if err := fails(syscall.ENOSPC); err != nil {
		return err
	}
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		return err
	}
	return fails(syscall.EROFS)
}

func helper(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), helperEnv+"="+name)
	return cmd
}

func TestKilledProcessLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	cmd := helper(t, "wait", dir)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Error(err)
	}
	if files := temporary(fmt.Sprint(cmd.Process.Pid), dir); len(files) != 1 {
		t.Errorf("%d temporary files are open before", len(files))
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	cmd.Wait() // says that it was killed
	empty(t, dir)
}

func helpWait(dir string) error {
	text, _ := numbered(several)
	r, w := io.Pipe()
	go func() {
		io.WriteString(w, text)
		fmt.Println("a chunk was written")
	}()
	_, err := read(context.Background(), r, options(dir), smallChunk)
	return fmt.Errorf("read to an end that never comes: %v", err)
}
