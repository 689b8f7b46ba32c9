package spool

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// helpAdd adds events and prints each number after it was acknowledged.
func helpAdd(args []string) error {
	ctx := context.Background()
	s, err := Open(ctx, args[0], Options{})
	if err != nil {
		return err
	}
	first, _ := strconv.Atoi(args[1])
	for n := first; ; n++ {
		if _, err := s.Add(ctx, mail("alice", n), []Target{hook}); err != nil {
			return err
		}
		fmt.Println(n)
	}
}

func TestAKilledProcessLosesNothingThatWasAcknowledged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "spool.db")
	known := make(map[string]bool)
	next := 0
	for range 6 {
		cmd := helper(t, "add", path, strconv.Itoa(next))
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		lines := bufio.NewScanner(out)
		for left := 1 + rand.N(300); lines.Scan(); left-- {
			if left == 0 {
				must(t, cmd.Process.Kill()) // SIGKILL
			}
			n, err := strconv.Atoi(lines.Text())
			must(t, err)
			known[mail("alice", n).ID] = true
			next = n + 1
		}
		_ = cmd.Wait()
		next++ // the one that was under way
	}
	s := reopen(t, path, Options{})
	acknowledged := len(known)
	for {
		list := take(t, s, "hook", 1)
		if len(list) == 0 {
			break
		}
		delete(known, list[0].Event)
		must(t, s.Done(t.Context(), list[0].ID))
	}
	if len(known) > 0 {
		t.Errorf("of %d acknowledged, %d are lost", acknowledged, len(known))
	}
}

func helpRevive(args []string) error {
	ctx := context.Background()
	s, err := Open(ctx, args[0], Options{})
	if err != nil {
		return err
	}
	n, err := s.Revive(ctx, "hook")
	if err == nil && n != 1 {
		err = fmt.Errorf("revived %d", n)
	}
	return errors.Join(err, s.Close())
}

func TestAnotherProcessMayReviveWhileThisOneWrites(t *testing.T) {
	s, _ := fresh(t)
	add(t, s, mail("dead", 1), hook)
	must(t, s.Kill(t.Context(), take(t, s, "hook", 1)[0].ID, "status 400"))
	ctx, stop := context.WithCancel(t.Context())
	written := make(chan int)
	go func() {
		n := 0
		for ; ctx.Err() == nil; n++ {
			if _, err := s.Add(t.Context(), mail("alice", n), []Target{hook}); err != nil {
				t.Error(err)
			}
		}
		written <- n
	}()
	out, err := helper(t, "revive", s.path).CombinedOutput()
	stop()
	if err != nil {
		t.Errorf("%v %s", err, out)
	}
	n := <-written
	if st := stats(t, s, "hook"); st.Waiting != int64(n)+1 {
		t.Errorf("%d written, %+v", n, st)
	}
}

func TestAFullDiskLosesNothingAndGoesOnWhenThereIsSpace(t *testing.T) {
	inOwnMounts(t, helper(t, "disk full", t.TempDir()))
}

func TestTheLogMakesRoomWhenTheDiskIsFull(t *testing.T) {
	inOwnMounts(t, helper(t, "log", t.TempDir()))
}

// inOwnMounts runs a helper that mounts a small file system.
func inOwnMounts(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if uid := os.Geteuid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		t.Fatalf("this test mounts a small file system of its own and needs a mount namespace, as the registry's tests do: %v", err)
	}
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func mountSmall(dir string) error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mount refused: %w", err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=16m"); err != nil {
		return fmt.Errorf("mount refused: %w", err)
	}
	return nil
}

func helpLog(args []string) error {
	ctx, dir := context.Background(), args[0]
	if err := mountSmall(dir); err != nil {
		return err
	}
	s, err := Open(ctx, filepath.Join(dir, "spool.db"), Options{})
	if err != nil {
		return err
	}
	e := mail("alice", 0)
	e.Body = make([]byte, MaxBody)
	if _, err := s.Add(ctx, e, []Target{hook}); err != nil {
		return err
	}
	list, err := s.Take(ctx, "hook", 1, time.Minute)
	if err != nil {
		return err
	}
	// Of the row, what changes is written to the log each time; first, for the
	// file to be large enough. Fewer than maxLog pages.
	for n := range 150 {
		if err := s.Retry(ctx, list[0].ID, noon, "status 500"); err != nil {
			return err
		}
		if n == 4 {
			if err := truncate(ctx, s.writer.db, 0); err != nil {
				return err
			}
		}
	}
	f, err := os.Create(filepath.Join(dir, "rest"))
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		return err
	}
	return errors.Join(s.Done(ctx, list[0].ID), s.Check(ctx), s.Close())
}

func helpDiskFull(args []string) error {
	ctx, dir := context.Background(), args[0]
	if err := mountSmall(dir); err != nil {
		return err
	}
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 7<<20), 0o600); err != nil {
		return err
	}
	s, err := Open(ctx, filepath.Join(dir, "spool.db"), Options{})
	if err != nil {
		return err
	}
	e := mail("alice", 0)
	e.Body = make([]byte, 32<<10)
	acknowledged := 0
	for err == nil {
		e.ID, e.Key = fmt.Sprint(acknowledged), ""
		if _, err = s.Add(ctx, e, []Target{hook}); err == nil {
			acknowledged++
		}
	}
	if !errors.Is(err, ErrNoSpace) || acknowledged < 20 {
		return fmt.Errorf("after %d events: error %v", acknowledged, err)
	}
	if list, err := s.Stats(ctx); err != nil || len(list) != 1 || list[0].Waiting != int64(acknowledged) {
		return fmt.Errorf("%d acknowledged, %+v, error %w", acknowledged, list, err)
	}
	if err := os.Remove(ballast); err != nil {
		return err
	}
	for n := range acknowledged {
		list, err := s.Take(ctx, "hook", 1, time.Minute)
		if err != nil || len(list) != 1 || list[0].Event != fmt.Sprint(n) {
			return fmt.Errorf("event %d: %d taken, error %w", n, len(list), err)
		}
		if err := s.Done(ctx, list[0].ID); err != nil {
			return err
		}
	}
	return errors.Join(s.Check(ctx), s.Close())
}
