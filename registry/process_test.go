package registry

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func rowKey(i int) Key { return Key{User: fmt.Sprintf("user-%07d", i), Server: "main"} }

// helpClaim walks over the rows, claims what it can, and marks each claim by
// a file that only one process at a time can create. It prints how many it got.
func helpClaim(args []string) error {
	path, owner, marks := args[0], args[1], args[2]
	rows, _ := strconv.Atoi(args[3])
	rounds, _ := strconv.Atoi(args[4])
	ctx := background()
	r, err := Open(ctx, path, nil)
	if err != nil {
		return err
	}
	defer r.Close()
	taken := 0
	for i := range rows * rounds {
		key := rowKey(i % rows)
		reg, outcome, err := r.Claim(ctx, key, owner, time.Now().Add(time.Minute), time.Now())
		if err != nil {
			return err
		}
		if outcome != Taken {
			continue
		}
		taken++
		mark := filepath.Join(marks, key.User)
		f, err := os.OpenFile(mark, os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return fmt.Errorf("%s claimed %v at the same time as another: %w", owner, key, err)
		}
		if err := errors.Join(f.Close(), os.Remove(mark)); err != nil {
			return err
		}
		lost, err := r.Record(ctx, owner, Result{Key: key, Revision: reg.Revision, State: Pending, Unsettled: true})
		if err != nil || len(lost) > 0 {
			return fmt.Errorf("lost %v: %w", lost, err)
		}
	}
	fmt.Println(taken)
	return nil
}

func TestProcessesNeverClaimARowAtTheSameTime(t *testing.T) {
	const processes, rows, rounds = 3, 4, 60
	path := filepath.Join(t.TempDir(), "registry.db")
	r := reopen(t, path, nil)
	for i := range rows {
		intend(t, r, present(rowKey(i), "v"))
	}
	marks := t.TempDir()
	var outputs []*bufio.Scanner
	var cmds []*exec.Cmd
	for p := range processes {
		cmd := helper(t, "claim", path, fmt.Sprint("process ", p), marks, strconv.Itoa(rows), strconv.Itoa(rounds))
		lines, _, stderr := started(t, cmd)
		outputs, cmds = append(outputs, lines), append(cmds, cmd)
		defer func() {
			if stderr.Len() > 0 {
				t.Error(stderr)
			}
		}()
	}
	sum := 0
	for p, cmd := range cmds {
		if !outputs[p].Scan() {
			t.Errorf("process %d printed nothing", p)
		}
		taken, _ := strconv.Atoi(outputs[p].Text())
		if taken == 0 {
			t.Errorf("process %d got no claim", p)
		}
		sum += taken
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	attempts := 0
	for _, reg := range all(t, r, Filter{}) {
		attempts += reg.Attempts
	}
	if attempts != sum {
		t.Errorf("%d claims were given, %d are known", sum, attempts)
	}
}

// helpTake takes what is due, up to a number of rows whenever it reads a line,
// and prints whom it took.
func helpTake(args []string) error {
	limit, _ := strconv.Atoi(args[2])
	ctx := background()
	r, err := Open(ctx, args[0], nil)
	if err != nil {
		return err
	}
	defer r.Close()
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		regs, err := r.Take(ctx, "main", args[1], time.Now().Add(MaxClaim), time.Now().Add(time.Hour), limit)
		if err != nil {
			return err
		}
		var users []string
		for _, reg := range regs {
			users = append(users, reg.User)
		}
		fmt.Println(strings.Join(users, " "))
	}
	return nil
}

func TestProcessesTakeEachRowOnce(t *testing.T) {
	const processes, rounds, limit = 3, 25, 7
	const rows = processes*rounds*limit - 10 // too few for the last round
	path := filepath.Join(t.TempDir(), "registry.db")
	r := reopen(t, path, nil)
	var intents []Intent
	for i := range rows {
		intents = append(intents, present(rowKey(i), "v"))
	}
	intend(t, r, intents...)
	var outputs []*bufio.Scanner
	var inputs []io.Writer
	for p := range processes {
		cmd := helper(t, "take", path, fmt.Sprint("process ", p), strconv.Itoa(limit))
		lines, stdin, stderr := started(t, cmd)
		outputs, inputs = append(outputs, lines), append(inputs, stdin)
		defer func() {
			stdin.Close()
			if err := cmd.Wait(); err != nil || stderr.Len() > 0 {
				t.Error(err, stderr)
			}
		}()
	}
	owners := make(map[string]string)
	for round := range rounds + 1 { // nothing is left for one more
		for _, in := range inputs {
			fmt.Fprintln(in)
		}
		for p, lines := range outputs {
			if !lines.Scan() {
				t.Fatalf("round %d: process %d ended", round, p)
			}
			users := strings.Fields(lines.Text())
			if len(users) < limit && round < rounds-1 {
				t.Errorf("round %d: process %d took only %d", round, p, len(users))
			}
			for _, user := range users {
				if other := owners[user]; other != "" {
					t.Errorf("%s was taken by %s and by process %d", user, other, p)
				}
				owners[user] = fmt.Sprint("process ", p)
			}
		}
	}
	if len(owners) != rows {
		t.Errorf("%d of %d rows were taken", len(owners), rows)
	}
	for _, reg := range all(t, r, Filter{}) {
		if reg.Attempts != 1 || reg.ClaimedBy != owners[reg.User] {
			t.Errorf("%s: %d attempts, claimed by %q, taken by %s", reg.User, reg.Attempts, reg.ClaimedBy, owners[reg.User])
		}
	}
}

