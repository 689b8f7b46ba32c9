package config

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
)

// Listeners are all of the endpoint's listen keys, the first one first. None:
// there is no endpoint.
func (n *Notify) Listeners() []string {
	if n.Listen == "" {
		return nil
	}
	return append([]string{n.Listen}, n.AlsoListen...)
}

// TLSConfig returns the settings for the endpoint's TCP listeners, or nil if
// tls_cert_file and tls_key_file are not set. Both are read on each call. The
// error is an [*Error] naming key and file.
func (n *Notify) TLSConfig() (*tls.Config, error) {
	cert, err := n.where().certificate(n.TLSCertFile, n.TLSKeyFile)
	if cert == nil || err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*cert}}, nil
}

// Endpoint returns the URL, without credentials, that belongs into Dovecot's
// settings: url if it is set, else what follows from the first TCP listener;
// whole is false if that leaves open under which name Dovecot finds this
// machine, or at which port. It is empty if there is no TCP listener.
func (n *Notify) Endpoint() (address string, whole bool) {
	if n.URL != "" {
		return n.URL, true
	}
	for _, listen := range n.Listeners() {
		network, address := ListenAddress(listen)
		if network != "tcp" {
			continue
		}
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			continue
		}
		whole = port != "0" && host != "" && host != "0.0.0.0" && host != "::"
		if host == "" || host == "0.0.0.0" || host == "::" {
			host = "THIS-HOST"
		}
		if port == "0" {
			port = "PORT"
		}
		scheme := "http"
		if n.TLSCertFile != "" {
			scheme = "https"
		}
		return scheme + "://" + net.JoinHostPort(host, port) + n.Path, whole
	}
	return "", false
}

func (n *Notify) where() origin {
	o := n.origin
	if o.key == "" {
		o.key = "notify"
	}
	return o
}

// warnings is what Config.Warnings says of [notify], but for its password's file.
func (n *Notify) warnings() []string {
	var list []string
	warn := func(suffix, format string, args ...any) {
		list = append(list, n.where().error(suffix, fmt.Sprintf(format, args...), nil).Error())
	}
	encrypted := n.TLSCertFile != "" && n.TLSKeyFile != ""
	for i, listen := range n.Listeners() {
		key := ".listen"
		if i > 0 {
			key = indexed(".also_listen", i-1)
		}
		if !encrypted && !local(listen) {
			warn(key, "%s carries the password, senders and subjects in clear to other machines; set tls_cert_file and tls_key_file, or listen on loopback behind a TLS proxy", quote(listen))
		}
		if network, _ := ListenAddress(listen); network == "unix" {
			warn(key, "Dovecot's ox driver calls no UNIX socket; use one only behind a proxy")
		}
	}
	overTCP := slices.ContainsFunc(n.Listeners(), func(listen string) bool { network, _ := ListenAddress(listen); return network == "tcp" })
	if overTCP && !n.Password.IsSet() {
		warn(".password_file", "missing: every process of this machine can make up notifications; set one, and write it into Dovecot's URL")
	}
	if u, err := url.Parse(n.URL); n.URL != "" && err == nil && plaintext(u) {
		warn(".url", "has Dovecot send the password, senders and subjects in clear to %s; use https, with a certificate here or a TLS proxy", quote(u.Hostname()))
	}
	if strings.HasPrefix(n.URL, "http:") && encrypted {
		warn(".url", "begins with http, but tls_cert_file makes the listeners speak https")
	}
	if n.TLSKeyFile != "" {
		if why := exposed(n.where().resolve(n.TLSKeyFile)); why != "" {
			warn(".tls_key_file", "%s", why)
		}
	}
	return list
}

// SpoolPath is where what waits for webhooks is kept: spool.path, else
// spool.db beside the registry.
func (c *Config) SpoolPath() string {
	if c.Spool.Path != "" {
		return c.Spool.Path
	}
	return filepath.Join(filepath.Dir(c.Registry.Path), "spool.db")
}
