package doveadm

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dovepush/imapmeta"
	"dovepush/internal/dovecot"
	"dovepush/internal/dovecot/dovecottest"
)

// hold keeps calls from being sent until release, so that they travel in one
// POST.
func hold(c *Client) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gathering = true
}

func release(c *Client) { c.gather(false) }

// inOnePost updates all users at once: what is read travels in one POST, and so
// does what is changed.
func inOnePost(t testing.TB, c *Client, users []string, look func(user string, out imapmeta.Outcome, err error), decide func(user string) imapmeta.Change) {
	t.Helper()
	var arrived, changed, ended atomic.Int64
	var all sync.WaitGroup
	go_on := make(chan struct{})
	hold(c)
	for _, user := range users {
		all.Go(func() {
			out, err := c.Update(t.Context(), user, func(imapmeta.Value) imapmeta.Change {
				change := decide(user)
				if !change.Keeps() {
					changed.Add(1)
				}
				arrived.Add(1)
				<-go_on
				return change
			})
			look(user, out, err)
			ended.Add(1)
		})
	}
	queued(t, c, len(users))
	release(c)
	eventually(t, "all have been read", func() bool { return arrived.Load()+ended.Load() == int64(len(users)) })
	hold(c)
	close(go_on)
	queued(t, c, int(changed.Load()))
	release(c)
	all.Wait()
}

func TestOneUsersTroubleIsHisAlone(t *testing.T) {
	together(t, dovecot.Options{Users: append(named(several(20)...), people...)},
		shared{"unknown users among others", unknownAmongOthers},
		shared{"a home that cannot be entered", lockedHome},
		shared{"files", troubleWithFiles},
	)
}

func unknownAmongOthers(t *testing.T, s *dovecot.Server) {
	c := on(t, s)
	users := []string{"user0001", "nobody", "user0002", "nobody else", "user0003", "carol"}
	inOnePost(t, c, users, func(user string, out imapmeta.Outcome, err error) {
		if strings.HasPrefix(user, "nobody") {
			fault{kind: imapmeta.User, is: imapmeta.ErrNoUser, op: "getmetadata", status: "exitCode 67", hint: "does not know this user"}.check(t, user, err)
		} else if err != nil || out.Resent {
			t.Errorf("%s: %+v, %v", user, out, err)
		}
	}, func(user string) imapmeta.Change { return imapmeta.Set(imapmeta.Value("user=" + user)) })
	for _, user := range []string{"user0001", "user0002", "user0003", "carol"} {
		holds(t, s, user, imapmeta.Value("user="+user))
	}
	refuses(t, s, c, "nobody", fault{kind: imapmeta.User, is: imapmeta.ErrNoUser, op: "getmetadata", status: "exitCode 67"})
}

