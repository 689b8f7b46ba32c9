package doctor

import (
	"fmt"
	"net/url"
)

// cause is a fault by its name, and what mends it.
type cause struct {
	name   string // for tests and searches
	status Status
	fault  Fault
	detail string
	mend   string
}

func (c cause) finding() finding {
	return finding{status: c.status, detail: c.detail, mend: c.mend, fault: c.fault}
}

// The names of causes.
const (
	causeMetadata    = "METADATA off"
	causeDict        = "no attribute dict"
	causeDictPath    = "2.3 variable in the dict's path"
	causeProtocol    = "no LMTP"
	causePlugin      = "plugin missing"
	causeDriver      = "no ox driver"
	causeElsewhere   = "URL leads elsewhere"
	causePath        = "wrong path"
	causePassword    = "wrong password"
	causeNoIdentity  = "user_from_metadata missing"
	causeIdentity    = "user_from_metadata superfluous"
	causeForged      = "signature wrong"
	causeTimeout     = "HTTP time-out"
	causeBrokeOff    = "view broke off"
	causeUnbounded   = "deliveries wait for a minute"
	causeContinue    = "result_success missing"
	causeUserdb      = "not in the userdb"
	causeRefused     = "LMTP refuses"
	causeUnreachable = "LMTP unreachable"
	causeNotTaken    = "endpoint refuses"
	causeFolder      = "filed elsewhere"
	causeQueue       = "still on its way"
)

// either chooses the words for a version of Dovecot; both, if it is not known.
func either(version, v23, v24 string) string {
	switch version {
	case "2.3":
		return v23
	case "2.4":
		return v24
	}
	return "2.3: " + v23 + "\n2.4: " + v24
}

// in23 is a text unless the version is another.
func in23(version, text string) string {
	if version == "2.4" {
		return ""
	}
	return text
}

const thenReload = "; then doveadm reload"

func noMetadata(version string) cause {
	return cause{causeMetadata, Fail, Unavailable, "imap_metadata is off for the protocol imap",
		"in Dovecot's settings: protocol imap { imap_metadata = yes }" + thenReload}
}

func noDict(version string) cause {
	return cause{causeDict, Fail, Unavailable, "Dovecot has no dict for mailbox attributes",
		either(version, "mail_attribute_dict = file:%h/dovecot-attributes", "mail_attribute { dict file { path = %{home}/dovecot-attributes } }, a line for each brace") + thenReload}
}

func dictPath(variable string) cause {
	return cause{causeDictPath, Fail, Unavailable, fmt.Sprintf("the attribute dict's path has %s, which 2.4 takes for text: all users' entries go to one place, or nowhere", variable),
		"mail_attribute { dict file { path = %{home}/dovecot-attributes } }, a line for each brace" + thenReload}
}

// otherFile is for what %h does where a process stands in the user's home
// (measured on 2.4): imap does, so that all looks well, lmtp and doveadm do not.
func otherFile(detail string) cause {
	return cause{causeDictPath, Fail, Unavailable, detail + ": the attribute dict's path is relative, as %h is on 2.4, and means another file to each process",
		"2.4: mail_attribute { dict file { path = %{home}/dovecot-attributes } }, a line for each brace" + thenReload + "\nthen dovepush reconcile --verify all writes the entries where they are looked for"}
}

func noLMTP(version string) cause {
	return cause{causeProtocol, Warn, None, "the protocol lmtp is off: mail must come by dovecot-lda",
		either(version, "protocols = $protocols lmtp", "protocols { lmtp = yes }") + ", unless your mail server uses dovecot-lda"}
}

func noPlugin(protocol, missing, version string) cause {
	return cause{causePlugin, Fail, Unavailable, fmt.Sprintf("%s is not loaded by what delivers mail (protocol %s)", missing, protocol),
		either(version, fmt.Sprintf("protocol %s { mail_plugins = $mail_plugins notify push_notification }", protocol),
			fmt.Sprintf("protocol %s { mail_plugins { notify = yes, push_notification = yes } }, a line for each setting", protocol)) + thenReload +
			"; a mail_plugins within a protocol replaces what stands outside of it"}
}

