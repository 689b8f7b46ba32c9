package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"dovepush/config"
	"dovepush/imapmeta"
	"dovepush/internal/dovecot"
	"dovepush/notify"
)

const (
	demoUser = "alice"
	demoFrom = "bob@example.org"
)

// demoPatience is how long the demo waits for what should come at once, and
// demoSilence for what should not come.
const (
	demoPatience = 10 * time.Second
	demoSilence  = 300 * time.Millisecond
)

// story is a demonstration under way.
type story struct {
	app                *app
	ctx                context.Context // over when the demo is interrupted, or the service has ended
	server             *dovecot.Server
	endpoint, password string // of the service, for Dovecot
	step               int
	config             string
	seen               chan notify.Notification // what watch shows
}

// tell tells the story, with a service running beside it.
func (s *story) tell(ctx context.Context) (err error) {
	s.say("Dovecot %s on loopback, with IMAP METADATA and the ox push-notification driver, and\n"+
		"dovepush serve, which takes its notifications. %s has a mailbox, and no entry\n  %s", s.server.Full, demoUser, imapmeta.Entry)
	if err := s.configure(); err != nil {
		return err
	}
	ctx, end := context.WithCancelCause(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer end(nil)
	s.ctx = ctx
	all.Go(func() {
		if code := s.dovepush(nil, "--log-level", "error", "serve"); ctx.Err() == nil {
			end(fmt.Errorf("dovepush serve has ended with exit status %d", code))
		}
	})
	if err := s.watch(&all); err != nil {
		return s.because(err)
	}
	for _, scene := range []func() error{
		func() error { return s.deliver("Before", false) },
		func() error { return s.command("register", "user="+demoUser) },
		func() error { return s.deliver("Lunch at noon?", true) },
		func() error { return s.command("verify", "user="+demoUser) },
		s.status,
		s.doctor,
		func() error { return s.command("unregister", "") },
		func() error { return s.deliver("Never mind", false) },
	} {
		if err := scene(); err != nil {
			return s.because(err)
		}
		if err := s.ctx.Err(); err != nil {
			return s.because(err)
		}
	}
	return nil
}

// because is why the story broke off.
func (s *story) because(err error) error {
	if cause := context.Cause(s.ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	if s.ctx.Err() != nil {
		return s.ctx.Err()
	}
	return err
}

func (s *story) say(format string, args ...any) {
	fmt.Fprintf(s.app.stdout, format+"\n", args...)
}

func (s *story) title(format string, args ...any) {
	s.step++
	s.say("\n%d. "+format, append([]any{s.step}, args...)...)
}

// configure writes the settings that an admin of this Dovecot would write.
func (s *story) configure() error {
	in := func(name string) string { return filepath.Join(s.server.Dir, name) }
	s.config = in("config.toml")
	text := fmt.Sprintf(`[[server]]
address = %q
tls_ca_file = %q
[server.auth]
master_user = %q
password_file = "master.secret"
[registry]
path = "registry.db"
[api]
listen = "unix:%s"
[notify]
listen = %q
password_file = "notify.secret"
`, s.server.IMAPS, s.server.CAFile, s.server.MasterUser, in("api.sock"), s.endpoint)
	return errors.Join(
		os.WriteFile(in("master.secret"), []byte(s.server.MasterPassword+"\n"), 0o600),
		os.WriteFile(in("notify.secret"), []byte(s.password+"\n"), 0o600),
		os.WriteFile(s.config, []byte(text), 0o600))
}

// watch waits for the service, and shows from then on what it is notified of.
func (s *story) watch(all *sync.WaitGroup) error {
	c, err := config.Load(s.config)
	if err != nil {
		return err
	}
	service, err := newServiceClient(s.ctx, c)
	if err != nil {
		return err
	}
	ready := make(chan struct{})
	s.seen = make(chan notify.Notification, 16)
	all.Go(func() {
		defer service.close()
		for s.ctx.Err() == nil {
			for event, err := range service.events(s.ctx, watched{ready: sync.OnceFunc(func() { close(ready) })}) {
				if err == nil && event.Notification != nil {
					s.seen <- *event.Notification
				}
			}
			pauseFor(s.ctx, 20*time.Millisecond) // it is not there yet
		}
	})
	select {
	case <-ready:
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	case <-time.After(demoPatience):
		return errors.New("dovepush serve does not answer")
	}
}

func pauseFor(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// deliver delivers a message and shows whether Dovecot notified of it. Delivery
// returns only after the driver is done.
func (s *story) deliver(subject string, notified bool) error {
	s.title("A message for %s: %q, from %s, by LMTP", demoUser, subject, demoFrom)
	if err := s.server.Deliver(s.ctx, demoUser, demoFrom, subject, "It is about "+subject); err != nil {
		return fmt.Errorf("deliver %q: %w", subject, err)
	}
	s.say("   Dovecot stored it in INBOX.")
	wait := demoPatience
	if !notified {
		wait = demoSilence
	}
	select {
	case n := <-s.seen:
		if !notified || n.Subject != subject {
			return fmt.Errorf("a notification came of %q after %q was delivered", n.Subject, subject)
		}
		s.say("   dovepush watch shows what Dovecot notified us of:\n   %s", notificationLine(&n))
	case <-time.After(wait):
		if notified {
			return fmt.Errorf("no notification came of %q; Dovecot's log:\n%s", subject, s.server.Log())
		}
		s.say("   Dovecot notified nobody.")
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
	return nil
}

// command runs dovepush for the user, and asks Dovecot what the entry holds then.
func (s *story) command(verb, want string) error {
	if err := s.run(verb, demoUser); err != nil {
		return err
	}
	value, present, err := s.server.Entry(s.ctx, demoUser)
	if err != nil {
		return fmt.Errorf("ask doveadm for the entry: %w", err)
	}
	if present {
		s.say("   doveadm says that the entry holds: %s", value)
	} else {
		s.say("   doveadm says that the entry is absent.")
	}
	if value != want {
		return fmt.Errorf("the entry holds %q, not %q", value, want)
	}
	return nil
}

// status shows the registration when the notification has proven it.
func (s *story) status() error {
	for limit := time.Now().Add(demoPatience); ; pauseFor(s.ctx, 100*time.Millisecond) {
		var out strings.Builder
		if s.dovepush(&out, "status", "--json", demoUser); strings.Contains(out.String(), `"proven_at"`) {
			return s.run("status", demoUser)
		}
		if time.Now().After(limit) || s.ctx.Err() != nil {
			return fmt.Errorf("the notification proved nothing: %s", out.String())
		}
	}
}

// doctor has the whole chain walked, and another message delivered.
func (s *story) doctor() error {
	err := s.run("doctor", "--user", demoUser, "--deliver", "--lmtp", s.server.LMTP)
	if err != nil {
		return err
	}
	select {
	case <-s.seen: // of doctor's message
	case <-s.ctx.Done():
	case <-time.After(demoPatience):
		return errors.New("watch has not seen the notification that doctor has seen")
	}
	return nil
}

// run runs dovepush and shows what it says.
func (s *story) run(args ...string) error {
	line := "dovepush " + strings.Join(args, " ")
	s.title("$ %s", line)
	var out strings.Builder
	code := s.dovepush(&out, args...)
	for text := range strings.Lines(strings.TrimRight(out.String(), "\n")) {
		s.say("   %s", strings.TrimRight(text, "\n"))
	}
	if err := s.ctx.Err(); err != nil {
		return err
	}
	if code != exitOK {
		return fmt.Errorf("%s: exit status %d", line, code)
	}
	return nil
}

// dovepush runs dovepush itself.
func (s *story) dovepush(out *strings.Builder, args ...string) int {
	if out == nil {
		out = new(strings.Builder)
	}
	return run(s.ctx, append([]string{"-c", s.config}, args...), strings.NewReader(""), out, s.app.stderr)
}
