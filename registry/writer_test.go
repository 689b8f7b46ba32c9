package registry

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"net/url"
	"sync"
	"testing"
	"time"
)

// lock takes the write lock as another process would, until it is released.
func lock(t *testing.T, r *Registry) (release func()) {
	t.Helper()
	other, err := at(r.path).Pool(1, url.Values{"_txlock": {"immediate"}})
	if err != nil {
		t.Fatal(err)
	}
	tx, err := other.BeginTx(context.Background(), nil) // t.Context ends before the cleanup
	if err != nil {
		t.Fatal(err)
	}
	release = sync.OnceFunc(func() {
		if err := errors.Join(tx.Rollback(), other.Close()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(release)
	return release
}

func TestCallersShareCommits(t *testing.T) {
	const callers = 50
	r, _ := fresh(t)
	release := lock(t, r)
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			if err := r.Intend(t.Context(), present(rowKey(i), "v")); err != nil {
				t.Error(err)
			}
		})
	}
	// The first waits for the lock; the others, for the first.
	release()
	wg.Wait()
	if n := len(all(t, r, Filter{})); n != callers {
		t.Errorf("%d rows", n)
	}
}

func TestABatchIsOneTransaction(t *testing.T) {
	r, _ := fresh(t)
	odd := errors.New("odd")
	var began []transaction
	makeChange := func(user string, fail error) change {
		return change{1, func(ctx context.Context, tx transaction) error {
			began = append(began, tx)
			if err := intendEach(ctx, tx, []Intent{present(Key{user, "main"}, "v")}, noon); err != nil {
				return err
			}
			return fail
		}}
	}
	good, bad, late := makeChange("good", nil), makeChange("bad", odd), makeChange("late", nil)
	if err, culprit := r.writer.transact(t.Context(), []change{good, bad, late}); !errors.Is(err, odd) || !culprit || len(began) != 2 {
		t.Errorf("%v, culprit %v, %d changes were run", err, culprit, len(began))
	}
	if regs := all(t, r, Filter{}); len(regs) != 0 {
		t.Errorf("rows %+v of a transaction that failed", regs)
	}
	if err, _ := r.writer.transact(t.Context(), []change{good, late}); err != nil {
		t.Error(err)
	}
	if regs := all(t, r, Filter{}); len(regs) != 2 || regs[0].User != "good" || regs[1].User != "late" {
		t.Errorf("rows %+v", regs)
	}
	if len(began) != 4 || began[2].Tx != began[3].Tx {
		t.Errorf("%d changes were run, want the last two together", len(began))
	}
}

func TestCancelledCallerDoesNotWaitForTheLockAndLeavesTheWriterSound(t *testing.T) {
	r, _ := fresh(t)
	release := lock(t, r)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := r.Intend(ctx, present(alice, "v")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	release()
	intend(t, r, present(Key{"bob", "main"}, "v"))
	if regs := all(t, r, Filter{}); len(regs) != 1 || regs[0].User != "bob" {
		t.Errorf("rows %+v", regs)
	}
}

func TestOpenGivesUpWithItsContext(t *testing.T) {
	r, _ := fresh(t)
	lock(t, r)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Open(ctx, r.path, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

func TestLockedRegistryIsBusyAndCanStillBeRead(t *testing.T) {
	r, _ := fresh(t)
	intend(t, r, present(alice, "v"))
	// The real wait would be long.
	if _, err := r.writer.db.ExecContext(t.Context(), "PRAGMA busy_timeout = 10"); err != nil {
		t.Fatal(err)
	}
	release := lock(t, r)
	if err := r.Intend(t.Context(), present(alice, "w")); !errors.Is(err, ErrBusy) {
		t.Errorf("error %v", err)
	}
	if reg := get(t, r, alice); reg.Value != "v" {
		t.Errorf("value %q", reg.Value)
	}
	release()
	intend(t, r, present(alice, "w"))
}

func TestCloseAnswersThoseWhoWait(t *testing.T) {
	r, _ := fresh(t)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			for {
				if err := r.Intend(t.Context(), present(rowKey(i), "v")); err != nil {
					if !errors.Is(err, fs.ErrClosed) && !errors.Is(err, sql.ErrConnDone) {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

func TestCancelledCallChangesNothing(t *testing.T) {
	r, _ := fresh(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Intend(ctx, present(alice, "user=alice")); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if _, found, err := r.Get(t.Context(), alice); found || err != nil {
		t.Errorf("found %v, error %v", found, err)
	}
	if _, _, err := r.Get(ctx, alice); !errors.Is(err, context.Canceled) {
		t.Errorf("get: error %v", err)
	}
}
