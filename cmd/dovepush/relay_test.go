package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
)

// relay stands between dovepush and Dovecot, and shows each line before it is
// passed on. see may block until ctx is over; if it returns false, the
// connection is cut.
func relay(t *testing.T, to string, see func(ctx context.Context, connection int, fromDovecot bool, line string) bool) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); l.Close(); wg.Wait() })
	wg.Go(func() {
		for n := 0; ; n++ {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				client.Close()
				continue
			}
			context.AfterFunc(ctx, func() { client.Close(); server.Close() })
			pass := func(from, to net.Conn, fromDovecot bool) {
				defer to.(*net.TCPConn).CloseWrite()
				lines := bufio.NewReader(from)
				for {
					line, err := lines.ReadString('\n')
					if line != "" && !see(ctx, n, fromDovecot, line) {
						from.Close()
						return
					}
					if _, err2 := io.WriteString(to, line); err != nil || err2 != nil {
						return
					}
				}
			}
			wg.Go(func() { pass(client, server, false) })
			wg.Go(func() { pass(server, client, true); client.Close(); server.Close() })
		}
	})
	return l.Addr().String()
}

// A hold keeps replies back while it is shut.
type hold struct {
	mu   sync.Mutex
	open chan struct{} // closed while open
	held chan struct{} // has something for each reply that is kept back
}

// holding makes a relay that keeps back the reply lines that begin so.
func holding(t *testing.T, to, prefix string) (address string, h *hold) {
	h = &hold{open: make(chan struct{}), held: make(chan struct{}, 10_000)}
	close(h.open)
	return relay(t, to, func(ctx context.Context, _ int, fromDovecot bool, line string) bool {
		if !fromDovecot || !strings.HasPrefix(line, prefix) {
			return true
		}
		h.mu.Lock()
		open := h.open
		h.mu.Unlock()
		select {
		case <-open:
			return true
		default:
		}
		h.held <- struct{}{}
		select {
		case <-open:
			return true
		case <-ctx.Done():
			return false
		}
	}), h
}

func (h *hold) shut()    { h.mu.Lock(); defer h.mu.Unlock(); h.open = make(chan struct{}) }
func (h *hold) release() { h.mu.Lock(); defer h.mu.Unlock(); close(h.open) }
