package doveadm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"dovepush/imapmeta"
	"dovepush/internal/dovecot"
	"dovepush/internal/dovecot/dovecottest"
)

// usersAnswers are what Dovecot was seen to say to a list of users.
var usersAnswers = []string{
	`[["doveadmResponse",{"userList":["alice","bob","carol"]},"0"]]`,
	`[["doveadmResponse",{"userList":[]},"0"]]`,
	`[["doveadmResponse",{"userList":["a b","a\\\"b","müller"]},"0"]]`,
	`[["error",{"type":"exitCode", "exitCode":65},"0"]]`,
	`[["error",{"type":"unAuthorized","exitCode":0},"0"]]`,
}

func TestListsOfUsers(t *testing.T) {
	refused := func(kind imapmeta.Kind, is error, status string) *fault {
		return &fault{kind: kind, is: is, op: "user", status: status}
	}
	for _, c := range []struct {
		text string
		want string // the users
		err  error
		says *fault
	}{
		{usersAnswers[0], "alice bob carol", nil, nil},
		{usersAnswers[1], "", nil, nil},
		{usersAnswers[2], "a b a\\\"b müller", nil, nil},
		{` [ [ "doveadmResponse" , { "userList" : [ "a" , "b" ] } , "0" ] ] ` + "\n", "a b", nil, nil},
		{`[["doveadmResponse",{"userList":["a"]}]]`, "a", nil, nil}, // the tag is lost
		{usersAnswers[3], "", nil, refused(imapmeta.Retry, ErrNoList, "exitCode 65")},
		{usersAnswers[4], "", nil, refused(imapmeta.Server, ErrForbidden, "unAuthorized")},
		{`[["error",{"type":"unknownMethod","exitCode":0},"0"]]`, "", nil, refused(imapmeta.Server, ErrUnsupported, "unknownMethod")},
		{`[["error",{"type":"exitCode","exitCode":75},"0"]]`, "", nil, refused(imapmeta.Retry, ErrNoList, "exitCode 75")},
		{`[["error",{"type":"","exitCode":75},"0"]]`, "", errNotJSON, nil},
		{`[["doveadmResponse",{"userList":["a","b"`, "a b", errCut, nil},
		{`[["doveadmResponse",{"userList":["a","b"]`, "a b", errCut, nil},
		{`[["doveadmResponse",{"userList":["a","b"]},"0"]`, "a b", errCut, nil},
		{`[["doveadmResponse",{"userList":["a","b`, "a", errCut, nil},
		{``, "", errCut, nil},
		{`[["doveadmResponse",{"userList":["a" "b"]},"0"]]`, "a", errNotJSON, nil},
		{`[["doveadmResponse",{"userList":["a",]},"0"]]`, "a", errNotJSON, nil},
		{`[["doveadmResponse",{"userList":["a",1]},"0"]]`, "a", errNotJSON, nil},
		{`[["doveadmResponse",{"userList":["a"],"more":[]},"0"]]`, "a", errNotJSON, nil},
		{`[["doveadmResponse",{"userList":["a"]},"0"],["doveadmResponse",{"userList":["b"]},"1"]]`, "a", errNotJSON, nil},
		{`[["doveadmResponse",{"userList":["a"]},"0"]] x`, "a", errNotJSON, nil},
		{`[["doveadmResponse",{"alice":{"uid":"1"}},"0"]]`, "", errNotJSON, nil},
		{`[["doveadmResponse",[],"0"]]`, "", errNotJSON, nil},
		{`[]`, "", errNotJSON, nil},
		{`<html>`, "", errNotJSON, nil},
		{`[["doveadmResponse",{"userList":["` + strings.Repeat("x", 2*maxReply) + `"]},"0"]]`, "", errLong, nil},
		{`[["doveadmResponse",{"userList":["` + strings.Repeat(strings.Repeat("x", 99)+`","`, 3_000) + `"]},"0"]]`, strings.Repeat(strings.Repeat("x", 99)+" ", 3_000), nil, nil},
	} {
		for way, in := range map[string]io.Reader{"at once": strings.NewReader(c.text), "bytewise": iotest.OneByteReader(strings.NewReader(c.text))} {
			var users []string
			err := readUsers(in, func(user string) bool {
				users = append(users, user)
				return true
			})
			if c.says != nil {
				c.says.check(t, "", err)
			} else if !errors.Is(err, c.err) {
				t.Errorf("%.80s, %s: %v; want %v", c.text, way, err, c.err)
			}
			if got := strings.Join(users, " "); got != c.want {
				t.Errorf("%.80s, %s: users %.80q; want %.80q", c.text, way, got, c.want)
			}
		}
	}
	broken := errors.New("the network is gone")
	for i := range usersAnswers[0] {
		err := readUsers(io.MultiReader(strings.NewReader(usersAnswers[0][:i]), iotest.ErrReader(broken)), func(string) bool { return true })
		if !errors.Is(err, broken) {
			t.Errorf("broken at %d: %v", i, err)
		}
	}
}

