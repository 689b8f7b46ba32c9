package notify

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dovepush/registry"
)

// The real one fits.
var _ = ProverOptions{Prove: (*registry.Registry)(nil).Prove}

// proving is a running Prover on a test's own clock.
type proving struct {
	*Prover
	t       *testing.T
	began   time.Time
	calls   []call
	mu      sync.Mutex
	slept   time.Duration
	counts  map[string]int
	fail    error
	unknown map[string]bool
	log     syncBuffer
	stop    func() error
	busy    time.Duration // how long a call takes
}

// A call of Prove: when, whom, and with which times.
type call struct {
	at    time.Duration
	names []string
	times []time.Duration
}

// prove runs a test of a Prover within a bubble of its own time.
func prove(t *testing.T, o ProverOptions, test func(p *proving)) {
	synctest.Test(t, func(t *testing.T) {
		p := &proving{t: t, began: time.Now(), counts: map[string]int{}, unknown: map[string]bool{}}
		o.Prove = p.prove
		o.Observe = func(result string, n int) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.counts[result] += n
		}
		o.Log = slog.New(slog.NewTextHandler(&p.log, nil))
		p.Prover = NewProver(o)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		stopped := false
		p.stop = func() error {
			stopped = true
			cancel()
			return <-done
		}
		test(p)
		if !stopped {
			_ = p.stop()
		}
	})
}

