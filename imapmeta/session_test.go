package imapmeta

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"
)

// What travels together is sent together. The server answers nothing before it
// has everything that one packet should hold: a client that waited for an
// answer in between would wait for ever.

func TestAChangeTakesTwoRoundTrips(t *testing.T) {
	s := play(t, logsIn, gets, greets, loggedIn, absent, gotten,
		`C: T2 SETMETADATA "" ("/private/vendor/vendor.dovecot/http-notify" "user=alice")`, "C: T3 LOGOUT",
		"S: T2 OK Setmetadata completed", "S: * BYE Logging out", "S: T3 OK Logout completed.")
	out, err := s.client().Update(t.Context(), "alice", setTo("user=alice"))
	if err != nil || out.Had != Absent || out.Did != Set("user=alice") {
		t.Errorf("Update = %+v, %v", out, err)
	}
}

func TestNoChangeTakesOneRoundTrip(t *testing.T) {
	s := play(t, logsIn, gets, greets, loggedIn,
		`S: * METADATA "" (/private/vendor/vendor.dovecot/http-notify {10}`, "S: user=alice)", gotten,
		"C: T2 LOGOUT", "HANG") // the reply to LOGOUT is not waited for
	out, err := s.client().Update(t.Context(), "alice", keepIt)
	if err != nil || out.Had != "user=alice" || !out.Did.Keeps() {
		t.Errorf("Update = %+v, %v", out, err)
	}
}

func TestARemovalSendsNIL(t *testing.T) {
	s := play(t, greets, logsIn, gets, loggedIn,
		`S: * METADATA "" (/private/vendor/vendor.dovecot/http-notify {10}`, "S: user=alice)", gotten,
		`C: T2 SETMETADATA "" ("/private/vendor/vendor.dovecot/http-notify" NIL)`, "C: T3 LOGOUT",
		"S: T2 OK Setmetadata completed")
	out, err := s.client().Update(t.Context(), "alice", func(Value) Change { return Remove() })
	if err != nil || out.Did != Remove() {
		t.Errorf("Update = %+v, %v", out, err)
	}
}

func TestAnEightBitValueIsALiteralThatWaitsForNobody(t *testing.T) {
	s := play(t, logsIn, gets, greets, loggedIn, absent, gotten,
		`C: T2 SETMETADATA "" ("/private/vendor/vendor.dovecot/http-notify" {12+}`, "C: user=müller)", "C: T3 LOGOUT",
		"S: T2 OK Setmetadata completed")
	if _, err := s.client().Update(t.Context(), "müller", setTo("user=müller")); err != nil {
		t.Error(err)
	}
}

func TestALongForeignValueIsForeignAndCanBeReplaced(t *testing.T) {
	const size = 500_000
	long := []string{logsIn, gets, greets, loggedIn, fmt.Sprintf(`S: * METADATA "" (/private/vendor/vendor.dovecot/http-notify {%d}`, size),
		"RAW: " + strings.Repeat("x", size), "S: )", gotten, `C: T2 SETMETADATA *`, "C: T3 LOGOUT", "S: T2 OK Setmetadata completed"}
	out, err := play(t, long...).client().Update(t.Context(), "alice", setTo("user=alice"))
	if err != nil || len(out.Had) != maxEntry || out.Did != Set("user=alice") {
		t.Errorf("Update: had %d bytes, did %v, %v", len(out.Had), out.Did, err)
	}
}

