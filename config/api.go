package config

import (
	"crypto/tls"
	"fmt"
	"io/fs"
	"os"
	"strconv"
)

// SocketMode returns the mode of a UNIX socket's file. Who may write to the
// file may connect (unix(7)). A mode that Parse would refuse counts as 0600.
func (a *API) SocketMode() os.FileMode {
	if mode, ok := parseMode(a.Mode); ok {
		return mode
	}
	return 0o600
}

// parseMode takes 3 or 4 octal digits; a fourth one is 0, for set-user-ID and
// the like mean nothing for a socket.
func parseMode(s string) (os.FileMode, bool) {
	if len(s) == 4 && s[0] != '0' || len(s) < 3 || len(s) > 4 {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 8, 12) // no sign, prefix or underscore: the base is given
	return os.FileMode(n) & fs.ModePerm, err == nil
}

// TLSConfig returns the settings for a TLS listener, or nil if tls_cert_file
// and tls_key_file are not set. Both are read on each call: who calls it again
// gets a renewed certificate. The error is an [*Error] naming key and file.
func (a *API) TLSConfig() (*tls.Config, error) {
	cert, err := a.where().certificate(a.TLSCertFile, a.TLSKeyFile)
	if cert == nil || err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*cert}}, nil
}

// where says where the table stands, also if it was not made by Parse.
func (a *API) where() origin {
	o := a.origin
	if o.key == "" {
		o.key = "api"
	}
	return o
}

// warnings is what Config.Warnings says of [api], but for its token's file.
func (a *API) warnings() []string {
	var list []string
	o := a.where()
	warn := func(suffix, format string, args ...any) {
		list = append(list, o.error(suffix, fmt.Sprintf(format, args...), nil).Error())
	}
	encrypted := a.TLSCertFile != "" && a.TLSKeyFile != ""
	if network, _ := ListenAddress(a.Listen); network == "unix" {
		if a.Token.IsSet() {
			warn(".token"+a.Token.form(), "a UNIX socket is guarded by its file mode, not by a token; remove it")
		}
		if encrypted {
			warn(".tls_cert_file", "without effect on a UNIX socket, which no other machine reaches; remove it and tls_key_file")
		}
		if a.SocketMode()&0o002 != 0 {
			warn(".mode", "%s lets every user of this machine register and unregister users; use %q and a group", quote(a.Mode), Default().API.Mode)
		}
	}
	if !local(a.Listen) && !encrypted {
		warn(".listen", "%s carries the token in clear to other machines; set tls_cert_file and tls_key_file, or listen on loopback behind a TLS proxy", quote(a.Listen))
	}
	if a.TLSKeyFile != "" {
		if why := exposed(o.resolve(a.TLSKeyFile)); why != "" {
			warn(".tls_key_file", "%s", why)
		}
	}
	return list
}
