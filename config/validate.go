package config

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"time"
	"unicode"
)

// validator checks a decoded Config. One method for each table; what needs
// several servers at once stands in servers.
type validator struct {
	*report
	given map[string]bool // keys that the file sets
}

func validate(c *Config, given map[string]bool, r *report) {
	v := validator{r, given}
	v.oneOf("on_conflict", c.OnConflict, ConflictKeep, ConflictReplace)
	if err := checkIdentity(c.Identity); err != nil {
		v.add("identity", "%v", err)
	}
	v.duration("verify_every", c.VerifyEvery, 366*24*time.Hour)
	v.servers(c.Servers)
	v.registry(c.Registry)
	v.duration("retry.initial", c.Retry.Initial, 24*time.Hour)
	v.duration("retry.max", c.Retry.Max, 30*24*time.Hour)
	if c.Retry.Initial > c.Retry.Max {
		v.add("retry.max", "%s is shorter than retry.initial, %s", c.Retry.Max, c.Retry.Initial)
	}
	v.listeners(c)
	v.api(c.API)
	v.notify(c.Notify)
	v.identityKeys(c)
	v.spool(c)
	v.webhooks(c.Webhooks)
	for key, s := range c.secrets() {
		v.fileName(key+formFile, s.file)
	}
}

func (v *validator) registry(r Registry) {
	switch {
	case r.URL != URL{} && v.given["registry.path"]:
		v.add("registry.url", "path and url are both set; keep path, url is not supported yet")
	case r.URL != URL{}:
		v.add("registry.url", "PostgreSQL is not supported yet; set registry.path instead")
	case r.Path == "":
		v.add("registry.path", "missing; set it to a file such as %q", Default().Registry.Path)
	}
	v.fileName("registry.path", r.Path)
}

// fileName refuses what would break a message or an operating system call.
func (v *validator) fileName(key, name string) {
	if strings.ContainsFunc(name, unicode.IsControl) {
		v.add(key, "holds a control character")
	}
}

func (v *validator) listeners(c *Config) {
	keys := []string{"api.listen", "metrics.listen", "notify.listen"}
	values := []string{c.API.Listen, c.Metrics.Listen, c.Notify.Listen}
	for i, listen := range c.Notify.AlsoListen {
		keys, values = append(keys, indexed("notify.also_listen", i)), append(values, listen)
		if listen == "" {
			v.add(keys[len(keys)-1], "empty; remove it")
		}
	}
	for i, listen := range values {
		if listen == "" {
			continue
		}
		if err := checkListen(listen); err != nil {
			v.add(keys[i], "%v", err)
		} else if j := slices.Index(values, listen); j < i && !strings.HasSuffix(listen, ":0") {
			v.add(keys[i], "%s is also %s; give each its own", quote(listen), keys[j])
		}
	}
	if network, _ := ListenAddress(c.API.Listen); network == "tcp" && !c.API.Token.IsSet() && !v.known("api.listen") {
		v.add("api.token_file", `missing; a TCP listener needs a token (token_file, token_command or token), a "unix:/path" listener needs none`)
	}
}

func (v *validator) api(a API) {
	if _, ok := parseMode(a.Mode); !ok {
		v.add("api.mode", "%s is no file mode; use 3 or 4 octal digits, of which a fourth is 0, such as %q", quote(a.Mode), Default().API.Mode)
	}
	v.keyPair("api", a.TLSCertFile, a.TLSKeyFile)
}

func (v *validator) notify(n Notify) {
	if !strings.HasPrefix(n.Path, "/") || strings.ContainsAny(n.Path, "?#{}%") ||
		strings.ContainsFunc(n.Path, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }) {
		v.add("notify.path", "%s is no path of a URL; write one such as %q", quote(n.Path), Default().Notify.Path)
	}
	// RFC 7617 section 2: a colon ends the name.
	if strings.Contains(n.Username, ":") || strings.ContainsFunc(n.Username, unicode.IsControl) {
		v.add("notify.username", "%s holds a colon or a control character, which HTTP cannot send", quote(n.Username))
	}
	if n.Password.IsSet() && n.Username == "" {
		v.add("notify.username", "missing; it goes with the password that is set")
	}
	for _, listen := range n.Listeners() {
		if checkListen(listen) == nil && !local(listen) && !n.Password.IsSet() {
			v.add("notify.password_file", "missing; %s is reachable from other machines and needs a password (password_file, password_command or password)", quote(listen))
		}
	}
	const most = 16
	if len(n.AlsoListen) > most {
		v.add("notify.also_listen", "has %d; use at most %d", len(n.AlsoListen), most)
	}
	if len(n.AlsoListen) > 0 && n.Listen == "" {
		v.add("notify.listen", "missing, but also_listen is set; put the first listener here")
	}
	v.keyPair("notify", n.TLSCertFile, n.TLSKeyFile)
	if n.URL != "" {
		if err := checkWebURL(n.URL, "https://dovepush.example.com:8026"+Default().Notify.Path); err != nil {
			v.add("notify.url", "%v", err)
		}
	}
}

