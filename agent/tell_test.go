package agent

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dovepush/imapmeta"
)

func TestFailingUserIsLoggedWhenThatChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		log := new(journal)
		weather := h.weather(fails(errBusy))
		const every = time.Hour
		a := h.agent(logsTo(log), seldom, func(o *Options) { o.VerifyEvery, o.Random = every, func() float64 { return 0 } })
		h.run(a)
		submit(t, a, register("alice"))
		say := func(after string, n int, want ...string) {
			t.Helper()
			time.Sleep(time.Second)
			synctest.Wait()
			lines := log.lines("user=alice")
			if len(h.box.updated()) < n {
				t.Fatalf("%s: %d Updates, want %d", after, len(h.box.updated()), n)
			}
			if !slices.EqualFunc(lines, want, strings.Contains) {
				t.Errorf("%s, said %q; want %q", after, lines, want)
			}
		}
		time.Sleep(10 * retryInitial)
		failed := "level=WARN msg=failed"
		say("10 temporary failures", 10, failed)
		weather.now(fails(errNologin))
		time.Sleep(3 * every)
		say("hours without login", 13, failed, failed)
		weather.now(nil)
		time.Sleep(every)
		settled := "level=INFO msg=settled"
		say("recovering", 14, failed, failed, settled)
		time.Sleep(3 * every)
		say("hours in which all is well", 17, failed, failed, settled)
		h.box.set("alice", imapmeta.Absent)
		time.Sleep(every)
		drift := `level=WARN msg="the entry had drifted, mended"`
		say("drift", 18, failed, failed, settled, drift)
		h.box.set("alice", "user=somebody")
		time.Sleep(3 * every)
		conflict := `level=WARN msg="conflict, the entry was kept"`
		say("somebody else's value for hours", 21, failed, failed, settled, drift, conflict)
		submit(t, a, Request{Action: Unregister, User: "alice", Force: true})
		say("unregistering", 22, failed, failed, settled, drift, conflict, "level=INFO msg=unregistered")
	})
}

func TestServerThatFailsForEverybodyIsLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		log := new(journal)
		refused := *errMaster
		refused.Hint = "check master_user and its password"
		weather := h.weather(func(ctx context.Context, user string) error { // several are under way at the first failure
			if err := takes(time.Second)(ctx, user); err != nil {
				return err
			}
			return nil
		})
		a := h.agent(connections(8), logsTo(log))
		h.intend(a.options.Registry, users("a.test", 100)...)
		h.run(a)
		time.Sleep(5 * time.Second)
		weather.now(fails(&refused))
		time.Sleep(10 * time.Minute)
		if lines := log.lines("level=ERROR"); len(lines) != 1 || !strings.Contains(lines[0], "server=main") || !strings.Contains(lines[0], refused.Hint) || !strings.Contains(lines[0], "Authentication failed.") {
			t.Errorf("said %q", lines)
		}
		if lines := log.lines("level=WARN"); len(lines) != 0 {
			t.Errorf("said %q", lines)
		}
		weather.now(nil)
		time.Sleep(10 * time.Minute)
		if lines := log.lines("server works again"); len(lines) != 1 {
			t.Errorf("said %q", lines)
		}
		h.registered(a.options.Registry, 100)

		// Names stand in the attributes, so that messages can be counted.
		for _, line := range log.lines("msg=") {
			if message := regexp.MustCompile(`msg=("[^"]*"|\S+)`).FindString(line); strings.ContainsAny(message, "@0123456789") {
				t.Errorf("said %q", line)
			}
		}
	})
}

// Those who were under way when the server went down are not told of one by
// one: they could be as many as there are connections.
func TestServerThatIsDownIsLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		log := new(journal)
		var down atomic.Bool
		h.box.reading = func(ctx context.Context, user string) error {
			if err := takes(time.Second)(ctx, user); err != nil || !down.Load() {
				return err
			}
			return errUnreached
		}
		a := h.agent(connections(16), logsTo(log))
		h.intend(a.options.Registry, users("a.test", 100)...)
		h.run(a)
		time.Sleep(2500 * time.Millisecond)
		down.Store(true)
		time.Sleep(10 * time.Minute)
		if lines := log.lines("level=ERROR"); len(lines) != 1 {
			t.Errorf("said %q", lines)
		}
		if lines := log.lines("level=WARN"); len(lines) > maxUnreached-1 { // before it was known to be down
			t.Errorf("said %q", lines)
		}
	})
}
