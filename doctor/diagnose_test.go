package doctor

import (
	"errors"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"dovepush/notify"
)

func TestSymptomsLeadToTheirCause(t *testing.T) {
	here := &url.URL{Scheme: "http", Host: "127.0.0.1:8026", Path: "/preliminary/http-notify/v1/notify"}
	expect := expectation{imap: true, endpoint: here, whole: true, username: "dovecot", password: "secret"}
	good := func() *settings {
		plugins := map[string]bool{"notify": true, "push_notification": true}
		return &settings{full: "2.4.1-4", metadata: true, dict: "file:%{home}/dovecot-attributes", protocol: map[string]bool{"lmtp": true},
			plugins: map[string]map[string]bool{"lmtp": plugins, "lda": plugins}, drivers: []driver{{url: "http://dovecot:secret@127.0.0.1:8026" + here.Path, bounded: true}}}
	}
	with := func(change func(*settings)) *settings {
		s := good()
		change(s)
		return s
	}
	taken := func(change func(*symptoms)) symptoms {
		s := symptoms{user: "alice", identity: "alice", connected: true, accepted: true, took: 30 * time.Millisecond, endpoint: here, expect: expect}
		change(&s)
		return s
	}
	came := func(sent string) *notify.Notification { return &notify.Notification{User: sent, Sent: sent} }
	refusal := func(status int, reason notify.Reason) []notify.Refusal {
		return []notify.Refusal{{Remote: "192.0.2.7", Status: status, Reason: reason, Detail: "something"}}
	}
	for _, test := range []struct {
		name string
		symptoms
		want []string // causes, the likeliest first
	}{
		{"it came", taken(func(s *symptoms) { s.got = came("alice") }), nil},
		{"it came without what was sent, as from the service", taken(func(s *symptoms) { s.got = &notify.Notification{User: "alice"} }), nil},
		{"it came, and a stranger was refused", taken(func(s *symptoms) { s.got, s.refusals = came("alice"), refusal(401, notify.WrongCredentials) }), nil},
		{"the login came where an identity should", taken(func(s *symptoms) { s.identity, s.got = "7@1", came("alice") }), []string{causeNoIdentity}},
		{"the identity came, as the template wants", taken(func(s *symptoms) { s.identity, s.template, s.got = "7@1", true, came("7@1") }), nil},
		{"the identity came, and the template wants names", taken(func(s *symptoms) { s.identity, s.got = "7@1", came("7@1") }), []string{causeIdentity}},
		{"a signed identity came", taken(func(s *symptoms) { s.signed, s.got = true, came("alice.MAC") }), nil},
		{"the name came, and the settings tell of identities", taken(func(s *symptoms) {
			s.got, s.settings = came("alice"), with(func(x *settings) { x.drivers[0].fromMetadata = true })
		}), []string{causeIdentity}},

		{"refused: password", taken(func(s *symptoms) { s.refusals = refusal(401, notify.WrongCredentials) }), []string{causePassword}},
		{"refused: path", taken(func(s *symptoms) { s.refusals = refusal(404, notify.WrongPath) }), []string{causePath}},
		{"refused: signature", taken(func(s *symptoms) { s.refusals = refusal(403, notify.Forged) }), []string{causeForged}},
		{"refused: spool", taken(func(s *symptoms) { s.refusals = refusal(503, notify.Spool) }), []string{causeNotTaken}},
		{"refused twice alike", taken(func(s *symptoms) {
			s.refusals = append(refusal(404, notify.WrongPath), refusal(404, notify.WrongPath)...)
		}), []string{causePath}},
		{"refused, and LMTP never answered", taken(func(s *symptoms) { s.accepted, s.refusals = false, refusal(401, notify.WrongCredentials) }), []string{causePassword}},

		{"silence, and the view broke off", taken(func(s *symptoms) { s.broken, s.settings = true, with(func(x *settings) { x.drivers = nil }) }), []string{causeBrokeOff}},
		{"slow silence, and the view broke off", taken(func(s *symptoms) { s.broken, s.took = true, 4*time.Second }), []string{causeBrokeOff}},
		{"refused, and the view broke off", taken(func(s *symptoms) { s.broken, s.refusals = true, refusal(404, notify.WrongPath) }), []string{causePath}},
		{"it came, and the view broke off", taken(func(s *symptoms) { s.broken, s.got = true, came("alice") }), nil},
		{"silence", taken(func(s *symptoms) {}), []string{causePlugin, causeElsewhere, causeDictPath, causeFolder}},
		{"silence, and DoveAdm reads what IMAP reads", taken(func(s *symptoms) { s.sameEntry = true }), []string{causePlugin, causeElsewhere, causeFolder}},
		{"silence after 4 s, as of 2.3", taken(func(s *symptoms) { s.took = 4 * time.Second }), []string{causeTimeout, causeElsewhere}},
		{"no answer from LMTP, as of 2.4", taken(func(s *symptoms) {
			s.accepted, s.took, s.trouble = false, time.Minute, errors.New("no answer within 1m0s")
		}), []string{causeTimeout, causeElsewhere}},
		{"silence, and the settings lack the plugin", taken(func(s *symptoms) {
			s.settings = with(func(x *settings) { x.plugins["lmtp"] = map[string]bool{"notify": true} })
		}), []string{causePlugin}},
		{"silence, and the URL leads elsewhere", taken(func(s *symptoms) {
			s.settings = with(func(x *settings) { x.drivers[0].url = "http://dovecot:secret@192.0.2.1:8026" + here.Path })
		}), []string{causeElsewhere}},
		{"silence, and there is no driver", taken(func(s *symptoms) { s.settings = with(func(x *settings) { x.drivers = nil }) }), []string{causeDriver}},
		{"silence, and the dict's path is 2.3's", taken(func(s *symptoms) { s.settings = with(func(x *settings) { x.dict = "file:%h/a" }) }), []string{causeDictPath}},
		{"silence, and the settings are right", taken(func(s *symptoms) { s.settings = good() }), []string{causeFolder}},
		{"slow silence, and the settings are right", taken(func(s *symptoms) { s.settings, s.took = good(), 4*time.Second }), []string{causeTimeout}},
		{"silence behind sendmail", taken(func(s *symptoms) { s.sendmail, s.settings = true, good() }), []string{causeQueue, causeFolder}},
		{"sendmail is slow by itself", taken(func(s *symptoms) { s.sendmail, s.settings, s.took = true, good(), 3*time.Second }), []string{causeQueue, causeFolder}},

		{"LMTP does not know the user", taken(func(s *symptoms) {
			s.accepted, s.refused = false, &refusedMail{code: 550, text: "5.1.1 User doesn't exist"}
		}), []string{causeUserdb}},
		{"LMTP refuses for now", taken(func(s *symptoms) { s.accepted, s.refused = false, &refusedMail{code: 451, text: "4.3.0 Temporary"} }), []string{causeRefused}},
		{"LMTP refuses the message", taken(func(s *symptoms) {
			s.accepted, s.refused = false, &refusedMail{code: 552, text: "5.2.2 Quota", data: true}
		}), []string{causeRefused}},
		{"no LMTP", taken(func(s *symptoms) { s.connected, s.accepted, s.trouble = false, false, errors.New("refused") }), []string{causeUnreachable}},
		{"LMTP hangs up", taken(func(s *symptoms) { s.accepted, s.trouble = false, errors.New("EOF") }), []string{causeUnreachable}},
	} {
		t.Run(test.name, func(t *testing.T) {
			causes := diagnose(test.symptoms)
			var got []string
			for _, c := range causes {
				got = append(got, c.name)
				if c.detail == "" || c.mend == "" || strings.Contains(c.detail+c.mend, "secret") {
					t.Errorf("%s: says %q, %q", c.name, c.detail, c.mend)
				}
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("causes %q, want %q", got, test.want)
			}
		})
	}
}

