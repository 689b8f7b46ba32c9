package doveadm

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dovepush/imapmeta"
)

// saying is a server at a raw socket that does what it is told with each
// connection.
func saying(t testing.TB, do func(conn net.Conn)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(time.Minute))
				do(conn)
			}()
		}
	}()
	return l.Addr().String()
}

// request reads a request as far as it has come.
func request(conn net.Conn) { conn.Read(make([]byte, 64<<10)) }

// untilGone waits until the client has gone.
func untilGone(conn net.Conn) { io.Copy(io.Discard, conn) }

const okHeader = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"

// Each server does the same to the POST of an Update and to the look whether it
// works at all: so it is set aside.
func TestWhatServersMaySay(t *testing.T) {
	t.Parallel()
	closed := fault{kind: imapmeta.Retry, op: "connect", words: "closed the connection without a word", hint: "Dovecot's log", unreached: true}
	cut := fault{kind: imapmeta.Retry, op: "connect", words: "ends in the middle", hint: "Dovecot's log", unreached: true}
	silent := fault{kind: imapmeta.Retry, op: "connect", words: "no answer within 1s", unreached: true}
	noDoveadm := func(words string) fault {
		return fault{kind: imapmeta.Server, is: ErrNotDoveadm, op: "connect", words: words, hint: "server.doveadm.endpoints"}
	}
	answer := func(status int, text string) func(net.Conn) {
		return func(conn net.Conn) {
			request(conn)
			fmt.Fprintf(conn, "HTTP/1.1 %d\r\nContent-Length: %d\r\n\r\n%s", status, len(text), text)
		}
	}
	say := func(text string) func(net.Conn) {
		return func(conn net.Conn) { request(conn); io.WriteString(conn, text) }
	}
	for _, c := range []struct {
		name   string
		do     func(conn net.Conn)
		want   fault
		reason Reason
	}{
		{"hangs before the header", untilGone, silent, Timeout},
		{"hangs in the header", func(conn net.Conn) { request(conn); io.WriteString(conn, "HTTP/1.1 2"); untilGone(conn) }, silent, Timeout},
		{"hangs after the header", func(conn net.Conn) {
			request(conn)
			io.WriteString(conn, okHeader+"Content-Length: 100\r\n\r\n")
			untilGone(conn)
		}, silent, Timeout},
		{"trickles its answer", func(conn net.Conn) {
			request(conn)
			for _, b := range []byte(okHeader + "Content-Length: 100\r\n\r\n" + strings.Repeat(" ", 100)) {
				if _, err := conn.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(50 * time.Millisecond)
			}
		}, silent, Timeout},
		{"does not read", func(conn net.Conn) { time.Sleep(3 * time.Second) }, silent, Timeout},
		{"closes at once", func(net.Conn) {}, closed, Closed},
		{"closes without an answer", request, closed, Closed},
		{"closes in the header", say(okHeader + "Content-Len"), closed, Closed},
		{"closes in the body", say(okHeader + "Content-Length: 100\r\n\r\n[["), cut, Closed},
		{"closes in a chunk", say(okHeader + "Transfer-Encoding: chunked\r\n\r\n20\r\n[["), cut, Closed},
		{"closes before the body", say(okHeader + "Content-Length: 100\r\n\r\n"), closed, Closed},
		{"ends in the middle, and means it", say(okHeader + "Content-Length: 2\r\n\r\n[["), cut, Closed},
		{"HTML", answer(200, "<!DOCTYPE html><p>It works!"), noDoveadm("not a list of replies"), Reply},
		{"JSON of another API", answer(200, `{"error":"no such method"}`), noDoveadm("not a list of replies"), Reply},
		{"nothing", answer(200, ""), noDoveadm("it is empty"), Reply},
		{"204", answer(204, ""), fault{kind: imapmeta.Retry, op: "connect", words: "HTTP 204: No Content", unreached: true}, HTTP},
		{"400", answer(400, "JSON parse error"), fault{kind: imapmeta.Retry, op: "connect", words: "HTTP 400: JSON parse error", unreached: true}, HTTP},
		{"401", answer(401, ""), fault{kind: imapmeta.Server, is: ErrKey, op: "connect", words: "HTTP 401: Unauthorized", hint: "api_key_file"}, Key},
		{"403", answer(403, "not from here"), noDoveadm("HTTP 403: not from here"), HTTP},
		{"404", answer(404, "Path not found\n"), noDoveadm("HTTP 404: Path not found"), HTTP},
		{"413", answer(413, ""), fault{kind: imapmeta.Retry, op: "connect", words: "HTTP 413: Request Entity Too Large", hint: "server.doveadm.batch", unreached: true}, HTTP},
		{"429", answer(429, "slowly"), fault{kind: imapmeta.Retry, op: "connect", words: "HTTP 429: slowly", unreached: true}, HTTP},
		{"500", answer(500, "Internal Server Error"), fault{kind: imapmeta.Retry, op: "connect", words: "HTTP 500: Internal Server Error", unreached: true}, HTTP},
		{"502", answer(502, "<html>\n<title>Bad Gateway</title>"), fault{kind: imapmeta.Retry, op: "connect", words: "HTTP 502: <html> <title>Bad", unreached: true}, HTTP},
		{"503", answer(503, ""), fault{kind: imapmeta.Retry, op: "connect", words: "HTTP 503: Service Unavailable", unreached: true}, HTTP},
		{"a greeting", func(conn net.Conn) {
			io.WriteString(conn, "* OK [CAPABILITY IMAP4rev1] Dovecot ready.\r\n")
			request(conn)
		}, noDoveadm(`it does not speak HTTP, but says "* OK [CAPABILITY IMAP4rev1] Dovecot ready."`), Reply},
		{"its echo", func(conn net.Conn) { io.Copy(conn, conn) }, noDoveadm(`but says "POST /doveadm/v1 HTTP/1.1"`), Reply},
		{"a little", func(conn net.Conn) { request(conn); io.WriteString(conn, "HT") }, noDoveadm(`but says "HT"`), Reply},
		{"a TLS alert", say("\x15\x03\x01\x00\x02\x02\x16"), noDoveadm("does not speak HTTP"), Reply},
		{"a status that is none", say("HTTP/1.1 two hundred\r\n\r\n"), noDoveadm("does not speak HTTP"), Reply},
		{"a header without end", func(conn net.Conn) {
			request(conn)
			io.WriteString(conn, "HTTP/1.1 200 OK\r\n")
			for line := "X: " + strings.Repeat("x", 4000) + "\r\n"; ; {
				if _, err := io.WriteString(conn, line); err != nil {
					return
				}
			}
		}, noDoveadm("a header of more than 65536 bytes"), Reply},
		{"continue for ever", func(conn net.Conn) {
			request(conn)
			for {
				if _, err := io.WriteString(conn, "HTTP/1.1 100 Continue\r\n\r\n"); err != nil {
					return
				}
			}
		}, noDoveadm("a header of more than 65536 bytes"), Reply},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o := Options{Endpoints: []string{"http://" + saying(t, c.do) + apiPath}, Secret: secretIs(dummyKey)}
			if c.reason == Timeout {
				o.ReadTimeout = time.Second
			}
			client := open(t, o)
			_, err := client.Update(t.Context(), "alice", keepIt)
			c.want.check(t, "alice", err)
			if err != nil {
				secretFree(t, err.Error(), dummyKey)
			}
			if e := client.Endpoints()[0]; e.Reason != c.reason || !e.Out || e.Connections != 0 {
				t.Errorf("%+v; want reason %q", e, c.reason)
			}
		})
	}
}

