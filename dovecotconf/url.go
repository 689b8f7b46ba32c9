package dovecotconf

import (
	"fmt"
	"strings"

	"dovepush/config"
)

// Markers stand for what is to be replaced.
const (
	markPassword = "PASSWORD"         // of the endpoint, in its URL
	markHost     = "THIS-HOST"        // see config.Notify.Endpoint
	markPort     = "PORT"             // likewise
	markCA       = "CA-FILE"          // that issued the endpoint's certificate
	markFrom     = "DOVEPUSH-ADDRESS" // see Options.From
	markKey      = "KEY"              // of the DoveAdm API
)

// driverURL returns the URL for the ox driver, with the password's place
// marked, and the URL's scheme.
func driverURL(n *config.Notify, v Version) (url, scheme string) {
	endpoint, _ := n.Endpoint()
	if endpoint == "" {
		endpoint = "http://" + markHost + ":" + markPort + n.Path
	}
	scheme, rest, _ := strings.Cut(endpoint, "://")
	authority, path := rest, ""
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		authority, path = rest[:i], rest[i:]
	}
	user := ""
	if n.Password.IsSet() {
		user = encode(n.Username, "") + ":" + markPassword + "@"
	}
	// An escape that is there already stays one.
	url = scheme + "://" + user + authority + encode(path, "/%:@!&()*+,;=")
	if v == V23 {
		// Its plugin settings are templates: % begins a variable.
		url = strings.ReplaceAll(url, "%", "%%")
	}
	return url, scheme
}

// encode replaces every byte by its escape (RFC 3986 section 2.1) that is
// neither unreserved nor in also. Dovecot's settings then hold the rest as it
// is: no blank, quote, # or $ is left.
func encode(text, also string) string {
	var b strings.Builder
	for i := range len(text) {
		c := text[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~"+also, c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