func TestSettingsAreHeldAgainstOurs(t *testing.T) {
	here := &url.URL{Scheme: "http", Host: "127.0.0.1:8026", Path: "/n"}
	fits := expectation{imap: true, master: true, endpoint: here, whole: true, username: "dovecot", password: "p"}
	plugins := map[string]map[string]bool{"lmtp": {"notify": true, "push_notification": true}, "lda": {"notify": true, "push_notification": true}}
	base := settings{full: "2.3.19.1", old: true, metadata: true, dict: "file:%h/a", plugins: plugins, masters: []master{{true}}}
	with := func(urls ...string) settings {
		s := base
		for _, u := range urls {
			s.drivers = append(s.drivers, driver{url: u, bounded: true})
		}
		return s
	}
	right := with("http://dovecot:p@localhost:8026/n")
	identities := fits
	identities.identities = true
	anywhere := fits
	anywhere.whole = false
	deaf := right
	deaf.plugins = map[string]map[string]bool{"lmtp": plugins["lmtp"]}
	for _, test := range []struct {
		name string
		settings
		expectation
		want []string
	}{
		{"all fits, and localhost is 127.0.0.1", right, fits, nil},
		{"one driver of several fits", with("http://x:y@192.0.2.1/", "http://dovecot:p@127.0.0.1:8026/n"), fits, nil},
		{"no password in the URL", with("http://127.0.0.1:8026/n"), fits, []string{causePassword}},
		{"another user name", with("http://other:p@127.0.0.1:8026/n"), fits, []string{causePassword}},
		{"escaped password", with("http://dovecot:%70@127.0.0.1:8026/n"), fits, nil},
		{"a % that 2.3 takes for a variable", func() settings {
			s := base
			s.drivers = []driver{oldDriver("url=http://dovecot:%70@127.0.0.1:8026/n")}
			return s
		}(), fits, []string{causePassword}},
		{"a % as 2.3 wants it", func() settings {
			s := base
			s.drivers = []driver{oldDriver("url=http://dovecot:%%70@127.0.0.1:8026/n")}
			return s
		}(), fits, nil},
		{"https where http is", with("https://dovecot:p@127.0.0.1:8026/n"), fits, []string{causeElsewhere}},
		{"another name of a host that we do not know", with("http://dovecot:p@push.example.com:8026/n"), anywhere, nil},
		{"no URL", with(""), fits, []string{causeDriver}},
		{"path and password", with("http://dovecot:q@127.0.0.1:8026/other"), fits, []string{causePath, causePassword}},
		{"names where identities should be", right, identities, []string{causeNoIdentity}},
		{"lda alone lacks the plugins", deaf, fits, []string{causePlugin}},
		{"the master passdb ends the search", func() settings { s := right; s.masters = []master{{false}}; return s }(), fits, []string{causeContinue}},
		{"%h is right on 2.3", right, fits, nil},
		{"%h on 2.4", func() settings { s := right; s.old = false; return s }(), fits, []string{causeDictPath}},
		{"DoveAdm needs no METADATA", func() settings { s := right; s.metadata = false; return s }(), expectation{endpoint: here, whole: true, username: "dovecot", password: "p"}, nil},
		{"2.4 waits for a minute", func() settings { s := right; s.drivers = []driver{{url: right.drivers[0].url}}; return s }(), fits, []string{causeUnbounded}},
		{"no endpoint of ours", with("http://elsewhere.example/"), expectation{imap: true}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got []string
			for _, c := range test.faults(test.expectation) {
				got = append(got, c.name)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("causes %q, want %q", got, test.want)
			}
		})
	}
}
