package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"dovepush/config"
	"dovepush/notify"
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
	// METADATA off and the like are why nothing will come: they are said above.
	needs := []string{"entry", "registry"}
	if d.feed == nil {
		needs = append(needs, "watch")
	}
	sent := at("canary", needs...)
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
	c := newCanary(d.User, d.Random(), began)
	seen := d.follow(ctx, c, began)
	defer seen.stop()
	x := d.symptoms(ctx, s)
	d.send(ctx, s, c, &x)
	if ctx.Err() != nil {
		d.do(ctx, sent, nil)
		return
	}
	if x.accepted {
		f := ok(fmt.Sprintf("LMTP took the message for %s; it stays in the INBOX: %q", d.User, c.subject))
		if x.sendmail {
			f.detail = strings.Replace(f.detail, "LMTP", d.Sendmail, 1)
		}
		f.took = x.took
		d.tell(sent, f)
	}
	d.await(ctx, s, x, seen, began)
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
func (d *doctor) await(ctx context.Context, s *config.Server, x symptoms, seen *follower, began time.Time) {
	at := step{link: "notification", server: s.Name}
	var arrived time.Duration
	if x.accepted {
		if n, after := seen.wait(ctx, d.Wait.Arrive); n != nil {
			x.got, arrived = n, after
		}
	}
	x.refusals = seen.refused()
	if ctx.Err() != nil {
		d.do(ctx, at, nil)
		return
	}
	causes := diagnose(x)
	if !x.accepted && len(causes) > 0 && causes[0].name == causeTimeout {
		f := warn(fmt.Sprintf("LMTP has not answered: %v; the message may be in the INBOX all the same", x.trouble), "")
		f.took = x.took
		d.tell(step{link: "canary", server: s.Name}, f)
		x.accepted = true
	}
	for _, c := range causes {
		f := c.finding()
		f.took = arrived
		to := at
		if !x.accepted {
			to.link, f.took = "canary", x.took
		}
		d.tell(to, f)
	}
	if !x.accepted {
		d.do(ctx, step{link: "notification", server: s.Name, needs: []string{"canary"}}, func() finding { return skip("nothing was delivered") })
	}
	if len(causes) == 0 && x.got != nil {
		f := ok("came for " + x.got.User + ", " + spent(arrived.Seconds()) + " after the delivery began")
		f.took = arrived
		d.tell(at, f)
	}
	d.do(ctx, step{link: "proof", server: s.Name, needs: []string{"canary", "notification"}}, func() finding { return d.proof(ctx, s.Name, began) })
}

// noteEvery is more than how often the service notes that a user is proven.
const noteEvery = 65 * time.Second

// proof waits until the registry says that the user is proven.
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
		case found && began.Sub(row.ProvenAt) < noteEvery:
			return ok("the registry has it: " + clock(row.ProvenAt))
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

// follower keeps of a Feed what concerns the canary.
type follower struct {
	end     context.CancelFunc
	done    chan struct{}
	found   chan arrival // holds the canary's notification
	refusal chan []notify.Refusal
	now     func() time.Time
}

type arrival struct {
	*notify.Notification
	after time.Duration
}

// maxRefusals bounds what strangers can make us keep.
const maxRefusals = 64

// follow reads the Feed until stop. What came before began is another's, or
// what we were refused ourselves.
func (d *doctor) follow(ctx context.Context, c canary, began time.Time) *follower {
	ctx, end := context.WithCancel(ctx)
	f := &follower{end: end, done: make(chan struct{}), found: make(chan arrival, 1), refusal: make(chan []notify.Refusal, 1), now: d.Now}
	f.refusal <- nil
	go func() {
		defer close(f.done)
		for {
			select {
			case <-ctx.Done():
				return
			case e, open := <-d.feed.Events:
				if !open {
					return
				}
				f.take(e, c, began)
			}
		}
	}()
	return f
}

func (f *follower) take(e notify.Event, c canary, began time.Time) {
	if n := e.Notification; n != nil && strings.Contains(n.Subject, c.subject) {
		select {
		case f.found <- arrival{n, f.now().Sub(began)}:
		default: // another one of the same
		}
	}
	if r := e.Refusal; r != nil && !r.At.Before(began) {
		list := <-f.refusal
		if len(list) < maxRefusals {
			list = append(list, *r)
		}
		f.refusal <- list
	}
}

// wait waits for the notification; nil: it did not come in time. Has Dovecot
// been refused, a second will do: LMTP answers when the driver is done.
func (f *follower) wait(ctx context.Context, limit time.Duration) (n *notify.Notification, after time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	look := time.NewTimer(min(limit, time.Second))
	defer look.Stop()
	for {
		select {
		case a := <-f.found:
			return a.Notification, a.after
		case <-ctx.Done():
			return nil, 0
		case <-look.C:
			if len(f.refused()) > 0 {
				return nil, 0
			}
		}
	}
}

// refused returns the refusals until now.
func (f *follower) refused() []notify.Refusal {
	list := <-f.refusal
	f.refusal <- list
	return list
}

// stop ends the reading and waits for that.
func (f *follower) stop() {
	f.end()
	<-f.done
}
