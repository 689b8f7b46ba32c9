package doctor

import (
	"fmt"
	"net/url"
	"slices"
	"time"

	"dovepush/notify"
)

// symptoms are what was seen of a delivery.
type symptoms struct {
	user     string
	identity string // the registration's; empty: the user's name
	signed   bool   // identities are
	template bool   // config.toml makes identities of its own: identity is not "{user}"
	sendmail bool   // and so nobody knows whether it was delivered

	connected bool          // LMTP
	refused   *refusedMail  // LMTP did not take it
	accepted  bool          // LMTP, or sendmail, took it
	took      time.Duration // to be accepted, or to give up

	got      *notify.Notification // of the canary
	refusals []notify.Refusal     // since the canary was sent
	broken   bool                 // the view of notifications ended early: silence says nothing

	sameEntry bool // DoveAdm reads what IMAP reads, so that LMTP does

	endpoint *url.URL  // what Dovecot's URL should be; nil: not known
	settings *settings // Dovecot's; nil: they cannot be read
	expect   expectation
	trouble  error // that ended the delivery otherwise
}

// refusedMail is LMTP's reply to a recipient or a message.
type refusedMail struct {
	code int
	text string
	data bool // the reply to the message, not to the recipient
}

// What the ox driver of 2.3 waits for: an answer twice 2 s, and nothing
// (measured) where nobody listens; 2.4 waits 60 s.
const waited = 1900 * time.Millisecond

// version is Dovecot's; empty: not known.
func (s *symptoms) version() string {
	switch {
	case s.settings == nil || s.settings.full == "":
		return ""
	case s.settings.old:
		return "2.3"
	}
	return "2.4"
}

// diagnose says what explains the symptoms, the likeliest first. None: all is
// well.
func diagnose(s symptoms) []cause {
	switch {
	case s.refused != nil:
		return []cause{s.notTaken()}
	case s.got != nil:
		return s.carries()
	case !s.connected && !s.accepted:
		return []cause{{causeUnreachable, Fail, Transient, fmt.Sprintf("the canary cannot be delivered: %v", s.trouble),
			"name Dovecot's LMTP with --lmtp unix:/run/dovecot/lmtp or --lmtp HOST:24 (service lmtp), or your mail server's --sendmail /usr/sbin/sendmail"}}
	}
	if refused := s.answered(); len(refused) > 0 {
		return refused
	}
	slow := s.took >= waited && !s.sendmail
	if !s.accepted && !slow {
		return []cause{{causeUnreachable, Fail, Transient, fmt.Sprintf("LMTP did not take the canary: %v", s.trouble), "Dovecot's log says why"}}
	}
	if s.broken {
		return []cause{brokeOff()}
	}
	return s.silence(slow)
}

// notTaken says what LMTP's refusal means (RFC 3463).
func (s *symptoms) notTaken() cause {
	said := fmt.Sprintf("LMTP refuses %s: %d %s", s.user, s.refused.code, s.refused.text)
	switch {
	case s.refused.code/100 == 5 && !s.refused.data:
		return cause{causeUserdb, Fail, Refused, said,
			"doveadm user " + shell(s.user) + " must print his home; a passdb that knows him is not enough, the userdb must, by the name that your mail server uses"}
	case s.refused.code/100 == 4:
		return cause{causeRefused, Fail, Transient, said, "Dovecot's log says why: quota, a home that cannot be written, a userdb that does not answer"}
	}
	return cause{causeRefused, Fail, Unavailable, said, "Dovecot's log says why"}
}

// carries looks at what the notification says.
func (s *symptoms) carries() []cause {
	sent := s.got.Sent
	if sent == "" {
		sent = s.got.User
	}
	identity := s.identity
	if identity == "" {
		identity = s.user
	}
	switch {
	case identity == s.user && !s.signed && sent == s.user:
		if s.settings != nil {
			return only(s.settings.faults(s.expect), causeIdentity)
		}
	case sent == s.user && identity != s.user:
		return []cause{noIdentity(fmt.Sprintf("the notification came for %s, while the registration's identity is %s", sent, identity), s.version())}
	case sent != s.user && !s.signed && !s.template:
		return []cause{needlessIdentity(fmt.Sprintf("the notification carries the identity %s, while identities here are names", sent), s.version())}
	}
	return nil
}

