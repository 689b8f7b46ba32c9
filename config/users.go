package config

import (
	"fmt"
	"strings"
	"unicode"
)

// ServerFor returns the server that holds user's mailbox: the one whose
// domains list what follows the last @, without regard to case, else the one
// without domains. It reports false if no server is for this user.
func (c *Config) ServerFor(user string) (*Server, bool) {
	_, domain := split(user)
	domain = strings.ToLower(domain)
	var rest *Server
	for i := range c.Servers {
		s := &c.Servers[i]
		if len(s.Domains) == 0 {
			rest = s
			continue
		}
		if domain == "" {
			continue
		}
		for _, d := range s.Domains {
			if d == domain {
				return s, true
			}
		}
	}
	return rest, rest != nil
}

// IdentityFor returns what stands behind user= in the entry of this user.
func (c *Config) IdentityFor(user string) string { return IdentityFor(c.Identity, user) }

// IdentityFor fills a template: {user} is the whole name, {local} what comes
// before its last @, {domain} what follows it. Without an @, {local} is the
// whole name and {domain} is empty. Braces in the name are left alone.
func IdentityFor(template, user string) string {
	if template == "{user}" { // as most have it; reconcile asks a million times
		return user
	}
	local, domain := split(user)
	return strings.NewReplacer("{user}", user, "{local}", local, "{domain}", domain).Replace(template)
}

func split(user string) (local, domain string) {
	if i := strings.LastIndexByte(user, '@'); i >= 0 {
		return user[:i], user[i+1:]
	}
	return user, ""
}

// checkIdentity refuses templates that IdentityFor would not fill wholly, or
// would fill alike for everybody.
func checkIdentity(template string) error {
	const known = "use {user}, {local} and {domain}"
	switch {
	case template == "":
		return fmt.Errorf("is empty; %s", known)
	case len(template) > 512:
		return fmt.Errorf("is longer than 512 bytes")
	case strings.ContainsFunc(template, unicode.IsControl):
		return fmt.Errorf("holds a control character")
	}
	rest := strings.NewReplacer("{user}", " ", "{local}", " ", "{domain}", " ").Replace(template)
	if open := strings.IndexByte(rest, '{'); open >= 0 {
		if end := strings.IndexByte(rest[open:], '}'); end >= 0 {
			return fmt.Errorf("unknown placeholder %s; %s", quote(rest[open:open+end+1]), known)
		}
	}
	if strings.ContainsAny(rest, "{}") {
		return fmt.Errorf("a brace has no partner; %s", known)
	}
	if !strings.Contains(template, "{user}") && !strings.Contains(template, "{local}") {
		return fmt.Errorf("%s is the same for every user; put {user} or {local} into it", quote(template))
	}
	return nil
}
