package imapmeta

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dovepush/internal/dovecot"
	"dovepush/internal/dovecot/dovecottest"
)

func TestTrouble(t *testing.T) {
	together(t,
		shared{"with a user's files", troubleWithFiles},
		shared{"server stopped, back, reloaded", stoppedAndBack},
	)
}

func TestAServerWithoutMETADATA(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		o    dovecot.Options
		want fault
	}{
		{"imap_metadata = no", dovecot.Options{NoMetadata: true},
			fault{kind: Server, is: ErrNoMetadata, op: "getmetadata", code: "CANNOT", words: "Generic mailbox attributes not enabled", hint: "imap_metadata = yes"}},
		{"no attribute dict", dovecot.Options{NoDict: true},
			fault{kind: Server, is: ErrNoMetadata, op: "getmetadata", code: "CANNOT", words: "Mailbox attributes not enabled", hint: "mail_attribute"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.o.Users = people
			dovecottest.Each(t, c.o, func(t *testing.T, s *dovecot.Server) {
				refuses(t, s, on(t, s), "alice", c.want)
				refuses(t, s, on(t, s, ownPassword("bob's s3cr3t")), "bob", c.want)
			})
		})
	}
}

func TestAUserWithTooManyConnections(t *testing.T) {
	t.Parallel()
	one := map[dovecot.Version]string{dovecot.V23: "mail_max_userip_connections = 1\n", dovecot.V24: "mail_max_userip_connections = 1\n"}
	dovecottest.Each(t, dovecot.Options{Users: people, Extra: one}, func(t *testing.T, s *dovecot.Server) {
		held, err := net.Dial("tcp", s.IMAP)
		if err != nil {
			t.Fatal(err)
		}
		defer held.Close()
		fmt.Fprint(held, "a LOGIN alice \"alice's s3cr3t\"\r\n")
		held.SetReadDeadline(time.Now().Add(20 * time.Second))
		var said strings.Builder
		for buf := make([]byte, 4096); !strings.Contains(said.String(), "a OK "); {
			n, err := held.Read(buf)
			said.Write(buf[:n])
			if err != nil {
				t.Fatal(err, said.String())
			}
		}
		// [LIMIT], but [UNAVAILABLE] in bookworm's package without its updates.
		full := fault{kind: Retry, op: "login", words: "Maximum number of connections from user+IP exceeded (mail_max_userip_connections=1)"}
		refuses(t, s, on(t, s), "alice", full)
		refuses(t, s, on(t, s, ownPassword("alice's s3cr3t"), mechanism(Login)), "alice", full)
		update(t, on(t, s), "bob", Set("user=bob"), Absent)
		held.Close()
		eventually(t, "alice's connection is gone", func() bool {
			_, err := on(t, s).Update(t.Context(), "alice", setTo("user=alice"))
			return err == nil
		})
		holds(t, s, "alice", "user=alice")
	})
}

// chmod changes the mode until the test ends. Dovecot does not run as root
// where it reads a user's files, so that the mode counts.
func chmod(t *testing.T, path string, mode os.FileMode) (restore func()) {
	t.Helper()
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Chmod(path, before.Mode().Perm()); err != nil {
			t.Error(err)
		}
	}
}

func troubleWithFiles(t *testing.T, s *dovecot.Server) {
	c := on(t, s)
	home, dict := s.MailDir("alice"), s.AttributeFile("alice")
	update(t, c, "alice", Set("user=1"), Absent)
	trouble := fault{kind: Retry, op: "getmetadata", code: "SERVERBUG", words: "Internal error occurred", hint: "Dovecot's log"}

	restore := chmod(t, dict, 0)
	refuses(t, s, c, "alice", trouble)
	restore()
	update(t, c, "alice", Keep(), "user=1")

	restore = chmod(t, home, 0o500) // the dict is replaced by a new file
	update(t, c, "alice", Keep(), "user=1")
	readOnly := trouble
	readOnly.op = "setmetadata"
	refuses(t, s, c, "alice", readOnly)
	restore()
	holds(t, s, "alice", "user=1")

	restore = chmod(t, home, 0)
	out, err := c.Update(t.Context(), "alice", setTo("x"))
	want := fault{kind: Retry}
	if e := new(Error); errors.As(err, &e) && e.Code != "" {
		want = trouble
	}
	want.check(t, s, "alice", out, err)
	restore()
	update(t, c, "alice", Set("user=2"), "user=1")
	holds(t, s, "alice", "user=2")

	if err := os.WriteFile(dict, []byte("\x00\xff this is no dict\n\n\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	update(t, c, "alice", Set("user=3"), Absent)
	holds(t, s, "alice", "user=3")

	if err := os.Remove(dict); err != nil {
		t.Fatal(err)
	}
	update(t, c, "alice", Set("user=4"), Absent)
	holds(t, s, "alice", "user=4")

	// A new mailbox has no entries, though the dict still knows the old one's.
	if err := os.RemoveAll(filepath.Join(home, "Maildir")); err != nil {
		t.Fatal(err)
	}
	update(t, c, "alice", Set("user=5"), Absent)
	holds(t, s, "alice", "user=5")
}

func stoppedAndBack(t *testing.T, s *dovecot.Server) {
	plain, secure := on(t, s), on(t, s, overTLS(s, &tls.Config{}))
	update(t, plain, "alice", Set("user=1"), Absent)
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	refused := fault{kind: Retry, op: "connect", words: "connection refused"}
	refuses(t, s, plain, "alice", refused)
	refuses(t, s, secure, "alice", refused)
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	update(t, plain, "alice", Set("user=2"), "user=1")
	if err := s.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The processes that serve a login may still be about to go.
	eventually(t, "logins after a reload", func() bool {
		_, err := secure.Update(t.Context(), "alice", setTo("user=3"))
		if err != nil && KindOf(err) != Retry {
			t.Errorf("during a reload: %v", err)
		}
		return err == nil
	})
	holds(t, s, "alice", "user=3")
}