// list collects what Users says.
func list(ctx context.Context, c *Client) (users []string, err error) {
	for user, problem := range c.Users(ctx) {
		if problem != nil {
			err = errors.Join(err, problem)
			continue
		}
		users = append(users, user)
	}
	return users, err
}

func TestDovecotListsAllItsUsers(t *testing.T) {
	names := append(several(3000), "a b", "müller", "日本🕊", "a+b", "a#b", "{5}")
	slices.Sort(names)
	// Not with busyDoveadm: a process that has served a user's mailbox may not
	// list users any more.
	together(t, dovecot.Options{Users: append(named(names...), people[:2]...)}, shared{"all", func(t *testing.T, s *dovecot.Server) {
		c := on(t, s)
		users, err := list(t.Context(), c)
		slices.Sort(users)
		want := append(slices.Clone(names), "alice", "bob")
		slices.Sort(want)
		if err != nil || !slices.Equal(users, want) {
			t.Errorf("%d users (%v); want %d", len(users), err, len(want))
		}
		n := 0
		for _, err := range c.Users(t.Context()) {
			if n++; err != nil || n == 10 {
				break
			}
		}
		if n != 10 {
			t.Errorf("who has enough after 10 got %d", n)
		}
	}}, shared{"who exists", func(t *testing.T, s *dovecot.Server) {
		c := on(t, s)
		for user, want := range map[string]bool{"alice": true, "ALICE": true, "müller": true, "a b": true, "nobody": false, "alic": false, "日本": false} {
			if exists, err := c.Exists(t.Context(), user); err != nil || exists != want {
				t.Errorf("%q exists: %t, %v", user, exists, err)
			}
		}
		for _, user := range []string{"*", "ali?e", "", "a\nb"} {
			exists, err := c.Exists(t.Context(), user)
			fault{kind: imapmeta.User, is: imapmeta.ErrUser}.check(t, user, err)
			if exists {
				t.Errorf("%q exists", user)
			}
		}
	}})
}

// A list that is short without a word would take everybody who is not on it
// for gone.
func TestAUserdbThatCannotListIsNoEmptyOne(t *testing.T) {
	t.Parallel()
	gone := fault{kind: imapmeta.Retry, is: ErrNoList, op: "user", status: "exitCode 65", hint: "iterate"}
	dovecottest.Each(t, dovecot.Options{Users: people}, func(t *testing.T, s *dovecot.Server) {
		c := on(t, s)
		refused := func() bool {
			users, err := list(t.Context(), c)
			if err != nil {
				gone.check(t, "", err)
				if len(users) > 0 {
					t.Errorf("lists %q", users)
				}
			}
			return err != nil
		}
		if err := os.Remove(s.Dir + "/users"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "Dovecot sees that its passwd-file is gone", refused)

		// This one knows everybody by a rule.
		conf := s.Dir + "/dovecot.conf"
		text, err := os.ReadFile(conf)
		before, after, found := strings.Cut(string(text), "\nuserdb")
		_, rest, _ := strings.Cut(after, "\n}")
		if err != nil || !found {
			t.Fatal(err, found)
		}
		static := map[dovecot.Version]string{
			dovecot.V23: "\nuserdb {\n driver = static\n args = uid=1 gid=1 home=/nowhere/%u\n}",
			dovecot.V24: "\nuserdb users {\n driver = static\n fields {\n uid = 1\n gid = 1\n home = /nowhere/%{user}\n }\n}",
		}[s.Version]
		if err := os.WriteFile(conf, []byte(before+static+rest), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !refused() {
			t.Error("a static userdb lists users")
		}
	})
}

func TestAListGoesToTheNextEndpointIfItHasNotBegun(t *testing.T) {
	good := play(t)
	bad := play(t, onPost(func(w http.ResponseWriter, _ *http.Request, _ []command) bool {
		closeOn(w)
		return true
	}))
	users, err := list(t.Context(), to(t, []*dummy{bad, good}))
	if err != nil || !slices.Equal(users, []string{"alice", "bob"}) {
		t.Errorf("%q, %v", users, err)
	}
	for user, err := range to(t, []*dummy{good}).Users(t.Context()) {
		if user != "alice" || err != nil {
			t.Errorf("%q, %v", user, err)
		}
		break // enough
	}
	users, err = list(t.Context(), to(t, []*dummy{bad, bad}))
	fault{kind: imapmeta.Retry, op: "connect", words: "no endpoint works; " + bad.url, unreached: true}.check(t, "", err)
	if len(users) > 0 {
		t.Errorf("lists %q", users)
	}
}

// One that is refused is refused by Dovecot, which is the same everywhere.
func TestAListThatIsRefusedIsNotAskedForElsewhere(t *testing.T) {
	refusing, good := play(t, says(200, usersAnswers[3])), play(t)
	_, err := list(t.Context(), to(t, []*dummy{refusing, good}))
	fault{kind: imapmeta.Retry, is: ErrNoList, op: "user", status: "exitCode 65", hint: "iterate"}.check(t, "", err)
	if n := len(good.sent()); n != 0 {
		t.Errorf("the other was asked %d times", n)
	}
}

func TestAListThatBreaksOffIsAnError(t *testing.T) {
	good := play(t)
	for name, text := range map[string]string{
		"closed":      `[["doveadmResponse",{"userList":["a","b"`,
		"ended":       `[["doveadmResponse",{"userList":["a","b"]},"0"]`,
		"not a list":  `[["doveadmResponse",{"userList":["a","b",7]},"0"]]`,
		"not at once": `[["doveadmResponse",{"userList":["a","b"],`,
	} {
		half := play(t, onPost(func(w http.ResponseWriter, _ *http.Request, commands []command) bool {
			io.WriteString(w, text)
			return len(commands) > 0
		}))
		users, err := list(t.Context(), to(t, []*dummy{half, good}))
		if err == nil || !slices.Equal(users, []string{"a", "b"}) || imapmeta.KindOf(err) == imapmeta.User {
			t.Errorf("%s: %q, %v", name, users, err)
		}
	}
	if n := len(good.sent()); n != 0 {
		t.Errorf("another endpoint was asked for the rest %d times", n)
	}
}

// Users waits for as long as Dovecot needs; who does not want to says so.
func TestAListEndsWithItsContext(t *testing.T) {
	good := play(t)
	for name, before := range map[string]string{"before it begins": "", "in the middle": `[["doveadmResponse",{"userList":["a","b",`} {
		begun := make(chan struct{}, 1)
		var slow *dummy
		slow = play(t, onPost(func(w http.ResponseWriter, r *http.Request, _ []command) bool {
			io.WriteString(w, before)
			w.(http.Flusher).Flush()
			begun <- struct{}{}
			slow.hang(r)
			return true
		}))
		enough := errors.New("enough of it")
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() {
			<-begun
			cancel(enough)
		}()
		users, err := list(ctx, to(t, []*dummy{slow, good}))
		fault{kind: imapmeta.Retry, op: "user"}.check(t, "", err)
		if !errors.Is(err, enough) {
			t.Errorf("%s: %q, %v", name, users, err)
		}
		ctx, stop := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
		_, err = list(ctx, to(t, []*dummy{slow, good}))
		fault{kind: imapmeta.Retry, op: "user"}.check(t, "", err)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s, in time: %v", name, err)
		}
		stop()
	}
	if n := len(good.sent()); n != 0 {
		t.Errorf("another endpoint was asked %d times", n)
	}
}

