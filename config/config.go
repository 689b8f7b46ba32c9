// Package config reads config.toml: defaults, strict decoding, validation and secrets.
//
// It describes what an admin wants and opens nothing but files that the
// configuration names; turning it into connectors, registry and listeners is
// the caller's work. It never reads a secret before it is asked to.
//
// Usual order of calls: [Load] once, which reports every mistake at once as
// [Errors]; [Config.Warnings] and [Config.Check] for "config check";
// [Config.ServerFor] and [Config.IdentityFor] for each user;
// [Server.TLSConfig] and [Secret.Read] when a connection is made, so that
// rotated files take effect without a restart; [API.TLSConfig],
// [Notify.TLSConfig] and [Webhook.TLSConfig] likewise.
package config

import (
	"time"
)

// What to do with an entry that somebody else wrote: values of on_conflict.
const (
	ConflictKeep    = "keep"    // report a conflict, leave the entry
	ConflictReplace = "replace" // overwrite the entry
)

// How to reach the entry: values of server.connector.
const (
	ConnectorIMAP    = "imap"    // IMAP METADATA, RFC 5464
	ConnectorDoveadm = "doveadm" // DoveAdm HTTP API
)

// How an IMAP connection is protected: values of server.tls.
const (
	TLSImplicit = "implicit" // TLS from the first byte, usually port 993
	TLSStartTLS = "starttls" // RFC 3501 STARTTLS, usually port 143
	TLSNone     = "none"     // loopback only, unless allow_plaintext is set
)

// SASL mechanisms: values of server.auth.mechanism.
const (
	MechanismPlain       = "plain"       // RFC 4616
	MechanismLogin       = "login"       // draft-murchison-sasl-login
	MechanismOAuthBearer = "oauthbearer" // RFC 7628
	MechanismXOAuth2     = "xoauth2"
	MechanismExternal    = "external" // RFC 4422 appendix A, with a client certificate
)

// Config is the whole of config.toml. Fields bear the names of their keys.
//
// Printing a Config, logging it or marshalling it to JSON never shows a secret.
type Config struct {
	OnConflict  string   `toml:"on_conflict"`  // ConflictKeep or ConflictReplace
	Identity    string   `toml:"identity"`     // template, see IdentityFor
	VerifyEvery Duration `toml:"verify_every"` // between two looks at an entry that is as it should be

	IdentityKey            Secret `toml:"identity_key"`             // signs identities; not set: they are as the template says
	IdentityOldKey         Secret `toml:"identity_old_key"`         // what it signed is still accepted
	IdentityAcceptUnsigned bool   `toml:"identity_accept_unsigned"` // while the first key is brought in

	Servers  []Server  `toml:"server"` // at least one after Load
	Registry Registry  `toml:"registry"`
	Retry    Retry     `toml:"retry"`
	API      API       `toml:"api"`
	Metrics  Metrics   `toml:"metrics"`
	Notify   Notify    `toml:"notify"`
	Spool    Spool     `toml:"spool"`
	Webhooks []Webhook `toml:"webhook"`

	file string // absolute; "" when not made by Load or Parse
}

// Server is one [[server]]: one Dovecot installation behind one address.
type Server struct {
	Name               string   `toml:"name"`      // unique; names the server in registry, logs and metrics
	Connector          string   `toml:"connector"` // ConnectorIMAP or ConnectorDoveadm
	Domains            []string `toml:"domains"`   // lower case; empty: every user no other server is for
	Address            string   `toml:"address"`   // host:port of the IMAP service; may be empty for ConnectorDoveadm
	TLS                string   `toml:"tls"`       // TLSImplicit, TLSStartTLS or TLSNone; IMAP only
	TLSCAFile          string   `toml:"tls_ca_file"`
	TLSServerName      string   `toml:"tls_server_name"`
	TLSCertFile        string   `toml:"tls_cert_file"`
	TLSKeyFile         string   `toml:"tls_key_file"`
	AllowPlaintext     bool     `toml:"allow_plaintext"`
	MaxConnections     int      `toml:"max_connections"`       // 1..1024; IMAP only
	MaxLoginsPerSecond int      `toml:"max_logins_per_second"` // 0: no limit; IMAP only
	Timeout            Duration `toml:"timeout"`               // of one exchange with one user's mailbox
	Auth               Auth     `toml:"auth"`
	Doveadm            Doveadm  `toml:"doveadm"`

	origin origin
}

// Auth is [server.auth]: how to log in over IMAP.
type Auth struct {
	Mechanism       string `toml:"mechanism"`
	MasterUser      string `toml:"master_user"`      // empty: each user's own credentials
	MasterSeparator string `toml:"master_separator"` // one character, or empty: authorization identity
	Password        Secret `toml:"password"`         // for oauthbearer and xoauth2: the token
}

// Doveadm is [server.doveadm]: the DoveAdm HTTP API.
type Doveadm struct {
	Endpoints      []string `toml:"endpoints"`       // http or https URLs, or unix:/path of a socket
	APIKey         Secret   `toml:"api_key"`         // doveadm_api_key: Authorization: X-Dovecot-API
	Password       Secret   `toml:"password"`        // doveadm_password: Basic, user "doveadm"
	MaxConnections int      `toml:"max_connections"` // to each endpoint, 1..1024
	Batch          int      `toml:"batch"`           // commands in one POST, 1..10000
	ConnectTimeout Duration `toml:"connect_timeout"`
	ReadTimeout    Duration `toml:"read_timeout"`   // of one POST; at most half of the server's timeout counts
	CheckInterval  Duration `toml:"check_interval"` // between two looks at an endpoint that failed
}

