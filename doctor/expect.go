package doctor

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strings"

	"dovepush/config"
)

// expectation is what Dovecot's settings should fit.
type expectation struct {
	imap, master bool
	endpoint     *url.URL // nil: not known, or not ours
	whole        bool     // its host is known
	username     string
	password     string // empty: any
	identities   bool   // Dovecot is to send them
	signed       bool   // and they are signed
}

func (d *doctor) expect(ctx context.Context, s *config.Server) expectation {
	e := expectation{
		imap:     s.Connector == config.ConnectorIMAP,
		master:   s.Connector == config.ConnectorIMAP && s.Auth.MasterUser != "",
		username: d.config.Notify.Username,
		signed:   d.config.IdentityKey.IsSet(),
	}
	e.identities = e.signed || d.config.Identity != config.Default().Identity
	if raw, whole := d.config.Notify.Endpoint(); raw != "" {
		if u, err := url.Parse(strings.Replace(strings.Replace(raw, "//THIS-HOST:", "//127.0.0.1:", 1), ":PORT/", ":0/", 1)); err == nil {
			e.endpoint, e.whole = u, whole
		}
	}
	if d.config.Notify.Password.IsSet() {
		e.password, _ = d.config.Notify.Password.Read(ctx) // the link "secrets" has told
	}
	return e
}

// faults compares Dovecot's settings with what they should be.
func (s *settings) faults(e expectation) (list []cause) {
	add := func(c cause) { list = append(list, c) }
	version := ""
	if s.full != "" {
		version = map[bool]string{true: "2.3", false: "2.4"}[s.old]
	}
	if e.imap && !s.metadata {
		add(noMetadata(version))
	}
	switch {
	case s.dict == "":
		add(noDict(version))
	case !s.old && letterVariable.MatchString(s.dict):
		add(dictPath(letterVariable.FindString(s.dict)))
	}
	if len(s.protocol) > 0 && !s.protocol["lmtp"] {
		add(noLMTP(version))
	}
	if missing := s.lacks("lmtp"); missing != "" {
		add(noPlugin("lmtp", missing, version))
	}
	if missing := s.lacks("lda"); missing != "" && s.lacks("lmtp") == "" {
		c := noPlugin("lda", missing, version)
		c.status = Warn
		add(c)
	}
	if e.endpoint != nil {
		list = append(list, s.driverFaults(e, version)...)
	}
	for _, m := range s.masters {
		if e.master && !m.continues {
			add(noContinue(version))
			break
		}
	}
	return list
}

// letterVariable is 2.3's way to write a variable; 2.4 takes it for text.
var letterVariable = regexp.MustCompile(`%[a-zA-Z]`)

// lacks returns the plugins that a protocol's processes do not load.
func (s *settings) lacks(protocol string) string {
	var missing []string
	for _, name := range []string{"notify", "push_notification"} {
		if !s.plugins[protocol][name] {
			missing = append(missing, name)
		}
	}
	return strings.Join(missing, " and ")
}

// driverFaults looks for a driver that calls our endpoint. Of several, the one
// that fits best counts.
func (s *settings) driverFaults(e expectation, version string) []cause {
	if len(s.drivers) == 0 {
		return []cause{noDriver(e.endpoint, version)}
	}
	var best []cause
	for i, d := range s.drivers {
		if found := d.faults(e, version); i == 0 || len(found) < len(best) {
			best = found
		}
	}
	return best
}

func (d driver) faults(e expectation, version string) (list []cause) {
	u, err := url.Parse(d.url)
	if err != nil || u.Host == "" {
		return []cause{noDriver(e.endpoint, version)}
	}
	port := func(u *url.URL) string { _, p, _ := net.SplitHostPort(hostPort(u)); return p }
	elsewhere := e.whole && !sameHost(u.Hostname(), e.endpoint.Hostname()) || e.endpoint.Port() != "0" && port(u) != port(e.endpoint) || u.Scheme != e.endpoint.Scheme
	switch {
	case elsewhere:
		return []cause{urlElsewhere(shown(u), e.endpoint, version)} // whether the rest fits says nothing
	case u.Path != e.endpoint.Path:
		list = append(list, wrongPath(fmt.Sprintf("Dovecot's URL has the path %s", u.Path), e.endpoint, version))
	}
	password, _ := u.User.Password()
	if d.variable {
		c := wrongPassword("2.3 takes the % in Dovecot's URL for the beginning of a variable, and sends something else", e.endpoint, version)
		c.mend = "write each % of the URL twice, such as %%40 for @" + thenReload
		return append(list, c)
	}
	if e.password != "" && (u.User.Username() != e.username || password != e.password) {
		what := "another password than notify.password"
		switch {
		case u.User.Username() == "":
			what = "no user name and password"
		case u.User.Username() != e.username:
			what = "another user name than notify.username"
		}
		list = append(list, wrongPassword("Dovecot's URL has "+what, e.endpoint, version))
	}
	if !d.bounded {
		list = append(list, unbounded())
	}
	switch {
	case e.identities && !d.fromMetadata:
		list = append(list, noIdentity("user_from_metadata is not set", version))
	case !e.identities && d.fromMetadata:
		list = append(list, needlessIdentity("user_from_metadata is set, though identities here are names", version))
	}
	return list
}

// shown is a URL without its credentials.
func shown(u *url.URL) string {
	bare := *u
	bare.User = nil
	return bare.String()
}
