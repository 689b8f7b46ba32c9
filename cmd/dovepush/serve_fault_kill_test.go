package main

import (
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dovepush/internal/dovecot"
)

// Killed at random moments while the API takes changes, the service carries
// out in the end whatever it acknowledged.
func TestKilledAHundredTimesTheServiceLosesNothing(t *testing.T) {
	everyWay(t, dovecot.Options{Users: numbered(40)}, func(t *testing.T, w *site) {
		seed := uint64(time.Now().UnixNano())
		t.Logf("seed %d", seed)
		random := rand.New(rand.NewPCG(seed, 0))
		ws := newWishes()
		// A claim lasts for longer than eventually waits: it must be taken over.
		w.write("config.toml", strings.Replace(w.read("config.toml"), `timeout = "20s"`, `timeout = "5m"`, 1))
		w.more(impatient)
		tookOver, acknowledged := 0, 0
		for round := range 100 {
			r := w.launch()
			var clients sync.WaitGroup
			var mu sync.Mutex
			if round%10 != 9 { // else it is killed while it starts
				r.told("READY=1")
				for client := range 4 {
					random := rand.New(rand.NewPCG(seed, random.Uint64()))
					clients.Go(func() {
						for n := 0; ; n++ {
							user := names(40)[10*client+random.IntN(10)]
							identity := ""
							if random.IntN(3) > 0 {
								identity = strconv.Itoa(round) + "." + strconv.Itoa(n)
							}
							if !r.wish(ws, user, identity) {
								return
							}
							mu.Lock()
							acknowledged++
							mu.Unlock()
						}
					})
				}
			}
			time.Sleep(time.Duration(random.Int64N(int64(300 * time.Millisecond))))
			r.kill(syscall.SIGKILL)
			clients.Wait()
			tookOver += strings.Count(r.log.String(), "took over")
		}
		r := w.start()
		w.settles(ws)
		tookOver += strings.Count(r.log.String(), "took over")
		t.Logf("%d changes were acknowledged, claims were taken over %d times", acknowledged, tookOver)
		if acknowledged < 50 || tookOver == 0 {
			t.Error("that proves nothing")
		}
		r.stop()
	})
}

// Restarted every second for a minute, Dovecot has everybody right in the end.
func TestDovecotIsRestartedAgainAndAgain(t *testing.T) {
	const clients, each, lasts = 4, 250, time.Minute
	everyWay(t, dovecot.Options{Users: numbered(clients * each)}, func(t *testing.T, w *site) {
		ws := newWishes()
		w.more(impatient)
		r := w.start()
		began := time.Now()
		var all sync.WaitGroup
		for client := range clients {
			all.Go(func() {
				ticks := time.NewTicker(lasts / each)
				defer ticks.Stop()
				users := names(clients * each)[client*each:][:each]
				for i, user := range users {
					select {
					case <-ticks.C:
					case <-t.Context().Done():
						return
					}
					if !r.wish(ws, user, user) {
						t.Errorf("%s: there was no answer", user)
					}
					if i%5 == 4 && !r.wish(ws, users[i-rand.IntN(i)], "") {
						t.Errorf("%s: there was no answer", user)
					}
				}
			})
		}
		restarts := 0
		for time.Since(began) < lasts {
			time.Sleep(time.Second)
			if err := w.s.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			restarts++
		}
		all.Wait()
		w.settles(ws)
		t.Logf("%d restarts", restarts)
		r.stop()
	})
}
