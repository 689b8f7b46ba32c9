package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// watch opens the view of what Dovecot sends, before the endpoint is looked at:
// it may be what listens there.
func (d *doctor) watch(ctx context.Context) {
	if !d.Deliver || d.Watch == nil || d.config.Notify.Listen == "" || ctx.Err() != nil {
		return
	}
	feed, err := d.Watch(ctx, d.serving)
	if err != nil {
		d.tell(step{link: "watch"}, fail(Unavailable, err.Error(), "without it what Dovecot sends cannot be seen: start the service, or end the program that has the port of notify.listen"))
		return
	}
	d.feed = feed
	d.tell(step{link: "watch"}, ok(feed.Where))
}

// checkEndpoint calls the notify endpoint as Dovecot would, without a
// notification.
func (d *doctor) checkEndpoint(ctx context.Context) {
	s := step{link: "endpoint"}
	n := &d.config.Notify
	if n.Listen == "" {
		d.tell(s, skip("notify.listen is empty: notifications go elsewhere, and nobody is ever proven"))
		return
	}
	raw, whole := n.Endpoint()
	raw = strings.Replace(raw, "//THIS-HOST:", "//127.0.0.1:", 1)
	u, err := url.Parse(raw)
	if raw == "" || err != nil || u.Port() == "0" {
		d.tell(s, skip("notify.listen does not tell at which address and port Dovecot finds it: set notify.url"))
		return
	}
	if !d.serving && d.feed == nil {
		if err := d.reach(ctx, "tcp", hostPort(u)); err != nil {
			d.tell(s, skip("the service is not running, and nobody listens at "+u.Host))
			return
		}
	}
	address := hostPort(u)
	name, tcp := step{link: "endpoint name"}, step{link: "endpoint tcp", needs: []string{"endpoint name"}}
	ips := d.checkName(ctx, name, address)
	d.checkTCP(ctx, tcp, ips, address, "dovepush serve listens at notify.listen only while it runs: systemctl status dovepush; does notify.url lead here?")
	s.needs = []string{"endpoint tcp", n.Password.Key()}
	if u.Scheme == "https" {
		d.do(ctx, step{link: "endpoint tls", needs: s.needs[:1]}, func() finding { return d.presented(ctx, u, whole) })
	}
	d.do(ctx, s, func() finding { return d.call(ctx, u) })
}

// presented looks at the endpoint's certificate as Dovecot does.
func (d *doctor) presented(ctx context.Context, u *url.URL, named bool) finding {
	state, err := d.shake(ctx, hostPort(u), &tls.Config{MinVersion: tls.VersionTLS12, ServerName: u.Hostname(), InsecureSkipVerify: true})
	if err != nil {
		return judgeTLS(state, err, d.Now())
	}
	cert := state.PeerCertificates[0]
	options := x509.VerifyOptions{CurrentTime: d.Now(), Intermediates: x509.NewCertPool()}
	if named {
		options.DNSName = u.Hostname()
	}
	for _, c := range state.PeerCertificates[1:] {
		options.Intermediates.AddCert(c)
	}
	_, err = cert.Verify(options)
	text := "certificate " + describe(cert, d.Now())
	var name x509.HostnameError
	var trust x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fail(Unavailable, text, "renew notify.tls_cert_file, then systemctl reload dovepush: Dovecot does not call it")
	case errors.As(err, &name):
		return fail(Unavailable, text+": not for "+u.Hostname(), "Dovecot compares the names: give notify.tls_cert_file one for "+u.Hostname()+", or set notify.url to a name that stands in it")
	case errors.As(err, &trust):
		return warn(text+": this machine does not trust its issuer", "Dovecot must: set its ssl_client_ca_file to the issuer's certificate")
	case err != nil:
		return warn(text+": "+err.Error(), "")
	}
	return judgeTLS(state, nil, d.Now())
}

// call sends an empty body, with the wrong password and with the right one.
func (d *doctor) call(ctx context.Context, u *url.URL) finding {
	n := &d.config.Notify
	password := ""
	if n.Password.IsSet() {
		var err error
		if password, err = n.Password.Read(ctx); err != nil {
			return failure(err)
		}
	}
	right, ours, err := d.put(ctx, u, n.Username, password)
	if err != nil {
		return fail(Transient, "does not answer: "+bare(err).Error(), "does another program listen at notify.listen, or does notify.url speak http where https is, or the reverse?")
	}
	who := "answers"
	if !ours {
		who = "another program answers"
	}
	switch {
	case right == http.StatusNotFound:
		return fail(Unavailable, fmt.Sprintf("%s at %s, with HTTP 404", who, u), "another program listens there, or a proxy does not pass the path on: "+
			"look with ss -ltnp, and set notify.listen, notify.path and notify.url so that they fit")
	case right == http.StatusUnauthorized:
		return fail(Refused, who+", but refuses our own password", "the service runs with another one: systemctl reload dovepush; or notify.url leads to another dovepush")
	case right != http.StatusBadRequest:
		return fail(Unavailable, fmt.Sprintf("%s with HTTP %d where an empty notification gets 400", who, right), "does another program listen at "+u.Host+"? ss -ltnp tells")
	case password == "":
		return ok(u.String() + " answers; it asks for no password")
	}
	wrong, _, err := d.put(ctx, u, n.Username, d.Random())
	switch {
	case err != nil:
		return fail(Transient, "does not answer: "+bare(err).Error(), "")
	case wrong != http.StatusUnauthorized:
		return fail(Refused, fmt.Sprintf("answers HTTP %d to a wrong password, where it should answer 401", wrong), "whatever is at "+u.Host+" lets everybody in: the service runs without notify.password_file (systemctl restart dovepush), or a proxy sends its own")
	}
	return ok(u.String() + " answers, takes the password, and refuses others")
}

// put sends a PUT with an empty body, and tells whether a dovepush answered.
func (d *doctor) put(ctx context.Context, u *url.URL, username, password string) (status int, ours bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*d.Wait.Connect)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPut, u.String(), http.NoBody)
	if err != nil {
		return 0, false, err
	}
	request.Header.Set("Content-Type", "application/json")
	if password != "" {
		request.SetBasicAuth(username, password)
	}
	client := http.Client{
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext:       (&net.Dialer{}).DialContext,
			// It was looked at before, and the password is for whoever is there.
			TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, false, err
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(response.Body, 512))
	return response.StatusCode, strings.HasPrefix(string(body), "dovepush: "), nil
}

// parseURL does not repeat the URL in its error: it may hold a secret.
func parseURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Hostname() == "" {
		return nil, errors.New("no URL with a host")
	}
	return u, nil
}
