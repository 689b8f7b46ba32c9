package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"dovepush/config"
)

// checkWebhooks connects to each webhook's target, and sends it nothing; and
// tells what waits for it.
func (d *doctor) checkWebhooks(ctx context.Context) {
	for i := range d.config.Webhooks {
		d.checkWebhook(ctx, &d.config.Webhooks[i])
	}
	// Without webhooks there may be a spool of former ones.
	if _, err := os.Stat(d.config.SpoolPath()); len(d.config.Webhooks) > 0 || err == nil {
		d.do(ctx, step{link: "spool"}, func() finding { return d.checkSpool(ctx) })
	}
}

func (d *doctor) checkWebhook(ctx context.Context, w *config.Webhook) {
	at := func(link string, needs ...string) step {
		return step{link: "webhook " + link, at: w.Name, needs: needs}
	}
	u, err := parseURL(w.URL.Reveal())
	if err != nil {
		d.tell(at("name"), fail(Settings, err.Error(), ""))
		return
	}
	const mend = "the receiver is down, or a firewall is in between; what it is to get waits in the spool meanwhile"
	address := hostPort(u)
	ips := d.checkName(ctx, at("name"), address)
	d.checkTCP(ctx, at("tcp", "webhook name"), ips, address, mend)
	if u.Scheme == "https" {
		d.do(ctx, at("tls", "webhook tcp"), func() finding {
			conf, err := w.TLSConfig()
			if err != nil {
				return failure(err)
			}
			conf.ServerName = u.Hostname()
			state, err := d.shake(ctx, address, conf)
			f := judgeTLS(state, err, d.Now())
			f.mend = strings.ReplaceAll(f.mend, "server.tls_ca_file", "this webhook's tls_ca_file")
			return f
		})
	}
}

// late is how long an event may wait before that is worth a warning.
const late = 10 * time.Minute

func (d *doctor) checkSpool(ctx context.Context) finding {
	path := d.config.SpoolPath()
	switch _, err := os.Stat(path); {
	case errors.Is(err, fs.ErrNotExist) && d.serving && len(d.config.Webhooks) > 0:
		return fail(Settings, path+" is missing, though the service uses it: it was removed or replaced while the service ran, and Dovecot's notifications are refused (503)",
			"systemctl restart dovepush")
	case errors.Is(err, fs.ErrNotExist):
		return ok("none yet: " + path + " comes when dovepush serve starts")
	case err != nil:
		return fail(Settings, err.Error(), "")
	case d.Spool == nil:
		return skip(path + " is there")
	}
	list, err := d.Spool(ctx, path)
	if err != nil {
		return fail(max(faultOf(err), Transient), err.Error(), "")
	}
	var texts, mends []string
	for _, w := range list {
		text := fmt.Sprintf("%s: %d waiting, %s", w.Target, w.Waiting, count(w.Dead, "dead letter"))
		if !d.hasWebhook(w.Target) {
			texts = append(texts, text+", not configured any more")
			if w.Waiting+w.Dead > 0 {
				mends = append(mends, w.Target+" is not configured any more: dovepush webhooks "+shell(w.Target)+" --drop deletes what is kept for it")
			}
			continue
		}
		if w.Waiting > 0 && d.Now().Sub(w.Oldest) > late {
			text += ", the oldest since " + clock(w.Oldest)
			if w.LastError != "" {
				text += ": " + w.LastError
			}
			mends = append(mends, "see to the receiver of "+w.Target+": its events wait until it takes them")
		}
		if w.Dead > 0 {
			mends = append(mends, "the dead letters of "+w.Target+" were refused for good, or for too long: "+w.LastError)
		}
		texts = append(texts, text)
	}
	text := strings.Join(texts, "; ")
	if text == "" {
		text = "nothing waits"
	}
	if len(mends) > 0 {
		return warn(text, strings.Join(mends, "\n"))
	}
	return ok(text)
}

func (d *doctor) hasWebhook(name string) bool {
	return slices.ContainsFunc(d.config.Webhooks, func(w config.Webhook) bool { return w.Name == name })
}
