package imapmeta

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dovepush/internal/dovecot"
	"dovepush/internal/dovecot/dovecottest"
)

// oddNames are names of users that auth_username_chars, as Dovecot ships it,
// does not allow, and victims those that a careless quoting, trimming or
// expansion would reach instead.
var (
	oddNames = []string{
		" alice", "alice ", "ali ce", `quo"te`, `"alice"`, `back\slash`, "a#b", "a+b", "a%b", "a%u", "%u", "o'hara",
		"müller", "日本🕊", "a=b,c", "a=2cb", "a*agent", "a/b", "..a", "(alice)", "{5}", "a b@exämple.org",
	}
	victims = []string{"alice", "ali", "ce", "quote", "backslash", "a", "b", "ohara", "agent", "a,b"}
)

func named(names ...string) (users []dovecot.User) {
	for _, name := range names {
		users = append(users, dovecot.User{Name: name, Password: "their s3cr3t"})
	}
	return users
}

func TestOddNamesReachTheirOwnEntryAndNoOther(t *testing.T) {
	t.Parallel()
	dovecottest.Each(t, dovecot.Options{Users: named(slices.Concat(oddNames, victims)...), Extra: busyDoveadm}, func(t *testing.T, s *dovecot.Server) {
		for _, way := range []struct {
			name    string
			with    func(user string) func(*Options)
			without string // users whose names hold this cannot come this way
		}{
			{"authorization identity", func(string) func(*Options) { return separator("") }, "\n"},
			{"separator", func(string) func(*Options) { return separator("*") }, "*"},
			{"password", func(string) func(*Options) { return ownPassword("their s3cr3t") }, "*"},
			{"token", func(user string) func(*Options) {
				return both(ownPassword(s.Token(user, time.Hour)), mechanism(OAuthBearer))
			}, "*"},
		} {
			var names []string
			for _, name := range oddNames {
				if !strings.Contains(name, way.without) {
					names = append(names, name)
				}
			}
			value := func(name string) Value { return Encode(Pair{"user", name + " by " + way.name}) }
			var wg sync.WaitGroup
			for _, name := range names {
				wg.Go(func() {
					if _, err := on(t, s, way.with(name)).Update(t.Context(), name, setTo(value(name))); err != nil {
						t.Errorf("%q by %s: %v", name, way.name, err)
					}
				})
			}
			wg.Wait()
			for _, name := range names {
				if !strings.Contains(name, "*") {
					holds(t, s, name, value(name))
				} else {
					// doveadm takes a*agent for the user agent, as it takes
					// alice*agent.
					stores(t, s, name, value(name))
				}
			}
		}
		for _, name := range victims {
			holds(t, s, name, Absent)
		}
		refuses(t, s, on(t, s, separator("*")), "a*agent",
			fault{kind: User, is: ErrUser, op: "login", words: `holds the master separator "*"`, hint: "master_separator"})
		// The case of ASCII letters is Dovecot's to fold (auth_username_format).
		update(t, on(t, s), "ALICE", Set("user=ALICE"), Absent)
		holds(t, s, "alice", "user=ALICE")
	})
}

func TestTheLongestName(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", MaxUser)
	dovecottest.Each(t, dovecot.Options{Users: named("alice")}, func(t *testing.T, s *dovecot.Server) {
		// No file name is that long; the user's home has another.
		home := filepath.Join(directory(t, s), "mail", "long")
		if err := s.AddUser(dovecot.User{Name: long, Password: "x", Extra: "userdb_home=" + home}); err != nil {
			t.Fatal(err)
		}
		update(t, on(t, s), long, Set("user=long"), Absent)
		holds(t, s, long, "user=long")
		update(t, on(t, s, separator("*")), long, Remove(), "user=long")
		holds(t, s, long, Absent)
		holds(t, s, "alice", Absent)
		if log := s.Log(); strings.Contains(log, "Error: ") || strings.Contains(log, "BUG") {
			t.Error("it was too long for Dovecot")
		}
	})
}

// directory is where the server's files are as Dovecot sees them.
func directory(t *testing.T, s *dovecot.Server) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.Dir, "dovecot.conf"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "\nbase_dir = ")
	dir, _, ok := strings.Cut(rest, "/run\n")
	if !ok {
		t.Fatal("no base_dir in the settings")
	}
	return dir
}

func TestNamesThatDovecotMustNotSeeAreNotSent(t *testing.T) {
	s := play(t, greets, "HANG")
	for _, name := range []string{"../x", "x/..", "a\r\nL1 LOGOUT", "a\nb", "a\x00b", "a\x00agent\x00b", "", strings.Repeat("x", MaxUser+1)} {
		for _, change := range []func(*Options){separator(""), separator("*"), ownPassword("x"), both(ownPassword("x"), mechanism(XOAuth2))} {
			if _, err := s.client(change).Update(t.Context(), name, keepIt); !errors.Is(err, ErrUser) || KindOf(err) != User {
				t.Errorf("%.20q: %v", name, err)
			}
		}
	}
	if n := s.count(); n != 0 {
		t.Errorf("%d connections were made", n)
	}
}

// dialing counts a client's connections.
func dialing(c *Client, before func(n int32) error) *atomic.Int32 {
	n, dial := new(atomic.Int32), c.dial
	c.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		n := n.Add(1)
		if before != nil {
			if err := before(n); err != nil {
				return nil, err
			}
		}
		return dial(ctx, network, address)
	}
	return n
}

