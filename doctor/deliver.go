package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"dovepush/config"
	"dovepush/registry"
)

// deliver sends the canary and waits for its notification.
func (d *doctor) deliver(ctx context.Context) {
	s, found := d.config.ServerFor(d.User)
	if !found {
		d.tell(step{link: "canary"}, fail(Settings, "no server is for "+d.User, "add the user's domain to the domains of a [[server]], or leave one [[server]] without domains"))
		return
	}
	at := func(link string, needs ...string) step { return step{link: link, server: s.Name, needs: needs} }
	if d.seen != nil && d.seen.broken() {
		d.tell(step{link: "watch"}, brokeOff().finding())
	}
	// METADATA off and the like are why nothing will come: they are said above.
	sent := at("canary", "entry", "registry", "watch")
	if why := d.missing(sent); why != "" || ctx.Err() != nil {
		d.do(ctx, sent, nil)
		d.do(ctx, at("notification", "canary"), nil)
		d.do(ctx, at("proof", "canary"), nil)
		return
	}
	if why, mend := d.unfit(); why != "" {
		d.tell(sent, fail(Unavailable, why, mend))
		return
	}
	began := d.Now()
	d.seen.begin(began)
	x := d.symptoms(ctx, s)
	d.send(ctx, s, d.seen.canary, &x)
	if ctx.Err() != nil {
		d.do(ctx, sent, nil)
		return
	}
	if x.accepted {
		f := ok(fmt.Sprintf("LMTP took the message for %s; it stays in the INBOX: %q", d.User, d.seen.canary.subject))
		if x.sendmail {
			f.detail = strings.Replace(f.detail, "LMTP", d.Sendmail, 1)
		}
		f.took = x.took
		d.tell(sent, f)
	}
	d.await(ctx, s, x, began)
}

// unfit says why no notification can come, whatever Dovecot does.
func (d *doctor) unfit() (why, mend string) {
	switch {
	case d.feed == nil && d.config.Notify.Listen == "":
		return "notify.listen is empty: what Dovecot sends cannot be seen", "set [notify] listen, and Dovecot's URL to it: dovepush dovecot-config prints it"
	case d.feed == nil:
		return "what Dovecot sends cannot be seen", "start the service: systemctl start dovepush"
	case !d.entry.found || d.entry.row.Wanted != registry.Present:
		return d.User + " is not registered, so that Dovecot notifies nobody", "dovepush register " + shell(d.User)
	case d.entry.looked && !d.entry.agrees:
		return "the entry of " + d.User + " is not as registered", "dovepush verify " + shell(d.User)
	}
	return "", ""
}

// symptoms are those that are known before the delivery.
func (d *doctor) symptoms(ctx context.Context, s *config.Server) symptoms {
	x := symptoms{
		user: d.User, identity: d.entry.row.Identity,
		signed:    d.config.IdentityKey.IsSet(),
		template:  d.config.Identity != config.Default().Identity,
		sendmail:  d.Sendmail != "",
		sameEntry: d.done[step{link: "doveadm entry", server: s.Name}.id()] == OK || s.Connector == config.ConnectorDoveadm,
		settings:  d.settings[s.Name], expect: d.expect(ctx, s),
	}
	if raw, _ := d.config.Notify.Endpoint(); raw != "" {
		x.endpoint, _ = url.Parse(raw)
	}
	return x
}

// send delivers the canary.
func (d *doctor) send(ctx context.Context, s *config.Server, c canary, x *symptoms) {
	limited, cancel := context.WithTimeoutCause(ctx, d.Wait.Accept, fmt.Errorf("no answer within %s", d.Wait.Accept))
	defer cancel()
	began := d.Now()
	if d.Sendmail != "" {
		x.trouble = c.bySendmail(limited, d.Sendmail)
		x.connected = x.trouble == nil
	} else {
		network, address := d.lmtpAddress(s)
		at := step{link: "lmtp", server: s.Name}
		conn, err := d.dial(ctx, network, address)
		if err != nil {
			x.trouble = fmt.Errorf("LMTP at %s: %w", address, bare(err))
			return
		}
		defer conn.Close()
		x.connected = true
		f := ok("connects to " + address)
		f.took = d.Now().Sub(began)
		d.tell(at, f)
		began = d.Now()
		x.trouble = c.byLMTP(limited, conn)
	}
	x.took, x.accepted = d.Now().Sub(began), x.trouble == nil
	var refused *mailError
	if errors.As(x.trouble, &refused) {
		x.refused = &refused.refusedMail
	}
}