// Every way to say that there is nothing, and every way to spell the entry.
func TestHowServersSpellTheEntry(t *testing.T) {
	for _, c := range []struct {
		name  string
		lines []string
		have  Value
	}{
		{"NIL", []string{absent}, Absent},
		{"no response at all", nil, Absent},
		{"empty quoted", []string{`S: * METADATA "" (/private/vendor/vendor.dovecot/http-notify "")`}, Absent},
		{"empty literal", []string{`S: * METADATA "" (/private/vendor/vendor.dovecot/http-notify {0}`, "S: )"}, Absent},
		{"quoted", []string{`S: * METADATA "" (/private/vendor/vendor.dovecot/http-notify "user=a\"b")`}, `user=a"b`},
		{"upper case", []string{`S: * METADATA "" ("/PRIVATE/VENDOR/vendor.dovecot/HTTP-notify" "user=a")`}, "user=a"},
		{"literal8, as a server that streams the value spells it", []string{`S: * METADATA "" (/private/vendor/vendor.dovecot/http-notify ~{6}`, "S: user=a)"}, "user=a"},
		{"another entry only", []string{`S: * METADATA "" (/private/comment "user=a")`}, Absent},
		{"untagged responses in between", []string{
			"S: * LANGUAGE (EN)", "S: * NOTIFY 7", "S: * VANISHED 1:3", "S: * OK [ALERT] maintenance at noon",
			"S: * OK [CAPABILITY IMAP4rev1 (X] spins go-imap", "S: * CAPABILITY (", "S: * LIST () {3}", "S: a)b", "S: * 3 EXISTS",
			`S: * METADATA "" (/private/vendor/vendor.dovecot/http-notify "user=a")`}, "user=a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			steps := append([]string{greets, logsIn, gets, loggedIn}, c.lines...)
			s := play(t, append(steps, gotten)...)
			out, err := s.client().Update(t.Context(), "alice", keepIt)
			if err != nil || out.Had != c.have {
				t.Errorf("Update = %+v, %v; want to have %q", out, err, c.have)
			}
		})
	}
}

