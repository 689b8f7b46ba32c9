package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"dovepush/imapmeta"
	"dovepush/registry"
)

// died lets the agent's process die, as far as the registry can tell: nothing
// that it does from now on is recorded.
func died(a *Agent) func(context.Context, string) error {
	return func(context.Context, string) error { return errors.Join(a.options.Registry.Close(), errRefused) }
}

func TestIntentIsInTheRegistryBeforeTheFirstNetworkCall(t *testing.T) {
	h, clock := still(t)
	a, other := h.agent(), h.open()
	claim := noon.Add(timeout + claimSlack)

	h.box.reading = func(context.Context, string) error {
		reg, found := h.row(other, "alice")
		if !found || reg.Wanted != registry.Present || reg.State != registry.Pending || reg.Value != "user=7@1" || reg.Identity != "7@1" {
			t.Errorf("what should be is not in the registry: %+v", reg)
		}
		if !slices.Equal(reg.Written, []string{"user=7@1"}) {
			t.Errorf("written %q; whoever finds the value after a crash must know it as ours", reg.Written)
		}
		if reg.Attempts != 1 || !reg.NextAt.Equal(claim) || reg.ClaimedBy == "" || !reg.ClaimedUntil.Equal(claim) {
			t.Errorf("attempts %d, next %v, claimed by %q until %v; want 1, %v, a name, the same", reg.Attempts, reg.NextAt, reg.ClaimedBy, reg.ClaimedUntil, claim)
		}
		return errRefused
	}
	first := one(t.Context(), a, registerAs("alice", "7@1"))
	if first.Verdict != Deferred || len(h.box.updated()) != 1 {
		t.Fatalf("%+v after %d Updates", first, len(h.box.updated()))
	}

	clock.advance(time.Hour)
	h.box.reading = func(context.Context, string) error {
		reg, _ := h.row(other, "alice")
		if reg.Wanted != registry.Absent || reg.State != registry.Removing || reg.Attempts != 1 || !reg.NextAt.After(clock.now()) {
			t.Errorf("the wish to remove is not in the registry: %+v", reg)
		}
		return nil
	}
	must(t, a, unregister("alice"), Unchanged)
}

// With a long initial back-off the row is not looked at again as soon as the claim is over.
func TestCrashIsNotRetriedSoonerThanAFailure(t *testing.T) {
	h, _ := still(t)
	a, other := h.agent(func(o *Options) { o.RetryInitial = time.Hour }), h.open()
	h.box.reading = died(a)
	one(t.Context(), a, register("alice"))
	if reg, _ := h.row(other, "alice"); !reg.NextAt.Equal(noon.Add(time.Hour)) {
		t.Errorf("next look at %v, want %v", reg.NextAt, noon.Add(time.Hour))
	}
}

func TestResultIsRecordedAlthoughTheWorkWasCancelled(t *testing.T) {
	for _, row := range []struct {
		name    string
		wrote   func(context.Context) error // after the entry was written and ctx cancelled
		verdict Verdict
		state   registry.State
		due     bool // at once, for it was no attempt that failed
	}{
		{"and succeeded", func(context.Context) error { return nil }, Added, registry.Registered, false},
		{"and did not come to its end", context.Context.Err, Deferred, registry.Pending, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			h, _ := still(t)
			a, other := h.agent(), h.open()
			ctx, cancel := context.WithCancel(t.Context())
			h.box.wrote = func(ctx context.Context, _ string) error {
				cancel()
				<-ctx.Done()
				return row.wrote(ctx)
			}
			result := one(ctx, a, register("alice"))
			reg, _ := h.row(other, "alice")
			if result.Verdict != row.verdict || reg.State != row.state || reg.Error != nil || reg.NextAt.After(noon) == row.due || reg.Attempts != 0 {
				t.Errorf("%s (%v), row %+v; want %s, %s, due: %t", result.Verdict, result.Err, reg, row.verdict, row.state, row.due)
			}
			if row.due == reg.DoubtUntil.IsZero() {
				t.Errorf("in doubt until %v", reg.DoubtUntil)
			}
			if result.Registration == nil || result.Registration.State != row.state {
				t.Errorf("the result tells of %+v", result.Registration)
			}
			h.unclaimed(other)
		})
	}
}

func TestValueWrittenByAProcessThatDiedIsKnownAsOurs(t *testing.T) {
	for _, row := range []struct {
		name    string
		next    Request
		verdict Verdict
		entry   imapmeta.Value
	}{
		{"the same identity", registerAs("alice", "old"), Adopted, "user=old"},
		{"another identity", registerAs("alice", "new"), Changed, "user=new"},
		{"unregister", unregister("alice"), Removed, imapmeta.Absent},
		{"verify", verify("alice"), Adopted, "user=old"},
	} {
		t.Run(row.name, func(t *testing.T) {
			h, clock := still(t)
			dying := h.agent()
			h.box.wrote = died(dying)
			if result := one(t.Context(), dying, registerAs("alice", "old")); result.Err == nil {
				t.Fatalf("it recorded: %+v", result)
			}
			h.box.holds(t, "alice", "user=old")

			h.box.wrote = nil
			clock.advance(timeout + claimSlack)
			must(t, h.agent(), row.next, row.verdict)
			h.box.holds(t, "alice", row.entry)
		})
	}
}

