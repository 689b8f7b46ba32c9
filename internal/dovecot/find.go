package dovecot

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Version is a Dovecot release series; settings differ between them.
type Version string

// The series that dovepush supports.
const (
	V23 Version = "2.3"
	V24 Version = "2.4"
)

// Versions returns the supported series, oldest first.
func Versions() []Version { return []Version{V23, V24} }

// suite is the Debian release whose package is of this series.
func (v Version) suite() string {
	switch v {
	case V23:
		return "bookworm"
	case V24:
		return "trixie"
	}
	return ""
}

// An Install is a Dovecot that can be started on this machine.
type Install struct {
	Version Version
	Full    string // as dovecot --version prints it
	Root    string // directory to change the root to; empty: the host's own
	binary  string // path below Root
	ids     identity
}

// Roots is the directory below which install.sh puts the Dovecots that the
// host has no package for: $DOVEPUSH_DOVECOT_ROOTS or /var/cache/dovepush.
func Roots() string {
	if dir := os.Getenv("DOVEPUSH_DOVECOT_ROOTS"); dir != "" {
		return dir
	}
	return "/var/cache/dovepush"
}

// hostBinaries are looked at after $PATH: ordinary users seldom have sbin in it.
var hostBinaries = []string{"/usr/sbin/dovecot", "/usr/local/sbin/dovecot", "/sbin/dovecot"}

// Find returns the Dovecot of series v, and an error that says how to get it
// when it is missing or cannot be run. An ordinary user runs the host's own
// Dovecot as it is; for one below [Roots] the kernel must let ordinary users
// make user namespaces, since only there may they change their root.
func Find(v Version) (Install, error) {
	if v.suite() == "" {
		return Install{}, fmt.Errorf("unknown Dovecot version %q (known: %v)", v, Versions())
	}
	var tried []error
	for _, in := range candidates(v) {
		ids, err := lookupIdentity(in.Root)
		if err == nil {
			in.ids = ids
			in.Full, err = in.probe()
		}
		switch {
		case err != nil:
			tried = append(tried, err)
		case strings.HasPrefix(in.Full, string(v)+"."):
			return in, nil
		}
	}
	if len(tried) > 0 {
		return Install{}, fmt.Errorf("dovecot %s cannot be run: %w", v, errors.Join(tried...))
	}
	return Install{}, fmt.Errorf("dovecot %s is not installed here: run `make setup` (it runs internal/dovecot/install.sh)", v)
}

func candidates(v Version) []Install {
	var found []Install
	host := hostBinaries
	if path, err := exec.LookPath("dovecot"); err == nil {
		host = append([]string{path}, host...)
	}
	for _, path := range host {
		if isExecutable(path) {
			found = append(found, Install{Version: v, binary: path})
			break
		}
	}
	root := filepath.Join(Roots(), v.suite())
	if isExecutable(filepath.Join(root, "usr/sbin/dovecot")) {
		found = append(found, Install{Version: v, Root: root, binary: "/usr/sbin/dovecot"})
	}
	return found
}

func isExecutable(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}

var versionLine = regexp.MustCompile(`^\d+\.\d+\.\S+`)

// probe runs dovecot --version just as the server would be run.
func (in Install) probe() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, in.binary, "--version")
	cmd.Dir = "/"
	cmd.Env = environment()
	cmd.SysProcAttr = in.ids.attributes(in.Root)
	out, err := cmd.Output()
	if err != nil && in.ids.namespace {
		return "", fmt.Errorf("%s below %s: %w: run it as root, or let ordinary users make user namespaces "+
			"(sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)",
			in.binary, in.Root, err)
	}
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", filepath.Join(in.Root, in.binary), err)
	}
	full := versionLine.FindString(string(out))
	if full == "" {
		return "", fmt.Errorf("%s --version: unexpected output %q", filepath.Join(in.Root, in.binary), out)
	}
	return full, nil
}

// identity says as whom Dovecot and its helper processes run.
type identity struct {
	privileged bool // root: Dovecot changes users by itself
	namespace  bool // an ordinary user who needs a user namespace

	internalUser, internalGroup, loginUser string
	internalGID                            int
	mailUID, mailGID                       int // as Dovecot sees them
}

// mailID owns the mailboxes where Dovecot runs as root: no account of its own,
// so that no other process runs under it.
const mailID = 60143

func lookupIdentity(root string) (identity, error) {
	uid, gid, err := passwdIDs(root, "dovecot")
	if os.Getuid() == 0 {
		if err != nil {
			return identity{}, err
		}
		return identity{
			privileged: true, internalUser: "dovecot", internalGroup: "dovecot", loginUser: "dovenull",
			internalGID: gid, mailUID: mailID, mailGID: mailID,
		}, nil
	}
	if root != "" {
		// The tree does not know our user. Inside the namespace we are its
		// "dovecot": Dovecot finds that name, and sees that it is not root.
		if err != nil {
			return identity{}, err
		}
		return identity{
			namespace: true, internalUser: "dovecot", internalGroup: "dovecot", loginUser: "dovecot",
			internalGID: os.Getgid(), mailUID: uid, mailGID: gid,
		}, nil
	}
	user, err := nameOf("/etc/passwd", os.Getuid())
	if err != nil {
		return identity{}, err
	}
	group, err := nameOf("/etc/group", os.Getgid())
	if err != nil {
		return identity{}, err
	}
	return identity{
		internalUser: user, internalGroup: group, loginUser: user,
		internalGID: os.Getgid(), mailUID: os.Getuid(), mailGID: os.Getgid(),
	}, nil
}

// attributes returns how to start a process under this identity below root.
func (id identity) attributes(root string) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setpgid: true, Chroot: root}
	if id.namespace {
		attr.Cloneflags = syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: id.mailUID, HostID: os.Getuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: id.mailGID, HostID: os.Getgid(), Size: 1}}
	}
	return attr
}

// passwdIDs reads the account files below root; os/user knows the host's only.
func passwdIDs(root, name string) (uid, gid int, err error) {
	path := filepath.Join(root, "/etc/passwd")
	for f, err := range colonFile(path) {
		if err != nil {
			return 0, 0, err
		}
		if len(f) < 4 || f[0] != name {
			continue
		}
		uid, err1 := strconv.Atoi(f[2])
		gid, err2 := strconv.Atoi(f[3])
		return uid, gid, errors.Join(err1, err2)
	}
	return 0, 0, fmt.Errorf("%s: no user %q", path, name)
}

// nameOf returns the first name with the given id in an account file.
func nameOf(path string, id int) (string, error) {
	for f, err := range colonFile(path) {
		if err != nil {
			return "", err
		}
		if len(f) > 2 && f[2] == strconv.Itoa(id) {
			return f[0], nil
		}
	}
	return "", fmt.Errorf("%s: no name for id %d, and Dovecot needs one: run as a user of this host, or as root", path, id)
}

func colonFile(path string) func(yield func([]string, error) bool) {
	return func(yield func([]string, error) bool) {
		f, err := os.Open(path)
		if err != nil {
			yield(nil, err)
			return
		}
		defer f.Close()
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			if !yield(strings.Split(lines.Text(), ":"), nil) {
				return
			}
		}
		if err := lines.Err(); err != nil {
			yield(nil, err)
		}
	}
}

// environment is all that Dovecot gets of ours: its settings come from its
// file, and none of the caller's secrets belong into its processes.
func environment() []string {
	return []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "TZ=UTC"}
}
