package doctor

import (
	"context"
	"crypto/tls"
	"errors"
	"net/netip"
	"strings"
	"time"

	"dovepush/config"
	"dovepush/doveadm"
	"dovepush/imapmeta"
)

// doveadmWalk is the part of the walk that goes by a server's DoveAdm.
type doveadmWalk struct {
	*doctor
	server *config.Server
	client *doveadm.Client
	user   string // whose entry is looked at; empty: nobody's
}

func (w doveadmWalk) at(link string, needs ...string) step {
	return step{link: link, server: w.server.Name, needs: needs}
}

// checkDoveadm looks at each endpoint, and at the user by one that works. It
// returns the addresses of the endpoints.
func (d *doctor) checkDoveadm(ctx context.Context, i int, s *config.Server, user string, named bool) (ips []netip.Addr) {
	w := doveadmWalk{doctor: d, server: s, user: user}
	conf, err := s.DoveadmTLSConfig()
	if err != nil {
		d.tell(w.at("doveadm"), failure(err))
		return nil
	}
	for _, endpoint := range s.Doveadm.Endpoints {
		ips = append(ips, d.approach(ctx, s.Name, endpoint, conf)...)
	}
	if w.client, err = d.Doveadm(i, s); err != nil {
		d.tell(w.at("doveadm"), failure(err))
		return ips
	}
	defer w.client.Close()
	w.checkKey(ctx)
	w.checkUser(ctx)
	if s.Connector == config.ConnectorIMAP {
		w.compareWithIMAP(ctx)
		return ips
	}
	w.checkEntry(ctx)
	w.probe(ctx, named)
	return ips
}

// checkKey asks each endpoint whether it takes the key. One will do.
func (w doveadmWalk) checkKey(ctx context.Context) {
	secret := w.server.Doveadm.APIKey
	if !secret.IsSet() {
		secret = w.server.Doveadm.Password
	}
	all := w.at("doveadm", secret.Key())
	if why := w.missing(all); why != "" || ctx.Err() != nil {
		w.do(ctx, all, func() finding { return skip("interrupted") })
		return
	}
	status := Fail
	w.client.Examine(ctx, func(url string, took time.Duration, err error) {
		f := ok(url + " takes the key")
		if err != nil {
			f = failure(err)
			f.detail = url + ": " + f.detail
		} else {
			status = OK
		}
		f.took = took
		w.tell(step{link: all.link, server: all.server, at: url}, f)
	})
	w.note(all, status)
}

func (w doveadmWalk) checkUser(ctx context.Context) {
	w.do(ctx, w.at("doveadm user", "doveadm"), func() finding {
		if w.user == "" {
			return skip("nobody is registered here: name a user with --user")
		}
		known, err := w.client.Exists(ctx, w.user)
		switch {
		case err != nil:
			return failure(err)
		case !known:
			return fail(Refused, "Dovecot's userdb does not know "+w.user, "doveadm user "+shell(w.user)+" must print his home; or is the name another one?")
		}
		return ok("the userdb knows " + w.user)
	})
}

// entry reads the user's.
func (w doveadmWalk) entry(ctx context.Context) (imapmeta.Value, error) {
	outcome, err := w.client.Update(ctx, w.user, func(imapmeta.Value) imapmeta.Change { return imapmeta.Keep() })
	return outcome.Had, err
}

// compareWithIMAP tells whether DoveAdm and IMAP read the same entry.
func (w doveadmWalk) compareWithIMAP(ctx context.Context) {
	w.do(ctx, w.at("doveadm entry", "doveadm user", "metadata", "entry read"), func() finding {
		have, err := w.entry(ctx)
		switch {
		case err != nil:
			return failure(err)
		case have != w.read[w.server.Name]:
			return otherFile("IMAP and DoveAdm read different entries for " + w.user).finding()
		}
		return ok("the same as by IMAP")
	})
}

func (w doveadmWalk) checkEntry(ctx context.Context) {
	w.do(ctx, w.at("entry", "doveadm user"), func() finding {
		have, err := w.entry(ctx)
		if err != nil {
			return failure(err)
		}
		return w.compare(ctx, w.server.Name, w.user, have)
	})
}

// probe writes an entry of ours, if the user was named.
func (w doveadmWalk) probe(ctx context.Context, named bool) {
	w.do(ctx, w.at("probe", "doveadm user", "entry"), func() finding {
		if !named {
			return skip("writes to nobody's mailbox but --user's")
		}
		if err := w.client.Probe(ctx, w.user, w.Random()); err != nil {
			f := failure(err)
			var e *imapmeta.Error
			if errors.As(err, &e) && e.Op == "setmetadata" && strings.HasSuffix(e.Status, "75") {
				f.mend = mendDict
			}
			return f
		}
		return ok("an entry was written, read and removed")
	})
}

// approach connects to one endpoint of DoveAdm, and looks at its certificate.
func (d *doctor) approach(ctx context.Context, server, endpoint string, conf *tls.Config) []netip.Addr {
	at := func(link string, needs ...string) step {
		return step{link: "doveadm " + link, server: server, at: endpoint, needs: needs}
	}
	const mend = "is Dovecot up, with service doveadm { inet_listener http { port = ... } }? doveadm service status doveadm"
	if path, isSocket := strings.CutPrefix(endpoint, "unix:"); isSocket {
		d.do(ctx, at("socket"), func() finding {
			if err := d.reach(ctx, "unix", path); err != nil {
				return fail(Transient, bare(err).Error(), mend+"\nthe socket's user or group must be dovepush's: unix_listener http { user = dovepush }")
			}
			return ok("connects to " + path)
		})
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	u, err := parseURL(endpoint)
	if err != nil {
		d.tell(at("name"), fail(Settings, "no URL", ""))
		return nil
	}
	address := hostPort(u)
	ips := d.checkName(ctx, at("name"), address)
	d.checkTCP(ctx, at("tcp", "doveadm name"), ips, address, mend)
	if u.Scheme == "https" {
		d.do(ctx, at("tls", "doveadm tcp"), func() finding {
			conf = conf.Clone()
			if conf.ServerName == "" {
				conf.ServerName = u.Hostname()
			}
			state, err := d.shake(ctx, address, conf)
			return judgeTLS(state, err, d.Now())
		})
	}
	return ips
}
