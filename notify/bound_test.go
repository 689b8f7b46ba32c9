package notify

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// bounded serves a handler on a listener of so many connections.
func bounded(t *testing.T, most int, o Options, secured *tls.Config) (address string, l *bound) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l = Bound(ln, most).(*bound)
	server := Server(New(o), nil)
	var serving net.Listener = l
	if secured != nil {
		serving = tls.NewListener(l, secured)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(serving) }()
	t.Cleanup(func() {
		_ = server.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return ln.Addr().String(), l
}

func knock(t *testing.T, address, begin string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, begin); err != nil {
		t.Fatal(err)
	}
	return conn
}

const begun = "PUT /n HTTP/1.1\r\nHost: x\r\nAuthorization: Basic ZG92ZWNvdDpzZWNyZXQ=\r\nContent-Length: "

func locked() Options {
	return Options{Path: "/n", Credentials: func() (string, string, bool) { return "dovecot", "secret", true }}
}

// send sends a whole notification on a connection, and returns the status.
func send(conn net.Conn, user string) (int, error) {
	body := fmt.Sprintf(`{"user":%q}`, user)
	if _, err := fmt.Fprintf(conn, "%s%d\r\n\r\n%s", begun, len(body), body); err != nil {
		return 0, err
	}
	_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	return res.StatusCode, nil
}

func TestWhoHoldsConnectionsOpenKeepsNobodyOut(t *testing.T) {
	for name, begin := range map[string]string{
		"silent": "", "half a line": "PUT /", "no password": "PUT /n HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			const most = 20
			address, l := bounded(t, most, locked(), nil)
			// One that has begun to send with the right password is not disturbed.
			slow := knock(t, address, begun+"14\r\n\r\n{\"user\":")
			for {
				l.mu.Lock()
				busy := l.open - l.idle.Len()
				l.mu.Unlock()
				if busy == 1 {
					break
				}
				time.Sleep(time.Millisecond)
			}
			for range 10 * most {
				knock(t, address, begin)
			}
			for i := range 5 {
				if status, err := send(knock(t, address, ""), fmt.Sprint(i)); status != 200 || err != nil {
					t.Fatalf("%d: status %d, %v", i, status, err)
				}
			}
			if _, err := io.WriteString(slow, `"bob"}`); err != nil {
				t.Fatal(err)
			}
			_ = slow.SetReadDeadline(time.Now().Add(time.Minute))
			if res, err := http.ReadResponse(bufio.NewReader(slow), nil); err != nil || res.StatusCode != 200 {
				t.Errorf("%v, %v", res, err)
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.open > most || l.idle.Len() > l.open {
				t.Errorf("%d are open, %d of them idle", l.open, l.idle.Len())
			}
		})
	}
}

func TestWithAllConnectionsAtWorkANewOneIsClosed(t *testing.T) {
	const most = 3
	o, release := locked(), make(chan struct{})
	began := make(chan struct{}, most)
	o.Verify = func(sent string) (string, error) {
		began <- struct{}{}
		<-release
		return sent, nil
	}
	address, l := bounded(t, most, o, nil)
	statuses := make(chan int, most)
	for i := range most {
		conn := knock(t, address, "")
		go func() {
			status, _ := send(conn, fmt.Sprint(i))
			statuses <- status
		}()
	}
	for range most {
		<-began
	}
	if status, err := send(knock(t, address, ""), "late"); err == nil {
		t.Errorf("one more has status %d", status)
	}
	close(release)
	for range most {
		if status := <-statuses; status != 200 {
			t.Errorf("status %d", status)
		}
	}
	if status, err := send(knock(t, address, ""), "later"); err != nil || status != 200 { // in place of an idle one
		t.Errorf("status %d, %v", status, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open > most {
		t.Errorf("%d are open", l.open)
	}
}

func TestTheBoundHoldsBehindTLS(t *testing.T) {
	certified := httptest.NewUnstartedServer(nil)
	certified.StartTLS()
	defer certified.Close()
	address, l := bounded(t, 2, locked(), &tls.Config{Certificates: certified.TLS.Certificates})
	client := certified.Client()
	for i := range 5 {
		client.CloseIdleConnections()
		knock(t, address, "")
		req, err := http.NewRequest("PUT", "https://"+address+"/n", strings.NewReader(fmt.Sprintf(`{"user":"%d"}`, i)))
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth("dovecot", "secret")
		res, err := client.Do(req)
		if err != nil || res.StatusCode != 200 {
			t.Fatalf("%d: %v, %v", i, res, err)
		}
		res.Body.Close()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open > 2 {
		t.Errorf("%d are open", l.open)
	}
}
