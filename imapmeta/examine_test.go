package imapmeta

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"dovepush/internal/dovecot"
	"dovepush/internal/dovecot/dovecottest"
)

func TestExaminations(t *testing.T) {
	together(t,
		shared{"every step is told", everyStepIsTold},
		shared{"over STARTTLS", examineStartTLS},
		shared{"the first failure is the last step", examineRefused},
		shared{"without a user", greetOnly},
		shared{"the probe is removed also when the context ends", probeInterrupted},
	)
}

// examined returns what an examination reports.
func examined(ctx context.Context, c *Client, user string, x Examination) (list []Found) {
	c.Examine(ctx, user, x, func(f Found) { list = append(list, f) })
	return list
}

func steps(list []Found) (names []Step) {
	for _, f := range list {
		names = append(names, f.Step)
	}
	return names
}

// kept is what the user's dict holds.
func kept(t *testing.T, s *dovecot.Server, user string) string {
	t.Helper()
	text, err := os.ReadFile(s.AttributeFile(user))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(text)
}

func everyStepIsTold(t *testing.T, s *dovecot.Server) {
	if err := s.SetEntry(t.Context(), "alice", "user=7@1"); err != nil {
		t.Fatal(err)
	}
	list := examined(t.Context(), on(t, s, overTLS(s, &tls.Config{})), "alice", Examination{Probe: true, Token: "token"})
	if want := []Step{StepTLS, StepGreeting, StepLogin, StepCapability, StepEntry, StepProbe}; !slices.Equal(steps(list), want) {
		t.Fatalf("steps %q, want %q", steps(list), want)
	}
	for _, f := range list {
		if f.Err != nil {
			t.Errorf("%s: %v", f.Step, f.Err)
		}
	}
	if list[0].TLS == nil || !strings.Contains(list[1].Text, "ready") || !strings.Contains(list[3].Text, "METADATA") || list[4].Have != "user=7@1" {
		t.Errorf("found %+v", list)
	}
	if text := kept(t, s, "alice"); strings.Contains(text, "vendor.dovepush") || !strings.Contains(text, "user=7@1") {
		t.Errorf("the dict holds %q", text)
	}
}

func examineStartTLS(t *testing.T, s *dovecot.Server) {
	list := examined(t.Context(), on(t, s, overTLS(s, &tls.Config{}), startTLS(s)), "alice", Examination{})
	if want := []Step{StepTLS, StepGreeting, StepLogin, StepCapability, StepEntry}; !slices.Equal(steps(list), want) {
		t.Errorf("steps %q, want %q", steps(list), want)
	}
}

func examineRefused(t *testing.T, s *dovecot.Server) {
	list := examined(t.Context(), on(t, s, func(o *Options) { o.Auth.Secret = secretIs("wrong") }), "alice", Examination{Probe: true, Token: "x"})
	if want := []Step{StepGreeting, StepLogin}; !slices.Equal(steps(list), want) {
		t.Fatalf("steps %q, want %q", steps(list), want)
	}
	if err := list[1].Err; !errors.Is(err, ErrLogin) || KindOf(err) != Server {
		t.Errorf("error %v", err)
	}
}

func greetOnly(t *testing.T, s *dovecot.Server) {
	var list []Found
	on(t, s, overTLS(s, &tls.Config{})).Greet(t.Context(), func(f Found) { list = append(list, f) })
	if want := []Step{StepTLS, StepGreeting}; !slices.Equal(steps(list), want) || list[1].Err != nil {
		t.Errorf("found %+v", list)
	}
}

// trigger is a connection that ends a context when the reply to a SETMETADATA
// comes.
type trigger struct {
	net.Conn
	end context.CancelFunc
}

func (c *trigger) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if bytes.Contains(p[:n], []byte("Setmetadata completed")) {
		c.end()
	}
	return n, err
}

func probeInterrupted(t *testing.T, s *dovecot.Server) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c := on(t, s)
	dial := c.dial
	c.dial = func(dialing context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(dialing, network, address)
		return &trigger{conn, cancel}, err
	}
	list := examined(ctx, c, "alice", Examination{Probe: true, Token: "token"})
	last := list[len(list)-1]
	if last.Step != StepProbe || !errors.Is(last.Err, context.Canceled) {
		t.Errorf("the last step is %s: %v", last.Step, last.Err)
	}
	if text := kept(t, s, "alice"); strings.Contains(text, "vendor.dovepush") {
		t.Errorf("the probe stayed: %q", text)
	}
}

func TestAnExaminationTellsWhichSettingIsMissing(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]dovecot.Options{"imap_metadata = yes": {NoMetadata: true}, "mail_attribute": {NoDict: true}} {
		o.Users = people
		dovecottest.Each(t, o, func(t *testing.T, s *dovecot.Server) {
			list := examined(t.Context(), on(t, s), "alice", Examination{Probe: true, Token: "x"})
			last := list[len(list)-1]
			var e *Error
			if last.Step != StepCapability || !errors.As(last.Err, &e) || !errors.Is(e, ErrNoMetadata) || !strings.Contains(e.Hint, name) {
				t.Errorf("the last step is %+v, want the hint %q", last, name)
			}
		})
	}
}
