package config

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"strings"
)

// maxPEM bounds certificate and key files; a system's whole bundle is 0.3 MiB.
const maxPEM = 4 << 20

// TLSConfig returns the settings for the IMAP connection, or nil if tls is
// "none". The server's name is tls_server_name, else the host of address.
// Files are read on each call. The error is an [*Error] naming key and file.
func (s *Server) TLSConfig() (*tls.Config, error) {
	if s.TLS == TLSNone {
		return nil, nil
	}
	name := s.TLSServerName
	if name == "" {
		host, _, err := net.SplitHostPort(s.Address)
		if err != nil {
			return nil, s.where().error(".address", err.Error(), err)
		}
		name = host
	}
	return s.tlsConfig(name)
}

// DoveadmTLSConfig returns the settings for https endpoints of the DoveAdm
// API: those of TLSConfig, but without tls_server_name each endpoint is
// checked against its own name, as net/http does when ServerName is empty.
func (s *Server) DoveadmTLSConfig() (*tls.Config, error) { return s.tlsConfig(s.TLSServerName) }

func (s *Server) tlsConfig(name string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: name}
	roots, err := s.rootCAs()
	if err != nil {
		return nil, err
	}
	c.RootCAs = roots
	cert, err := s.where().certificate(s.TLSCertFile, s.TLSKeyFile)
	if err != nil {
		return nil, err
	}
	if cert != nil {
		c.Certificates = []tls.Certificate{*cert}
	}
	return c, nil
}

func (s *Server) rootCAs() (*x509.CertPool, error) { return s.where().rootCAs(s.TLSCAFile) }

// rootCAs reads a table's tls_ca_file; nil stands for the system's own, as
// tls.Config wants it.
func (o origin) rootCAs(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	name := o.resolve(file)
	data, err := readFile(name, maxPEM)
	if err != nil {
		return nil, o.error(".tls_ca_file", err.Error(), err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, o.error(".tls_ca_file", name+" holds no certificate in PEM form", nil)
	}
	return pool, nil
}

// certificate reads a table's tls_cert_file and tls_key_file; nil if they are
// not set.
func (o origin) certificate(certFile, keyFile string) (*tls.Certificate, error) {
	if certFile == "" || keyFile == "" {
		return nil, nil // one without the other was refused by Parse
	}
	certName, keyName := o.resolve(certFile), o.resolve(keyFile)
	cert, err := readFile(certName, maxPEM)
	if err != nil {
		return nil, o.error(".tls_cert_file", err.Error(), err)
	}
	if !holdsPEM(cert, "CERTIFICATE") {
		return nil, o.error(".tls_cert_file", certName+" holds no certificate in PEM form", nil)
	}
	key, err := readFile(keyName, maxPEM)
	if err != nil {
		return nil, o.error(".tls_key_file", err.Error(), err)
	}
	switch {
	case holdsPEM(key, "ENCRYPTED PRIVATE KEY"):
		return nil, o.error(".tls_key_file", keyName+" is encrypted; remove the passphrase: openssl pkey -in "+keyName+" -out NEW", nil)
	case !holdsPEM(key, "PRIVATE KEY"):
		return nil, o.error(".tls_key_file", keyName+" holds no private key in PEM form", nil)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, o.error(".tls_key_file", keyName+" does not fit "+certName+": "+strings.TrimPrefix(err.Error(), "tls: "), err)
	}
	return &pair, nil
}

// where says where the server stands, also if it was not made by Parse.
func (s *Server) where() origin {
	o := s.origin
	if o.key == "" {
		o.key = "server"
	}
	return o
}

// holdsPEM tells whether a block's type is, or ends in, the given one: there
// are RSA PRIVATE KEY and EC PRIVATE KEY.
func holdsPEM(data []byte, kind string) bool {
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			return false
		}
		if block.Type == kind || strings.HasSuffix(block.Type, " "+kind) {
			return true
		}
		data = rest
	}
}
