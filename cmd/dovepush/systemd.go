package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// tell reports a state to systemd, if it listens (sd_notify(3)).
func (s *service) tell(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil && !s.deaf.Swap(true) {
		s.log.Warn("systemd does not listen", "err", err)
	}
}

// reloading is what Type=notify-reload wants to know (systemd.service(5)).
func reloading() string { return daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec() }

// statusEvery is how often systemctl status learns how it goes.
const statusEvery = 30 * time.Second

// report feeds systemd's watchdog as long as the agent turns, and its status
// line, until ctx is over.
func (s *service) report(ctx context.Context) {
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		s.log.Warn("systemd's watchdog", "err", err)
	}
	var feed <-chan time.Time
	if watchdog > 0 {
		ticks := time.NewTicker(watchdog / 2)
		defer ticks.Stop()
		feed = ticks.C
		s.tell(daemon.SdNotifyWatchdog)
	}
	status := time.NewTicker(statusEvery)
	defer status.Stop()
	s.tell("STATUS=" + s.line(ctx))
	for {
		select {
		case <-ctx.Done():
			return
		case <-feed:
			if err := s.healthy(); err != nil {
				s.log.Error("not healthy, leaving it to systemd's watchdog", "err", err)
				continue
			}
			s.tell(daemon.SdNotifyWatchdog)
		case <-status.C:
			s.tell("STATUS=" + s.line(ctx))
		}
	}
}

// line says in one line how it goes.
func (s *service) line(ctx context.Context) string {
	backlogs, err := s.registry.Backlogs(ctx)
	if err != nil {
		return "the registry cannot be read"
	}
	var due, retrying int64
	for _, b := range backlogs {
		due, retrying = due+b.Due, retrying+b.Retrying
	}
	var failing []string
	for _, l := range s.now.Load().Loads() {
		if l.CircuitOpen {
			failing = append(failing, printable(l.Server))
		}
	}
	text := fmt.Sprintf("%d due, %d to be tried again", due, retrying)
	if len(failing) > 0 {
		text += "; failing for everybody: " + strings.Join(failing, ", ")
	}
	if s.refused.Load() {
		text += "; the newest settings are wrong, see the log"
	}
	return text
}
