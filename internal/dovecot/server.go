package dovecot

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const (
	// startLimit bounds one start, from the fork to the IMAP greeting.
	startLimit = 20 * time.Second
	// startTries is how often other ports are tried when one was taken
	// between choosing and listening.
	startTries = 5
)

// A Server is one running Dovecot. Its methods may be called concurrently.
type Server struct {
	Version Version
	Full    string // exact version, as dovecot --version prints it

	IMAP  string // host:port; plain text and STARTTLS
	IMAPS string // host:port; TLS from the start
	LMTP  string // host:port

	DoveadmURL      string // DoveAdm HTTP API
	APIKey          string
	DoveadmPassword string

	// CAFile holds the CA that signed the server's certificate, which is good
	// for localhost and the server's address. A test of a name mismatch sets
	// tls.Config.ServerName to any other name.
	CAFile         string
	ClientCertFile string // common name MasterUser; of use with Options.ClientCerts
	ClientKeyFile  string

	MasterUser     string
	MasterPassword string // as at the start; see SetMasterPassword

	Dir string // holds everything, as this process sees it

	install  Install
	options  Options
	ports    [4]int
	tokenKey []byte
	notes    *recorder
	detach   func() bool // from the context given to Start

	mu     sync.Mutex
	proc   *process // nil while stopped
	closed bool

	files accounts
}

// Start runs a Dovecot and returns when its IMAP port greets. It is closed by
// [Server.Close], or when ctx ends.
func Start(ctx context.Context, o Options) (*Server, error) {
	in, err := Find(o.Version)
	if err != nil {
		return nil, err
	}
	s := &Server{
		Version: o.Version, Full: in.Full,
		APIKey: rand.Text(), DoveadmPassword: rand.Text(),
		MasterUser: "agent", MasterPassword: rand.Text(),
		install: in, options: o, tokenKey: []byte(rand.Text()),
	}
	if err := s.prepare(); err != nil {
		return nil, errors.Join(fmt.Errorf("prepare dovecot %s: %w", o.Version, err), s.Close())
	}
	for try := 1; ; try++ {
		if err = s.choosePorts(); err == nil {
			if o.chosen != nil {
				o.chosen(s)
			}
			err = s.start(ctx)
		}
		if err == nil {
			break
		}
		if try == startTries || ctx.Err() != nil || !strings.Contains(s.Log(), "Address already in use") {
			return nil, errors.Join(fmt.Errorf("start dovecot %s: %w", o.Version, err), s.Close())
		}
		_ = os.Remove(s.path("dovecot.log"))
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	s.mu.Lock()
	s.detach = stop
	s.mu.Unlock()
	return s, nil
}

func (s *Server) path(elem ...string) string {
	return filepath.Join(append([]string{s.Dir}, elem...)...)
}

var errClosed = errors.New("dovecot server is closed")

// start runs the process and waits for the greeting.
func (s *Server) start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	if s.proc != nil && !s.proc.exited() {
		return errors.New("dovecot is running already")
	}
	p, err := startProcess(s.install, s.install.inside(s.path("dovecot.conf")), s.path("start.log"))
	if err != nil {
		return err
	}
	s.proc = p
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		err := greets(ctx, s.IMAP)
		if err == nil && !p.exited() {
			return nil
		}
		select {
		case <-p.done:
			s.proc = nil
			return fmt.Errorf("it ended at once (%v): %s", p.err, s.complaint())
		case <-ctx.Done():
			p.stop(ctx)
			s.proc = nil
			return fmt.Errorf("no greeting (%w, %w): %s", ctx.Err(), err, s.complaint())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// complaint is what an error about a failed start quotes.
func (s *Server) complaint() string {
	start, _ := os.ReadFile(s.path("start.log"))
	text := strings.TrimSpace(string(start) + s.Log())
	return text[max(0, len(text)-1500):]
}

// greets succeeds when every login process that is likely to be met is ready.
// One that has not reached the auth process yet says "* OK Waiting for
// authentication process to respond.." first, which few clients expect.
func greets(ctx context.Context, addr string) error {
	const several = 4 // for the two processes of process_min_avail
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for range several {
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		defer c.Close() // together, so that they are spread
		stop := context.AfterFunc(ctx, func() { _ = c.Close() })
		defer stop()
		line, err := bufio.NewReader(io.LimitReader(c, 4096)).ReadString('\n')
		if err != nil {
			return err
		}
		if !strings.HasPrefix(line, "* OK [CAPABILITY ") {
			return fmt.Errorf("greeting %q", line)
		}
		if _, err := io.WriteString(c, "a LOGOUT\r\n"); err != nil {
			return err
		}
	}
	return nil
}

// Stop ends Dovecot and keeps directory and ports. Ending ctx makes it abrupt.
func (s *Server) Stop(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stop(ctx)
}

func (s *Server) stop(ctx context.Context) error {
	if s.closed {
		return errClosed
	}
	if s.proc != nil {
		s.proc.stop(ctx)
		s.proc = nil
	}
	return nil
}

// Restart stops Dovecot, if it runs, and starts it again on the same ports.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.Stop(ctx); err != nil {
		return err
	}
	if err := s.start(ctx); err != nil {
		return fmt.Errorf("restart dovecot %s: %w", s.Version, err)
	}
	return nil
}

// Reload makes Dovecot read its settings again (SIGHUP) and returns when it
// says so in its log and greets.
func (s *Server) Reload(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	if s.proc == nil {
		return errors.New("reload: dovecot is stopped")
	}
	const said = "SIGHUP received"
	before := strings.Count(s.Log(), said)
	if err := s.proc.signal(sighup); err != nil {
		return fmt.Errorf("reload: %w", err)
	}
	for strings.Count(s.Log(), said) == before || greets(ctx, s.IMAP) != nil {
		select {
		case <-ctx.Done():
			return fmt.Errorf("reload: %w", ctx.Err())
		case <-s.proc.done:
			return fmt.Errorf("reload: dovecot ended: %s", s.complaint())
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

// Close stops Dovecot, ends its processes and the notification endpoint, and
// removes the directory. Calling it again does nothing.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if s.proc != nil {
		s.proc.discard()
		s.proc = nil
	}
	if s.detach != nil {
		s.detach()
	}
	var errs []error
	if s.notes != nil {
		errs = append(errs, s.notes.close())
	}
	if s.Dir != "" {
		errs = append(errs, removeAll(s.Dir))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close dovecot %s: %w", s.Version, err)
	}
	return nil
}

// removeAll removes dir even where a test took away the permission to write.
func removeAll(dir string) error {
	if err := os.RemoveAll(dir); err == nil {
		return nil
	}
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			_ = os.Chmod(path, 0o700)
		}
		return nil
	})
	return os.RemoveAll(dir)
}

// Log returns what Dovecot has logged.
func (s *Server) Log() string {
	text, err := os.ReadFile(s.path("dovecot.log"))
	if err != nil {
		return ""
	}
	return string(text)
}

// MailDir is the user's home directory: the maildir is in Maildir below it.
func (s *Server) MailDir(user string) string {
	// auth_username_format lowercases the login.
	return s.path("mail", strings.ToLower(user))
}

// AttributeFile is the dict that holds the user's entry. A test may delete,
// damage or lock it; it comes with the first entry that is written.
func (s *Server) AttributeFile(user string) string {
	return filepath.Join(s.MailDir(user), "dovecot-attributes")
}
