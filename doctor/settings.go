package doctor

import (
	"context"
	"net"
	"net/url"
	"os/exec"
	"regexp"
	"strings"

	"dovepush/config"
)

// settings is what matters here of Dovecot's.
type settings struct {
	full     string // version, such as 2.4.1-4; empty: not told
	old      bool   // 2.3, by its settings
	metadata bool   // imap_metadata
	dict     string // where attributes are kept; empty: nowhere
	protocol map[string]bool
	plugins  map[string]map[string]bool // by protocol
	drivers  []driver
	masters  []master
	ports    map[string]bool // that it listens on
}

// driver is an ox driver. Its URL holds the password: it is compared, and never
// shown.
type driver struct {
	url          string
	fromMetadata bool
	variable     bool // 2.3 takes a part of the URL for a variable
	bounded      bool // how long a delivery waits for an answer
}

// master is a passdb of master users.
type master struct{ continues bool }

// readSettings runs doveconf as often as it takes.
func readSettings(ctx context.Context, wait Wait, command string) (*settings, error) {
	s := &settings{protocol: make(map[string]bool), plugins: make(map[string]map[string]bool), ports: make(map[string]bool)}
	for _, part := range []struct {
		args []string
		take func(*block)
	}{
		{[]string{"-n"}, s.takeAll},
		{[]string{"service"}, s.takePorts},
		{[]string{"-f", "protocol=imap", "imap_metadata", "mail_attribute_dict", "mail_attribute"}, s.takeIMAP},
		{[]string{"-f", "protocol=lda", "mail_plugins"}, func(b *block) { s.takePlugins("lda", b) }},
		{[]string{"-P", "-f", "protocol=lmtp", "protocols", "mail_plugins", "plugin", "push_notification"}, s.takeLMTP},
	} {
		b, err := doveconf(ctx, wait.Settings, command, part.args...)
		if err != nil {
			return nil, err
		}
		part.take(b)
	}
	return s, nil
}

var versionLine = regexp.MustCompile(`^\d+\.\d+\.\S+`)

// takeAll reads "doveconf -n".
func (s *settings) takeAll(b *block) {
	for _, c := range b.comments {
		if s.full == "" {
			s.full = versionLine.FindString(c)
		}
	}
	s.old = strings.HasPrefix(s.full, "2.3.")
	for _, p := range b.all("passdb") {
		if p.value("master") == "yes" {
			s.masters = append(s.masters, master{p.value("result_success") == "continue"})
		}
	}
}

func (s *settings) takePorts(b *block) {
	for _, service := range b.all("service") {
		for _, l := range service.all("inet_listener") {
			s.ports[l.value("port")] = true
		}
	}
}

// takeIMAP reads what the imap process is told.
func (s *settings) takeIMAP(b *block) {
	s.metadata = b.value("imap_metadata") == "yes"
	s.dict = b.value("mail_attribute_dict")
	for _, a := range b.all("mail_attribute") {
		for _, d := range a.all("dict") {
			s.dict = strings.TrimSpace(d.title + ":" + d.value("path", "dict_file_path"))
		}
	}
}

// takeLMTP reads what a delivery by LMTP is told.
func (s *settings) takeLMTP(b *block) {
	for word := range strings.FieldsSeq(b.value("protocols")) {
		s.protocol[word] = true
	}
	for _, p := range b.all("protocols") {
		for _, v := range p.values {
			s.protocol[v.key] = v.value == "yes"
		}
	}
	s.takePlugins("lmtp", b)
	for _, p := range b.all("plugin") { // 2.3
		for _, v := range p.values {
			if name, options, _ := strings.Cut(v.value, ":"); strings.HasPrefix(v.key, "push_notification_driver") && strings.TrimSpace(name) == "ox" {
				s.drivers = append(s.drivers, oldDriver(options))
			}
		}
	}
	for _, p := range b.all("push_notification") { // 2.4
		if name := p.value("driver", "push_notification_driver"); name == "ox" || name == "" && p.title == "ox" {
			s.drivers = append(s.drivers, driver{
				url:          p.value("url", "push_notification_ox_url"),
				fromMetadata: p.value("user_from_metadata", "push_notification_ox_user_from_metadata") == "yes",
				bounded:      p.value("http_client_request_timeout", "http_client_request_absolute_timeout") != "",
			})
		}
	}
}

