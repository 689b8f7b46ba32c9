package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"dovepush/config"
	"dovepush/imapmeta"
)

const (
	mendIMAP = "is Dovecot up, and does it listen there? doveadm service status; ss -ltn; a firewall in between drops or refuses too"
	// What an admin at a penalised address sees, measured on both versions: the
	// next good login of anybody waits up to 17 s.
	mendPenalty = "Dovecot delays logins from an address that had logins refused: service anvil { unix_listener anvil-auth-penalty { mode = 0 } } ends that\n" +
		"it passes by itself within a minute, if nothing is refused meanwhile; otherwise the passdb is slow"
	mendMissing = "who is known to the passdb but not to the userdb gets this answer: doveadm user USER must print his home, else correct the userdb\n" +
		"without result_success = continue in the master passdb, users who do not exist get it too: add it, and passdb blocks of users behind it"
	// slowLogin is longer than any passdb should take, and as long as
	// auth_failure_delay.
	slowLogin = 2 * time.Second
)

// checkServer walks from the address of a server to its users' entries.
func (d *doctor) checkServer(ctx context.Context, i int, s *config.Server) {
	user, named := d.userOf(ctx, s.Name)
	var ips []netip.Addr
	if s.Connector == config.ConnectorIMAP {
		ips = d.checkName(ctx, step{link: "name", server: s.Name}, s.Address)
		d.checkTCP(ctx, step{link: "tcp", server: s.Name, needs: []string{"name"}}, ips, s.Address, mendIMAP)
		d.checkIMAP(ctx, i, s, user, named)
	}
	if s.HasDoveadm() {
		ips = append(ips, d.checkDoveadm(ctx, i, s, user, named)...)
	}
	d.checkSettings(ctx, s, isHere(ips))
}

// checkIMAP logs in, and looks at METADATA and the user's entry.
func (d *doctor) checkIMAP(ctx context.Context, i int, s *config.Server, user string, named bool) {
	at := func(link string, needs ...string) step { return step{link: link, server: s.Name, needs: needs} }
	left := []step{at("tls", "tcp"), at("greeting", "tls"), at("login", "greeting", s.Auth.Password.Key()), at("metadata", "login"), at("entry", "metadata"), at("probe", "entry")}
	if s.TLS == config.TLSNone {
		left = left[1:]
		left[0].needs = []string{"tcp"}
	}
	// What was not come to is skipped, and why is told by what it needs.
	defer func() {
		for _, next := range left {
			d.do(ctx, next, func() finding { return skip("not reached") })
		}
	}()
	if why := d.missing(left[0]); why != "" || ctx.Err() != nil {
		return
	}
	client, err := d.IMAP(i, s)
	if err != nil {
		d.tell(left[0], failure(err))
		left = left[1:]
		return
	}
	found := func(f imapmeta.Found) {
		if f.Step == imapmeta.StepEntry && f.Err != nil {
			d.note(at("entry read"), Fail)
		}
		for j, next := range left {
			if next.link == linkOf(f.Step) {
				left = left[j+1:]
				d.tell(next, d.judgeIMAP(ctx, s, user, f))
				return
			}
		}
	}
	if user == "" {
		client.Greet(ctx, found)
		if len(left) > 0 && left[0].link == "login" {
			d.tell(left[0], skip("nobody is registered here: name a user with --user"))
			left = left[1:]
		}
		return
	}
	client.Examine(ctx, user, imapmeta.Examination{Probe: named, Token: d.Random()}, found)
	if !named && len(left) == 1 {
		d.tell(left[0], skip("writes to nobody's mailbox but --user's"))
		left = nil
	}
}

func linkOf(s imapmeta.Step) string {
	if s == imapmeta.StepCapability {
		return "metadata"
	}
	return string(s)
}

func (d *doctor) judgeIMAP(ctx context.Context, s *config.Server, user string, found imapmeta.Found) finding {
	var f finding
	switch {
	case found.Step == imapmeta.StepTLS:
		f = judgeTLS(found.TLS, found.Err, d.Now())
		if found.Err == nil && s.TLS == config.TLSStartTLS {
			f.detail = "STARTTLS, " + f.detail
		}
	case found.Err != nil:
		f = judgeFailed(found)
	case found.Step == imapmeta.StepGreeting:
		f = ok(strings.TrimSpace("OK " + found.Text))
	case found.Step == imapmeta.StepLogin:
		f = ok(loginText(s, user))
		if found.Took > slowLogin {
			f = warn(f.detail+", but slowly", mendPenalty)
		}
	case found.Step == imapmeta.StepCapability:
		f = ok("METADATA is offered")
		if found.Text == "" {
			f = ok("the server does not tell its capabilities; the next link shows")
		}
	case found.Step == imapmeta.StepEntry:
		d.read[s.Name] = found.Have
		f = d.compare(ctx, s.Name, user, found.Have)
	case found.Step == imapmeta.StepProbe:
		f = ok("an entry was written, read and removed")
	}
	f.took = found.Took
	return f
}

func loginText(s *config.Server, user string) string {
	if s.Auth.MasterUser == "" {
		return user + ", by credentials of its own"
	}
	return fmt.Sprintf("%s for %s", s.Auth.MasterUser, user)
}

// judgeFailed refines what imapmeta says of a failed step.
func judgeFailed(found imapmeta.Found) finding {
	f := failure(found.Err)
	var e *imapmeta.Error
	if !errors.As(found.Err, &e) {
		return f
	}
	switch {
	case found.Step == imapmeta.StepLogin && e.Kind == imapmeta.Retry && (e.Code == "UNAVAILABLE" || e.Status == "" && e.Err != nil && !isTime(e)):
		// Dovecot logs "Authenticated user not found from userdb", and hangs up
		// or says [UNAVAILABLE].
		f.fault, f.mend = Refused, mendMissing
	case found.Step == imapmeta.StepLogin && isTime(e):
		f.mend = mendPenalty
	case found.Step == imapmeta.StepProbe && e.Code == "SERVERBUG":
		f.detail += "; reading works, writing does not"
		f.mend = mendDict
	case found.Step == imapmeta.StepEntry && (e.Status == "BYE" || e.Code == "SERVERBUG" || e.Status == ""):
		f.mend = mendDict
	}
	return f
}

// mendDict is for a dict that is set and does not work. Measured on 2.4: %h is
// no variable there but two characters of a path that begins in /, so that
// reading finds nothing and writing fails.
const mendDict = "2.4: mail_attribute { dict file { path = %{home}/dovecot-attributes } }: 2.4 does not know %h, and takes it for a directory of that name\n" +
	"2.3: mail_attribute_dict = file:%h/dovecot-attributes; on either version the user's home must be writable for him: Dovecot's log names the path that is not"

func isTime(err error) bool { return errors.Is(err, context.DeadlineExceeded) }
