package dovecotconf

import (
	"fmt"
	"strings"

	"dovepush/config"
)

// A step says by what to replace a marker before the settings are of use.
type step struct {
	Marker string
	Text   string
}

// steps tell, in this order, what to do about each marker in s.
func steps(c *config.Config, server *config.Server, s *settings) (list []step) {
	add := func(marker, format string, args ...any) {
		list = append(list, step{marker, fmt.Sprintf(format, args...)})
	}
	endpoint, _ := c.Notify.Endpoint()
	switch {
	case strings.Contains(s.URL, markHost) && endpoint == "":
		add(markHost, "by the host of whoever is to be told of new mail: there is no TCP address in notify.listen")
	case strings.Contains(s.URL, markHost):
		add(markHost, "by the name or address at which Dovecot finds dovepush (or set notify.url)")
	}
	if strings.Contains(s.URL, ":"+markPort+"/") {
		add(markPort, "by the port of the endpoint, which notify.listen does not say")
	}
	if c.Notify.Password.IsSet() {
		escape := "%XX"
		if s.Version == V23 {
			escape = "%%XX"
		}
		add(markPassword, "by the password of %s, bytes other than A-Z a-z 0-9 - . _ ~ as %s", c.Notify.Password.Key(), escape)
	}
	if s.HTTPS {
		add(markCA, "by the file with the CA of the endpoint's certificate, or /etc/ssl/certs/ca-certificates.crt")
	}
	if s.Doveadm != nil {
		key := server.Doveadm.APIKey
		if !key.IsSet() {
			key = server.Doveadm.Password
		}
		escape := `" as \" and \ as \\`
		if s.Version == V24 {
			escape += " and % as %%" // its settings are templates, all of them
		}
		add(markKey, "by the key of %s, in it %s", key.Key(), escape)
	}
	if len(s.Nets) > 0 && s.Nets[0] == markFrom {
		add(markFrom, "by the address that dovepush's connections come from, as Dovecot sees it (or use --from)")
	}
	return list
}

// notes say what else the reader must know.
func notes(c *config.Config, server *config.Server, s *settings) (list []string) {
	if s.PasswordLine() {
		list = append(list, fmt.Sprintf("Write into %s (root:dovecot, mode 640) one line, with what\n"+
			"\"doveadm pw -s SHA512-CRYPT\" makes of the password of %s:\n  %s:{SHA512-CRYPT}...", s.File, server.Auth.Password.Key(), s.Master))
	} else if s.IMAP && s.Master != "" {
		list = append(list, fmt.Sprintf("How the master user logs in by %q is not here: that passdb is the site's own. It\n"+
			"needs master = yes and result_success = continue.", s.Mechanism))
	}
	if endpoint, _ := c.Notify.Endpoint(); endpoint != "" && !c.Notify.Password.IsSet() {
		list = append(list, "The URL holds no password: notify.password_file is not set.")
	}
	if s.Version == V23 {
		list = append(list, "If you have a push_notification_driver already, call this one push_notification_driver2.")
	}
	if s.Doveadm != nil && otherPorts(server) {
		list = append(list, "The endpoints differ in port or scheme: on each machine the listener below is to be\nas its own endpoint says.")
	}
	return list
}