// await waits for the notification and its proof, and says what it means if
// they do not come.
func (d *doctor) await(ctx context.Context, s *config.Server, x symptoms, began time.Time) {
	at := step{link: "notification", server: s.Name}
	var arrived time.Duration
	if x.accepted {
		if n, after := d.seen.wait(ctx, d.Wait.Arrive); n != nil {
			x.got, arrived = n, after
		}
	}
	x.refusals, x.broken = d.seen.refused(), d.seen.broken()
	if ctx.Err() != nil {
		d.do(ctx, at, nil)
		return
	}
	causes := diagnose(x)
	blind := len(only(causes, causeBrokeOff)) > 0
	if !x.accepted && (blind || len(only(causes, causeTimeout)) > 0) {
		f := warn(fmt.Sprintf("LMTP has not answered: %v; the message may be in the INBOX all the same", x.trouble), "")
		f.took = x.took
		d.tell(step{link: "canary", server: s.Name}, f)
		x.accepted = true
	}
	for _, c := range causes {
		f := c.finding()
		f.took = arrived
		to := at
		switch {
		case blind:
			to = step{link: "watch"}
		case !x.accepted:
			to.link, f.took = "canary", x.took
		}
		d.tell(to, f)
	}
	if blind || !x.accepted {
		d.do(ctx, step{link: "notification", server: s.Name, needs: []string{"canary", "watch"}}, func() finding { return skip("nothing was delivered") })
	}
	if len(causes) == 0 && x.got != nil {
		f := ok("came for " + x.got.User + ", " + spent(arrived.Seconds()) + " after the delivery began")
		f.took = arrived
		d.tell(at, f)
	}
	d.do(ctx, step{link: "proof", server: s.Name, needs: []string{"canary", "notification"}}, func() finding { return d.proof(ctx, s.Name, began) })
}

// noteEvery is more than how often the service notes that a user is proven:
// once a minute, with the newest time.
const noteEvery = 65 * time.Second

// proof waits until the registry says that the user is proven by the canary, or
// finds that it will not say so soon.
func (d *doctor) proof(ctx context.Context, server string, began time.Time) finding {
	if !d.feed.Proves {
		return skip("no service runs that would note it in the registry")
	}
	limited, cancel := context.WithTimeout(ctx, d.Wait.Proof)
	defer cancel()
	for {
		row, found, err := d.registry.Get(limited, registry.Key{User: d.User, Server: server})
		switch {
		case err != nil && limited.Err() == nil:
			return failure(err)
		case found && !row.ProvenAt.Before(began.Truncate(time.Millisecond)): // as the registry keeps it
			return ok("the registry has it: " + clock(row.ProvenAt))
		case found && row.ProvenAt.Add(noteEvery).Sub(d.Now()) > d.Wait.Proof:
			return ok(fmt.Sprintf("the registry's last proof, of %s, is %d s older than the test: a user's is written once a minute, and this one is not due yet",
				clock(row.ProvenAt), began.Sub(row.ProvenAt)/time.Second))
		}
		select {
		case <-limited.Done():
			if ctx.Err() != nil {
				return skip("interrupted")
			}
			return fail(Transient, fmt.Sprintf("the notification came, but after %s the registry still does not say so", d.Wait.Proof), "does the service use this registry.path? its log says what it cannot write")
		case <-time.After(50 * time.Millisecond):
		}
	}
}
