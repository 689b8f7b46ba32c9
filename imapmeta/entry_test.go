package imapmeta

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"dovepush/internal/dovecot"
	"dovepush/internal/dovecot/dovecottest"
)

func TestAnEntry(t *testing.T) {
	together(t,
		shared{"is set, replaced, kept and removed", setReplacedKeptRemoved},
		shared{"is read as another client wrote it", writtenByAnotherClient},
		shared{"holds the value as it was sent", arrivesAsSent},
		shared{"is not that of the mailbox INBOX", ofINBOXIsAnother},
		shared{"survives many writers", manyWriters},
	)
}

func setReplacedKeptRemoved(t *testing.T, s *dovecot.Server) {
	c := on(t, s)
	update(t, c, "alice", Keep(), Absent)
	holds(t, s, "alice", Absent)
	update(t, c, "alice", Remove(), Absent) // unset what is not there
	holds(t, s, "alice", Absent)
	update(t, c, "alice", Set("user=alice"), Absent)
	holds(t, s, "alice", "user=alice")
	update(t, c, "alice", Keep(), "user=alice")
	holds(t, s, "alice", "user=alice")
	update(t, c, "alice", Set("user=3@7"), "user=alice")
	holds(t, s, "alice", "user=3@7")
	update(t, c, "alice", Remove(), "user=3@7")
	holds(t, s, "alice", Absent)
	holds(t, s, "bob", Absent)
}

func writtenByAnotherClient(t *testing.T, s *dovecot.Server) {
	c := on(t, s)
	for _, value := range []string{
		"user=alice", "folder=INBOX\tuser=1@2", "user=a\x01tb\x01\x011", `user="quo\ted"`, "user=müller 日本",
		"line\r\nfeed", "{10}", "NIL", ")", " user=padded ", strings.Repeat("x", 30_000),
	} {
		setEntry(t, s, "alice", value)
		update(t, c, "alice", Keep(), Value(value))
		holds(t, s, "alice", Value(value))
	}
	setEntry(t, s, "alice", "")
	update(t, c, "alice", Keep(), Absent)
	update(t, c, "alice", Remove(), Absent)
	holds(t, s, "alice", Absent)

	// doveadm takes no more than 32 KiB.
	if said := say(t, s, fmt.Sprintf("SETMETADATA \"\" (%s {%d+}\r\n%s)", Entry, maxEntry+1, strings.Repeat("x", maxEntry+1))); !strings.Contains(said, "b OK") {
		t.Fatal(said)
	}
	// The beginning tells that it is not ours, and it can be replaced.
	update(t, c, "alice", Set("user=alice"), Value(strings.Repeat("x", maxEntry)))
	holds(t, s, "alice", "user=alice")
}

func arrivesAsSent(t *testing.T, s *dovecot.Server) {
	c := on(t, s)
	had := Absent
	for _, value := range []Value{
		"user=a\x01tb\x01nc\x011", "user=1@2\tfolder=INBOX", `user=quo"te\back\`, "user=müller@exämple.org 🕊",
		" user=padded ", "line\nfeed\rreturn\x7f\x02", "NIL", `"`, "{3}", "{3+}", "user=",
		Value("user=" + strings.Repeat("x", MaxValue-5)), Value("user=" + strings.Repeat("é", (MaxValue-5)/2)),
		Value(strings.Repeat(`"\`, MaxValue/2)),
	} {
		update(t, c, "alice", Set(value), had)
		holds(t, s, "alice", value)
		had = value
	}
	out, err := c.Update(t.Context(), "alice", setTo("user=a\x00b"))
	fault{kind: User, op: "setmetadata", code: "CANNOT", words: "Attribute string value has NULs"}.check(t, s, "alice", out, err)
	holds(t, s, "alice", had)
}

// The mailbox "INBOX" has an entry of the same name, which the driver does not
// look at.
func ofINBOXIsAnother(t *testing.T, s *dovecot.Server) {
	set := fmt.Sprintf(`SETMETADATA "INBOX" (%s "user=inbox")`, Entry)
	get := fmt.Sprintf(`GETMETADATA "INBOX" (%s)`, Entry)
	if said := say(t, s, set); !strings.Contains(said, "OK Setmetadata completed") {
		t.Fatal(said)
	}
	c := on(t, s)
	update(t, c, "alice", Set("user=alice"), Absent)
	holds(t, s, "alice", "user=alice")
	update(t, c, "alice", Remove(), "user=alice")
	holds(t, s, "alice", Absent)
	if said := say(t, s, get); !strings.Contains(said, "user=inbox") {
		t.Errorf("the entry of INBOX is gone: %s", said)
	}
}

// say sends one command as alice, without any code of this package.
func say(t *testing.T, s *dovecot.Server, command string) string {
	t.Helper()
	conn, err := net.Dial("tcp", s.IMAP)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(conn, "a LOGIN alice \"alice's s3cr3t\"\r\nb %s\r\nc LOGOUT\r\n", command)
	said, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	return string(said)
}

func TestManyUsersAtOnce(t *testing.T) {
	t.Parallel()
	const users, atOnce = 200, 16
	var all []dovecot.User
	for i := range users {
		all = append(all, dovecot.User{Name: fmt.Sprintf("user%03d", i), Password: "x"})
	}
	dovecottest.Each(t, dovecot.Options{Users: all, Extra: busyDoveadm}, func(t *testing.T, s *dovecot.Server) {
		c := on(t, s, func(o *Options) { o.MaxConnections = atOnce })
		value := func(u dovecot.User) Value { return Value("user=id-of-" + u.Name) }
		var wg sync.WaitGroup
		for _, u := range all {
			wg.Go(func() { update(t, c, u.Name, Set(value(u)), Absent) })
		}
		wg.Wait()
		for i, u := range all {
			stores(t, s, u.Name, value(u))
			if i%10 == 0 {
				holds(t, s, u.Name, value(u))
			}
		}
	})
}

func manyWriters(t *testing.T, s *dovecot.Server) {
	c := on(t, s)
	written := map[Value]bool{Absent: true}
	var values []Value
	for i := range 48 {
		v := Value(fmt.Sprintf("user=%d-%s", i, strings.Repeat("x", 20*i)))
		values, written[v] = append(values, v), true
	}
	var wg sync.WaitGroup
	for _, v := range values {
		wg.Go(func() {
			out, err := c.Update(t.Context(), "alice", setTo(v))
			if err != nil || out.Did != Set(v) || !written[out.Had] {
				t.Errorf("Update = %+v, %v", out, err)
			}
		})
	}
	wg.Wait()
	got, _, err := s.Entry(t.Context(), "alice")
	if err != nil || got == "" || !written[Value(got)] {
		t.Errorf("the entry holds %q, %v: nobody wrote that", got, err)
	}
	update(t, c, "alice", Set("user=last"), Value(got))
	holds(t, s, "alice", "user=last")
}
