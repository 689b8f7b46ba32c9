package doctor

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"

	"dovepush/config"
)

const mendService = "systemctl start dovepush, and see journalctl -u dovepush; without it changes are made by commands and cron only, and nothing is received"

// checkService asks the service's API how it is.
func (d *doctor) checkService(ctx context.Context) {
	s := step{link: "service"}
	if d.config.API.Token.IsSet() {
		s.needs = []string{d.config.API.Token.Key()}
	}
	d.do(ctx, s, func() finding {
		switch {
		case d.config.API.Listen == "":
			return skip("api.listen is empty: whether a service runs is not known")
		case d.Service == nil:
			return skip("whether a service runs is not looked at")
		}
		alive, text, err := d.ask(ctx, "/healthz")
		if err != nil {
			return d.unanswered(err)
		}
		d.serving = true
		if alive != http.StatusOK {
			return fail(Unavailable, "runs, but its wheels do not turn: "+text, "systemctl restart dovepush; its log says why")
		}
		ready, text, err := d.ask(ctx, "/readyz")
		switch {
		case err != nil:
			return fail(Transient, err.Error(), mendService)
		case ready != http.StatusOK:
			return fail(Transient, "runs, but is not ready: "+text, "journalctl -u dovepush says why")
		}
		return ok("runs and is ready, at " + d.config.API.Listen)
	})
}

// unanswered says what it means that the API cannot be asked.
func (d *doctor) unanswered(err error) finding {
	var setting *config.Error
	var stranger *tls.CertificateVerificationError
	switch {
	case errors.As(err, &setting):
		return failure(err)
	case errors.Is(err, fs.ErrPermission):
		return warn("whether it runs cannot be seen: "+bare(err).Error(), "run doctor as root, or as a member of the group of "+d.config.API.Listen)
	case errors.As(err, &stranger):
		return fail(Unavailable, "at "+d.config.API.Listen+" is another certificate than api.tls_cert_file, or it has expired: "+bare(err).Error(),
			"systemctl reload dovepush, if the file was renewed since; else another program listens there: ss -ltnp tells")
	}
	return warn("not running: "+bare(err).Error(), mendService)
}

// ask returns the service's status, and its answer in words.
func (d *doctor) ask(ctx context.Context, path string) (status int, text string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*d.Wait.Connect, fmt.Errorf("no answer within %s", 2*d.Wait.Connect))
	defer cancel()
	status, body, err := d.Service(ctx, path)
	if err != nil && context.Cause(ctx) != nil {
		err = context.Cause(ctx)
	}
	return status, fmt.Sprintf("HTTP %d: %s", status, strings.TrimSpace(body)), err
}
