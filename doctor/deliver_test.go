package doctor

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dovepush/internal/dovecot"
)

func TestADeliveryThatCannotBeIsNamed(t *testing.T) {
	c := newChain(t)
	c.start(t, dovecot.V24, dovecot.Options{})
	text := c.byIMAP() + c.rest()
	deliver := func(change func(*Options)) walk {
		o := c.options(t, text)
		o.LMTP = c.server.LMTP
		change(&o)
		return run(t, o)
	}
	w := deliver(func(*Options) {})
	w.has(t, "canary", Fail, "not registered", "dovepush register alice")

	c.register(t, "alice")
	w = deliver(func(o *Options) { o.LMTP = "unix:" + c.dir + "/nobody" })
	w.has(t, "canary", Fail, "cannot be delivered", c.dir+"/nobody", "--lmtp")
	w.has(t, "notification", Skip, "canary failed")
	w.has(t, "proof", Skip)
	if w.Verdict.Fault != Transient {
		t.Errorf("fault %d", w.Verdict.Fault)
	}
	deliver(func(o *Options) { o.Watch = nil }).has(t, "canary", Fail, "cannot be seen")

	text = strings.Replace(text, "[notify]\nlisten = \""+c.endpoint.address+"\"\npassword_file = \"notify\"\n", "", 1)
	deliver(func(*Options) {}).has(t, "canary", Fail, "notify.listen is empty")
}

// A registration of a moment ago counts at the next delivery, also where the
// process has just delivered to the same user without: what the ox driver
// remembers for cache_lifetime does not outlive a delivery.
func TestARegistrationCountsAtTheNextDelivery(t *testing.T) {
	for _, v := range dovecot.Versions() {
		t.Run(string(v), func(t *testing.T) {
			c := newChain(t)
			c.start(t, v, dovecot.Options{})
			if err := c.server.Deliver(t.Context(), "alice", "bob@example.org", "before", "x"); err != nil {
				t.Fatal(err)
			}
			c.register(t, "alice")
			o := c.options(t, c.byIMAP()+c.rest())
			o.LMTP = c.server.LMTP
			run(t, o).has(t, "notification", OK)
		})
	}
}

func TestSendmailIsHandedTheCanary(t *testing.T) {
	c := newChain(t)
	c.start(t, dovecot.V24, dovecot.Options{})
	c.register(t, "alice")
	program := func(script string) string {
		path := filepath.Join(c.dir, "sendmail")
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	deliver := func(script string) walk {
		o := c.options(t, c.byIMAP()+c.rest())
		o.Sendmail = program(script)
		o.Wait.Arrive = 300 * time.Millisecond
		return run(t, o)
	}
	w := deliver("echo \"$@\" >" + c.dir + "/args; cat >" + c.dir + "/mail\n")
	w.has(t, "canary", OK, "took the message for alice", "may be deleted")
	w.has(t, "notification", Fail, "still be in the mail server's queue", "mailq")
	args, _ := os.ReadFile(filepath.Join(c.dir, "args"))
	mail, _ := os.ReadFile(filepath.Join(c.dir, "mail"))
	if string(args) != "-i -f <> -- alice\n" || !strings.Contains(string(mail), "\nAuto-Submitted: auto-generated\n") || strings.Contains(string(mail), "\r") {
		t.Errorf("sendmail got %q, %q", args, mail)
	}
	deliver("echo no such domain >&2\nexit 75\n").has(t, "canary", Fail, "exit status 75", "no such domain")
}

// LMTP that says something else than Dovecot does.
func TestWhatLMTPSaysIsHeard(t *testing.T) {
	for _, test := range []struct {
		name, rcpt, data string
		cause            string
	}{
		{"no such user", "550 5.1.1 <alice> User doesn't exist", "", causeUserdb},
		{"not now", "451 4.3.0 Temporary internal error", "", causeRefused},
		{"over quota", "250 2.1.5 OK", "552 5.2.2 Quota exceeded", causeRefused},
	} {
		t.Run(test.name, func(t *testing.T) {
			client, server := net.Pipe()
			done := make(chan struct{})
			go func() {
				defer close(done)
				defer server.Close()
				lmtp(server, test.rcpt, test.data)
			}()
			err := newCanary("alice", "TOKEN", time.Now()).byLMTP(t.Context(), client)
			client.Close()
			<-done
			refused, isRefusal := err.(*mailError)
			if !isRefusal {
				t.Fatalf("error %v", err)
			}
			causes := diagnose(symptoms{user: "alice", connected: true, refused: &refused.refusedMail})
			if len(causes) != 1 || causes[0].name != test.cause {
				t.Errorf("causes %+v, want %q", causes, test.cause)
			}
		})
	}
}

// lmtp answers one message.
func lmtp(conn net.Conn, rcpt, data string) {
	say := func(line string) { _, _ = conn.Write([]byte(line + "\r\n")) }
	say("220 here")
	buf := make([]byte, 4096)
	body := false
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		line := string(buf[:n])
		switch {
		case body:
			if strings.HasSuffix(line, "\r\n.\r\n") || line == ".\r\n" {
				body = false
				say(data)
			}
		case strings.HasPrefix(line, "LHLO"), strings.HasPrefix(line, "MAIL"):
			say("250 OK")
		case strings.HasPrefix(line, "RCPT"):
			say(rcpt)
		case strings.HasPrefix(line, "DATA"):
			body = true
			say("354 go on")
		default:
			say("221 bye")
			return
		}
	}
}

func TestNamesAreQuotedForLMTP(t *testing.T) {
	for user, want := range map[string]string{
		"alice": "alice", "a.b@example.org": "a.b@example.org", "a b@example.org": `"a b"@example.org`, `x"y`: `"x\"y"`, "a..b": `"a..b"`, "@example.org": `""@example.org`,
	} {
		if got := mailbox(user); got != want {
			t.Errorf("%q: %s, want %s", user, got, want)
		}
	}
}