// urlFor is the URL for Dovecot's settings, with the password's place marked.
func urlFor(endpoint *url.URL) string {
	if endpoint == nil {
		return "http://dovecot:PASSWORD@HOST:PORT/preliminary/http-notify/v1/notify"
	}
	return endpoint.Scheme + "://dovecot:PASSWORD@" + endpoint.Host + endpoint.Path
}

// setURL says where the URL belongs.
func setURL(endpoint *url.URL, version string) string {
	return either(version, "plugin { push_notification_driver = ox:url="+urlFor(endpoint)+" }",
		"push_notification ox { push_notification_ox_url = "+urlFor(endpoint)+" }") + thenReload + "; dovepush dovecot-config prints it whole"
}

func noDriver(endpoint *url.URL, version string) cause {
	return cause{causeDriver, Fail, Unavailable, "Dovecot has no ox driver with a URL", setURL(endpoint, version)}
}

func urlElsewhere(have string, endpoint *url.URL, version string) cause {
	return cause{causeElsewhere, Fail, Unavailable, fmt.Sprintf("Dovecot's URL leads to %s, and not to %s", have, shown(endpoint)), setURL(endpoint, version)}
}

func wrongPath(detail string, endpoint *url.URL, version string) cause {
	want := ""
	if endpoint != nil {
		want = ", and not " + endpoint.Path
	}
	return cause{causePath, Fail, Unavailable, detail + want, setURL(endpoint, version)}
}

func wrongPassword(detail string, endpoint *url.URL, version string) cause {
	return cause{causePassword, Fail, Refused, detail,
		"write notify.username and what is in notify.password_file into Dovecot's URL, what is no letter or digit as %XX" +
			in23(version, ", in 2.3 as %%XX") + "\n" + setURL(endpoint, version)}
}

func noIdentity(detail, version string) cause {
	return cause{causeNoIdentity, Fail, Unavailable, detail + ": Dovecot sends the login name, and nobody is known by it",
		either(version, "add user_from_metadata behind the URL of push_notification_driver", "push_notification ox { push_notification_ox_user_from_metadata = yes }") + thenReload +
			"\nor set identity = \"{user}\" in config.toml, and dovepush reconcile"}
}

func needlessIdentity(detail, version string) cause {
	return cause{causeIdentity, Warn, None, detail + ": whoever may write his own METADATA can have his mail announced as somebody else's",
		either(version, "take user_from_metadata from push_notification_driver", "push_notification_ox_user_from_metadata = no") + thenReload +
			"\nor set identity_key_file in config.toml: signed identities cannot be made up"}
}

func noContinue(version string) cause {
	return cause{causeContinue, Warn, None, "the master passdb has no result_success = continue: users who do not exist look like trouble of Dovecot's (\"internal error\")",
		"in the passdb with master = yes: result_success = continue; the users' passdb must follow it" + thenReload}
}

func timeout(detail, version string) cause {
	return cause{causeTimeout, Fail, Unavailable, detail + ": Dovecot waits for an endpoint that does not answer",
		"look where Dovecot's URL leads: a firewall that drops, a hung dovepush, another host; each delivery is held up as long\n" +
			"2.3 waits for 4 s, always; 2.4 for 60, unless " + boundWait + " is within push_notification ox { }"}
}

const boundWait = "http_client_request_timeout = 2s"

// unbounded is 2.4's default, measured: one attempt of 60 s.
func unbounded() cause {
	return cause{causeUnbounded, Warn, None, "while dovepush does not answer, each delivery waits for 60 s",
		boundWait + " and http_client_request_max_attempts = 2 within push_notification ox { }" + thenReload}
}