// go-imap's defects and a server's whims: each ends in a typed error that
// keeps the server's words, or says what happened.
func TestFaultsOnTheWire(t *testing.T) {
	quickly := func(o *Options) { o.Timeout = 300 * time.Millisecond }
	own := func(o *Options) { o.Auth.MasterUser = "" }
	token := func(o *Options) { o.Auth.MasterUser = ""; o.Auth.Mechanism = OAuthBearer }
	sasl := func(o *Options) { o.Auth.MasterUser = ""; o.Auth.Mechanism = Login }
	up := []string{greets, logsIn, gets, loggedIn}
	for _, c := range []struct {
		name  string
		steps []string
		with  func(*Options)
		kind  Kind
		words string
	}{
		{"no greeting", []string{"HANG"}, quickly, Retry, "login: no answer within 300ms"},
		{"half a greeting", []string{"RAW: * OK [CAPA", "HANG"}, quickly, Retry, "login: no answer within 300ms"},
		{"silent after the greeting", []string{greets, "HANG"}, quickly, Retry, "login: no answer within 300ms"},
		{"silent after the login", []string{greets, logsIn, gets, loggedIn, "HANG"}, quickly, Retry, "getmetadata: no answer within 300ms"},
		{"one untagged line, then silence", append(up, "S: * OK still here", "HANG"), quickly, Retry, "getmetadata: no answer within 300ms"},
		{"half a literal", append(up, `S: * METADATA "" (/private/vendor/vendor.dovecot/http-notify {10}`, "RAW: user", "HANG"), quickly, Retry, "getmetadata: no answer within 300ms"},
		{"silent after the change", append(up, absent, gotten, "HANG"), quickly, Retry, "setmetadata: no answer within 300ms"},

		{"BYE for a greeting", []string{"S: * BYE Connection queue full", "CLOSE"}, nil, Retry, "server says: BYE Connection queue full"},
		{"BYE after the greeting", []string{greets, "S: * OK Waiting for authentication process to respond..", "S: * BYE Auth process broken", "CLOSE"}, nil, Retry, "login: server says: BYE Auth process broken"},
		{"BYE after the login", append(up, "S: * BYE Server shutting down.", "CLOSE"), nil, Retry, "getmetadata: server says: BYE Server shutting down."},
		{"BYE after the change", append(up, absent, gotten, "S: * BYE Server shutting down.", "CLOSE"), nil, Retry, "setmetadata: server says: BYE Server shutting down."},
		{"BYE for a silent login", []string{greets, "S: * BYE Disconnected for inactivity during authentication.", "CLOSE"}, nil, Retry, "BYE Disconnected for inactivity"},
		{"BYE for a long line", []string{greets, "S: * BYE Input buffer full, aborting", "CLOSE"}, nil, Retry, "BYE Input buffer full, aborting"},
		{"BYE for bad commands", append(up, "S: * BYE Too many invalid IMAP commands.", "CLOSE"), nil, Retry, "BYE Too many invalid IMAP commands."},
		{"a reply to the login that is none", []string{greets, "S: L1 WAT"}, nil, Retry, "login: the reply to AUTHENTICATE is none"},
		{"closed without a greeting", []string{"CLOSE"}, nil, Retry, "login: the server closed the connection without a word"},
		{"closed after the greeting", []string{greets, "CLOSE"}, nil, Retry, "closed the connection"},
		{"closed after the login", append(up, "CLOSE"), nil, Retry, "getmetadata: "},
		{"not IMAP", []string{"S: SSH-2.0-OpenSSH_9.2"}, nil, Server, `not an IMAP server: it greets with "SSH-2.0-OpenSSH_9.2"`},
		{"PREAUTH", []string{"S: * PREAUTH as somebody"}, nil, Server, "PREAUTH as somebody"},
		{"unknown tag", append(up, "S: T9 OK what"), nil, Retry, "unknown tag"},
		{"unknown tag in the login", []string{greets, "S: X OK what"}, nil, Retry, `unexpected reply "X OK what"`},

		{"a capability list that go-imap reads for ever, in the greeting", []string{"S: * OK [CAPABILITY IMAP4rev1 (X] hi", logsIn, gets, loggedIn, absent, "S: T1 NO [CAPABILITY IMAP4rev1 (X] no"}, nil, Retry, "getmetadata: server says: NO no"},
		{"a literal of 256 MiB", append(up, `S: * METADATA "" (/private/vendor/vendor.dovecot/http-notify {268435456}`, "HANG"), nil, User, "the entry holds 268435456 bytes"},
		{"a line without end", append(up, "RAW: * OK "+strings.Repeat("x", maxLine+9000), "HANG"), nil, Retry, "unexpected reply"},
		{"untagged lines without end", append(up, "RAW: "+strings.Repeat("* OK blah blah blah\r\n", maxReplies/21+1), "HANG"), nil, Retry, "more than 1048576 bytes"},
		{"a literal in an ignored response without end", append(up, "S: * LIST {2000000}", "RAW: "+strings.Repeat("x", maxReplies), "HANG"), nil, Retry, "more than 1048576 bytes"},

		{"capability METADATA missing", []string{greets, logsIn, gets, "S: L1 OK [CAPABILITY IMAP4rev1] Logged in", absent, gotten}, nil, Server, "no IMAP METADATA"},
		{"refused login, later commands refused too", []string{greets, logsIn, gets, "S: L1 NO [AUTHENTICATIONFAILED] Authentication failed.", "S: T1 BAD Error in IMAP command received by server."}, nil, Server, "login refused: server says: NO [AUTHENTICATIONFAILED] Authentication failed."},
		{"refused own login", []string{greets, logsIn, gets, "S: L1 NO [AUTHENTICATIONFAILED] Authentication failed."}, own, User, "login refused"},
		{"refused token, with the reason", []string{greets, "C: L1 AUTHENTICATE OAUTHBEARER *", "S: + eyJzdGF0dXMiOiJpbnZhbGlkX3Rva2VuIn0=", "C: AQ==", "S: L1 NO [AUTHENTICATIONFAILED] Authentication failed."}, token, User, `Authentication failed. {"status":"invalid_token"}`},
		{"a challenge that is none", []string{greets, "C: L1 AUTHENTICATE LOGIN *", "S: + ???"}, sasl, Retry, "challenge is not base64"},
		{"a challenge for something else", []string{greets, "C: L1 AUTHENTICATE LOGIN *", "S: + V2hhdD8="}, sasl, Server, `challenge "What?"`},
		{"refused change", append(up, absent, gotten, "C: T2 SETMETADATA *", "S: T2 NO [METADATA MAXSIZE 512] too long"), nil, User, "setmetadata: server says: NO [METADATA] too long"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.with == nil {
				c.with = func(*Options) {}
			}
			out, err := play(t, c.steps...).client(c.with).Update(t.Context(), "alice", setTo("user=alice"))
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("Update = %+v, %v; want an *Error", out, err)
			}
			if e.Kind != c.kind || !strings.Contains(err.Error(), c.words) || e.User != "alice" {
				t.Errorf("got %s error %q for %q; want %s, with %q", e.Kind, err, e.User, c.kind, c.words)
			}
			if strings.Contains(err.Error()+e.Hint, "s3cr3t") {
				t.Errorf("the secret stands in %q", err)
			}
			if !out.Did.Keeps() {
				t.Errorf("outcome %+v claims a change", out)
			}
		})
	}
}

