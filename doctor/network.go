package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// checkName resolves the host of an address, "host:port".
func (d *doctor) checkName(ctx context.Context, s step, address string) (ips []netip.Addr) {
	d.do(ctx, s, func() finding {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return fail(Settings, err.Error(), "")
		}
		if ip, err := netip.ParseAddr(host); err == nil {
			ips = []netip.Addr{ip}
			return ok(host + " is an address")
		}
		ctx, cancel := context.WithTimeout(ctx, d.Wait.Connect)
		defer cancel()
		ips, err = net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		if err != nil {
			var dns *net.DNSError
			if errors.As(err, &dns) && dns.IsNotFound {
				return fail(Unavailable, "there is no host "+host, "correct the name in config.toml, or its entry in DNS or /etc/hosts")
			}
			return fail(Transient, err.Error(), "look at /etc/resolv.conf, and whether the name servers answer: getent ahosts "+host)
		}
		for i := range ips {
			ips[i] = ips[i].Unmap()
		}
		return ok(fmt.Sprintf("%s is %s", host, join(ips)))
	})
	return ips
}

// checkTCP connects to each address. It fails if none can be reached.
func (d *doctor) checkTCP(ctx context.Context, s step, ips []netip.Addr, address, mend string) {
	d.do(ctx, s, func() finding {
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			return fail(Settings, err.Error(), "")
		}
		var good, bad []string
		for _, ip := range ips {
			at := net.JoinHostPort(ip.String(), port)
			began := d.Now()
			if err := d.reach(ctx, "tcp", at); err != nil {
				bad = append(bad, at+" ("+bare(err).Error()+")")
				continue
			}
			text := at
			if t := spent(d.Now().Sub(began).Seconds()); t != "" {
				text += " in " + t
			}
			good = append(good, text)
		}
		switch {
		case len(good) == 0:
			return fail(Transient, "cannot connect to "+strings.Join(bad, ", "), mend)
		case len(bad) > 0:
			return warn("connects to "+strings.Join(good, ", ")+", but not to "+strings.Join(bad, ", "), "every connection that tries the dead address first is slow: mend it, or take it out of DNS")
		}
		return ok("connects to " + strings.Join(good, ", "))
	})
}

// reach connects and hangs up.
func (d *doctor) reach(ctx context.Context, network, address string) error {
	conn, err := d.dial(ctx, network, address)
	if err != nil {
		return err
	}
	return conn.Close()
}

// dial connects within Wait.Connect.
func (d *doctor) dial(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, d.Wait.Connect, fmt.Errorf("no answer within %s", d.Wait.Connect))
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil && context.Cause(ctx) != nil {
		err = context.Cause(ctx)
	}
	return conn, err
}

// bare takes addresses and URLs off an error: the line that it stands in names
// them, and a URL may hold a secret.
func bare(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return bare(u.Err)
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

func join[T fmt.Stringer](list []T) string {
	texts := make([]string, len(list))
	for i, v := range list {
		texts[i] = v.String()
	}
	return strings.Join(texts, ", ")
}

// hostPort is where a URL leads.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// isHere tells whether an address is one of this machine's.
func isHere(ips []netip.Addr) bool {
	own, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, ip := range ips {
		if ip.IsLoopback() {
			return true
		}
		for _, a := range own {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr() == ip {
				return true
			}
		}
	}
	return false
}

// shell quotes a word for a POSIX shell, where it needs quotes.
func shell(word string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("@%+=:,./_-", r)
	}
	if word != "" && strings.TrimFunc(word, plain) == "" && word[0] != '-' {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

const day = 24 * time.Hour

// sameHost tells whether two hosts are the same machine by their names.
func sameHost(a, b string) bool {
	if strings.EqualFold(a, b) {
		return true
	}
	loop := func(h string) bool {
		ip := net.ParseIP(h)
		return strings.EqualFold(h, "localhost") || ip != nil && ip.IsLoopback()
	}
	return loop(a) && loop(b)
}

// parseURL does not repeat the URL in its error: it may hold a secret.
func parseURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Hostname() == "" {
		return nil, errors.New("no URL with a host")
	}
	return u, nil
}
