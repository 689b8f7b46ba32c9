package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/net/netutil"

	"dovepush/config"
	"dovepush/notify"
)

// maxClients bounds the connections to a listener; others wait until one ends.
// As many as may wait for an outcome, and as many again.
const maxClients = 2048

// doors are the listeners of the service; nil: none.
type doors struct {
	api, metrics net.Listener
	notify       []net.Listener
	sockets      []*socket // that we made
}

// open opens what the settings say, or takes what systemd has opened: sockets
// with FileDescriptorName=api, metrics and notify (systemd.socket(5)).
func (s *service) open(c *config.Config) (d *doors, err error) {
	d = new(doors)
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	given, err := activation.ListenersWithNames()
	if err != nil {
		return d, fmt.Errorf("sockets from systemd: %w", err)
	}
	for name, listeners := range given {
		if !slices.Contains([]string{"api", "metrics", "notify"}, name) || len(listeners) != 1 && name != "notify" || slices.Contains(listeners, nil) {
			return d, fmt.Errorf("%w: systemd gave %d sockets named %q: give one stream socket each with FileDescriptorName=api and metrics, and any number with notify", errConfig, len(listeners), name)
		}
	}
	inherit := func(name string, l net.Listener) net.Listener {
		s.log.Info("listening", "for", name, "on", l.Addr().String(), "from", "systemd")
		return limited(name, l)
	}
	take := func(name, key, listen string) (net.Listener, error) {
		if l := given[name]; l != nil {
			return inherit(name, l[0]), nil
		}
		if listen == "" {
			return nil, nil
		}
		l, err := d.listen(listen, c.API.SocketMode())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		on := listen
		if !isUnix(l) {
			on = l.Addr().String() // the port may have been 0
		}
		s.log.Info("listening", "for", name, "on", on)
		return limited(name, l), nil
	}
	if d.api, err = take("api", "api.listen", c.API.Listen); err != nil {
		return d, err
	}
	if d.api != nil && !isUnix(d.api) && !c.API.Token.IsSet() {
		return d, fmt.Errorf("%w: api.token_file: is needed for %s: whoever reaches a TCP port would be served", errConfig, d.api.Addr())
	}
	if d.metrics, err = take("metrics", "metrics.listen", c.Metrics.Listen); err != nil {
		return d, err
	}
	return d, d.openNotify(c, given["notify"], inherit, take)
}

// openNotify opens the listeners for Dovecot's notifications.
func (d *doors) openNotify(c *config.Config, given []net.Listener, inherit func(string, net.Listener) net.Listener,
	take func(name, key, listen string) (net.Listener, error)) error {
	if len(given) > 0 && c.Notify.Listen == "" {
		return fmt.Errorf("%w: systemd gave a socket named notify, but notify.listen is empty: set it, so that notifications are taken", errConfig)
	}
	for _, l := range given {
		if !isUnix(l) && !isLoopback(l) && !c.Notify.Password.IsSet() {
			return fmt.Errorf("%w: notify.password_file: is needed for %s: whoever reaches it could make up notifications", errConfig, l.Addr())
		}
		d.notify = append(d.notify, inherit("notify", l))
	}
	if len(given) > 0 {
		return nil
	}
	for i, listen := range c.Notify.Listeners() {
		key := "notify.listen"
		if i > 0 {
			key = fmt.Sprintf("notify.also_listen[%d]", i-1)
		}
		l, err := take("notify", key, listen)
		if err != nil {
			return err
		}
		d.notify = append(d.notify, l)
	}
	return nil
}

// limited bounds the connections to a listener. Dovecot's must not have to wait
// behind those of others.
func limited(name string, l net.Listener) net.Listener {
	if name == "notify" {
		return notify.Bound(l, maxClients)
	}
	return netutil.LimitListener(l, maxClients)
}

func isLoopback(l net.Listener) bool {
	address, ok := l.Addr().(*net.TCPAddr)
	return ok && address.IP.IsLoopback()
}

func (d *doors) close() {
	for _, l := range append([]net.Listener{d.api, d.metrics}, d.notify...) {
		if l != nil {
			l.Close()
		}
	}
	for _, s := range d.sockets {
		s.remove()
	}
}

func (d *doors) listen(listen string, mode fs.FileMode) (net.Listener, error) {
	network, address := config.ListenAddress(listen)
	if network != "unix" {
		l, err := net.Listen(network, address)
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("%w: another process listens there: is dovepush serve running already? (%w)", errUnavailable, err)
		}
		return l, err
	}
	l, made, err := listenUnix(address, mode)
	if err == nil {
		d.sockets = append(d.sockets, made)
	}
	return l, err
}

// socket is a UNIX socket in the file system.
type socket struct {
	path string
	info fs.FileInfo
}

// remove removes the socket, unless another process has put its own there.
func (s *socket) remove() {
	if info, err := os.Lstat(s.path); err == nil && os.SameFile(info, s.info) {
		os.Remove(s.path)
	}
}

// listenUnix makes a socket that nobody can connect to before it has its mode.
// One that an earlier process has left behind is replaced.
func listenUnix(path string, mode fs.FileMode) (net.Listener, *socket, error) {
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Stat(filepath.Dir(path)); err != nil {
			return nil, nil, fmt.Errorf("%w: create the directory, or have systemd do so with RuntimeDirectory=", err)
		}
	case err != nil:
		return nil, nil, err
	case info.Mode()&fs.ModeSocket == 0:
		return nil, nil, fmt.Errorf("%w: %s is there and is no socket; remove it or choose another name", errConfig, path)
	default:
		conn, err := net.DialTimeout("unix", path, time.Second)
		if err == nil {
			conn.Close()
		}
		if !errors.Is(err, syscall.ECONNREFUSED) { // which it is if nobody listens; a busy listener gives EAGAIN
			return nil, nil, fmt.Errorf("%w: another process listens on %s: is dovepush serve running already?", errUnavailable, path)
		}
	}
	// In a directory of our own, as bind gives it what the umask leaves.
	dir, err := os.MkdirTemp(filepath.Dir(path), ".dp-"+rand.Text()[:4])
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(dir)
	private := filepath.Join(dir, "s")
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "unix", private)
	if err != nil {
		return nil, nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	made := &socket{path: path}
	err = os.Chmod(private, mode)
	if err == nil {
		err = os.Rename(private, path)
	}
	if err == nil {
		made.info, err = os.Lstat(path)
	}
	if err != nil {
		l.Close()
		return nil, nil, err
	}
	return l, made, nil
}

func isUnix(l net.Listener) bool { return l.Addr().Network() == "unix" }

// guard adds TLS to a TCP listener if the settings have a certificate. Each
// connection gets that of the newest settings.
func (s *service) guard(l net.Listener, settings func(*generation) *tls.Config) net.Listener {
	if isUnix(l) || settings(s.now.Load()) == nil {
		return l
	}
	return tls.NewListener(l, &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			if c := settings(s.now.Load()); c != nil {
				return c, nil
			}
			return nil, errors.New("the settings have no certificate any more")
		},
	})
}
