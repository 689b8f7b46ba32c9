package api

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"dovepush/agent"
	"dovepush/registry"
)

const alice = registrations + "/alice"

func TestRegistering(t *testing.T) {
	everywhere(t, func(t *testing.T, network string) {
		s := start(t, network)
		var last agent.Request
		s.agent.asked = func(r agent.Request) { last = r }
		got := s.want(202, "PUT", alice, "")
		got.holds(t, `"state":"pending"`, `"identity":"alice"`, `"value":"user=alice"`)
		s.want(200, "PUT", alice+"?wait=1m", "").holds(t, `"state":"registered"`)
		s.want(202, "PUT", alice, `{"identity":"3@7","expires_in":"720h","force":true}`).holds(t, `"identity":"3@7"`, `"expires_at":"2026-03-31T12:`)
		if want := (agent.Request{Action: agent.Register, User: "alice", Identity: "3@7", Expires: 720 * time.Hour, Force: true}); last != want {
			t.Errorf("asked for %+v", last)
		}
		// Each PUT says the whole wish.
		got = s.want(202, "PUT", alice, `{}`)
		got.holds(t, `"identity":"alice"`)
		if strings.Contains(got.body, "expires_at") || last.Force {
			t.Errorf("kept of the wish before: %s %+v", got.body, last)
		}
		s.want(200, "GET", alice, "").holds(t, `"identity":"alice"`, `"state":"pending"`)
	})
}

func TestThePutThatIsRepeatedChangesNothingMore(t *testing.T) {
	s := start(t, "unix")
	s.want(200, "PUT", alice+"?wait=5s", "")
	s.want(200, "PUT", alice+"?wait=5s", "").holds(t, `"state":"registered"`)
	s.want(202, "PUT", alice, "").holds(t, `"state":"registered"`) // it is, as far as anybody knows
}

func TestWhatComesOfIt(t *testing.T) {
	for _, row := range []struct {
		method, path string
		work         func(registry.Registration) registry.Result
		status       int
		holds        string
	}{
		{"PUT", alice, succeeds, 200, `"state":"registered"`},
		{"PUT", alice, conflicts, 200, `"state":"conflict"`},
		{"PUT", alice, cannotConnect, 200, `"error":{"kind":"retry","message":"connection refused"}`},
		{"POST", alice + "/verify", succeeds, 200, `"state":"registered"`},
		{"POST", alice + "/verify", conflicts, 200, `"state":"conflict"`},
		{"DELETE", alice, succeeds, 204, ``},
		{"DELETE", alice, conflicts, 200, `"state":"conflict"`},
		{"DELETE", alice, cannotConnect, 200, `"state":"removing"`},
	} {
		t.Run(row.method+" "+row.holds, func(t *testing.T) {
			s := start(t, "tcp")
			s.want(202, "PUT", alice, "")
			s.agent.work = row.work
			s.want(row.status, row.method, row.path+"?wait=1s", "").holds(t, row.holds)
		})
	}
}

func TestNobodyWorksWithinTheWait(t *testing.T) {
	s := start(t, "unix")
	s.agent.work = nil
	s.want(202, "PUT", alice+"?wait=1ms", "").holds(t, `"state":"pending"`)
	s.want(202, "POST", alice+"/verify?wait=1ms", "").holds(t, `"state":"pending"`)
	s.want(202, "DELETE", alice+"?wait=1ms", "").holds(t, `"state":"removing"`)
}

func TestUnregistering(t *testing.T) {
	everywhere(t, func(t *testing.T, network string) {
		s := start(t, network)
		var last agent.Request
		s.agent.asked = func(r agent.Request) { last = r }
		s.want(202, "PUT", alice, "")
		s.want(202, "DELETE", alice, "").holds(t, `"state":"removing"`, `"wanted":"absent"`)
		s.want(200, "GET", alice, "")
		s.want(204, "DELETE", alice+"?force=true&wait=5s", "")
		if want := (agent.Request{Action: agent.Unregister, User: "alice", Force: true}); last != want {
			t.Errorf("asked for %+v", last)
		}
		s.want(404, "GET", alice, "").holds(t, "x-problems/not-registered")
		s.want(204, "DELETE", alice+"?force=false&wait=5s", "") // again
		s.want(202, "DELETE", registrations+"/stranger", "").holds(t, `"state":"removing"`)
	})
}

func TestUnregisteringIsDoneWhenTheRowIsGoneAtOnce(t *testing.T) {
	s := start(t, "unix")
	s.agent.between = func(key registry.Key) { _ = s.agent.settle(key) }
	s.want(204, "DELETE", alice, "")
}

func TestVerifying(t *testing.T) {
	s := start(t, "unix")
	s.want(404, "POST", alice+"/verify", "").holds(t, "x-problems/not-registered", `"kind":"user"`)
	s.want(202, "PUT", alice, "")
	var last agent.Request
	s.agent.asked = func(r agent.Request) { last = r }
	s.want(202, "POST", alice+"/verify", "")
	if last != (agent.Request{Action: agent.Verify, User: "alice"}) {
		t.Errorf("asked for %+v", last)
	}
	s.want(202, "DELETE", alice, "")
	s.want(404, "POST", alice+"/verify?wait=5s", "") // what is being removed is gone then
}