// What comes before the answer, and how it is packed, does not matter.
func TestAnswersInOtherClothes(t *testing.T) {
	t.Parallel()
	const text = `[["doveadmResponse",[{"value":"user=1"}],"0"]]`
	for name, say := range map[string]string{
		"a length":         fmt.Sprintf(okHeader+"Content-Length: %d\r\n\r\n%s", len(text), text),
		"chunks":           fmt.Sprintf(okHeader+"Transfer-Encoding: chunked\r\n\r\n5\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n", text[:5], len(text)-5, text[5:]),
		"until the end":    okHeader + "\r\n" + text,
		"after a continue": "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n" + okHeader + "\r\n" + text,
		"HTTP/1.0":         "HTTP/1.0 200 OK\r\n\r\n" + text,
	} {
		address := saying(t, func(conn net.Conn) { request(conn); io.WriteString(conn, say) })
		c := open(t, Options{Endpoints: []string{"http://" + address + apiPath}, Secret: secretIs(dummyKey)})
		out, err := c.Update(t.Context(), "alice", keepIt)
		if err != nil || out.Had != "user=1" {
			t.Errorf("%s: had %q, %v", name, string(out.Had), err)
		}
	}
	// A refusal that comes before the request is read to its end.
	address := saying(t, func(conn net.Conn) {
		io.WriteString(conn, "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
		conn.(*net.TCPConn).CloseWrite()
		untilGone(conn)
	})
	c := open(t, Options{Endpoints: []string{"http://" + address + apiPath}, Secret: secretIs(dummyKey)})
	_, err := c.Update(t.Context(), "alice", keepIt)
	fault{kind: imapmeta.Server, is: ErrNotDoveadm, words: "HTTP 403: no"}.check(t, "alice", err)
}

// An answer with all replies is one, whatever comes after them.
func TestWhatComesAfterTheRepliesIsNobodysTrouble(t *testing.T) {
	d := play(t, onPost(func(w http.ResponseWriter, _ *http.Request, _ []command) bool {
		io.WriteString(w, `[["doveadmResponse",[{"value":"user=1"}],"0"]] <!-- and so on -->`)
		return true
	}))
	c := d.client()
	update(t, c, "alice", imapmeta.Keep(), "user=1")
	if e := c.Endpoints()[0]; e.Out || d.lookedAt() != 0 {
		t.Errorf("%+v, and it was looked at %d times", e, d.lookedAt())
	}
}

// Dovecot closes the connection; who is before it may wait for us to do so. The
// garbage collector would, too, some time.
func TestAConnectionIsClosedWhenItHasServed(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	for name, say := range map[string]string{
		"an answer":  okHeader + "Content-Length: 46\r\n\r\n" + `[["doveadmResponse",[{"value":"user=1"}],"0"]]`,
		"a refusal":  "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno",
		"not HTTP":   "220 smtp.example.com\r\n",
		"not an API": okHeader + "Content-Length: 1000\r\n\r\n<html>",
	} {
		over := make(chan struct{}, 10)
		address := saying(t, func(conn net.Conn) {
			request(conn)
			io.WriteString(conn, say)
			untilGone(conn)
			over <- struct{}{}
		})
		c := open(t, Options{Endpoints: []string{"http://" + address + apiPath}, Secret: secretIs(dummyKey)})
		c.Update(t.Context(), "alice", keepIt)
		select {
		case <-over:
		case <-time.After(10 * time.Second):
			t.Errorf("%s: it is still open", name)
		}
	}
}

// An answer of any length costs no more memory than its replies may have.
func TestAnAnswerOf100MiBIsNotRead(t *testing.T) {
	var sent atomic.Int64
	for name, begin := range map[string]string{
		"one value":    `[["doveadmResponse",[{"value":"`,
		"many replies": `[`,
		"blanks":       ``,
	} {
		piece := strings.Repeat("x", 1<<16)
		switch name {
		case "many replies":
			piece = strings.Repeat(`["doveadmResponse",[{"value":"x"}],"9"],`, 1<<10)
		case "blanks":
			piece = strings.Repeat(" ", 1<<16)
		}
		sent.Store(0)
		address := saying(t, func(conn net.Conn) {
			request(conn)
			io.WriteString(conn, okHeader+"\r\n"+begin)
			for n := 0; n < 100<<20; n += len(piece) {
				if _, err := io.WriteString(conn, piece); err != nil {
					return
				}
				sent.Add(int64(len(piece)))
			}
		})
		c := open(t, Options{Endpoints: []string{"http://" + address + apiPath}, Secret: secretIs(dummyKey)})
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := c.Update(t.Context(), "alice", keepIt)
		runtime.ReadMemStats(&after)
		want := fault{kind: imapmeta.Retry, op: "connect", words: "the answer is too long", unreached: true}
		if name == "one value" {
			want = fault{kind: imapmeta.User, op: "getmetadata", words: "more than 262144 bytes"}
		}
		want.check(t, "alice", err)
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 64<<20 {
			t.Errorf("%s: %d MiB were allocated", name, grown>>20)
		}
		if n := sent.Load(); n > 50<<20 { // what lies in the kernel's buffers included
			t.Errorf("%s: %d MiB were read", name, n>>20)
		}
	}
}