func TestALoneCancelEndsAnyWait(t *testing.T) {
	for _, steps := range [][]string{{"HANG"}, {greets, logsIn, gets, loggedIn, "HANG"}, {greets, logsIn, gets, loggedIn, absent, gotten, "HANG"}} {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(50*time.Millisecond, cancel)
		_, err := play(t, steps...).client().Update(ctx, "alice", setTo("user=alice"))
		if !errors.Is(err, context.Canceled) || KindOf(err) != Retry {
			t.Errorf("Update = %v; want context.Canceled", err)
		}
	}
}

func TestNothingOutlivesAnUpdate(t *testing.T) {
	s := play(t, greets, logsIn, gets, loggedIn, absent, gotten, "HANG")
	before := runtime.NumGoroutine()
	c := s.client(func(o *Options) { o.Timeout = 100 * time.Millisecond })
	for range 20 {
		c.Update(t.Context(), "alice", keepIt)
		c.Update(t.Context(), "alice", setTo("user=alice"))
	}
	// The server's own goroutines see the end of their connections a moment later.
	for wait := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before && time.Now().Before(wait); {
		time.Sleep(10 * time.Millisecond)
	}
	if after := runtime.NumGoroutine(); after > before {
		t.Errorf("%d goroutines before, %d after", before, after)
	}
}

func TestNoMoreThanMaxConnectionsAtOnce(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := New(Options{Address: l.Addr().String(), TLS: TLSNone, MaxConnections: 2,
		Auth: Auth{Mechanism: Plain, Secret: secretIs("x")}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	for range 3 {
		go func() { _, err := c.Update(ctx, "alice", keepIt); done <- err }()
	}
	first, _ := l.Accept()
	second, _ := l.Accept()
	third := make(chan net.Conn, 1)
	go func() { conn, _ := l.Accept(); third <- conn }()
	select {
	case <-third:
		t.Error("a third connection was opened beside two")
	case <-time.After(100 * time.Millisecond):
	}
	first.Close() // the place is free again
	conn := <-third
	cancel()
	for range 3 {
		if err := <-done; err == nil {
			t.Error("Update succeeded without a server")
		}
	}
	second.Close()
	conn.Close()
}

func TestNothingIsSentOnThePlaintextSideOfSTARTTLS(t *testing.T) {
	for _, c := range []struct {
		name  string
		steps []string
		words string
	}{
		{"refused", []string{greets, "C: S1 STARTTLS", "S: S1 BAD TLS support isn't enabled."}, "TLS support isn't enabled."},
		{"injected reply", []string{greets, "C: S1 STARTTLS", "RAW: S1 OK Begin TLS\r\n* OK [CAPABILITY IMAP4rev1] injected\r\n", "HANG"}, "tampering"},
		{"BYE", []string{greets, "C: S1 STARTTLS", "S: * BYE no"}, "BYE no"},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := play(t, c.steps...).client(func(o *Options) { o.TLS = TLSStart })
			if _, err := client.Update(t.Context(), "alice", keepIt); err == nil || !strings.Contains(err.Error(), c.words) {
				t.Errorf("Update = %v; want %q", err, c.words)
			}
		})
	}
}

func TestUsersAndValuesThatMustNotReachTheWire(t *testing.T) {
	s := play(t, greets, logsIn, gets, loggedIn, absent, gotten, "HANG")
	separator := func(o *Options) { o.Auth.MasterSeparator = "*" }
	if _, err := s.client(separator).Update(t.Context(), "a*b", keepIt); !errors.Is(err, ErrUser) || KindOf(err) != User {
		t.Errorf("user with the separator: %v", err)
	}
	for _, user := range []string{"a\r\nT9 LOGOUT", "a\x00b", ""} {
		if _, err := s.client().Update(t.Context(), user, keepIt); !errors.Is(err, ErrUser) || KindOf(err) != User {
			t.Errorf("user %q: %v", user, err)
		}
	}
	if n := s.count(); n != 0 {
		t.Errorf("%d connections were made", n)
	}
	if _, err := s.client().Update(t.Context(), "alice", setTo(Value(strings.Repeat("x", MaxValue+1)))); KindOf(err) != User {
		t.Errorf("long value: %v", err)
	}
	for _, secret := range []string{"a\nb", "a\x00b", "a\x01b"} {
		c := s.client(func(o *Options) { o.Auth.Secret = secretIs(secret) })
		if _, err := c.Update(t.Context(), "alice", keepIt); !errors.Is(err, errSecret) {
			t.Errorf("secret %q: %v", secret, err)
		}
	}
}