// Registry is [registry]: where the registrations are kept.
type Registry struct {
	Path string `toml:"path"` // absolute after Load
	URL  URL    `toml:"url"`  // not supported yet: Load refuses it
}

// Retry is [retry]: the bounds of the exponential back-off.
type Retry struct {
	Initial Duration `toml:"initial"`
	Max     Duration `toml:"max"`
}

// API is [api]: the service's HTTP API.
type API struct {
	Listen      string `toml:"listen"`        // see ListenAddress; empty: none
	Mode        string `toml:"mode"`          // of a UNIX socket's file, octal; see SocketMode
	Token       Secret `toml:"token"`         // bearer token, needed over TCP
	TLSCertFile string `toml:"tls_cert_file"` // both or none; see TLSConfig
	TLSKeyFile  string `toml:"tls_key_file"`

	origin origin
}

// Metrics is [metrics]: a listener of its own for /metrics.
type Metrics struct {
	Listen string `toml:"listen"` // see ListenAddress; empty: none
}

// Notify is [notify]: the endpoint that Dovecot's ox driver calls.
type Notify struct {
	Listen      string   `toml:"listen"`        // see ListenAddress; empty: none
	AlsoListen  []string `toml:"also_listen"`   // further ones
	TLSCertFile string   `toml:"tls_cert_file"` // both or none; see TLSConfig
	TLSKeyFile  string   `toml:"tls_key_file"`
	URL         string   `toml:"url"`  // where Dovecot finds the endpoint, without credentials; empty: see Endpoint
	Path        string   `toml:"path"` // of the URL, begins with a slash
	Username    string   `toml:"username"`
	Password    Secret   `toml:"password"`

	origin origin
}

// Spool is [spool]: what waits for webhooks.
type Spool struct {
	Path      string   `toml:"path"`       // absolute after Load, unless empty: see SpoolPath
	MaxEvents int      `toml:"max_events"` // that wait for one webhook, 1..100,000,000
	KeepDead  Duration `toml:"keep_dead"`  // how long dead letters stay
}

// Webhook is one [[webhook]]: where notifications are forwarded to.
type Webhook struct {
	Name           string   `toml:"name"` // unique; names it in spool, logs and metrics
	URL            URL      `toml:"url"`  // http or https
	Secret         Secret   `toml:"secret"`
	OldSecret      Secret   `toml:"old_secret"` // signs, too, while the receiver learns the new one
	Strip          bool     `toml:"strip"`      // leave out from, subject, snippet and unknown fields
	TLSCAFile      string   `toml:"tls_ca_file"`
	MaxConnections int      `toml:"max_connections"` // 1..1024
	Timeout        Duration `toml:"timeout"`         // of one delivery
	RetryInitial   Duration `toml:"retry_initial"`
	RetryMax       Duration `toml:"retry_max"`
	GiveUpAfter    Duration `toml:"give_up_after"` // since the notification came

	origin origin
}

// Default returns the configuration of an empty file. It has no server:
// [DefaultServer] is what each [[server]] begins with.
func Default() Config {
	return Config{
		OnConflict:  ConflictKeep,
		Identity:    "{user}",
		VerifyEvery: Duration(24 * time.Hour),
		Registry:    Registry{Path: "/var/lib/dovepush/registry.db"},
		Retry:       Retry{Initial: Duration(30 * time.Second), Max: Duration(6 * time.Hour)},
		API:         API{Listen: "unix:/run/dovepush/api.sock", Mode: "0660"},
		Notify:      Notify{Path: "/preliminary/http-notify/v1/notify", Username: "dovecot"},
		Spool:       Spool{MaxEvents: 1_000_000, KeepDead: Duration(30 * 24 * time.Hour)},
	}
}

// DefaultWebhook returns what a [[webhook]] without keys means. Its name, URL
// and secret must be set.
func DefaultWebhook() Webhook {
	return Webhook{
		MaxConnections: 4,
		Timeout:        Duration(10 * time.Second),
		RetryInitial:   Duration(5 * time.Second),
		RetryMax:       Duration(time.Hour),
		GiveUpAfter:    Duration(24 * time.Hour),
	}
}

// DefaultServer returns what a [[server]] without keys means. Its address is
// empty and must be set for ConnectorIMAP.
func DefaultServer() Server {
	return Server{
		Name:           "main",
		Connector:      ConnectorIMAP,
		TLS:            TLSImplicit,
		MaxConnections: 16,
		Timeout:        Duration(30 * time.Second),
		Auth:           Auth{Mechanism: MechanismPlain},
		Doveadm: Doveadm{
			Endpoints:      []string{"http://127.0.0.1:8080/doveadm/v1"},
			MaxConnections: 4,
			Batch:          100,
			ConnectTimeout: Duration(3 * time.Second),
			ReadTimeout:    Duration(10 * time.Second),
			CheckInterval:  Duration(time.Minute),
		},
	}
}
