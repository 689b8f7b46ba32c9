package doctor

import (
	"context"
	"crypto/tls"
	"errors"
	"net/netip"
	"strings"
	"time"

	"dovepush/config"
	"dovepush/imapmeta"
)

// checkDoveadm looks at each endpoint, and at the user by one that works. It
// returns the addresses of the endpoints.
func (d *doctor) checkDoveadm(ctx context.Context, i int, s *config.Server, user string, named bool) (ips []netip.Addr) {
	at := func(link string, needs ...string) step { return step{link: link, server: s.Name, needs: needs} }
	conf, err := s.DoveadmTLSConfig()
	if err != nil {
		d.tell(at("doveadm"), failure(err))
		return nil
	}
	for _, endpoint := range s.Doveadm.Endpoints {
		ips = append(ips, d.approach(ctx, s.Name, endpoint, conf)...)
	}
	secret := s.Doveadm.APIKey
	if !secret.IsSet() {
		secret = s.Doveadm.Password
	}
	works := 0
	client, err := d.Doveadm(i, s)
	if err != nil {
		d.tell(at("doveadm"), failure(err))
		return ips
	}
	defer client.Close()
	keyed := at("doveadm", secret.Key())
	if why := d.missing(keyed); why != "" || ctx.Err() != nil {
		d.do(ctx, keyed, func() finding { return skip("interrupted") })
	} else {
		client.Examine(ctx, func(url string, took time.Duration, err error) {
			f := ok(url + " takes the key")
			if err != nil {
				f = failure(err)
				f.detail = url + ": " + f.detail
			} else {
				works++
			}
			f.took = took
			d.tell(keyed, f)
		})
	}
	if works > 0 {
		d.done[at("doveadm").id()] = OK // one will do
	}
	d.do(ctx, at("doveadm user", "doveadm"), func() finding {
		if user == "" {
			return skip("nobody is registered here: name a user with --user")
		}
		known, err := client.Exists(ctx, user)
		switch {
		case err != nil:
			return failure(err)
		case !known:
			return fail(Refused, "Dovecot's userdb does not know "+user, "doveadm user "+shell(user)+" must print his home; or is the name another one?")
		}
		return ok("the userdb knows " + user)
	})
	if s.Connector == config.ConnectorIMAP {
		d.do(ctx, at("doveadm entry", "doveadm user", "metadata", "entry read"), func() finding {
			outcome, err := client.Update(ctx, user, func(imapmeta.Value) imapmeta.Change { return imapmeta.Keep() })
			switch {
			case err != nil:
				return failure(err)
			case outcome.Had != d.read[s.Name]:
				c := otherFile("IMAP and DoveAdm read different entries for " + user)
				return c.finding()
			}
			return ok("the same as by IMAP")
		})
		return ips
	}
	d.do(ctx, at("entry", "doveadm user"), func() finding {
		outcome, err := client.Update(ctx, user, func(imapmeta.Value) imapmeta.Change { return imapmeta.Keep() })
		if err != nil {
			return failure(err)
		}
		return d.compare(ctx, s.Name, user, outcome.Had)
	})
	d.do(ctx, at("probe", "doveadm user", "entry"), func() finding {
		if !named {
			return skip("writes to nobody's mailbox but --user's")
		}
		if err := client.Probe(ctx, user, d.Random()); err != nil {
			f := failure(err)
			var e *imapmeta.Error
			if errors.As(err, &e) && e.Op == "setmetadata" && strings.HasSuffix(e.Status, "75") {
				f.mend = mendDict
			}
			return f
		}
		return ok("an entry was written, read and removed")
	})
	return ips
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
