package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"
)

// ListenAddress splits a listen key into what net.Listen takes: "unix" and a
// path for unix:/path, else "tcp" and host:port. An empty key gives "", "".
func ListenAddress(listen string) (network, address string) {
	if listen == "" {
		return "", ""
	}
	if path, ok := strings.CutPrefix(listen, "unix:"); ok {
		return "unix", path
	}
	return "tcp", listen
}

// checkListen accepts unix:/path and host:port; the host may be empty (every
// interface) and the port 0 (any).
func checkListen(listen string) error {
	network, address := ListenAddress(listen)
	if network != "unix" {
		return checkHostPort(address, 0, `write "127.0.0.1:8025" or "unix:/run/dovepush/name.sock"`)
	}
	return checkSocket(address, "unix:/run/dovepush/api.sock")
}

// checkSocket wants the path of a UNIX socket.
func checkSocket(path, example string) error {
	switch {
	case !filepath.IsAbs(path):
		return fmt.Errorf("a UNIX socket needs a whole path, such as %q", example)
	case len(path) > 107: // sun_path, unix(7)
		return fmt.Errorf("the socket's path has %d bytes; a UNIX socket allows 107", len(path))
	case strings.ContainsFunc(path, unicode.IsControl):
		return errors.New("the socket's path holds a control character")
	}
	return nil
}

// checkHostPort wants host:port; a lowest port of 0 also allows an empty host.
func checkHostPort(address string, lowest int, example string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%s is not host:port; %s", quote(address), example)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || int(n) < lowest {
		return fmt.Errorf("%s is no port number in %s; %s", quote(port), quote(address), example)
	}
	if host == "" && lowest == 0 {
		return nil
	}
	if err := checkHost(host); err != nil {
		return fmt.Errorf("%w in %s; %s", err, quote(address), example)
	}
	return nil
}

// checkHost wants an IP literal or something that looks like a host name.
func checkHost(host string) error {
	if _, err := netip.ParseAddr(host); err == nil {
		return nil
	}
	if host == "" || len(host) > 253 || strings.ContainsAny(host, `:/\@"'[]`) ||
		strings.ContainsFunc(host, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }) {
		return fmt.Errorf("%s is no host name", quote(host))
	}
	return nil
}

// loopback tells whether what is sent to host stays on this machine.
func loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// local tells whether a listener can be reached from this machine only.
func local(listen string) bool {
	network, address := ListenAddress(listen)
	if network == "tcp" {
		host, _, err := net.SplitHostPort(address)
		return err == nil && loopback(host)
	}
	return true
}

// endpointForms are what an endpoint of the DoveAdm API may be.
const endpointForms = `"https://host:port/doveadm/v1", "http://127.0.0.1:port/doveadm/v1" or "unix:/path"`

// checkEndpoint wants the URL of a DoveAdm API, or unix:/path. It does not
// repeat a URL, which may hold a password.
func checkEndpoint(endpoint string, allowPlaintext bool) error {
	if path, ok := strings.CutPrefix(endpoint, "unix:"); ok {
		// Dovecot 2.3 speaks HTTP on a unix_listener of this name only.
		return checkSocket(path, "unix:/run/dovecot/http")
	}
	u, err := url.Parse(endpoint)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return errors.New("is no endpoint; write " + endpointForms)
	case u.User != nil:
		return errors.New("holds a user or password; use doveadm.password_file or doveadm.api_key_file instead")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return errors.New("must end with its path; remove what follows ? or #")
	case u.Path == "" || u.Path == "/":
		return errors.New("has no path; Dovecot's API is at /doveadm/v1")
	}
	if err := checkAuthority(u); err != nil {
		return err
	}
	if plaintext(u) && !allowPlaintext {
		return fmt.Errorf("http sends the API key in clear to %s; use https, or set allow_plaintext = true", quote(u.Hostname()))
	}
	return nil
}

// plaintext tells whether what is sent to u leaves this machine in clear.
func plaintext(u *url.URL) bool { return u.Scheme == "http" && !loopback(u.Hostname()) }