// With auth_username_chars as Dovecot ships it, a name outside of it is
// answered as a wrong master password is; so is the master user's own name.
func TestARefusedNameIsToldFromARefusedMaster(t *testing.T) {
	t.Parallel()
	users := named(slices.Concat(oddNames, victims)...) // agent, the master user's name, among them
	badName := fault{kind: User, is: ErrUser, op: "login", code: "AUTHENTICATIONFAILED", words: "Dovecot accepts the master user, but not for", hint: "auth_username_chars"}
	ownName := badName
	ownName.hint = "a user of its own name"
	badMaster := fault{kind: Server, is: ErrLogin, op: "login", code: "AUTHENTICATIONFAILED", words: "login refused", hint: "server.auth"}
	wrong := secret("wrong s3cr3t")

	connections := func(t *testing.T, n *atomic.Int32, want int) {
		t.Helper()
		if got := n.Swap(0); int(got) != want {
			t.Errorf("%d connections, want %d", got, want)
		}
	}
	cases := map[string]func(t *testing.T, s *dovecot.Server, sep func(*Options)){
		"master right": func(t *testing.T, s *dovecot.Server, sep func(*Options)) {
			c := on(t, s, sep)
			n := dialing(c, nil)
			refuses(t, s, c, " alice", badName)
			connections(t, n, 2) // the name, and the probe
			var wg sync.WaitGroup
			for _, name := range []string{"a+b", "a#b", "o'hara", "müller", "(alice)"} {
				wg.Go(func() { refuses(t, s, c, name, badName) })
			}
			wg.Go(func() { refuses(t, s, c, "agent", ownName) })
			wg.Wait()
			connections(t, n, 6)
			update(t, c, "alice", Keep(), Absent)
		},
		"master right, as a user shows": func(t *testing.T, s *dovecot.Server, sep func(*Options)) {
			c := on(t, s, sep)
			n := dialing(c, nil)
			update(t, c, "alice", Keep(), Absent)
			refuses(t, s, c, "a+b", badName)
			connections(t, n, 2)
		},
		"master right, as an unknown user shows": func(t *testing.T, s *dovecot.Server, sep func(*Options)) {
			c := on(t, s, sep)
			n := dialing(c, nil)
			refuses(t, s, c, "nobody", fault{kind: User, is: ErrNoUser})
			refuses(t, s, c, "a+b", badName)
			connections(t, n, 2)
		},
		"master wrong": func(t *testing.T, s *dovecot.Server, sep func(*Options)) {
			c := on(t, s, sep, wrong)
			n := dialing(c, nil)
			refuses(t, s, c, "a+b", badMaster)
			connections(t, n, 2)
			refuses(t, s, c, "agent", badMaster) // with the secret read again
			connections(t, n, 2)
			refuses(t, s, c, "alice", badMaster)
			connections(t, n, 1)
		},
		"master wrong, many at once": func(t *testing.T, s *dovecot.Server, sep func(*Options)) {
			var readings atomic.Int32
			c := on(t, s, sep, func(o *Options) {
				o.Auth.Secret = func(context.Context, string) (string, error) {
					readings.Add(1)
					return "wrong s3cr3t", nil
				}
			})
			n := dialing(c, nil)
			var wg sync.WaitGroup
			const users = 10
			for i := range users {
				wg.Go(func() { refuses(t, s, c, fmt.Sprintf("a+%d", i), badMaster) })
			}
			wg.Wait()
			connections(t, n, users+int(readings.Load()))
		},
		"no answer to the probe": func(t *testing.T, s *dovecot.Server, sep func(*Options)) {
			c := on(t, s, sep)
			n := dialing(c, func(n int32) error {
				if n == 2 {
					return errors.New("the network is gone")
				}
				return nil
			})
			refuses(t, s, c, "a+b", fault{kind: Retry, op: "login", words: "the network is gone"})
			refuses(t, s, c, "a+b", badName)
			connections(t, n, 4)
		},
	}
	dovecottest.Each(t, dovecot.Options{Users: users, StockUsernameChars: true}, func(t *testing.T, s *dovecot.Server) {
		// Side by side: 2.3 holds each refusal back for half a second.
		var wg sync.WaitGroup
		for name, run := range cases {
			wg.Go(func() { t.Run(name, func(t *testing.T) { run(t, s, separator("")) }) })
			wg.Go(func() { t.Run(name+", separator", func(t *testing.T) { run(t, s, separator("*")) }) })
		}
		wg.Wait()
	})

	// Without result_success = continue, [UNAVAILABLE] is what a right master
	// gets for the probe's name; or, one in four, a closed connection.
	dovecottest.Each(t, dovecot.Options{Users: users, StockUsernameChars: true, NoResultSuccess: true}, func(t *testing.T, s *dovecot.Server) {
		c := on(t, s)
		for range 50 {
			out, err := c.Update(t.Context(), "a+b", keepIt)
			if KindOf(err) == Retry {
				fault{kind: Retry, op: "login", words: "closed the connection without a word"}.check(t, s, "a+b", out, err)
				continue
			}
			badName.check(t, s, "a+b", out, err)
			break
		}
		refuses(t, s, on(t, s, wrong), "a+b", badMaster)
	})
}