func TestAMastersSecretIsAskedForOnceAMinuteAndAfterARefusal(t *testing.T) {
	now := time.Unix(1e9, 0)
	asked := 0
	with := func(o *Options) {
		o.Now = func() time.Time { return now }
		o.Auth.Secret = func(context.Context, string) (string, error) { asked++; return "secret", nil }
	}
	good := play(t, greets, logsIn, gets, loggedIn, absent, gotten).client(with)
	for range 3 {
		good.Update(t.Context(), "alice", keepIt)
	}
	now = now.Add(secretAge)
	good.Update(t.Context(), "alice", keepIt)
	if asked != 2 {
		t.Errorf("asked %d times in a minute and one more, want 2", asked)
	}
	asked = 0
	bad := play(t, greets, logsIn, gets, "S: L1 NO [AUTHENTICATIONFAILED] no").client(with)
	bad.Update(t.Context(), "alice", keepIt)
	bad.Update(t.Context(), "alice", keepIt)
	if asked != 2 {
		t.Errorf("asked %d times around a refusal, want 2", asked)
	}
}

func TestASecretThatCannotBeHadIsItsOwnError(t *testing.T) {
	gone := errors.New("open /run/secret: gone")
	c := play(t, "HANG").client(func(o *Options) {
		o.Auth.Secret = func(context.Context, string) (string, error) { return "", gone }
	})
	_, err := c.Update(t.Context(), "alice", keepIt)
	var secret *SecretError
	if !errors.As(err, &secret) || !errors.Is(err, gone) || KindOf(err) != Server {
		t.Errorf("Update = %v", err)
	}
}

// Whatever a server says, an Update returns, and soon. Each input is had in
// every way to log in that waits for the server in its own way.
func FuzzReplies(f *testing.F) {
	f.Add("* OK ready\r\nL1 OK [CAPABILITY IMAP4rev1 METADATA] in\r\n* METADATA \"\" (/private/vendor/vendor.dovecot/http-notify {6}\r\nuser=a)\r\nT1 OK done\r\nT2 OK done\r\n")
	f.Add("* OK [CAPABILITY (X] ready\r\nL1 OK in\r\n* METADATA \"\" (a ~{0}\r\n b NIL)\r\nT1 NO [CAPABILITY (] no\r\n")
	f.Add("* BYE Connection queue full\r\n")
	f.Add("* OK\r\n+ eHg=\r\nL1 NO [AUTHENTICATIONFAILED] no\r\n")
	f.Add("* OK hi\r\nL1 OK in\r\n* METADATA \"\" ((((((\r\n+ go\r\nT1 BAD\r\n")
	f.Add("* OK\r\n+ VXNlcm5hbWU6\r\n+ UGFzc3dvcmQ6\r\nL1 OK in\r\n* METADATA \"\" (/private/vendor/vendor.dovecot/http-notify \"a\\\"b\")\r\nT1 OK done\r\nT2 NO [METADATA MAXSIZE 1] no\r\n")
	f.Add("* OK\r\n+ eyJzdGF0dXMiOiJpbnZhbGlkX3Rva2VuIn0=\r\nL1 NO [ALERT] Invalid base64 in response\r\n")
	f.Add("* OK\r\n* CAPABILITY METADATA\r\n* OK [CAPABILITY\r\nL1 OK [] in\r\n* LIST {3}\r\na\r\n)\r\nT1 OK [METADATA LONGENTRIES 9] done\r\n* BYE\r\n")
	f.Add("\x15\x03\x03\x00\x02\x02\x50")
	logins := []Auth{{Mechanism: Plain, MasterUser: "agent"}, {Mechanism: Login}, {Mechanism: OAuthBearer}}
	f.Fuzz(func(t *testing.T, replies string) {
		for _, auth := range logins {
			ours, theirs := net.Pipe()
			go io.Copy(io.Discard, theirs)
			go func() {
				io.WriteString(theirs, replies)
				theirs.Close()
			}()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			s := newSession(ctx, ours, context.AfterFunc(ctx, func() { ours.SetDeadline(past) }))
			err := s.begin(auth, "alice", "secret")
			if err == nil {
				_, err = s.update(setTo("user=alice"))
			}
			s.close()
			if ctx.Err() != nil {
				t.Fatalf("%s hangs: %v", auth.Mechanism, err)
			}
			var e *Error
			if err != nil && !errors.As(err, &e) {
				t.Errorf("%s: error %v has no kind", auth.Mechanism, err)
			}
		}
	})
}