func (v *validator) servers(list []Server) {
	if len(list) == 0 {
		v.add("server", "missing; add a [[server]] table with the address of your Dovecot")
	}
	names, domains, rest := map[string]int{}, map[string]string{}, -1
	for i := range list {
		key, s := serverKey(i), &list[i]
		v.server(key, s)
		if j, dup := names[s.Name]; dup {
			v.add(key+".name", "%s is also the name of %s; give each server its own", quote(s.Name), serverKey(j))
		} else {
			names[s.Name] = i
		}
		if len(s.Domains) == 0 {
			if rest >= 0 {
				v.add(key+".domains", "empty, as in %s; only one server can be for all other domains", serverKey(rest))
			}
			rest = i
		}
		for j, d := range s.Domains {
			here := fmt.Sprintf("%s.domains[%d]", key, j)
			if there, dup := domains[strings.ToLower(d)]; dup {
				v.add(here, "%s is also %s; a domain has one server", quote(d), there)
			} else {
				domains[strings.ToLower(d)] = here
			}
		}
	}
}

func (v *validator) server(key string, s *Server) {
	if !validName(s.Name) {
		v.add(key+".name", "%s is no name; use 1 to 64 of A-Z a-z 0-9 . _ -", quote(s.Name))
	}
	for i, d := range s.Domains {
		if !validDomain(d) {
			v.add(fmt.Sprintf("%s.domains[%d]", key, i), "%s is no domain; write it as it follows the @ in user names, without wildcards", quote(d))
		}
	}
	v.oneOf(key+".connector", s.Connector, ConnectorIMAP, ConnectorDoveadm)
	v.oneOf(key+".tls", s.TLS, TLSImplicit, TLSStartTLS, TLSNone)
	v.count(key+".max_connections", s.MaxConnections, 1, 1024)
	v.count(key+".max_logins_per_second", s.MaxLoginsPerSecond, 0, 100_000)
	v.duration(key+".timeout", s.Timeout, 5*time.Minute) // a claim in the registry must outlast it
	v.certificates(key, s)
	v.address(key, s)
	v.auth(key, s)
	v.doveadm(key+".doveadm", s)
}

func (v *validator) certificates(key string, s *Server) {
	if s.TLSServerName != "" {
		if err := checkHost(s.TLSServerName); err != nil {
			v.add(key+".tls_server_name", "%v", err)
		}
	}
	v.keyPair(key, s.TLSCertFile, s.TLSKeyFile)
	v.fileName(key+".tls_ca_file", s.TLSCAFile)
}

// keyPair wants a certificate and its key, or neither.
func (v *validator) keyPair(key, certFile, keyFile string) {
	switch {
	case certFile != "" && keyFile == "":
		v.add(key+".tls_key_file", "missing; tls_cert_file needs the key that belongs to it")
	case certFile == "" && keyFile != "":
		v.add(key+".tls_cert_file", "missing; tls_key_file needs the certificate that belongs to it")
	}
	v.fileName(key+".tls_cert_file", certFile)
	v.fileName(key+".tls_key_file", keyFile)
}

func (v *validator) address(key string, s *Server) {
	if s.Address == "" {
		if s.Connector == ConnectorIMAP {
			v.add(key+".address", `missing; set it to Dovecot's IMAP service, such as "imap.example.com:993"`)
		}
		return
	}
	example := `write "imap.example.com:993"`
	if s.TLS != TLSImplicit {
		example = `write "imap.example.com:143"`
	}
	if err := checkHostPort(s.Address, 1, example); err != nil {
		v.add(key+".address", "%v", err)
		return
	}
	host, _, _ := net.SplitHostPort(s.Address)
	if s.Connector == ConnectorIMAP && s.TLS == TLSNone && !s.AllowPlaintext && !loopback(host) {
		v.add(key+".tls", `"none" sends passwords in clear to %s; use "implicit" or "starttls", or set allow_plaintext = true`, quote(host))
	}
}

