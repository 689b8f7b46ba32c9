package notify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestWhatTheRegistryDoesNotTakeIsTriedAgain(t *testing.T) {
	prove(t, ProverOptions{}, func(p *proving) {
		p.fail = errors.New("registry is busy")
		p.add("alice")
		p.sleep(2 * second)
		p.add("alice", "bob")
		p.sleep(time.Minute)
		var at []time.Duration
		for _, c := range p.calls {
			at = append(at, c.at)
		}
		if want := []time.Duration{second, 2 * second, 4 * second, 8 * second, 16 * second, 32 * second, 62 * second}; !slices.Equal(at, want) {
			t.Errorf("calls at %v", at)
		}
		p.fail = nil
		p.sleep(time.Minute)
		if c := p.calls[len(p.calls)-1]; !slices.Contains(c.names, "alice") || !slices.Contains(c.names, "bob") || c.times[0] != 2*second {
			t.Errorf("last call %+v", c)
		}
		if log := p.log.String(); strings.Count(log, "level=ERROR") != 1 || strings.Count(log, "level=INFO") != 1 || !strings.Contains(log, "registry is busy") {
			t.Errorf("log %s", log)
		}
		if p.counts["proven"] != 2 || p.counts["failed"] == 0 {
			t.Errorf("counts %v", p.counts)
		}
	})
}

func TestAtTheEndWhatIsPendingIsWritten(t *testing.T) {
	prove(t, ProverOptions{}, func(p *proving) {
		p.add("quiet")
		p.sleep(2 * second)
		p.add("quiet", "new")
		for i := range 2000 {
			p.add(fmt.Sprint("user", i))
		}
		began := time.Now()
		if err := p.stop(); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if took := time.Since(began); p.counts["proven"] != 2003 || took > 0 {
			t.Errorf("after %v, counts %v", took, p.counts)
		}
	})
}

func TestTheEndIsBounded(t *testing.T) {
	prove(t, ProverOptions{}, func(p *proving) {
		p.busy = time.Hour
		p.add("alice", "bob")
		p.sleep(3 * second) // the first call is under way
		began := time.Now()
		_ = p.stop()
		if took := time.Since(began); took != flushTime || p.counts["dropped"] != 2 || !strings.Contains(p.log.String(), "not in the registry") {
			t.Errorf("after %v, counts %v, log %s", took, p.counts, p.log.String())
		}
	})
}

func TestWhatComesWhileTheRegistryFailsIsNotLost(t *testing.T) {
	prove(t, ProverOptions{}, func(p *proving) {
		p.busy, p.fail = second, errors.New("registry is busy")
		p.add("alice")
		p.sleep(second + second/2) // the first call is under way
		p.add("alice")
		p.sleep(second)
		p.fail = nil
		p.sleep(10 * second)
		if c := p.calls[len(p.calls)-1]; len(p.calls) != 2 || c.times[0] != second+second/2 {
			t.Errorf("calls %+v", p.calls)
		}
	})
}