func (p *proving) prove(ctx context.Context, proofs ...registry.Proof) ([]bool, error) {
	c := call{at: time.Since(p.began)}
	for _, proof := range proofs {
		c.names = append(c.names, strings.Join(proof.Names, "|"))
		c.times = append(c.times, proof.At.Sub(p.began))
	}
	p.mu.Lock()
	p.calls = append(p.calls, c)
	busy := p.busy
	p.mu.Unlock()
	if !pause(ctx, busy) {
		return nil, ctx.Err()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil {
		return nil, p.fail
	}
	known := make([]bool, len(proofs))
	for i := range known {
		known[i] = !p.unknown[c.names[i]]
	}
	return known, nil
}

func (p *proving) add(users ...string) {
	for _, user := range users {
		p.Add(Notification{User: user, Sent: user, Received: time.Now()})
	}
}

// sleep lets time pass, and Run do what it does by then.
func (p *proving) sleep(d time.Duration) {
	p.mu.Lock() // what the test did before goes before what Run does meanwhile
	p.slept += d
	p.mu.Unlock()
	time.Sleep(d)
	synctest.Wait()
}

func (p *proving) want(calls ...call) {
	p.t.Helper()
	if !reflect.DeepEqual(p.calls, calls) {
		p.t.Errorf("calls %+v\nwant  %+v", p.calls, calls)
	}
}

const second = time.Second

func TestProofsOfAWindowGoTogetherWithTheNewestTime(t *testing.T) {
	prove(t, ProverOptions{}, func(p *proving) {
		p.sleep(10 * second)
		p.add("alice")
		p.sleep(second / 2)
		p.add("bob", "alice")
		p.Add(Notification{Sent: "alice", Received: p.began}) // an older one changes nothing
		p.sleep(10 * second)
		p.want(call{11 * second, []string{"alice", "bob"}, []time.Duration{10*second + second/2, 10*second + second/2}})
		if p.counts["proven"] != 2 || len(p.counts) != 1 {
			t.Errorf("counts %v", p.counts)
		}
	})
}

func TestWhoWasProvenWaitsAMinuteAndLosesNothing(t *testing.T) {
	prove(t, ProverOptions{}, func(p *proving) {
		for range 90 * 10 { // 90 s of it
			p.add("busy")
			p.sleep(second / 10)
		}
		p.add("other")
		p.sleep(10 * time.Minute)
		want := []time.Duration{second, 62 * second, 91 * second, 123 * second}
		var got []time.Duration
		for _, c := range p.calls {
			got = append(got, c.at)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("calls %+v", p.calls)
		}
		if last := p.calls[3]; last.names[0] != "busy" || last.times[0] != 90*second-second/10 {
			t.Errorf("the last notification is not proven: %+v", last)
		}
		if len(p.users) != 0 || len(p.quiet) != 0 {
			t.Errorf("%d users and %d quiet ones are remembered", len(p.users), len(p.quiet))
		}
	})
}

func TestWhoIsUnknownIsProvenTheMomentHeIsRegistered(t *testing.T) {
	prove(t, ProverOptions{}, func(p *proving) {
		p.unknown["alice"] = true
		p.add("alice", "bob")
		p.sleep(5 * second)
		if len(p.users) != 1 {
			t.Errorf("%d users are remembered", len(p.users))
		}
		delete(p.unknown, "alice")
		p.add("alice")
		p.sleep(5 * second)
		if p.counts["proven"] != 2 || p.counts["unknown"] != 1 || len(p.calls) != 2 || p.calls[1].at != 6*second {
			t.Errorf("counts %v, calls %+v", p.counts, p.calls)
		}
	})
}

func TestAnUnknownUserWithManyMailsDoesNotKeepTheRegistryBusy(t *testing.T) {
	prove(t, ProverOptions{}, func(p *proving) {
		p.unknown["mallory"] = true
		p.busy = time.Millisecond
		for range 10_000 {
			p.add("mallory")
			p.sleep(time.Millisecond)
		}
		if len(p.calls) > 10 {
			t.Errorf("%d calls within 10 s", len(p.calls))
		}
	})
}

func TestAFloodIsWrittenAtABoundedRate(t *testing.T) {
	prove(t, ProverOptions{}, func(p *proving) {
		for i := range 10_000 {
			p.add(fmt.Sprint("user", i))
		}
		p.sleep(6 * second)
		for i, c := range p.calls {
			if len(c.names) != 500 || c.at != second+time.Duration(i)*250*time.Millisecond {
				t.Fatalf("call %d at %v with %d", i, c.at, len(c.names))
			}
		}
		if p.counts["proven"] != 10_000 {
			t.Errorf("counts %v", p.counts)
		}
	})
}

func TestUsersAreBounded(t *testing.T) {
	prove(t, ProverOptions{Most: 3}, func(p *proving) {
		p.add("a", "b", "c", "d", "a", "b", "e")
		p.sleep(2 * second)
		p.want(call{second, []string{"a", "b", "c"}, make([]time.Duration, 3)})
		if p.counts["dropped"] != 2 {
			t.Errorf("counts %v", p.counts)
		}
		// Those who were proven make room for others.
		p.add("d", "e")
		p.sleep(2 * second)
		if len(p.users) != 3 || p.counts["proven"] != 5 || p.counts["dropped"] != 2 {
			t.Errorf("%d users, counts %v", len(p.users), p.counts)
		}
		// But what has come for them is not lost.
		p.add("c", "d", "e", "f")
		p.sleep(2 * second)
		if got := p.calls[len(p.calls)-1].names; !slices.Equal(got, []string{"c", "d", "e"}) || p.counts["dropped"] != 3 {
			t.Errorf("%v, counts %v", got, p.counts)
		}
	})
}

func TestNamesAreThoseOfTheInstallation(t *testing.T) {
	prove(t, ProverOptions{Names: func(n Notification) []string { return []string{n.User, "id-of-" + n.User} }}, func(p *proving) {
		p.Add(Notification{User: "alice", Sent: "alice~MAC", Received: p.began})
		p.sleep(2 * second)
		p.want(call{second, []string{"alice|id-of-alice"}, []time.Duration{0}})
	})
}

func TestARegistrationIsProvenInARealRegistry(t *testing.T) {
	r, err := registry.Open(t.Context(), filepath.Join(t.TempDir(), "registry.db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.Intend(t.Context(), registry.Intent{Key: registry.Key{User: "alice", Server: "main"}, Identity: "alice", Value: "user=alice", Wanted: registry.Present}); err != nil {
		t.Fatal(err)
	}
	done := make(chan string, 2)
	p := NewProver(ProverOptions{Prove: r.Prove, Every: time.Millisecond, Observe: func(result string, _ int) { done <- result }})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- p.Run(ctx) }()
	p.Add(Notification{Sent: "alice", Received: noon})
	if result := <-done; result != "proven" {
		t.Error(result)
	}
	p.Add(Notification{Sent: "nobody", Received: noon})
	if result := <-done; result != "unknown" {
		t.Error(result)
	}
	cancel()
	<-ended
	reg, found, err := r.Get(t.Context(), registry.Key{User: "alice", Server: "main"})
	if err != nil || !found || !reg.ProvenAt.Equal(noon) {
		t.Errorf("%+v, %t, %v", reg, found, err)
	}
	if _, err := r.Prove(t.Context(), registry.Proof{Names: []string{"alice"}, At: noon}); errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