// helpOpenFresh opens each file named on stdin, writes one row of its own,
// and says so.
func helpOpenFresh(args []string) error {
	ctx := background()
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		r, err := Open(ctx, in.Text(), nil)
		if err != nil {
			return err
		}
		err = errors.Join(r.Intend(ctx, present(Key{args[0], "main"}, "v")), r.Close())
		if err != nil {
			return err
		}
		fmt.Println("done")
	}
	return nil
}

func TestProcessesMayOpenAFreshFileAtTheSameTime(t *testing.T) {
	const processes, rounds = 4, 60
	type process struct {
		lines *bufio.Scanner
		stdin interface{ Write([]byte) (int, error) }
	}
	var ps []process
	for p := range processes {
		cmd := helper(t, "open fresh", fmt.Sprint("process ", p))
		lines, stdin, stderr := started(t, cmd)
		ps = append(ps, process{lines, stdin})
		defer func() {
			stdin.Close()
			if err := cmd.Wait(); err != nil || stderr.Len() > 0 {
				t.Error(err, stderr)
			}
		}()
	}
	dir := t.TempDir()
	for round := range rounds {
		path := filepath.Join(dir, fmt.Sprint(round, ".db"))
		for _, p := range ps {
			fmt.Fprintln(p.stdin, path)
		}
		for n, p := range ps {
			if !p.lines.Scan() {
				t.Fatalf("round %d: process %d ended", round, n)
			}
		}
		r := reopen(t, path, nil)
		if n := len(all(t, r, Filter{})); n != processes {
			t.Errorf("round %d: %d rows of %d processes", round, n, processes)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, ".*"))
	if len(left) > 0 || err != nil {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

// helpWrite takes rows through their life and prints each step after it was
// acknowledged.
func helpWrite(args []string) error {
	first, _ := strconv.Atoi(args[1])
	ctx := background()
	r, err := Open(ctx, args[0], nil)
	if err != nil {
		return err
	}
	for i := first; ; i++ {
		key := rowKey(i)
		if err := r.Intend(ctx, present(key, "user="+key.User)); err != nil {
			return err
		}
		fmt.Println(i, "intended")
		reg, outcome, err := r.Claim(ctx, key, "agent", time.Now().Add(time.Minute), time.Now().Add(time.Minute))
		if err != nil || outcome != Taken {
			return fmt.Errorf("%v: %w", outcome, err)
		}
		fmt.Println(i, "claimed")
		if _, err := r.Record(ctx, "agent", Result{Key: key, Revision: reg.Revision, State: Registered, WrittenAt: time.Now()}); err != nil {
			return err
		}
		fmt.Println(i, "recorded")
	}
}

func TestKilledProcessLosesNothingThatWasAcknowledged(t *testing.T) {
	const rounds = 30
	path := filepath.Join(t.TempDir(), "registry.db")
	recorded := func(reg Registration) bool {
		return reg.State == Registered && !reg.WrittenAt.IsZero() && reg.ClaimedBy == ""
	}
	// What was committed may be one step ahead of what was acknowledged.
	steps := map[string]func(Registration) bool{
		"intended": func(reg Registration) bool { return reg.Value == "user="+reg.User },
		"claimed": func(reg Registration) bool {
			return len(reg.Written) == 1 && (reg.Attempts == 1 && reg.ClaimedBy == "agent" || recorded(reg))
		},
		"recorded": recorded,
	}
	next, acknowledged := 0, 0
	known := make(map[int]string) // row to last step
	for round := range rounds {
		cmd := helper(t, "write", path, strconv.Itoa(next))
		lines, _, stderr := started(t, cmd)
		for left := 1 + rand.N(40); lines.Scan(); left-- {
			if left == 0 {
				if err := cmd.Process.Kill(); err != nil { // SIGKILL
					t.Fatal(err)
				}
			}
			number, step, _ := strings.Cut(lines.Text(), " ")
			i, err := strconv.Atoi(number)
			if err != nil || steps[step] == nil {
				t.Fatalf("helper said %q", lines.Text())
			}
			known[i], next = step, i+1
			acknowledged++
		}
		if cmd.Wait(); stderr.Len() > 0 || cmd.ProcessState.Exited() {
			t.Fatalf("round %d: the helper was not killed: %v %s", round, cmd.ProcessState, stderr)
		}
		next++ // the row that was under way
	}
	r := reopen(t, path, nil)
	for i, step := range known {
		if reg := get(t, r, rowKey(i)); !steps[step](reg) {
			t.Errorf("%s was acknowledged of %+v", step, reg)
		}
	}
	if err := r.Check(t.Context()); err != nil {
		t.Error(err)
	}
	t.Logf("%d acknowledged", acknowledged)
}

func TestClosedRegistryHoldsNoFileAndAnswersNoCall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	r, err := Open(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	intend(t, r, present(alice, "v"))
	all(t, r, Filter{})
	if openFiles(t, path) == 0 {
		t.Fatal("an open registry shows no file: this test cannot fail")
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if n := openFiles(t, path); n != 0 {
		t.Errorf("%d files are still open", n)
	}
	if err := r.Intend(t.Context(), present(alice, "v")); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("intend: error %v", err)
	}
	if _, _, err := r.Get(t.Context(), alice); err == nil {
		t.Error("get: no error")
	}
	if err := r.Close(); err != nil {
		t.Errorf("closed again: %v", err)
	}
}

func TestRefusedOpenHoldsNoFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	if err := os.WriteFile(path, []byte("not a database, but long enough to look at"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), path, nil); !errors.Is(err, ErrForeign) {
		t.Fatal(err)
	}
	if n := openFiles(t, path); n != 0 {
		t.Errorf("%d files are still open", n)
	}
}

// openFiles counts this process's descriptors of files whose names begin with path.
func openFiles(t *testing.T, path string) (n int) {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if name, err := os.Readlink(link); err == nil && strings.HasPrefix(name, path) {
			n++
		}
	}
	return n
}
