package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func background() context.Context { return context.Background() }

// nobody is whom a test run by root becomes where permission bits must bite.
const nobody = 65534

func TestFilesThatMayNotBeWrittenAreRefused(t *testing.T) {
	base := t.TempDir()
	if err := os.Chmod(filepath.Dir(base), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := helper(t, "permission", base)
	if os.Geteuid() == 0 {
		if err := os.Chown(base, nobody, nobody); err != nil {
			t.Fatal(err)
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func helpPermission(args []string) (err error) {
	if os.Geteuid() == 0 {
		return errors.New("runs as root, which no permission bit stops")
	}
	base := args[0]
	ctx := background()
	var failures []error
	// made makes a registry in a directory of its own.
	made := func(name string, keep bool) (string, *Registry) {
		dir := filepath.Join(base, name)
		path := filepath.Join(dir, "registry.db")
		failures = append(failures, os.Mkdir(dir, 0o700))
		r, err := Open(ctx, path, nil)
		if err == nil {
			err = r.Intend(ctx, present(alice, "v"))
		}
		if err == nil && !keep {
			err = r.Close()
		}
		failures = append(failures, err)
		return path, r
	}
	refuse := func(name, path, names string) {
		r, err := Open(ctx, path, nil)
		if err == nil {
			r.Close()
		}
		if !errors.Is(err, ErrPermission) || !strings.Contains(err.Error(), names+":") {
			failures = append(failures, fmt.Errorf("%s: error %v does not name %s", name, err, names))
		}
	}

	path, _ := made("file", false)
	failures = append(failures, os.Chmod(path, 0o400))
	refuse("read-only file", path, path)

	path, _ = made("unreadable", false)
	failures = append(failures, os.Chmod(path, 0))
	refuse("unreadable file", path, path)

	path, _ = made("dir", false)
	failures = append(failures, os.Chmod(filepath.Dir(path), 0o500))
	refuse("read-only directory", path, filepath.Dir(path))
	refuse("nothing in a read-only directory", filepath.Join(filepath.Dir(path), "other.db"), filepath.Dir(path))
	failures = append(failures, os.Chmod(filepath.Dir(path), 0o700))

	path, _ = made("closed", false)
	failures = append(failures, os.Chmod(filepath.Dir(path), 0))
	refuse("directory that may not be entered", path, path)
	failures = append(failures, os.Chmod(filepath.Dir(path), 0o700))

	path, r := made("wal", true)
	failures = append(failures, os.Chmod(path+"-wal", 0o400))
	refuse("read-only -wal", path, path+"-wal")
	failures = append(failures, os.Chmod(path+"-wal", 0o600), r.Close())

	return errors.Join(failures...)
}

func TestFileOfAnotherUserThatIsOpenToAllIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		refused(t, "/etc/passwd", ErrPermission) // everybody has it, and it is root's
		return
	}
	base := t.TempDir()
	path := filepath.Join(base, "registry.db")
	for _, err := range []error{os.WriteFile(path, nil, 0o600), os.Chmod(path, 0o666), os.Chmod(base, 0o777), os.Chmod(filepath.Dir(base), 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := helper(t, "umask", path, "0") // opens it, too
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("is open to other users")) {
		t.Errorf("%v: %s", err, out)
	}
}

func TestRegistryMadeByRootBelongsToTheOwnerOfItsDirectory(t *testing.T) {
	want := os.Geteuid()
	dir := t.TempDir()
	if want == 0 {
		want = nobody
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	r := reopen(t, filepath.Join(dir, "registry.db"), nil)
	intend(t, r, present(alice, "v"))
	for _, suffix := range []string{"", "-wal", "-shm"} {
		info, err := os.Stat(r.path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if st := info.Sys().(*syscall.Stat_t); int(st.Uid) != want {
			t.Errorf("%q belongs to uid %d, want %d", suffix, st.Uid, want)
		}
	}
}

// inOwnMounts runs a helper that may mount: in a mount namespace of its own
// and, unless it is root, a user namespace in which it is.
func inOwnMounts(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if uid := os.Geteuid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EINVAL) || bytes.Contains(out, []byte(mountRefused)) {
		t.Fatalf("this test mounts a small file system of its own and needs a mount namespace: %v\n%s"+
			"As an ordinary user, allow user namespaces: sysctl -w kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000,"+
			" on Ubuntu also kernel.apparmor_restrict_unprivileged_userns=0. In a container: run it with CAP_SYS_ADMIN.", err, out)
	}
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

const mountRefused = "mount refused"

// mountSmall puts an empty file system of a size over dir.
func mountSmall(dir, size string) error {
	// Nothing of this may reach the other namespaces.
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("%s: %w", mountRefused, err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		return fmt.Errorf("%s: %w", mountRefused, err)
	}
	return nil
}

func TestReadOnlyFileSystemIsRefused(t *testing.T) {
	inOwnMounts(t, helper(t, "read-only", t.TempDir()))
}

func helpReadOnlyMount(args []string) error {
	ctx, dir := background(), args[0]
	path := filepath.Join(dir, "registry.db")
	if err := mountSmall(dir, "4m"); err != nil {
		return err
	}
	r, err := Open(ctx, path, nil)
	if err != nil {
		return err
	}
	if err := errors.Join(r.Intend(ctx, present(alice, "v")), r.Close()); err != nil {
		return err
	}
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("%s: %w", mountRefused, err)
	}
	for _, path := range []string{path, filepath.Join(dir, "new.db")} {
		_, err := Open(ctx, path, nil)
		if !errors.Is(err, ErrPermission) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "read-only") {
			return fmt.Errorf("open %s: error %v", path, err)
		}
	}
	return nil
}

func TestFullDiskLosesNothingAndGoesOnWhenThereIsSpace(t *testing.T) {
	inOwnMounts(t, helper(t, "disk full", t.TempDir()))
}

func helpDiskFull(args []string) error {
	ctx, dir := background(), args[0]
	path, ballast := filepath.Join(dir, "registry.db"), filepath.Join(dir, "ballast")
	if err := mountSmall(dir, "2m"); err != nil {
		return err
	}
	if err := os.WriteFile(ballast, make([]byte, 400<<10), 0o600); err != nil {
		return err
	}
	closed := filepath.Join(dir, "closed.db") // has neither -wal nor -shm
	r, err := Open(ctx, closed, nil)
	if err != nil {
		return err
	}
	if err := r.Close(); err != nil {
		return err
	}
	if r, err = Open(ctx, path, nil); err != nil {
		return err
	}
	acknowledged := 0
	for err == nil {
		if err = r.Intend(ctx, present(rowKey(acknowledged), "user="+strings.Repeat("x", 1000))); err == nil {
			acknowledged++
		}
	}
	if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), path) {
		return fmt.Errorf("after %d rows: error %v", acknowledged, err)
	}
	if acknowledged < 20 {
		return fmt.Errorf("full after %d rows", acknowledged)
	}
	readable := func(r *Registry, want int) error {
		n := 0
		for reg, err := range r.List(ctx, Filter{}) {
			if err != nil {
				return err
			}
			if reg.Key() != rowKey(n) {
				return fmt.Errorf("row %d is %v", n, reg.Key())
			}
			n++
		}
		if n != want {
			return fmt.Errorf("%d rows of %d acknowledged can be read", n, want)
		}
		return nil
	}
	if err := readable(r, acknowledged); err != nil {
		return fmt.Errorf("full: %w", err)
	}
	if err := fill(filepath.Join(dir, "rest")); err != nil {
		return err
	}
	for _, path := range []string{closed, filepath.Join(dir, "new.db")} {
		if _, err := Open(ctx, path, nil); !errors.Is(err, ErrFull) {
			return fmt.Errorf("open %s on the full disk: error %v", path, err)
		}
	}
	if err := errors.Join(os.Remove(ballast), os.Remove(filepath.Join(dir, "rest"))); err != nil {
		return err
	}
	if err := r.Intend(ctx, present(rowKey(acknowledged), "v")); err != nil {
		return fmt.Errorf("after space was freed: %w", err)
	}
	if err := errors.Join(readable(r, acknowledged+1), r.Check(ctx), r.Close()); err != nil {
		return err
	}
	if r, err = Open(ctx, path, nil); err != nil {
		return err
	}
	return errors.Join(readable(r, acknowledged+1), r.Close())
}

// fill takes the last bytes of a file system.
func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		return err
	}
	return f.Close()
}
