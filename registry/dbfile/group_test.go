package dbfile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// ledger is what a Group had carried out: the pieces of each transaction.
type ledger struct {
	mu      sync.Mutex
	batches [][]string
	fails   map[string]error
	whole   error
	takes   time.Duration
}

func (l *ledger) transact(ctx context.Context, work []string) (error, bool) {
	if l.takes > 0 {
		select {
		case <-ctx.Done():
			return ctx.Err(), false
		case <-time.After(l.takes):
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.batches = append(l.batches, slices.Clone(work))
	for _, w := range work {
		if err := l.fails[w]; err != nil {
			return err, true
		}
	}
	return l.whole, false
}

func (l *ledger) group() *Group[string] {
	return NewGroup(GroupOptions[string]{
		Transact: l.transact,
		Explain: func(op string, err error) error {
			if err != nil {
				err = fmt.Errorf("%s: %w", op, err)
			}
			return err
		},
		Most: 10, Slice: time.Second, Rest: 100 * time.Millisecond,
	})
}

func TestWhatComesDuringACommitSharesTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &ledger{takes: time.Millisecond}
		g := l.group()
		var all sync.WaitGroup
		submit := func(work string, rows int) {
			all.Go(func() {
				if err := g.Submit(t.Context(), "write", rows, work); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		submit("first", 1)
		for range 3 {
			submit("half", 5)
		}
		submit("large", 100)
		all.Wait()
		g.Close()
		if n := len(slices.Concat(l.batches...)); n != 5 || len(l.batches) >= 5 {
			t.Errorf("carried out %v", l.batches)
		}
		for _, batch := range l.batches { // another piece is added to fewer than 10 rows only
			rows := 0
			for _, work := range batch {
				if rows >= 10 {
					t.Errorf("a batch is %v", batch)
				}
				rows += map[string]int{"first": 1, "half": 5, "large": 100}[work]
			}
		}
	})
}

func TestErrorsStayWithTheirCaller(t *testing.T) {
	odd := errors.New("odd")
	for name, c := range map[string]struct {
		whole   error
		want    map[string]error
		batches int
	}{
		"one piece's": {nil, map[string]error{"good": nil, "bad": odd, "late": nil, "gone": context.Canceled}, 4},
		"everybody's": {odd, map[string]error{"good": odd, "late": odd, "gone": context.Canceled}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			l := &ledger{whole: c.whole, fails: map[string]error{"bad": odd}}
			g := l.group()
			defer g.Close()
			gone, cancel := context.WithCancel(t.Context())
			cancel()
			var batch []*piece[string]
			for work := range c.want {
				p := &piece[string]{ctx: t.Context(), work: work, rows: 1, done: make(chan struct{})}
				if work == "gone" {
					p.ctx = gone
				}
				batch = append(batch, p)
			}
			g.commit(batch)
			for _, p := range batch {
				<-p.done
				if !errors.Is(p.err, c.want[p.work]) || (p.err == nil) != (c.want[p.work] == nil) {
					t.Errorf("%s: %v", p.work, p.err)
				}
			}
			if len(l.batches) != c.batches || slices.Contains(slices.Concat(l.batches...), "gone") {
				t.Errorf("carried out %v", l.batches)
			}
		})
	}
}

func TestATransactionEndsWhenNobodyWaitsForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &ledger{takes: time.Hour}
		g := l.group()
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := g.Submit(ctx, "write", 1, "x"); !errors.Is(err, context.DeadlineExceeded) || err.Error() != "write: context deadline exceeded" {
			t.Error(err)
		}
		g.Close()
		if took := time.Since(began); took != time.Second || len(l.batches) != 0 {
			t.Errorf("ended after %v, with %v carried out", took, l.batches)
		}
		if err := g.Submit(t.Context(), "write", 1, "x"); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
}

// Others must get the lock now and then.
func TestAGroupThatWritesWithoutPauseRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &ledger{takes: 400 * time.Millisecond}
		g := l.group()
		defer g.Close()
		commits := func(n int) time.Duration {
			t.Helper()
			began := time.Now()
			for range n {
				if err := g.Submit(t.Context(), "write", 1, "x"); err != nil {
					t.Fatal(err)
				}
			}
			return time.Since(began)
		}
		if took := commits(6); took != 6*l.takes+100*time.Millisecond { // two slices, of three commits each
			t.Errorf("six commits took %v", took)
		}
		for range 2 { // a pause counts as rest
			time.Sleep(time.Minute)
			if took := commits(2); took != 2*l.takes {
				t.Errorf("two commits after a pause took %v", took)
			}
		}
	})
}
