package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestRunEndsWhenItsRegistryIsRemoved(t *testing.T) {
	for _, underWay := range []bool{false, true} {
		t.Run(fmt.Sprintf("while somebody is worked on %t", underWay), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t, time.Now)
				log := new(journal)
				weather := h.weather(nil)
				a := h.agent(logsTo(log))
				ended := make(chan error, 1)
				go func() { ended <- a.Run(t.Context()) }()
				submit(t, a, Request{User: "alice", Expires: time.Minute})
				time.Sleep(5 * time.Second)
				if underWay {
					weather.now(takes(10 * time.Second))
					submit(t, a, verify("alice"))
				}
				time.Sleep(5 * time.Second)
				for _, suffix := range []string{"", "-wal", "-shm"} {
					if err := os.Remove(h.path + suffix); err != nil {
						t.Fatal(err)
					}
				}
				if err := <-ended; !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), h.path) {
					t.Errorf("Run returned %v", err)
				}
				if lines := log.lines("forgotten"); len(lines) != 0 {
					t.Errorf("said %q", lines)
				}
			})
		})
	}
}

// SQLite waits by the bubble's clock, too.
func TestRunGoesOnTryingARegistryThatIsLocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		log, told := new(journal), new(observer)
		b := newMailbox()
		a := h.agent(twoServers(b), logsTo(log), func(o *Options) { o.Observe = told })
		h.run(a)
		// Somebody is due while it is locked; the other server has nothing to do.
		submit(t, a, Request{User: "leaver", Expires: time.Minute})
		submit(t, a, register("other@b.test"))
		time.Sleep(30 * time.Second)
		unlock, err := lock(context.Background(), h.path)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		if err := a.Healthy(); err != nil {
			t.Error(err)
		}
		if err := unlock(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		h.box.holds(t, "leaver", "")
		h.unclaimed(a.options.Registry)
		if lines := log.lines("level=ERROR"); len(lines) != 1 || !strings.Contains(lines[0], "registry cannot be used") {
			t.Errorf("said %q", lines)
		}
		if lines := log.lines("registry works again"); len(lines) != 1 {
			t.Errorf("said %q", lines)
		}
		if _, failed := told.told(); len(failed) < 10 || len(failed) > 40 {
			t.Errorf("the observer was told of %q", failed)
		}
		submit(t, a, register("bob"))
		time.Sleep(time.Second)
		h.box.holds(t, "bob", "user=bob")
	})
}

func TestRegistryThatIsLockedForARecordWorksAgainWithTheNextWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, time.Now)
		log := new(journal)
		unlocked := make(chan error, 1)
		h.box.wrote = func(_ context.Context, user string) error {
			if user != "alice" {
				return nil
			}
			unlock, err := lock(context.Background(), h.path)
			if err == nil {
				time.AfterFunc(25*time.Second, func() { unlocked <- unlock() })
			}
			return err
		}
		a := h.agent(logsTo(log))
		h.run(a)
		submit(t, a, register("alice"))
		if err := <-unlocked; err != nil {
			t.Fatal(err)
		}
		if failed, works := log.lines("registry cannot be used"), log.lines("registry works again"); len(failed) != 1 || len(works) != 0 {
			t.Errorf("said %q, %q", failed, works)
		}
		submit(t, a, register("bob"))
		time.Sleep(time.Second)
		if works := log.lines("registry works again"); len(works) != 1 {
			t.Errorf("said %q", works)
		}
	})
}

func TestHealthyWhileItWaits(t *testing.T) {
	for name, row := range map[string]struct {
		users []string
		hook  func(context.Context, string) error
		wait  time.Duration
	}{
		"idle for a day":     {nil, nil, 24 * time.Hour},
		"for a hung server":  {users("a.test", 5), hangs, MaxTimeout / 2},
		"for a server again": {users("a.test", 5), fails(errMaster), time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t, time.Now)
				h.box.reading = row.hook
				a := h.agent(connections(1), seldom, func(o *Options) { o.Servers[0].Timeout = MaxTimeout })
				h.intend(a.options.Registry, row.users...)
				if err := a.Healthy(); err != nil {
					t.Errorf("before Run: %v", err)
				}
				h.run(a)
				for range 10 {
					time.Sleep(row.wait / 10)
					if err := a.Healthy(); err != nil {
						t.Error(err)
					}
				}
			})
		})
	}
}

// A look at the registry's clock that does not end keeps the keeper inside a
// look at the registry, as a disk that hangs does.
func TestNotHealthyWhenAKeeperIsStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var hangs atomic.Bool
		goOn := make(chan struct{})
		h := newHouse(t, func() time.Time {
			if hangs.Load() {
				<-goOn
			}
			return time.Now()
		})
		a := h.agent(func(o *Options) { o.Now = time.Now })
		h.run(a)
		submit(t, a, Request{User: "alice", Expires: time.Minute})
		time.Sleep(time.Minute - time.Second)
		hangs.Store(true)
		time.Sleep(time.Second + maxStill)
		if err := a.Healthy(); err != nil {
			t.Errorf("too soon: %v", err)
		}
		time.Sleep(time.Second)
		if err := a.Healthy(); err == nil || !strings.Contains(err.Error(), `server "main"`) {
			t.Errorf("healthy: %v", err)
		}
		hangs.Store(false)
		close(goOn)
		time.Sleep(time.Second)
		if err := a.Healthy(); err != nil {
			t.Errorf("turns again: %v", err)
		}
	})
}
