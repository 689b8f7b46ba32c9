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
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/net/netutil"

	"dovepush/config"
)

// maxClients bounds the connections to a listener; others wait until one ends.
// As many as may wait for an outcome, and as many again.
const maxClients = 2048

// doors are the listeners of the service; nil: none.
type doors struct {
	api, metrics net.Listener
	sockets      []*socket // that we made
}

// open opens what the settings say, or takes what systemd has opened: sockets
// with FileDescriptorName=api and metrics (systemd.socket(5)).
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
		if name != "api" && name != "metrics" || len(listeners) != 1 || listeners[0] == nil {
			return d, fmt.Errorf("%w: systemd gave %d sockets named %q: give one stream socket each with FileDescriptorName=api and metrics", errConfig, len(listeners), name)
		}
	}
	take := func(name, key, listen string) (net.Listener, error) {
		if l := given[name]; l != nil {
			s.log.Info("listening", "for", name, "on", l[0].Addr().String(), "from", "systemd")
			return netutil.LimitListener(l[0], maxClients), nil
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
		return netutil.LimitListener(l, maxClients), nil
	}
	if d.api, err = take("api", "api.listen", c.API.Listen); err != nil {
		return d, err
	}
	if d.api != nil && !isUnix(d.api) && !c.API.Token.IsSet() {
		return d, fmt.Errorf("%w: api.token_file: is needed for %s: whoever reaches a TCP port would be served", errConfig, d.api.Addr())
	}
	d.metrics, err = take("metrics", "metrics.listen", c.Metrics.Listen)
	return d, err
}

func (d *doors) close() {
	for _, l := range []net.Listener{d.api, d.metrics} {
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
func (s *service) guard(l net.Listener) net.Listener {
	if isUnix(l) || s.now.Load().tls == nil {
		return l
	}
	return tls.NewListener(l, &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			if c := s.now.Load().tls; c != nil {
				return c, nil
			}
			return nil, errors.New("the settings have no certificate any more")
		},
	})
}
