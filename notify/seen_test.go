package notify

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestWhatComesAgainIsHandedOnOnce(t *testing.T) {
	var accepted atomic.Int32
	for _, accept := range []func(context.Context, Notification) error{nil, func(context.Context, Notification) error { accepted.Add(1); return nil }} {
		e := start(t, func(o *Options) { o.Accept = accept })
		other := strings.Replace(mail, `"imap-uid":2`, `"imap-uid":3`, 1)
		for _, body := range []string{mail, mail, other, mail, `{"user":"a"}`, `{"user":"a"}`} {
			e.put(http.StatusOK, body)
		}
		e.awaitResults(Accepted, Duplicate, Accepted, Duplicate, Accepted, Accepted)
		e.await("notifications", func() bool { return len(e.published) == 4 })
	}
	if n := accepted.Load(); n != 4 {
		t.Errorf("kept %d times", n)
	}
}

func TestWhatCouldNotBeKeptIsTakenTheNextTime(t *testing.T) {
	var fail atomic.Bool
	fail.Store(true)
	e := start(t, func(o *Options) {
		o.Accept = func(context.Context, Notification) error {
			if fail.Load() {
				return errors.New("disk full")
			}
			return nil
		}
	})
	for range 3 {
		e.put(http.StatusServiceUnavailable, mail)
	}
	fail.Store(false)
	e.put(http.StatusOK, mail)
	e.put(http.StatusOK, mail)
	e.awaitResults("spool", "spool", "spool", Accepted, Duplicate)
	e.await("notification", func() bool { return len(e.published) == 1 })
	if log := e.log.String(); strings.Count(log, "level=ERROR") != 1 || strings.Count(log, "level=INFO") != 1 || !strings.Contains(log, "disk full") {
		t.Errorf("log %s", log)
	}
}

func TestOfTheSameAtOnceOnePasses(t *testing.T) {
	entered, proceed := make(chan struct{}, 10), make(chan error)
	e := start(t, func(o *Options) {
		o.Accept = func(context.Context, Notification) error {
			entered <- struct{}{}
			return <-proceed
		}
	})
	var group sync.WaitGroup
	var ok, unavailable atomic.Int32
	for range 5 {
		group.Go(func() {
			switch e.do(e.request(http.MethodPut, e.url(), strings.NewReader(mail))).status {
			case http.StatusOK:
				ok.Add(1)
			case http.StatusServiceUnavailable:
				unavailable.Add(1)
			}
		})
	}
	<-entered
	proceed <- errors.New("the first fails") // then one of the others has its turn
	<-entered
	proceed <- nil
	group.Wait()
	if ok.Load() != 4 || unavailable.Load() != 1 || len(entered) != 0 {
		t.Errorf("%d were answered 200, %d 503, %d more were let through", ok.Load(), unavailable.Load(), len(entered))
	}
	e.await("results", func() bool { return len(e.results) == 5 })
	e.await("notification", func() bool { return len(e.published) == 1 })
}

func TestAcceptGoesOnWhenDovecotHasGivenUp(t *testing.T) {
	entered, gone, kept := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	e := start(t, func(o *Options) {
		o.Accept = func(ctx context.Context, _ Notification) error {
			close(entered)
			<-gone
			kept <- ctx.Err()
			return nil
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-entered
		cancel()
	}()
	if _, err := e.client.Do(e.request(http.MethodPut, e.url(), strings.NewReader(mail)).WithContext(ctx)); err == nil {
		t.Fatal("an answer came")
	}
	close(gone)
	if err := <-kept; err != nil {
		t.Error(err)
	}
	e.await("notification", func() bool { return len(e.published) == 1 })
	e.put(http.StatusOK, mail)
	e.awaitResults(Accepted, Duplicate)
}

func TestMemoryOfDuplicatesIsBounded(t *testing.T) {
	s := newSeen()
	keyOf := func(i int) key {
		k, _ := (&Notification{User: "a", UIDValidity: 1, UID: uint32(i + 1)}).key()
		return k
	}
	for i := range maxSeen + 10 {
		if !s.note(keyOf(i)) {
			t.Fatalf("%d is no duplicate", i)
		}
	}
	if len(s.known) != maxSeen || len(s.order) != maxSeen {
		t.Errorf("%d known, %d in order", len(s.known), len(s.order))
	}
	for i := 10; i < maxSeen+10; i++ {
		if s.note(keyOf(i)) {
			t.Fatalf("%d of the newest was forgotten", i)
		}
	}
	if !s.note(keyOf(9)) {
		t.Error("the oldest was not forgotten")
	}
}

func TestWaitingForTheSameEndsWithTheContext(t *testing.T) {
	s := newSeen()
	if fresh, err := s.begin(t.Context(), key{}); !fresh || err != nil {
		t.Fatal(fresh, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if fresh, err := s.begin(ctx, key{}); fresh || !errors.Is(err, context.DeadlineExceeded) {
		t.Error(fresh, err)
	}
	s.done(key{}, true)
	if fresh, err := s.begin(t.Context(), key{}); fresh || err != nil {
		t.Error(fresh, err)
	}
	if len(s.underWay) != 0 {
		t.Error("somebody is under way for ever")
	}
}
