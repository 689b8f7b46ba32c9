package config

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Check opens every secret, certificate and key file that the configuration
// names and returns what is wrong with them as [Errors], or nil. It runs no
// command and opens no connection.
func (c *Config) Check() error {
	var errs Errors
	add := func(err error) {
		var e *Error
		if errors.As(err, &e) {
			errs = append(errs, e)
		}
	}
	for i := range c.Servers {
		s := &c.Servers[i]
		_, err := s.rootCAs()
		add(err)
		_, err = s.where().certificate(s.TLSCertFile, s.TLSKeyFile)
		add(err)
	}
	_, err := c.API.TLSConfig()
	add(err)
	_, err = c.Notify.TLSConfig()
	add(err)
	for i := range c.Webhooks {
		_, err := c.Webhooks[i].rootCAs()
		add(err)
	}
	for _, s := range c.secrets() {
		if s.file != "" {
			_, err := s.Read(context.Background())
			add(err)
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return errs
}

// Warnings lists what works but should not stay: files with secrets that
// others can read, settings without effect, ports that contradict tls. Each
// begins with its key and says how to mend it.
//
// A file of root's that a group other than root's can read is as a service
// that does not run as root needs it (root:dovepush, mode 640); so is
// everything in $CREDENTIALS_DIRECTORY, where systemd sets the mode.
func (c *Config) Warnings() []string {
	var list []string
	warn := func(o origin, suffix, format string, args ...any) {
		list = append(list, o.error(suffix, fmt.Sprintf(format, args...), nil).Error())
	}
	for i := range c.Servers {
		s := &c.Servers[i]
		o := s.where()
		if s.Connector == ConnectorIMAP {
			switch _, port, _ := net.SplitHostPort(s.Address); {
			case s.TLS == TLSImplicit && port == "143":
				warn(o, ".tls", `"implicit" on port 143, where Dovecot expects STARTTLS; use port 993 or tls = "starttls"`)
			case s.TLS != TLSImplicit && port == "993":
				warn(o, ".tls", `%q on port 993, where Dovecot expects TLS at once; use port 143 or tls = "implicit"`, s.TLS)
			}
			if s.Auth.Mechanism == MechanismExternal && s.Auth.Password.IsSet() {
				warn(o, ".auth.password"+s.Auth.Password.form(), `mechanism "external" does not use it; remove it`)
			}
		}
		if s.Connector == ConnectorDoveadm {
			list = append(list, s.doveadmWarnings()...)
		}
		if s.TLSKeyFile != "" {
			if why := exposed(o.resolve(s.TLSKeyFile)); why != "" {
				warn(o, ".tls_key_file", "%s", why)
			}
		}
	}
	list = append(list, c.API.warnings()...)
	list = append(list, c.Notify.warnings()...)
	if len(c.Webhooks) > 0 && c.Notify.Listen == "" {
		warn(c.Webhooks[0].where(), "", "gets nothing: notify.listen is empty, so that Dovecot can notify nobody; set it")
	}
	inline := ""
	for _, s := range c.secrets() {
		if s.file != "" {
			if why := exposed(s.origin.resolve(s.file)); why != "" {
				warn(s.origin, formFile, "%s", why)
			}
		} else if s.value != nil && inline == "" && c.file != "" {
			inline = s.Key()
			if why := exposed(c.file); why != "" {
				warn(s.origin, "", "%s", why)
			}
		}
	}
	return list
}

// exposed says who else can read a file with a secret, and how to end that.
// It is silent about a file that cannot be looked at: Check reports that.
func exposed(name string) string {
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" && strings.HasPrefix(name, filepath.Clean(dir)+"/") {
		return ""
	}
	info, err := os.Stat(name)
	if err != nil || !info.Mode().IsRegular() {
		return ""
	}
	mode, wanted := info.Mode().Perm(), os.FileMode(0o600)
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid == 0 && st.Gid != 0 {
		wanted = 0o640
	}
	if mode&^wanted&0o077 == 0 {
		return ""
	}
	who := "others"
	if mode&0o007 == 0 {
		who = "its group"
	}
	return fmt.Sprintf("%s (mode %03o) is open to %s; chmod %o %s", name, mode, who, wanted, name)
}
