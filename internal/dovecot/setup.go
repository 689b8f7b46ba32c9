package dovecot

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
)

// prepare makes the directory and all in it that does not depend on the ports.
func (s *Server) prepare() error {
	if err := s.makeDir(); err != nil {
		return err
	}
	certs, err := newCertificates(s.MasterUser)
	if err != nil {
		return err
	}
	s.CAFile, s.ClientCertFile, s.ClientKeyFile = s.path("ca.pem"), s.path("client.pem"), s.path("client.key")
	s.notes, err = newRecorder()
	if err != nil {
		return err
	}
	s.files = accounts{dir: s.Dir, group: -1, master: s.MasterUser, password: s.MasterPassword}
	if s.install.ids.privileged {
		s.files.group = s.install.ids.internalGID
	}
	if err := s.files.set(s.options.Users); err != nil {
		return err
	}
	if err := s.files.write(); err != nil {
		return err
	}

	dir := s.install.inside(s.Dir)
	for _, f := range []struct {
		name string
		text []byte
		auth bool // for the auth process, which is not root
	}{
		{"ca.pem", certs.ca, true},
		{"cert.pem", certs.server, false},
		{"key.pem", certs.serverKey, false},
		{"client.pem", certs.client, false},
		{"client.key", certs.clientKey, false},
		{"masters-external", []byte(s.MasterUser + ":::::::nopassword\n"), true},
		{"keys/default/HS256/default", []byte(base64.StdEncoding.EncodeToString(s.tokenKey)), true},
		{"oauth2.conf.ext", []byte("introspection_mode = local\n" +
			"local_validation_key_dict = fs:posix:prefix=" + dir + "/keys/\n" +
			"username_attribute = email\n"), true},
	} {
		if err := os.WriteFile(s.path(f.name), f.text, 0o600); err != nil {
			return err
		}
		if f.auth {
			if err := s.files.share(s.path(f.name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// longestDir keeps Dovecot's UNIX sockets below the kernel's 107 bytes: their
// longest name under the directory is run/token-login/tokenlogin and the like.
const longestDir = 60

func (s *Server) makeDir() error {
	tmp := os.TempDir()
	if s.install.Root != "" {
		tmp = filepath.Join(s.install.Root, "tmp")
	} else if len(tmp) > longestDir-len("/dp1234567890") {
		tmp = "/tmp"
	}
	dir, err := os.MkdirTemp(tmp, "dp")
	if err != nil {
		return err
	}
	s.Dir = dir
	// Passed through by Dovecot's other users, listed by nobody else.
	if err := os.Chmod(dir, 0o711); err != nil {
		return err
	}
	for _, sub := range []string{"state", "mail", "keys/default/HS256"} {
		if err := os.MkdirAll(s.path(sub), 0o755); err != nil {
			return err
		}
	}
	if s.install.ids.privileged {
		return os.Chown(s.path("mail"), s.install.ids.mailUID, s.install.ids.mailGID)
	}
	return nil
}

// choosePorts finds free ports and writes them into the settings. They lie
// below the kernel's range for outgoing connections (32768 on Linux), so that
// none of those takes a port while Dovecot is stopped.
func (s *Server) choosePorts() error {
	const low, high = 20000, 32000
	host := s.options.host()
	var held []net.Listener
	defer func() {
		for _, l := range held {
			_ = l.Close()
		}
	}()
	var last error
	for range 200 {
		var n [2]byte
		_, _ = rand.Read(n[:]) // never fails, see crypto/rand
		port := low + (int(n[0])<<8|int(n[1]))%(high-low)
		l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil {
			last = err
			continue
		}
		s.ports[len(held)] = port
		if held = append(held, l); len(held) == len(s.ports) {
			s.setAddresses(host)
			return s.writeSettings()
		}
	}
	return fmt.Errorf("no free port between %d and %d: %w", low, high, last)
}

func (s *Server) setAddresses(host string) {
	at := func(i int) string { return net.JoinHostPort(host, strconv.Itoa(s.ports[i])) }
	s.IMAP, s.IMAPS, s.LMTP, s.DoveadmURL = at(0), at(1), at(2), "http://"+at(3)+"/doveadm/v1"
}

func (s *Server) writeSettings() error {
	ids := s.install.ids
	set := settings{
		Options: s.options, Dir: s.install.inside(s.Dir), Name: filepath.Base(s.Dir), Host: s.options.host(),
		MasterSeparator: s.options.separator(),
		IMAPPort:        s.ports[0], IMAPSPort: s.ports[1], LMTPPort: s.ports[2], HTTPPort: s.ports[3],
		APIKey: s.APIKey, DoveadmPassword: s.DoveadmPassword,
		InternalUser: ids.internalUser, InternalGroup: ids.internalGroup, LoginUser: ids.loginUser,
		MailUID: ids.mailUID, MailGID: ids.mailGID,
		ExtraSettings: s.options.Extra[s.Version],
	}
	if set.PushURL == "" {
		set.PushURL = s.notes.url()
	}
	if ids.privileged {
		set.LoginChroot = "login" // as Dovecot ships it; only root can
	}
	text, err := set.render()
	if err != nil {
		return err
	}
	return os.WriteFile(s.path("dovecot.conf"), []byte(text), 0o600)
}