func (v *validator) auth(key string, s *Server) {
	a, auth := s.Auth, key+".auth"
	v.oneOf(auth+".mechanism", a.Mechanism, MechanismPlain, MechanismLogin, MechanismOAuthBearer, MechanismXOAuth2, MechanismExternal)
	if len(a.MasterUser) > 512 || strings.ContainsFunc(a.MasterUser, unicode.IsControl) {
		v.add(auth+".master_user", "holds a control character or more than 512 bytes")
	}
	if sep := a.MasterSeparator; sep != "" {
		switch {
		case !validSeparator(sep):
			v.add(auth+".master_separator", `%s is no separator; use the one character of Dovecot's auth_master_user_separator, such as "*", that occurs in no user name`, quote(sep))
		case a.MasterUser == "":
			v.add(auth+".master_separator", "set without master_user; set both or neither")
		case strings.Contains(a.MasterUser, sep):
			v.add(auth+".master_user", "holds the separator %s; Dovecot refuses such a login", quote(sep))
		}
	}
	if s.Connector != ConnectorIMAP {
		return
	}
	if a.Mechanism == MechanismExternal {
		if s.TLS == TLSNone {
			v.add(auth+".mechanism", `"external" logs in with the client certificate and needs tls = "implicit" or "starttls"`)
		}
		if s.TLSCertFile == "" && s.TLSKeyFile == "" {
			v.add(key+".tls_cert_file", `missing; mechanism "external" logs in with tls_cert_file and tls_key_file`)
		}
		return
	}
	if a.MasterUser == "" {
		return
	}
	// These carry one name only. Dovecot 2.3 splits USER*MASTER for each of
	// them (oauthbearer and xoauth2: with an oauth2 passdb that is master = yes).
	oneName := []string{MechanismLogin, MechanismOAuthBearer, MechanismXOAuth2}
	if a.MasterSeparator == "" && slices.Contains(oneName, a.Mechanism) {
		v.add(auth+".master_separator", `missing; mechanism %q can name master_user only as USER*MASTER: set it to Dovecot's auth_master_user_separator, or use mechanism "plain"`, a.Mechanism)
	}
	if !a.Password.IsSet() {
		what := "password"
		if a.Mechanism == MechanismOAuthBearer || a.Mechanism == MechanismXOAuth2 {
			what = "token"
		}
		v.add(auth+".password_file", "missing; the %s of master_user is needed (password_file, password_command or password)", what)
	}
}

func (v *validator) doveadm(key string, s *Server) {
	d := s.Doveadm
	for i, e := range d.Endpoints {
		here := fmt.Sprintf("%s.endpoints[%d]", key, i)
		if err := checkEndpoint(e, s.AllowPlaintext); err != nil {
			v.add(here, "%v", err)
		} else if j := slices.Index(d.Endpoints, e); j < i {
			v.add(here, "is the same as endpoints[%d]; remove one", j)
		}
	}
	v.count(key+".max_connections", d.MaxConnections, 1, 1024)
	v.count(key+".batch", d.Batch, 1, 10_000)
	v.duration(key+".connect_timeout", d.ConnectTimeout, time.Hour)
	v.duration(key+".read_timeout", d.ReadTimeout, time.Hour)
	v.duration(key+".check_interval", d.CheckInterval, 24*time.Hour)
	if d.APIKey.IsSet() && d.Password.IsSet() {
		v.add(key+".password"+d.Password.form(), "set besides api_key%s; Dovecot takes one of them, keep that", d.APIKey.form())
	}
	// With the bounds above, users in flight at once fit an int of 32 bits.
	const most = 64
	if n := len(d.Endpoints); n > most {
		v.add(key+".endpoints", "has %d; use at most %d", n, most)
	}
	if s.Connector != ConnectorDoveadm {
		return
	}
	if len(d.Endpoints) == 0 {
		v.add(key+".endpoints", `missing; connector "doveadm" needs %s`, endpointForms)
	}
	if !d.APIKey.IsSet() && !d.Password.IsSet() {
		v.add(key+".api_key_file", `missing; connector "doveadm" needs Dovecot's doveadm_api_key (api_key_file, api_key_command or api_key) or doveadm_password (password_file, password_command or password)`)
	}
}

func (v *validator) oneOf(key, value string, set ...string) {
	if !slices.Contains(set, value) {
		v.add(key, "%s is not one of %s", quote(value), strings.Join(set, ", "))
	}
}

func (v *validator) count(key string, n, low, high int) {
	if n < low || n > high {
		v.add(key, "%d is out of range; use %d to %d", n, low, high)
	}
}

// duration refuses zero as well: no key of a duration has an "off".
func (v *validator) duration(key string, d Duration, high time.Duration) {
	const low = time.Millisecond
	if time.Duration(d) < low || time.Duration(d) > high {
		v.add(key, "%s is out of range; use %s to %s", d, Duration(low), Duration(high))
	}
}

// validName keeps names fit for logs, metric labels and the registry's key.
func validName(s string) bool {
	return s != "" && len(s) <= 64 && !strings.ContainsFunc(s, func(r rune) bool {
		return r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("._-", r)
	})
}

func validDomain(s string) bool {
	return s != "" && len(s) <= 255 && !strings.ContainsAny(s, "@*?,;/") &&
		!strings.HasPrefix(s, ".") && !strings.HasSuffix(s, ".") &&
		!strings.ContainsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) })
}

func validSeparator(s string) bool {
	r := rune(s[0])
	return len(s) == 1 && r > ' ' && r < unicode.MaxASCII && r != '@' && !unicode.IsLetter(r) && !unicode.IsDigit(r)
}
