package dovecot

import (
	"embed"
	"fmt"
	"path/filepath"
	"strings"
	"text/template"
)

// Options say how the Dovecot differs from a plain working one. The zero value
// but for Version is fine: IMAP METADATA on, a file dict, the ox driver, master
// user agent with the separator "*", no delay for refused logins.
type Options struct {
	Version Version
	Users   []User

	// Bare leaves out all that a Dovecot needs for dovepush and others do not:
	// METADATA and its dict, the ox driver, the master user, the DoveAdm API, and
	// what is said of the penalty and of processes that are reused. Extra is to
	// bring them; of the Server's methods those that ask doveadm do not work. The
	// options about these settings are without effect.
	Bare bool

	// Extra is text appended to the settings, where it wins over what stands
	// before it.
	Extra map[Version]string

	// PushURL is where the ox driver sends its notifications; credentials
	// belong into it. Empty: the Server's own endpoint, see
	// [Server.Notifications].
	PushURL string

	// Penalty leaves auth_failure_delay (2 s) and the per-address penalty as
	// they come. Either makes refused logins slow for everybody on loopback.
	Penalty bool

	NoMetadata bool // imap_metadata = no
	NoDict     bool // no mail_attribute dict

	// MasterSeparator is auth_master_user_separator; nil means "*", a pointer
	// to "" none.
	MasterSeparator *string

	// NoResultSuccess leaves result_success = continue out of the master
	// passdb: then nothing proves that the target user exists, and Dovecot
	// answers an unknown one with [UNAVAILABLE].
	NoResultSuccess bool

	UserFromMetadata   bool // the ox driver sends the identity, not the login
	StockUsernameChars bool // auth_username_chars as Dovecot ships it

	// ClientCerts asks clients for a certificate and offers the mechanism
	// EXTERNAL, for the master user only: ClientCertFile holds a certificate in
	// its name, and the authorization identity names the target.
	ClientCerts bool

	// PlaintextRefused refuses passwords without TLS. Dovecot counts a
	// connection as secured when both its ends have the same address; so here
	// it listens on 127.0.0.2, which the kernel connects to from 127.0.0.1.
	PlaintextRefused bool

	chosen func(*Server) // tests only: between choosing ports and starting
}

// A User is a line of the passwd-file that is both passdb and userdb.
type User struct {
	Name     string // as stored; Dovecot lowercases the name that logs in
	Password string
	Extra    string // further fields, blank-separated: "nologin", "userdb_quota_rule=..."
}

// line checks what the file's format cannot hold.
// https://doc.dovecot.org/2.3/configuration_manual/authentication/passwd_file/
func (u User) line() (string, error) {
	switch {
	case u.Name == "" || strings.HasPrefix(u.Name, "#") || strings.ContainsAny(u.Name, ":\r\n\x00"):
		return "", fmt.Errorf("user %q: a passwd-file cannot hold this name", u.Name)
	case strings.ContainsAny(u.Extra, "\r\n\x00"):
		return "", fmt.Errorf("user %q: extra fields must be one line", u.Name)
	}
	return passwdLine(fileName.Replace(u.Name), u.Password, u.Extra), nil
}

// fileName spells a user's name as Dovecot looks it up: it escapes the name
// before it compares (str_escape in auth_request_var_expand), not the file's.
var fileName = strings.NewReplacer(`\`, `\\`, `"`, `\"`, `'`, `\'`)

// settings is what the templates see.
type settings struct {
	Options

	Dir, Name, Host                         string
	MasterSeparator                         string
	IMAPPort, IMAPSPort, LMTPPort, HTTPPort int
	APIKey, DoveadmPassword                 string
	InternalUser, InternalGroup, LoginUser  string
	LoginChroot, AnvilChroot, ExtraSettings string
	MailUID, MailGID                        int
}

//go:embed dovecot23.conf.tmpl dovecot24.conf.tmpl
var templateFiles embed.FS

func (s settings) render() (string, error) {
	name := map[Version]string{V23: "dovecot23.conf.tmpl", V24: "dovecot24.conf.tmpl"}[s.Version]
	t, err := template.New(name).Option("missingkey=error").ParseFS(templateFiles, name)
	if err != nil {
		return "", err
	}
	var text strings.Builder
	if err := t.Execute(&text, s); err != nil {
		return "", err
	}
	return text.String(), nil
}

func (o Options) separator() string {
	if o.MasterSeparator == nil {
		return "*"
	}
	return *o.MasterSeparator
}

func (o Options) host() string {
	if o.PlaintextRefused {
		return "127.0.0.2"
	}
	return "127.0.0.1"
}

// inside is the directory's path as Dovecot sees it.
func (in Install) inside(dir string) string {
	if in.Root == "" {
		return dir
	}
	rel, err := filepath.Rel(in.Root, dir)
	if err != nil {
		return dir
	}
	return "/" + rel
}