// Dovecot waits for a dotlock for 62 s, and goes on when nobody waits for the
// answer any more. Not in parallel: the probe must get through in time.
func TestALockThatNobodyLetsGoOf(t *testing.T) {
	users := several(8)
	const stuck = 3
	dovecottest.Each(t, dovecot.Options{Users: named(users...)}, func(t *testing.T, s *dovecot.Server) {
		update(t, on(t, s), users[stuck], imapmeta.Set("user=before"), imapmeta.Absent)
		if err := os.WriteFile(s.AttributeFile(users[stuck])+".lock", []byte("1:localhost\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		c := on(t, s, func(o *Options) { o.ReadTimeout = 2 * time.Second })
		inOnePost(t, c, users, func(user string, out imapmeta.Outcome, err error) {
			switch {
			case user == users[stuck]:
				fault{kind: imapmeta.Retry, op: "setmetadata", words: "this endpoint answers other commands, but not this one: no answer within 2s"}.check(t, user, err)
				if !out.Resent || !out.Did.Keeps() {
					t.Errorf("%s: %+v", user, out)
				}
			case err != nil || !out.Resent:
				t.Errorf("%s: %+v, %v", user, out, err)
			}
		}, func(user string) imapmeta.Change { return imapmeta.Set(imapmeta.Value("user=" + user)) })
		for i, user := range users {
			if i != stuck {
				holds(t, s, user, imapmeta.Value("user="+user))
			}
		}
		if e := c.Endpoints()[0]; e.Out {
			t.Errorf("%+v", e)
		}
	})
}

func lockedHome(t *testing.T, s *dovecot.Server) {
	c := on(t, s)
	users := append(several(6), "alice")
	update(t, c, "alice", imapmeta.Set("user=before"), imapmeta.Absent)
	home := s.MailDir("alice")
	if err := os.Chmod(home, 0); err != nil {
		t.Fatal(err)
	}
	opened := sync.OnceFunc(func() {
		if err := os.Chmod(home, 0o700); err != nil {
			t.Error(err)
		}
	})
	defer opened()
	inOnePost(t, c, users, func(user string, out imapmeta.Outcome, err error) {
		if user != "alice" {
			if err != nil {
				t.Errorf("%s: %v", user, err)
			}
			return
		}
		want := fault{kind: imapmeta.Retry, op: "getmetadata", status: "exitCode 75", hint: "Dovecot's log"}
		if s.Version == dovecot.V23 { // its process panics
			want = fault{kind: imapmeta.Retry, op: "getmetadata", words: "this endpoint answers other commands, but not this one: the server closed", hint: "Dovecot's log"}
		}
		want.check(t, user, err)
	}, func(user string) imapmeta.Change { return imapmeta.Set(imapmeta.Value("user=new " + user)) })
	for _, user := range users[:6] {
		holds(t, s, user, imapmeta.Value("user=new "+user))
	}
	opened()
	update(t, c, "alice", imapmeta.Set("user=after"), "user=before")
	if e := c.Endpoints()[0]; e.Out {
		t.Errorf("%+v", e)
	}
}

func troubleWithFiles(t *testing.T, s *dovecot.Server) {
	c := on(t, s)
	update(t, c, "bob", imapmeta.Set("user=1"), imapmeta.Absent)
	home, dict := s.MailDir("bob"), s.AttributeFile("bob")
	internal := fault{kind: imapmeta.Retry, op: "getmetadata", status: "exitCode 75", hint: "Dovecot's log"}
	chmod := func(path string, mode os.FileMode) {
		t.Helper()
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	chmod(dict, 0)
	refuses(t, s, c, "bob", internal)
	chmod(dict, 0o600)
	chmod(home, 0o500) // the dict is replaced by a new file
	update(t, c, "bob", imapmeta.Keep(), "user=1")
	internal.op = "setmetadata"
	refuses(t, s, c, "bob", internal)
	chmod(home, 0o700)
	holds(t, s, "bob", "user=1")
	if err := os.WriteFile(dict, []byte("\x00\xff this is no dict\n\n\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	update(t, c, "bob", imapmeta.Set("user=2"), imapmeta.Absent)
	holds(t, s, "bob", "user=2")
}

func TestADovecotWithoutAPlaceForAttributes(t *testing.T) {
	t.Parallel()
	dovecottest.Each(t, dovecot.Options{Users: people, NoDict: true}, func(t *testing.T, s *dovecot.Server) {
		refuses(t, s, on(t, s), "alice", fault{kind: imapmeta.Server, is: ErrNoAttributes, op: "getmetadata", status: "exitCode 65", hint: "mail_attribute"})
	})
}

func TestADovecotThatDoesNotAllowToSet(t *testing.T) {
	t.Parallel()
	only := map[dovecot.Version]string{
		dovecot.V23: "doveadm_allowed_commands = mailbox metadata get\n",
		dovecot.V24: "doveadm_allowed_commands {\n \"mailbox metadata get\" = yes\n}\n",
	}
	dovecottest.Each(t, dovecot.Options{Users: people, Extra: only}, func(t *testing.T, s *dovecot.Server) {
		c := on(t, s)
		update(t, c, "alice", imapmeta.Keep(), imapmeta.Absent)
		for _, change := range []imapmeta.Change{imapmeta.Set("user=1"), imapmeta.Remove()} {
			_, err := c.Update(t.Context(), "alice", func(imapmeta.Value) imapmeta.Change { return change })
			fault{kind: imapmeta.Server, is: ErrForbidden, op: "setmetadata", status: "unAuthorized", hint: "doveadm_allowed_commands"}.check(t, "alice", err)
		}
		_, err := c.Exists(t.Context(), "alice")
		fault{kind: imapmeta.Server, is: ErrForbidden, op: "user", status: "unAuthorized", hint: "doveadm_allowed_commands"}.check(t, "alice", err)
		_, err = list(t.Context(), c)
		fault{kind: imapmeta.Server, is: ErrForbidden, op: "user", status: "unAuthorized", hint: "doveadm_allowed_commands"}.check(t, "", err)
	})
}

func TestAWrongKeyIsTriedOnce(t *testing.T) {
	together(t, dovecot.Options{Users: people}, shared{"key", func(t *testing.T, s *dovecot.Server) { triedOnce(t, s, false) }},
		shared{"password", func(t *testing.T, s *dovecot.Server) { triedOnce(t, s, true) }},
		shared{"a key that is changed", changedKey})
}

func triedOnce(t *testing.T, s *dovecot.Server, basic bool) {
	const wrong = "a wrong s3cr3t"
	asked, answer := make(chan struct{}), make(chan struct{})
	r := relayTo(t, s.DoveadmURL)
	c := on(t, s, func(o *Options) {
		o.Endpoints, o.Basic = []string{r.url}, basic
		o.Secret = func(context.Context) (string, error) {
			close(asked) // once
			<-answer
			return wrong, nil
		}
	})
	var all sync.WaitGroup
	call := func(user string) {
		all.Go(func() {
			_, err := c.Update(t.Context(), user, keepIt)
			fault{kind: imapmeta.Server, is: ErrKey, op: "connect", words: "HTTP 401", hint: "api_key_file"}.check(t, user, err)
			if err != nil {
				secretFree(t, err.Error(), wrong, s.APIKey, s.DoveadmPassword)
			}
		})
	}
	call("alice")
	<-asked
	for i := range 49 {
		call(fmt.Sprintf("user%d", i))
	}
	queued(t, c, 49)
	close(answer)
	all.Wait()
	if n := r.count.Load(); n != 1 {
		t.Errorf("%d POSTs reached Dovecot", n)
	}
	if e := c.Endpoints()[0]; !e.Out || e.Reason != Key || e.Connections != 0 {
		t.Errorf("%+v", e)
	}
}

func changedKey(t *testing.T, s *dovecot.Server) {
	current, asked := s.APIKey, 0
	c := on(t, s, func(o *Options) {
		o.Secret = func(context.Context) (string, error) {
			asked++
			return current, nil
		}
	})
	update(t, c, "alice", imapmeta.Set("user=1"), imapmeta.Absent)
	const changed = "another s3cr3t"
	conf := s.Dir + "/dovecot.conf"
	text, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(conf, []byte(strings.ReplaceAll(string(text), s.APIKey, changed)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	refused := func() bool {
		_, err := c.Update(t.Context(), "alice", keepIt)
		if err != nil {
			fault{kind: imapmeta.Server, is: ErrKey}.check(t, "alice", err)
		}
		return err != nil
	}
	eventually(t, "Dovecot has the new key", refused)
	current = changed
	update(t, c, "alice", imapmeta.Set("user=2"), "user=1")
	if asked != 2 {
		t.Errorf("the key was asked for %d times", asked)
	}
	stores(t, s, "alice", "user=2")
}

func TestDovecotIsStoppedAndComesBack(t *testing.T) {
	together(t, dovecot.Options{Users: people}, shared{"", func(t *testing.T, s *dovecot.Server) {
		c := on(t, s, func(o *Options) { o.CheckInterval = time.Hour })
		update(t, c, "alice", imapmeta.Set("user=1"), imapmeta.Absent)
		if err := s.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		refuses(t, s, c, "alice", fault{kind: imapmeta.Retry, op: "connect", words: "connection refused", hint: "is Dovecot up", unreached: true})
		if e := c.Endpoints()[0]; !e.Out || e.Reason != Refused {
			t.Errorf("%+v", e)
		}
		if err := s.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		update(t, c, "alice", imapmeta.Set("user=2"), "user=1") // there is no other to ask
		if e := c.Endpoints()[0]; e.Out {
			t.Errorf("%+v", e)
		}
	}})
}
