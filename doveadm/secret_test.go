package doveadm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dovepush/imapmeta"
)

// The secret may come from a command that hangs.
func TestASecretThatHangs(t *testing.T) {
	t.Parallel()
	d := play(t)
	hangs := func(ctx context.Context) (string, error) {
		<-ctx.Done()
		return "", fmt.Errorf("command ended: %w", ctx.Err())
	}
	c := d.client(func(o *Options) { o.Secret, o.Timeout = hangs, 300*time.Millisecond })
	atOnce(t, c, several(30), func(user string, _ imapmeta.Outcome, err error) {
		gone(t, user, "connect", err, context.DeadlineExceeded)
	}, keepIt)
	_, err := list(t.Context(), d.client(func(o *Options) { o.Secret = secretIs("wrong") }))
	fault{kind: imapmeta.Server, is: ErrKey}.check(t, "", err)
	if n := len(d.sent()); n != 0 {
		t.Errorf("%d POSTs", n)
	}
	closed(t, c)

	// Who waits for it behind somebody else can leave.
	asked := make(chan struct{}, 1)
	c = d.client(func(o *Options) {
		o.Timeout = time.Hour
		o.Secret = func(ctx context.Context) (string, error) {
			asked <- struct{}{}
			return hangs(ctx)
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go c.Update(ctx, "alice", keepIt)
	<-asked
	short, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	ended := make(chan error, 1)
	go func() {
		_, err := list(short, c)
		ended <- err
	}()
	select {
	case err := <-ended:
		gone(t, "", "user", err, context.DeadlineExceeded)
	case <-time.After(20 * time.Second):
		t.Error("it waits on")
	}
}

func TestASecretThatCannotBeHad(t *testing.T) {
	var asked atomic.Int64
	c := play(t).client(func(o *Options) {
		o.Secret = func(context.Context) (string, error) {
			asked.Add(1)
			return "", errors.New("open key: no such file")
		}
	})
	inOnePost(t, c, several(30), func(user string, _ imapmeta.Outcome, err error) {
		fault{kind: imapmeta.Server, op: "connect", words: "open key: no such file"}.check(t, user, err)
		var secret *imapmeta.SecretError
		if !errors.As(err, &secret) {
			t.Errorf("%v is no SecretError", err)
		}
	}, func(string) imapmeta.Change { return imapmeta.Keep() })
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times for one POST", n)
	}
	if e := c.Endpoints()[0]; e.Out {
		t.Errorf("the endpoint was blamed: %+v", e)
	}
}

// Those who wait for a key that is refused are told so, and nothing is sent for
// them.
func TestARefusedKeyIsTriedForNobodyElse(t *testing.T) {
	d := play(t, func(d *dummy) { d.key = "another s3cr3t" })
	asked, answer := make(chan struct{}), make(chan struct{})
	c := d.client(batchOf(5), func(o *Options) {
		o.Secret = func(context.Context) (string, error) {
			close(asked) // once
			<-answer
			return dummyKey, nil
		}
	})
	var all sync.WaitGroup
	call := func(user string) {
		all.Go(func() {
			_, err := c.Update(t.Context(), user, keepIt)
			fault{kind: imapmeta.Server, is: ErrKey, op: "connect"}.check(t, user, err)
		})
	}
	call("first")
	<-asked
	for _, user := range several(30) {
		call(user)
	}
	queued(t, c, 30)
	close(answer)
	all.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refused != 1 {
		t.Errorf("%d POSTs", d.refused)
	}
}

// The key is kept for a minute, and asked for again after a refusal, also of a
// look at an endpoint that is set aside.
func TestHowOftenTheKeyIsAskedFor(t *testing.T) {
	var asked, ahead atomic.Int64
	d := play(t)
	c := d.client(func(o *Options) {
		o.CheckInterval = 5 * time.Millisecond
		o.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
		o.Secret = func(context.Context) (string, error) {
			if asked.Add(1); asked.Load() == 3 {
				return "no more", nil
			}
			return dummyKey, nil
		}
	})
	for range 5 {
		update(t, c, "alice", imapmeta.Keep(), imapmeta.Absent)
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	ahead.Store(int64(keyAge))
	update(t, c, "alice", imapmeta.Keep(), imapmeta.Absent)
	ahead.Store(0) // the clock is set back
	if n := asked.Load(); n != 2 {
		t.Errorf("asked %d times after a minute", n)
	}
	_, err := c.Update(t.Context(), "alice", keepIt)
	fault{kind: imapmeta.Server, is: ErrKey}.check(t, "alice", err)
	eventually(t, "the endpoint is found to work again", func() bool { return !c.Endpoints()[0].Out })
	if n := asked.Load(); n != 4 {
		t.Errorf("asked %d times", n)
	}
	// A look that is refused asks for another key, too.
	d.change(func(d *dummy) { d.key = "a new s3cr3t" })
	if _, err := c.Update(t.Context(), "alice", keepIt); err == nil {
		t.Error("no error")
	}
	before := asked.Load()
	eventually(t, "the key is asked for again and again", func() bool { return asked.Load() > before+3 })
}