// An endpoint may take its time before it says anything, and so may the caller;
// but not fall silent for ever.
func TestAListThatFallsSilent(t *testing.T) {
	t.Parallel()
	var silent *dummy
	silent = play(t, onPost(func(w http.ResponseWriter, r *http.Request, _ []command) bool { silent.hang(r); return true }))
	var half *dummy
	half = play(t, onPost(func(w http.ResponseWriter, r *http.Request, _ []command) bool {
		io.WriteString(w, `[["doveadmResponse",{"userList":["a","b",`)
		w.(http.Flusher).Flush()
		half.hang(r)
		return true
	}))
	good := play(t)
	c := to(t, []*dummy{silent, good})
	c.listSilence = 300 * time.Millisecond
	if users, err := list(t.Context(), c); err != nil || len(users) != 2 {
		t.Errorf("%q, %v", users, err)
	}
	c = to(t, []*dummy{half, good})
	c.listSilence = 300 * time.Millisecond
	users, err := list(t.Context(), c)
	fault{kind: imapmeta.Retry, op: "connect", words: "no answer within 300ms"}.check(t, "", err)
	if !slices.Equal(users, []string{"a", "b"}) {
		t.Errorf("%q", users)
	}
	slow := play(t, onPost(func(w http.ResponseWriter, _ *http.Request, _ []command) bool {
		io.WriteString(w, `[["doveadmResponse",{"userList":["a"`)
		w.(http.Flusher).Flush()
		fmt.Fprintf(w, `,"%s"]},"0"]]`, strings.Repeat(`x","`, 1<<16))
		return true
	}))
	c = to(t, []*dummy{slow})
	c.listSilence = 2 * time.Second
	n := 0
	for _, err := range c.Users(t.Context()) {
		if err != nil {
			t.Error(err)
		}
		if n++; n == 1 {
			time.Sleep(3 * time.Second)
		}
	}
	if n != 1<<16+2 {
		t.Errorf("%d users", n)
	}
}

func TestAListThatIsRefusedAsksForTheKeyAgain(t *testing.T) {
	d := play(t)
	asked := 0
	c := d.client(func(o *Options) {
		o.Secret = func(context.Context) (string, error) {
			asked++
			return map[bool]string{true: "an old one", false: dummyKey}[asked == 1], nil
		}
	})
	_, err := list(t.Context(), c)
	fault{kind: imapmeta.Server, is: ErrKey}.check(t, "", err)
	if users, err := list(t.Context(), c); err != nil || len(users) != 2 || asked != 2 {
		t.Errorf("%q, %v, asked %d times", users, err, asked)
	}
	_, err = list(t.Context(), d.client(func(o *Options) {
		o.Secret = func(context.Context) (string, error) { return "", fmt.Errorf("no such file") }
	}))
	fault{kind: imapmeta.Server, op: "connect", words: "no such file"}.check(t, "", err)
}
