package dbfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// fresh names a file in a directory of its own.
func fresh(t *testing.T) File {
	t.Helper()
	return File{What: "thing", Path: filepath.Join(t.TempDir(), "thing.db"), ApplicationID: 0x74686e67,
		Overwritten: "look for it", Damaged: " and hide %s"}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantError also wants the message to begin as all do, and what it says.
func wantError(t *testing.T, f File, err, class error, says string) {
	t.Helper()
	if !errors.Is(err, class) || !strings.HasPrefix(err.Error(), "thing "+f.Path+": ") || !strings.Contains(err.Error(), says) {
		t.Errorf("error %v; want %v that says %q", err, class, says)
	}
}

func wantPrivate(t *testing.T, f File) {
	t.Helper()
	for _, name := range f.names() {
		if info, err := os.Stat(name); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, error %v", name, info, err)
		}
	}
}

func TestNewFilesAreThoseOfTheirOwnerWhateverTheUmask(t *testing.T) {
	for _, mask := range []int{0, 0o077, 0o777} {
		f := fresh(t)
		old := syscall.Umask(mask)
		opened(t, f, "CREATE TABLE things (x)")
		syscall.Umask(old)
		wantPrivate(t, f)
	}
}

func TestWiderPermissionsAreTakenOff(t *testing.T) {
	f := fresh(t)
	opened(t, f, "CREATE TABLE things (x)") // keeps -wal and -shm there
	for _, name := range f.names() {
		must(t, os.Chmod(name, 0o664))
	}
	_, err := f.Prepare()
	must(t, err)
	wantPrivate(t, f)
}

func TestAFileThatIsThereIsLeftAsItIsAndNothingBesideIt(t *testing.T) {
	f := fresh(t)
	must(t, os.WriteFile(f.Path, []byte("text"), 0o600))
	_, err := f.Prepare()
	must(t, err)
	if text, err := os.ReadFile(f.Path); string(text) != "text" {
		t.Errorf("%q, error %v", text, err)
	}
	must(t, os.Remove(f.Path))
	_, err = f.Prepare()
	must(t, err)
	if entries, err := os.ReadDir(filepath.Dir(f.Path)); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, error %v", entries, err)
	}
}

func TestPathsThatCannotBeAFileAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		make  func(f *File) error
		class error
		says  string
	}{
		"no directory": {func(f *File) error { return os.Remove(filepath.Dir(f.Path)) }, fs.ErrNotExist, "does not exist; create it"},
		"file as a directory": {func(f *File) error {
			err := os.WriteFile(f.Path, nil, 0o600)
			f.Path = filepath.Join(f.Path, "deeper", "thing.db")
			return err
		}, syscall.ENOTDIR, "open: "},
		"link to nowhere": {func(f *File) error { return os.Symlink(f.Path+".nowhere", f.Path) }, fs.ErrNotExist, "a symbolic link that leads nowhere"},
		"directory":       {func(f *File) error { return os.Mkdir(f.Path, 0o700) }, ErrForeign, "a directory, not a file; set thing.path to a file"},
		"named pipe":      {func(f *File) error { return syscall.Mkfifo(f.Path, 0o600) }, ErrForeign, "a named pipe, not"},
	} {
		t.Run(name, func(t *testing.T) {
			f := fresh(t)
			must(t, c.make(&f))
			_, err := f.Prepare()
			wantError(t, f, err, c.class, c.says)
		})
	}
}

func TestAFileThatWasRemovedOrReplacedIsNoLongerTheSame(t *testing.T) {
	f := fresh(t)
	seen, err := f.Prepare()
	must(t, err)
	must(t, f.Still(seen))
	must(t, os.Rename(f.Path, f.Path+".old"))
	wantError(t, f, f.Still(seen), fs.ErrNotExist, "removed or replaced")
	_, err = f.Prepare()
	must(t, err)
	wantError(t, f, f.Still(seen), fs.ErrNotExist, "removed or replaced")
}

func TestEachFaultHasItsClassAndItsRemedy(t *testing.T) {
	f := fresh(t)
	for err, want := range map[error]struct {
		class error
		says  string
	}{
		fs.ErrPermission: {ErrPermission, "x: no permission to use it; uid "},
		syscall.EROFS:    {ErrPermission, "mounted read-only"},
		syscall.ENOSPC:   {ErrFull, "x: disk full; free space in " + filepath.Dir(f.Path)},
		syscall.EDQUOT:   {ErrFull, "quota"},
	} {
		got := f.Explain("x", &fs.PathError{Op: "open", Path: "p", Err: err})
		wantError(t, f, got, want.class, want.says)
		wantError(t, f, got, err, "(open p: "+err.Error()+")")
		if again := f.Explain("y", got); again != got {
			t.Errorf("explained twice: %v", again)
		}
	}
	for class, says := range map[error]string{
		nil:        "x: odd",
		ErrForeign: "x: not a dovepush thing; set thing.path to a file of dovepush's own; if this one used to be the thing, it is overwritten: look for it (odd)",
		ErrCorrupt: "x: damaged; stop dovepush and hide " + f.Path + ", " + f.Path + "-wal and " + f.Path + "-shm (odd)",
		ErrBusy:    "x: locked; another process kept it locked for 20s: find it with fuser -v " + f.Path,
	} {
		odd := errors.New("odd")
		got := f.ExplainAs(class, "x", odd)
		wantError(t, f, got, odd, says)
		if class != nil {
			wantError(t, f, got, class, says)
		}
	}
	wantError(t, f, f.Corrupt("check", "a hole"), ErrCorrupt, "check: damaged: a hole; stop dovepush and hide")
	wantError(t, f, f.Explain("x", ErrClosed), fs.ErrClosed, "x: already closed")
	if err := f.Explain("x", nil); err != nil {
		t.Error(err)
	}
}
