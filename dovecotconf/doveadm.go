package dovecotconf

import (
	"fmt"
	"net"
	"net/url"
	"strings"

	"dovepush/config"
)

// api is how dovepush reaches the DoveAdm HTTP API, as the templates see it.
type api struct {
	Port     string // of the listener; empty: none
	Address  string // of the listener, if it is on loopback
	TLS      bool
	Socket   bool   // over a UNIX socket
	Setting  string // what holds the key
	Commands []string
}

// doveadmAPI returns nil if the server has no such API. One Dovecot has one
// listener: the first endpoint of each kind says which.
func doveadmAPI(s *config.Server) *api {
	if !s.HasDoveadm() {
		return nil
	}
	a := &api{Setting: "doveadm_api_key", Commands: []string{"user"}}
	if !s.Doveadm.APIKey.IsSet() {
		a.Setting = "doveadm_password"
	}
	if s.Connector == config.ConnectorDoveadm {
		a.Commands = []string{"mailbox metadata get", "mailbox metadata set", "mailbox metadata unset", "user"}
	}
	for _, endpoint := range s.Doveadm.Endpoints {
		if strings.HasPrefix(endpoint, "unix:") {
			a.Socket = true
			continue
		}
		u, err := url.Parse(endpoint)
		if err != nil || a.Port != "" {
			continue
		}
		a.TLS, a.Port = u.Scheme == "https", port(u)
		if loopback(net.JoinHostPort(u.Hostname(), a.Port)) {
			a.Address = strings.Replace(u.Hostname(), "localhost", "127.0.0.1", 1)
		}
	}
	return a
}

func port(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "https":
		return "443"
	}
	return "80"
}

// Allowed lists the commands as a version's doveadm_allowed_commands wants them.
func (a *api) Allowed(v Version) string {
	if v == V23 {
		return strings.Join(a.Commands, ",") // a blank behind the comma would be part of a name
	}
	var words []string
	for _, command := range a.Commands {
		if strings.Contains(command, " ") {
			command = fmt.Sprintf("%q", command)
		}
		words = append(words, command)
	}
	return strings.Join(words, " ")
}

// otherPorts tells whether an endpoint needs another listener than the first.
func otherPorts(s *config.Server) bool {
	first := ""
	for _, endpoint := range s.Doveadm.Endpoints {
		u, err := url.Parse(endpoint)
		if err != nil || u.Scheme == "unix" {
			continue
		}
		listener := u.Scheme + " " + port(u)
		if first == "" {
			first = listener
		}
		if listener != first {
			return true
		}
	}
	return false
}