// oldDriver reads the options of 2.3's ox driver, which blanks divide
// (push_notification_driver_init in src/plugins/push-notification).
func oldDriver(options string) (d driver) {
	d.bounded = true // twice 2 s, always
	for word := range strings.FieldsSeq(options) {
		switch key, value, _ := strings.Cut(word, "="); key {
		case "url":
			// 2.3 expands variables in it, and %% is how it writes a %.
			plain := strings.ReplaceAll(value, "%%", "")
			d.url, d.variable = strings.ReplaceAll(value, "%%", "%"), strings.Contains(plain, "%")
		case "user_from_metadata":
			d.fromMetadata = true
		}
	}
	return d
}

func (s *settings) takePlugins(protocol string, b *block) {
	loaded := make(map[string]bool)
	for word := range strings.FieldsSeq(b.value("mail_plugins")) {
		loaded[word] = true
	}
	for _, p := range b.all("mail_plugins") {
		for _, v := range p.values {
			loaded[v.key] = v.value == "yes"
		}
	}
	s.plugins[protocol] = loaded
}

// checkSettings reads Dovecot's settings where they can be read. here tells
// whether the server is on this machine.
func (d *doctor) checkSettings(ctx context.Context, s *config.Server, here bool) {
	at := step{link: "dovecot settings", server: s.Name}
	if ctx.Err() != nil {
		d.do(ctx, at, nil)
		return
	}
	command, why := d.doveconfFor(s, here)
	if why != "" {
		d.tell(at, skip(why))
		return
	}
	read, err := readSettings(ctx, d.Wait, command)
	switch {
	case err != nil:
		d.tell(at, skip("doveconf cannot be used: "+err.Error()))
		return
	case d.Doveconf == "" && !read.listensFor(s):
		d.tell(at, skip("the doveconf here tells of another Dovecot: its settings have none of this server's ports; name a command with --doveconf"))
		return
	}
	d.settings[s.Name] = read
	faults := read.faults(d.expect(ctx, s))
	for _, f := range faults {
		d.tell(at, f.finding())
	}
	if len(faults) == 0 {
		d.tell(at, ok("Dovecot "+read.full+" has what is needed"))
	}
}

// doveconfFor returns the command, or why there is none.
func (d *doctor) doveconfFor(s *config.Server, here bool) (command, why string) {
	if d.Doveconf != "" {
		if own, found := d.config.ServerFor(d.User); len(d.config.Servers) > 1 && (d.User == "" || !found || own.Name != s.Name) {
			return "", "--doveconf is taken to tell of --user's server"
		}
		return d.Doveconf, ""
	}
	if !here {
		return "", "Dovecot is on another machine: run doctor there, or name a command with --doveconf \"ssh HOST doveconf\""
	}
	path, err := exec.LookPath("doveconf")
	if err != nil {
		return "", "there is no doveconf in $PATH; name a command with --doveconf"
	}
	return path, ""
}

// listensFor tells whether one of the server's ports is among Dovecot's.
func (s *settings) listensFor(server *config.Server) bool {
	addresses := []string{}
	if server.Connector == config.ConnectorIMAP {
		addresses = append(addresses, server.Address)
	} else {
		for _, e := range server.Doveadm.Endpoints {
			if strings.HasPrefix(e, "unix:") {
				return true
			}
			if u, err := url.Parse(e); err == nil {
				addresses = append(addresses, hostPort(u))
			}
		}
	}
	for _, a := range addresses {
		if _, port, err := net.SplitHostPort(a); err == nil && s.ports[port] {
			return true
		}
	}
	return false
}