// A process that was stopped for so long that its claim is over must not
// record over what others did meanwhile.
func TestResultThatComesAfterItsClaimChangesNothing(t *testing.T) {
	h, clock := still(t)
	slow, quick, log := h.agent(), h.agent(), new(journal)
	logsTo(log)(&slow.options)
	h.box.wrote = func(context.Context, string) error {
		h.box.wrote = nil
		clock.advance(timeout + claimSlack)
		must(t, quick, registerAs("alice", "new"), Changed)
		return nil
	}
	result := one(t.Context(), slow, registerAs("alice", "old"))
	reg, _ := h.row(quick.options.Registry, "alice")
	// What it wrote may come through late for as long as its claim leaves a doubt.
	if reg.State != registry.Registered || reg.Value != "user=new" || !slices.Equal(reg.Written, []string{"user=old", "user=new"}) {
		t.Errorf("row %+v", reg)
	}
	if result.Verdict != Deferred || result.Err == nil {
		t.Errorf("%s, %v; want that it says that nothing was recorded", result.Verdict, result.Err)
	}
	h.box.holds(t, "alice", "user=new")
}

func TestEveryIdentityThatMayHaveBeenWrittenIsKnownAsOurs(t *testing.T) {
	const times = 4
	for there := range times {
		for _, last := range []Request{registerAs("alice", "last"), unregister("alice")} {
			t.Run(fmt.Sprintf("identity %d is there, then action %d", there, last.Action), func(t *testing.T) {
				t.Parallel()
				h, clock := still(t)
				for i := range times {
					a := h.agent()
					if i%2 == 0 { // it may have written, and died
						h.box.wrote, h.box.reading = died(a), nil
					} else { // the server is down
						h.box.wrote, h.box.reading = nil, fails(errRefused)
					}
					one(t.Context(), a, registerAs("alice", fmt.Sprint(i)))
					clock.advance(timeout + claimSlack)
				}
				h.box.wrote, h.box.reading = nil, nil
				clock.advance(registry.Linger) // nothing more comes through

				// Any of the exchanges may have been the last to come through.
				h.box.set("alice", imapmeta.Value(fmt.Sprint("user=", there)))
				if last.Action == Register {
					must(t, h.agent(), last, Changed)
					h.box.holds(t, "alice", "user=last")
				} else {
					must(t, h.agent(), last, Removed)
					h.box.holds(t, "alice", imapmeta.Absent)
				}
			})
		}
	}
}

// victimEnv names the directory in which a re-executed test binary registers
// alice, and hangs when her entry is written.
const victimEnv = "DOVEPUSH_AGENT_VICTIM"

// fileEntry is alice's entry in a file, which outlives the process.
type fileEntry string

func (f fileEntry) Update(_ context.Context, _ string, decide func(imapmeta.Value) imapmeta.Change) (imapmeta.Outcome, error) {
	have, err := os.ReadFile(string(f))
	if err != nil && !os.IsNotExist(err) {
		return imapmeta.Outcome{}, err
	}
	change := decide(imapmeta.Value(have))
	if value, ok := change.Value(); ok {
		if err := os.WriteFile(string(f), []byte(value), 0o600); err != nil {
			return imapmeta.Outcome{}, err
		}
	}
	if os.Getenv(victimEnv) != "" {
		fmt.Println("written")
		time.Sleep(time.Hour) // until it is killed
	}
	return imapmeta.Outcome{Had: imapmeta.Value(have), Did: change}, nil
}

func atHome(dir string, now func() time.Time) (*Agent, error) {
	r, err := registry.Open(context.Background(), filepath.Join(dir, "registry.db"), now)
	if err != nil {
		return nil, err
	}
	return New(Options{
		Registry: r, Servers: []Server{{Name: "main", Entries: fileEntry(filepath.Join(dir, "entry")), Timeout: timeout}},
		Route: func(string) (string, bool) { return "main", true }, VerifyEvery: verifyEvery, RetryInitial: retryInitial, RetryMax: retryMax,
		Owner: fmt.Sprint("process ", os.Getpid()), Now: now, Random: func() float64 { return 0 },
	})
}

func victim(dir string) error {
	a, err := atHome(dir, time.Now)
	if err != nil {
		return err
	}
	return one(context.Background(), a, registerAs("alice", "old")).Err
}

func TestProcessKilledBetweenWritingAndRecordingLosesNothing(t *testing.T) {
	for _, row := range []struct {
		name    string
		next    Request
		verdict Verdict
		entry   string
	}{
		{"another identity", registerAs("alice", "new"), Changed, "user=new"},
		{"unregister", unregister("alice"), Removed, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			killAfterWriting(t, dir)
			a, err := atHome(dir, func() time.Time { return time.Now().Add(timeout + claimSlack) })
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { a.options.Registry.Close() })
			if reg, found, err := a.options.Registry.Get(t.Context(), registry.Key{User: "alice", Server: "main"}); !found || reg.State != registry.Pending || reg.ClaimedBy == "" {
				t.Fatalf("the process left %+v, %v", reg, err)
			}
			must(t, a, row.next, row.verdict)
			if entry, err := os.ReadFile(filepath.Join(dir, "entry")); string(entry) != row.entry {
				t.Errorf("the entry holds %q, %v; want %q", entry, err, row.entry)
			}
			if err := a.options.Registry.Check(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// killAfterWriting has another process register alice, and kills it (SIGKILL)
// after it has written the entry and before it hears so.
func killAfterWriting(t *testing.T, dir string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), victimEnv+"="+dir)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if killErr := cmd.Process.Kill(); killErr != nil || err != nil || line != "written\n" {
		t.Errorf("it said %q, %v; kill: %v", line, err, killErr)
	}
	if cmd.Wait(); cmd.ProcessState.Exited() {
		t.Fatalf("it was not killed: %v", cmd.ProcessState)
	}
}
