package notify

import (
	"container/list"
	"context"
	"crypto/tls"
	"net"
	"sync"
)

// Bound returns a listener that never has more than most connections open.
// When one more comes, the one is closed that has been without a request with
// the right password for the longest time: whoever holds connections open, or
// sends a byte a second on each, keeps Dovecot out for no longer than it takes
// to accept his connections. Only if each carries such a request is the new
// one closed. It works with the http.Server that [Server] returns, also with
// TLS in between.
func Bound(l net.Listener, most int) net.Listener {
	return &bound{Listener: l, most: most, idle: list.New()}
}

type bound struct {
	net.Listener
	most int

	mu   sync.Mutex
	open int
	idle *list.List // of *boundConn; the longest idle first
}

// Accept waits for the next connection.
func (b *bound) Accept() (net.Conn, error) {
	for {
		conn, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &boundConn{Conn: conn, bound: b}
		oldest, ok := b.admit(c)
		if oldest != nil {
			_ = oldest.Close()
		}
		if ok {
			return c, nil
		}
		_ = conn.Close()
	}
}

// admit takes a connection in, and returns whom to close for it; ok is false
// if there is no room for it.
func (b *bound) admit(c *boundConn) (oldest *boundConn, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open >= b.most {
		front := b.idle.Front()
		if front == nil {
			return nil, false
		}
		oldest = front.Value.(*boundConn)
		b.leave(oldest)
	}
	b.open++
	c.place = b.idle.PushBack(c)
	return oldest, true
}

// leave counts a connection as closed, once. The caller holds mu.
func (b *bound) leave(c *boundConn) {
	if c.left {
		return
	}
	c.left = true
	b.open--
	if c.place != nil {
		b.idle.Remove(c.place)
		c.place = nil
	}
}

// boundConn is a connection that counts.
type boundConn struct {
	net.Conn
	bound *bound

	// guarded by bound.mu
	place *list.Element // in bound.idle; nil: it carries a request
	left  bool
}

// Close closes the connection.
func (c *boundConn) Close() error {
	c.bound.mu.Lock()
	c.bound.leave(c)
	c.bound.mu.Unlock()
	return c.Conn.Close()
}

// carries says whether the connection carries a request with the right
// password.
func (c *boundConn) carries(request bool) {
	c.bound.mu.Lock()
	defer c.bound.mu.Unlock()
	switch {
	case c.left:
	case request && c.place != nil:
		c.bound.idle.Remove(c.place)
		c.place = nil
	case !request && c.place == nil:
		c.place = c.bound.idle.PushBack(c)
	}
}

type connKey struct{}

// remember puts the connection where its requests find it.
func remember(ctx context.Context, conn net.Conn) context.Context {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	if c, ok := conn.(*boundConn); ok {
		return context.WithValue(ctx, connKey{}, c)
	}
	return ctx
}

// occupy keeps a request's connection from being closed for another, until
// the returned func is called.
func occupy(ctx context.Context) func() {
	c, ok := ctx.Value(connKey{}).(*boundConn)
	if !ok {
		return func() {}
	}
	c.carries(true)
	return func() { c.carries(false) }
}
