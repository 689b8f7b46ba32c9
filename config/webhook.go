package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// TLSConfig returns the settings for the webhook's https connections. The file
// is read on each call. The error is an [*Error] naming key and file.
func (w *Webhook) TLSConfig() (*tls.Config, error) {
	roots, err := w.rootCAs()
	if err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}, nil
}

func (w *Webhook) rootCAs() (*x509.CertPool, error) { return w.where().rootCAs(w.TLSCAFile) }

func (w *Webhook) where() origin {
	o := w.origin
	if o.key == "" {
		o.key = "webhook"
	}
	return o
}

func (v *validator) spool(c *Config) {
	v.fileName("spool.path", c.Spool.Path)
	v.count("spool.max_events", c.Spool.MaxEvents, 1, 100_000_000)
	v.duration("spool.keep_dead", c.Spool.KeepDead, 10*366*24*time.Hour)
	if len(c.Webhooks) > 0 && c.Registry.Path != "" && c.SpoolPath() == c.Registry.Path {
		v.add("spool.path", "is registry.path; the spool needs a file of its own")
	}
}

func (v *validator) webhooks(list []Webhook) {
	const most = 32
	if len(list) > most {
		v.add("webhook", "there are %d; use at most %d", len(list), most)
	}
	names := map[string]int{}
	for i := range list {
		key, w := indexed("webhook", i), &list[i]
		switch j, dup := names[w.Name]; {
		case w.Name == "":
			v.add(key+".name", "missing; it names the webhook in the spool and in messages")
		case !validName(w.Name):
			v.add(key+".name", "%s is no name; use 1 to 64 of A-Z a-z 0-9 . _ -", quote(w.Name))
		case dup:
			v.add(key+".name", "%s is also the name of %s; give each webhook its own", quote(w.Name), indexed("webhook", j))
		default:
			names[w.Name] = i
		}
		if w.URL.Reveal() == "" {
			v.add(key+".url", `missing; set it to where notifications are sent, such as "https://push.example.com/dovepush"`)
		} else if err := checkTarget(w.URL.Reveal()); err != nil {
			v.add(key+".url", "%v", err)
		}
		if !w.Secret.IsSet() {
			v.add(key+".secret_file", `missing; the receiver knows by it that a notification is ours (secret_file, secret_command or secret): "whsec_" and what openssl rand -base64 32 prints`)
		}
		v.count(key+".max_connections", w.MaxConnections, 1, 1024)
		v.duration(key+".timeout", w.Timeout, 5*time.Minute)
		v.duration(key+".retry_initial", w.RetryInitial, 24*time.Hour)
		v.duration(key+".retry_max", w.RetryMax, 30*24*time.Hour)
		v.duration(key+".give_up_after", w.GiveUpAfter, 366*24*time.Hour)
		if w.RetryInitial > w.RetryMax {
			v.add(key+".retry_max", "%s is shorter than retry_initial, %s", w.RetryMax, w.RetryInitial)
		}
		v.fileName(key+".tls_ca_file", w.TLSCAFile)
	}
}

func (v *validator) identityKeys(c *Config) {
	if c.IdentityKey.IsSet() {
		return
	}
	if c.IdentityOldKey.IsSet() {
		v.add("identity_key_file", "missing, but identity_old_key%s is set; the new key signs, the old one is only accepted", c.IdentityOldKey.form())
	}
	if c.IdentityAcceptUnsigned {
		v.add("identity_accept_unsigned", "set without identity_key_file; without a key all identities are unsigned")
	}
}

// checkTarget wants a URL that notifications may be sent to. It does not repeat
// it: it may hold a secret.
func checkTarget(target string) error {
	u, err := url.Parse(target)
	const example = `write one such as "https://push.example.com/dovepush"`
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Opaque != "":
		return errors.New("is no URL of http or https; " + example)
	case u.Fragment != "":
		return errors.New("has a #fragment, which HTTP does not send; remove it")
	}
	if err := checkAuthority(u); err != nil {
		return err
	}
	if plaintext(u) {
		return fmt.Errorf("http sends what is in people's mail in clear to %s; use https", quote(u.Hostname()))
	}
	return nil
}

// checkWebURL wants a URL without credentials.
func checkWebURL(raw, example string) error {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return fmt.Errorf("is no URL of http or https; write one such as %q", example)
	case u.User != nil:
		return errors.New("holds a user or password; they are username and password_file")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return errors.New("must end with its path; remove what follows ? or #")
	case strings.ContainsAny(raw, " '\"\\"):
		return errors.New("holds a blank, quote or backslash, which Dovecot's settings cannot hold")
	}
	return checkAuthority(u)
}

func checkAuthority(u *url.URL) error {
	if checkHost(u.Hostname()) != nil {
		return errors.New("has no valid host name")
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
			return errors.New("has no valid port")
		}
	}
	return nil
}
