package dovecotconf

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// Version is a Dovecot release series; settings differ between them.
type Version string

// The series that settings can be written for.
const (
	V23 Version = "2.3"
	V24 Version = "2.4"
)

// Versions returns the known series, oldest first.
func Versions() []Version { return []Version{V23, V24} }

// ParseVersion returns the series of that name.
func ParseVersion(name string) (Version, error) {
	for _, v := range Versions() {
		if name == string(v) {
			return v, nil
		}
	}
	return "", fmt.Errorf("%q is none of %v", name, Versions())
}

// Options say what config.toml does not know. The zero value writes settings
// for [V24].
type Options struct {
	Version Version // empty: V24

	// From is where dovepush's connections come from, as Dovecot sees them: the
	// master user and METADATA are for these addresses only. Empty: loopback if
	// the server's address is on loopback, else a marker.
	From []netip.Prefix
}

// ParseFrom reads addresses and networks for [Options], such as "192.0.2.7" and
// "2001:db8::/64".
func ParseFrom(list []string) ([]netip.Prefix, error) {
	var from []netip.Prefix
	for _, text := range list {
		if ip, err := netip.ParseAddr(text); err == nil && ip.Zone() == "" {
			from = append(from, netip.PrefixFrom(ip, ip.BitLen()))
			continue
		}
		net, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("%q is no address and no network such as 192.0.2.7 or 2001:db8::/64", text)
		}
		from = append(from, net.Masked())
	}
	return from, nil
}

// loopbackNets is where connections to loopback come from.
func loopbackNets() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
}

// networks spells networks as Dovecot's settings want them.
func networks(list []netip.Prefix) (nets []string) {
	for _, net := range list {
		if net.IsSingleIP() {
			nets = append(nets, net.Addr().String())
		} else {
			nets = append(nets, net.String())
		}
	}
	return nets
}

// loopback tells whether host:port is on this machine.
func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && ip.IsLoopback()
}
