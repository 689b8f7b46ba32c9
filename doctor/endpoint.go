package doctor

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
)

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
	g := guard{now: d.Now, roots: d.Roots}
	if u.Scheme == "https" {
		d.do(ctx, step{link: "endpoint tls", needs: s.needs[:1]}, func() finding {
			if g.own, err = n.TLSConfig(); err != nil {
				return failure(err)
			}
			if whole {
				g.name = u.Hostname()
			}
			return d.presented(ctx, u, g)
		})
		s.needs = append(s.needs, "endpoint tls")
	}
	d.do(ctx, s, func() finding { return d.call(ctx, u, g) })
}

// call sends an empty body, with the wrong password and with the right one.
func (d *doctor) call(ctx context.Context, u *url.URL, g guard) finding {
	n := &d.config.Notify
	password := ""
	if n.Password.IsSet() {
		var err error
		if password, err = n.Password.Read(ctx); err != nil {
			return failure(err)
		}
	}
	right, ours, err := d.put(ctx, u, g, n.Username, password)
	if stranger := new(strangerError); errors.As(err, &stranger) {
		f := skip("not called: " + stranger.Error() + ", so that it does not get the password")
		f.mend = mendStranger
		return f
	}
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
	wrong, _, err := d.put(ctx, u, g, n.Username, d.Random())
	switch {
	case err != nil:
		return fail(Transient, "does not answer: "+bare(err).Error(), "")
	case wrong != http.StatusUnauthorized:
		return fail(Refused, fmt.Sprintf("answers HTTP %d to a wrong password, where it should answer 401", wrong), "whatever is at "+u.Host+" lets everybody in: the service runs without notify.password_file (systemctl restart dovepush), or a proxy sends its own")
	}
	return ok(u.String() + " answers, takes the password, and refuses others")
}

// put sends a PUT with an empty body, and tells whether a dovepush answered. A
// password goes to nobody whom g does not know.
func (d *doctor) put(ctx context.Context, u *url.URL, g guard, username, password string) (status int, ours bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*d.Wait.Connect)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPut, u.String(), http.NoBody)
	if err != nil {
		return 0, false, err
	}
	request.Header.Set("Content-Type", "application/json")
	conf := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: u.Hostname(), InsecureSkipVerify: true}
	if password != "" {
		conf.VerifyConnection = g.knows
		request.SetBasicAuth(username, password)
	}
	client := http.Client{
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext:       (&net.Dialer{}).DialContext,
			TLSClientConfig:   conf,
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