func TestOvertakenByAnUnregister(t *testing.T) {
	s := start(t, "unix")
	s.agent.between = func(key registry.Key) {
		err := s.registry.Intend(context.Background(), registry.Intent{Key: key, Wanted: registry.Absent})
		if err := errors.Join(err, s.agent.settle(key)); err != nil {
			t.Error(err)
		}
	}
	s.want(409, "PUT", alice+"?wait=5s", "").holds(t, "x-problems/overtaken")
	s.want(409, "PUT", alice, "")
}

func TestWaitingEndsWithTheService(t *testing.T) {
	stopping, stop := context.WithCancel(t.Context())
	s := start(t, "unix", func(o *Options) { o.Stopping = stopping })
	s.agent.work, s.agent.awaiting, s.agent.ended = nil, make(chan struct{}, 1), make(chan error, 1)
	go func() {
		<-s.agent.awaiting
		stop()
	}()
	s.want(202, "PUT", alice+"?wait=60s", "").holds(t, `"state":"pending"`)
	if err := <-s.agent.ended; !errors.Is(err, context.Canceled) {
		t.Errorf("waiting ended with %v", err)
	}
	s.agent.awaiting = nil
	s.want(202, "PUT", alice+"?wait=60s", "") // nobody waits any more
}

func TestWaitingEndsWithTheClient(t *testing.T) {
	everywhere(t, func(t *testing.T, network string) {
		s := start(t, network)
		s.agent.work, s.agent.awaiting, s.agent.ended = nil, make(chan struct{}, 1), make(chan error, 1)
		ctx, hangUp := context.WithCancel(t.Context())
		go func() {
			<-s.agent.awaiting
			hangUp()
		}()
		s.askWith(ctx, "PUT", alice+"?wait=60s", strings.NewReader(`{"identity":"a"}`))
		if err := <-s.agent.ended; !errors.Is(err, context.Canceled) {
			t.Errorf("waiting ended with %v", err)
		}
		s.want(200, "GET", alice, "").holds(t, `"identity":"a"`) // it stands nevertheless
	})
}

func TestOnlySoManyWait(t *testing.T) {
	stopping, stop := context.WithCancel(t.Context())
	s := start(t, "tcp", func(o *Options) { o.Stopping = stopping })
	s.handler.waiting = make(chan struct{}, 2)
	s.agent.work, s.agent.awaiting = nil, make(chan struct{})
	done := make(chan reply)
	for i := range 2 {
		go func() { done <- s.ask("PUT", fmt.Sprintf("%s%d?wait=60s", alice, i), "") }()
		<-s.agent.awaiting
	}
	s.want(202, "PUT", alice+"?wait=60s", "") // would wait a minute, and nobody takes from awaiting
	s.want(202, "PUT", alice, "")
	stop()
	for range 2 {
		if got := <-done; got.status != 202 {
			t.Errorf("who waited got %d %s", got.status, got.body)
		}
	}
	if len(s.handler.waiting) != 0 {
		t.Error("a place is not given back")
	}
}

func TestAnOutcomeThatCannotBeReadLeavesTheRequestAccepted(t *testing.T) {
	s := start(t, "unix")
	s.agent.blind = errors.New("registry /secret/path: get: disk I/O error")
	if got := s.want(202, "PUT", alice+"?wait=5s", ""); strings.Contains(got.body, "secret") {
		t.Error(got.body)
	}
	if log := s.log.String(); strings.Count(log, "level=ERROR") != 1 || !strings.Contains(log, "/secret/path") {
		t.Errorf("log: %s", log)
	}
}

// TestABodyThatIsTooLongNeedNotBeSent: who asks first (Expect: 100-continue)
// gets the answer at once.
func TestABodyThatIsTooLongNeedNotBeSent(t *testing.T) {
	s := start(t, "tcp")
	conn, err := s.client.Transport.(*http.Transport).DialContext(t.Context(), "tcp", "")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "PUT %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", alice, maxBody+1)
	if line, err := bufio.NewReader(conn).ReadString('\n'); !strings.Contains(line, " 413 ") {
		t.Errorf("%q %v", line, err)
	}
}

// endless is a body of unknown length that goes on for ever.
type endless struct{ prefix io.Reader }

func (e endless) Read(p []byte) (int, error) {
	if n, err := e.prefix.Read(p); err == nil {
		return n, nil
	}
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

func TestBodiesAreBounded(t *testing.T) {
	everywhere(t, func(t *testing.T, network string) {
		s := start(t, network)
		s.agent.asked = func(r agent.Request) { t.Errorf("asked for %+v", r) }
		s.want(413, "PUT", alice, `{"identity":"`+strings.Repeat("a", maxBody)+`"}`)
		got := s.askWith(t.Context(), "PUT", alice, endless{strings.NewReader(`{}`)}, "Content-Type", "application/json")
		if got.status != http.StatusRequestEntityTooLarge {
			t.Errorf("a body without end: %d %s", got.status, got.body)
		}
		if got := s.askWith(t.Context(), "DELETE", alice, endless{strings.NewReader(`{}`)}); got.status != 400 {
			t.Errorf("a body without end for DELETE: %d %s", got.status, got.body)
		}
		s.agent.asked = nil
		s.want(202, "PUT", alice, `{}`+strings.Repeat(" ", maxBody-2)) // just fits
	})
}
