package config

import (
	"fmt"
	"net/url"
)

// HasDoveadm tells whether the DoveAdm API can be used: also with ConnectorIMAP,
// to list users.
func (s *Server) HasDoveadm() bool {
	d := &s.Doveadm
	return len(d.Endpoints) > 0 && (d.APIKey.IsSet() || d.Password.IsSet())
}

// doveadmWarnings is what Config.Warnings says of a server with
// ConnectorDoveadm. It is silent about keys that are left from ConnectorIMAP and
// mislead nobody: the connector is changed by one word.
func (s *Server) doveadmWarnings() []string {
	var list []string
	o := s.where()
	warn := func(suffix, format string, args ...any) {
		list = append(list, o.error(suffix, fmt.Sprintf(format, args...), nil).Error())
	}
	if key := s.tlsKey(); key != "" && s.inClear() {
		warn(key, "without effect on http:// endpoints, which get the API key in clear; use https://")
	}
	if s.MaxLoginsPerSecond > 0 {
		warn(".max_logins_per_second", `without effect, connector "doveadm" logs nobody in; remove it, doveadm.max_connections and doveadm.batch bound the load`)
	}
	// The client sees to it (doveadm.New), so that another endpoint has its turn.
	// The default is nobody's mistake.
	if half := s.Timeout / 2; s.Doveadm.ReadTimeout > half && s.Doveadm.ReadTimeout != DefaultServer().Doveadm.ReadTimeout {
		warn(".doveadm.read_timeout", "%s counts as %s, half of timeout; lower it, or raise timeout", s.Doveadm.ReadTimeout, half)
	}
	return list
}

// tlsKey returns the first key that is set of those that https endpoints heed.
func (s *Server) tlsKey() string {
	switch {
	case s.TLSCAFile != "":
		return ".tls_ca_file"
	case s.TLSServerName != "":
		return ".tls_server_name"
	case s.TLSCertFile != "":
		return ".tls_cert_file"
	}
	return ""
}

// inClear tells whether an endpoint is on another machine and without TLS, and
// none is with TLS.
func (s *Server) inClear() bool {
	found := false
	for _, e := range s.Doveadm.Endpoints {
		u, err := url.Parse(e)
		if err != nil {
			continue // Parse has refused it
		}
		if u.Scheme == "https" {
			return false
		}
		found = found || plaintext(u)
	}
	return found
}