// answered says what it means that Dovecot came and was refused.
func (s *symptoms) answered() (list []cause) {
	seen := make(map[notify.Reason]bool)
	for _, r := range s.refusals {
		if seen[r.Reason] {
			continue
		}
		seen[r.Reason] = true
		from := ""
		if r.Remote != "" {
			from = " from " + r.Remote
		}
		switch r.Reason {
		case notify.WrongCredentials:
			list = append(list, wrongPassword(fmt.Sprintf("Dovecot came%s with the wrong user name or password (HTTP %d)", from, r.Status), s.endpoint, s.version()))
		case notify.WrongPath:
			list = append(list, wrongPath(fmt.Sprintf("Dovecot came%s to another path (HTTP %d)", from, r.Status), s.endpoint, s.version()))
		case notify.Forged:
			c := noIdentity(fmt.Sprintf("Dovecot came%s without a signed identity (HTTP %d)", from, r.Status), s.version())
			c.name, c.fault = causeForged, Refused
			c.mend += "\nif it is set already: the entry was signed with another key: dovepush reconcile writes it anew"
			list = append(list, c)
		default:
			list = append(list, cause{causeNotTaken, Fail, Unavailable, fmt.Sprintf("Dovecot came%s and was refused: %s (HTTP %d)", from, r.Detail, r.Status), "the service's log says more: journalctl -u dovepush"})
		}
	}
	return list
}

// silence says what it may mean that nothing came at all. Slow: the delivery
// took as long as the driver waits.
func (s *symptoms) silence(slow bool) (list []cause) {
	if slow {
		list = append(list, timeout(fmt.Sprintf("no notification came, and the delivery took %s", s.took.Round(100*time.Millisecond)), s.version()))
	}
	if s.settings != nil {
		known := only(s.settings.faults(s.expect), causeDictPath, causePlugin, causeDriver, causeElsewhere, causePath, causePassword)
		if len(known) > 0 { // what can be read is surer than what can be guessed
			for i := range known {
				known[i].detail = "no notification came: " + known[i].detail
			}
			if slow { // where the URL leads tells whose silence it is
				return append(list, only(known, causeDriver, causeElsewhere)...)
			}
			return known
		}
	}
	if s.sendmail {
		list = append(list, cause{causeQueue, Fail, Transient, "no notification came: the canary may still be in the mail server's queue",
			"mailq shows it, and the mail log where it went; --lmtp delivers without the mail server in between"})
	}
	if !slow && s.settings == nil {
		c := noPlugin("lmtp", "notify or push_notification", "")
		c.detail = "no notification came: most likely " + c.detail
		list = append(list, c)
	}
	if s.settings == nil {
		c := noDriver(s.endpoint, "")
		c.name, c.detail = causeElsewhere, "or else Dovecot's URL leads to another host or port, or a firewall is in between"
		if slow {
			c.detail = "its URL leads to another host or port than dovepush's"
		}
		list = append(list, c)
	}
	if !slow && s.settings == nil && !s.sameEntry {
		list = append(list, otherFile("or IMAP and LMTP do not read the same entry"))
	}
	if !slow {
		list = append(list, cause{causeFolder, Fail, Unavailable, "or a Sieve script filed the canary elsewhere: only mail for INBOX is notified of; or this LMTP belongs to another Dovecot",
			"look for the canary's subject in " + s.user + "'s INBOX, and in Dovecot's log for \"saved mail to\" and \"push-notification\""})
	}
	return list
}

// only keeps the causes of these names.
func only(list []cause, names ...string) (kept []cause) {
	for _, c := range list {
		if slices.Contains(names, c.name) {
			kept = append(kept, c)
		}
	}
	return kept
}
