package dovecotconf

import (
	"bytes"
	"embed"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/template"

	"dovepush/config"
)

//go:embed dovecot23.conf.tmpl dovecot24.conf.tmpl head.tmpl
var templates embed.FS

// passwdFile is where the master user's line is to stand.
const passwdFile = "/etc/dovecot/dovepush.passwd"

// settings is what the templates see.
type settings struct {
	Version Version
	Server  string
	File    string // for the master user's line
	Steps   []step
	Notes   []string

	URL              string
	HTTPS            bool
	UserFromMetadata bool

	IMAP      bool
	Nets      []string // dovepush's
	Trusted   bool     // passwords come in clear, from another machine
	Master    string
	Separator string
	Mechanism string

	Doveadm *api
}

// Write writes the settings of one of c's servers, as a file for Dovecot's
// conf.d. A # with a blank behind it begins what is for the reader, one without
// an optional setting. The error is w's.
func Write(w io.Writer, c *config.Config, server *config.Server, o Options) error {
	if o.Version == "" {
		o.Version = V24
	}
	t, err := template.New("").Option("missingkey=error").Funcs(template.FuncMap{"join": strings.Join, "lines": func(text string) string { return strings.ReplaceAll(text, "\n", "\n# ") }}).ParseFS(templates, "*.tmpl")
	if err != nil {
		return err
	}
	name, known := map[Version]string{V23: "dovecot23.conf.tmpl", V24: "dovecot24.conf.tmpl"}[o.Version]
	if !known {
		return fmt.Errorf("no settings for Dovecot %q (known: %v)", o.Version, Versions())
	}
	var text bytes.Buffer
	if err := t.ExecuteTemplate(&text, name, newSettings(c, server, o)); err != nil {
		return fmt.Errorf("settings for Dovecot %s: %w", o.Version, err)
	}
	_, err = w.Write(text.Bytes())
	return err
}

func newSettings(c *config.Config, server *config.Server, o Options) *settings {
	s := &settings{
		Version: o.Version, Server: server.Name, File: passwdFile,
		UserFromMetadata: c.Identity != "{user}" || c.IdentityKey.IsSet(),
		Doveadm:          doveadmAPI(server),
	}
	var scheme string
	s.URL, scheme = driverURL(&c.Notify, o.Version)
	s.HTTPS = scheme == "https"
	if server.Connector == config.ConnectorIMAP {
		s.IMAP = true
		s.Master, s.Separator = server.Auth.MasterUser, server.Auth.MasterSeparator
		s.Mechanism = server.Auth.Mechanism
		s.Nets = networks(o.From)
		here := loopback(server.Address)
		if len(s.Nets) == 0 && here {
			s.Nets = networks(loopbackNets())
		}
		if len(s.Nets) == 0 {
			s.Nets = []string{markFrom}
		}
		s.Trusted = server.TLS == config.TLSNone && !ownAddress(server.Address)
	}
	s.Steps = steps(c, server, s)
	s.Notes = notes(c, server, s)
	return s
}

// ownAddress tells whether a connection to address has it at both ends, which
// Dovecot counts as secured. Of 127.0.0.0/8 that is true of 127.0.0.1 only.
func ownAddress(address string) bool {
	host := strings.ToLower(address[:max(0, strings.LastIndexByte(address, ':'))])
	return host == "127.0.0.1" || host == "[::1]" || host == "localhost"
}

// Secret tells whether what replaces a marker is a secret.
func (s *settings) Secret() bool {
	return slices.ContainsFunc(s.Steps, func(s step) bool { return s.Marker == markPassword || s.Marker == markKey })
}

// PasswordLine tells whether the master user logs in with a password that a
// passwd-file can hold.
func (s *settings) PasswordLine() bool {
	return s.Master != "" && (s.Mechanism == config.MechanismPlain || s.Mechanism == config.MechanismLogin)
}
