package doctor

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"dovepush/config"
)

// checkConfig reads the settings, and reports whether there are any to go on
// with.
func (d *doctor) checkConfig(ctx context.Context) bool {
	s := step{link: "config"}
	c, err := d.Config()
	if err != nil {
		mend := "dovepush config check says all that is wrong"
		if text := err.Error(); strings.Contains(text, "no such file") {
			mend = "copy config.toml.example there, or name your file with -c FILE or $DOVEPUSH_CONFIG"
		}
		d.tell(s, fail(Settings, err.Error(), mend))
		return false
	}
	d.config = c
	good := true
	var wrong config.Errors
	if err := c.Check(); errors.As(err, &wrong) {
		for _, e := range wrong {
			if !isSecret(c, e.Key) { // those are the next link
				good = false
				d.tell(s, fail(Settings, e.Error(), ""))
			}
		}
	}
	for _, warning := range c.Warnings() {
		good = false
		d.tell(s, warn(warning, ""))
	}
	if good {
		d.tell(s, ok(d.Path))
	}
	return ctx.Err() == nil
}

// secret is one that the settings refer to.
type secret struct {
	config.Secret
	personal bool // each user's own
}

func secretsOf(c *config.Config) (list []secret) {
	add := func(personal bool, secrets ...config.Secret) {
		for _, s := range secrets {
			if s.IsSet() {
				list = append(list, secret{s, personal})
			}
		}
	}
	for i := range c.Servers {
		s := &c.Servers[i]
		add(s.Auth.MasterUser == "", s.Auth.Password)
		add(false, s.Doveadm.APIKey, s.Doveadm.Password)
	}
	add(false, c.API.Token, c.Notify.Password, c.IdentityKey, c.IdentityOldKey)
	for _, w := range c.Webhooks {
		add(false, w.Secret, w.OldSecret)
	}
	return list
}

func isSecret(c *config.Config, key string) bool {
	for _, s := range secretsOf(c) {
		if s.Key() == key {
			return true
		}
	}
	return false
}

// checkSecrets reads each secret, and runs the commands that print them.
func (d *doctor) checkSecrets(ctx context.Context) {
	at := step{link: "secrets"}
	read, others, good := 0, 0, true
	for _, s := range secretsOf(d.config) {
		var env []string
		if s.personal {
			if d.User == "" {
				others++
				continue
			}
			env = []string{"DOVEPUSH_USER=" + d.User}
		}
		if ctx.Err() != nil {
			break
		}
		if _, err := s.Read(ctx, env...); err != nil {
			good = false
			d.note(step{link: s.Key()}, Fail)
			d.tell(at, fail(Settings, err.Error(), ""))
			continue
		}
		read++
	}
	if good && d.Keys != nil && ctx.Err() == nil {
		if err := d.Keys(ctx, d.config); err != nil {
			d.tell(at, fail(Settings, "dovepush serve does not start with them: "+strings.ReplaceAll(err.Error(), "\n", "; "), ""))
			return
		}
	}
	switch text := fmt.Sprintf("%d of %d can be read", read, read); {
	case others > 0:
		d.tell(at, ok(text+"; for the users' own say --user"))
	case good && read == 0:
		d.tell(at, ok("none are set"))
	case good:
		d.tell(at, ok(text))
	}
}
