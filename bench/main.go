package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"dovepush/internal/dovecot"
)

const (
	// connections is how many a contender has at once, unless the table says
	// otherwise: max_connections as it comes.
	connections = 16
	// The slow take no more users than that: their rate does not depend on it.
	mostDoveadm = 200
	mostImaplib = 500
	mostStock   = 600
)

// house is the contender that is to be judged, and the yards are those by which
// all of a table are measured.
const (
	house    = "dovepush"
	yardIMAP = "raw"
	yardHTTP = "raw HTTP"
	twoSteps = ", two steps" // of a yard's name, if it looks before it writes
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case err != nil:
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

// bench is one run of the program.
type bench struct {
	programs
	users, rounds, repetitions int
	tables, progress           io.Writer
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	b := bench{tables: stdout, progress: stderr}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&b.users, "users", 5000, "how many users")
	flags.IntVar(&b.rounds, "rounds", 5, "how often each contender has its turn")
	flags.IntVar(&b.repetitions, "repetitions", 30, "the same for the table start")
	only := flags.String("only", "", "one `TABLE`: users, connections, stock, start, doveadm or batches")
	versions := flags.String("dovecot", "2.3,2.4", "versions of Dovecot, `LIST`")
	dir := flags.String("dir", onDisk(os.TempDir(), "."), "where programs and registries are for the time, a `DIRECTORY` on a disk")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if b.users < 1 || b.rounds < 1 || b.repetitions < 1 {
		return errors.New("-users, -rounds and -repetitions must be at least 1")
	}
	measure := map[string]func(context.Context, dovecot.Version) error{
		"users": b.manyUsers, "connections": b.otherConnections, "stock": b.stockSettings, "start": b.startUp,
		"doveadm": b.bothConnectors, "batches": b.otherBatches}
	names := []string{"users", "connections", "stock", "start", "doveadm", "batches"}
	if *only != "" {
		if measure[*only] == nil {
			return fmt.Errorf("no table %q: %s", *only, strings.Join(names, ", "))
		}
		names = []string{*only}
	}
	var err error
	if b.programs, err = build(ctx, *dir); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	for v := range strings.SplitSeq(*versions, ",") {
		for _, name := range names {
			if err := measure[name](ctx, dovecot.Version(v)); err != nil {
				return fmt.Errorf("%s, Dovecot %s: %w", name, v, err)
			}
		}
	}
	return nil
}

// manyUsers is the comparison of all contenders.
func (b *bench) manyUsers(ctx context.Context, v dovecot.Version) error {
	return b.compare(ctx, v, comparison{
		what: fmt.Sprintf("%d connections", connections), yard: yardIMAP, users: b.users, contenders: b.everybody})
}

// everybody is all contenders that this machine has.
func (b *bench) everybody(a *arena) []contender {
	contenders := append(a.pair(connections), a.rawClient("raw, LOGIN", connections, "-set", "-login"))
	if _, err := exec.LookPath("python3"); err == nil {
		contenders = append(contenders, a.imaplib(mostImaplib))
	} else {
		fmt.Fprintln(b.progress, "no imaplib loop: no python3 (apt-get install python3-minimal libpython3-stdlib)")
	}
	if in, err := dovecot.Find(a.server.Version); err == nil && (in.Root == "" || os.Getuid() == 0) {
		contenders = append(contenders, a.doveadm(mostDoveadm, in.Root))
	} else {
		fmt.Fprintf(b.progress, "no doveadm loop: Dovecot %s is in a tree of its own, and only root can change the root\n", a.server.Version)
	}
	return contenders
}

// otherConnections shows what a single connection costs, and more than the
// default.
func (b *bench) otherConnections(ctx context.Context, v dovecot.Version) error {
	for _, n := range []int{1, 64} {
		err := b.compare(ctx, v, comparison{
			what: fmt.Sprintf("%d connections", n), yard: yardIMAP, users: max(b.users/5, 1),
			contenders: func(a *arena) []contender { return a.pair(n) }})
		if err != nil {
			return err
		}
	}
	return nil
}

// stockSettings shows what is left of the differences where Dovecot starts two
// processes for each login.
func (b *bench) stockSettings(ctx context.Context, v dovecot.Version) error {
	return b.compare(ctx, v, comparison{
		what: fmt.Sprintf("%d connections, %s", connections, onStock), yard: yardIMAP, settings: stock, users: min(b.users, mostStock),
		contenders: func(a *arena) []contender { return a.pair(connections) }})
}

// pair is dovepush and the raw clients that do the same in one and in two steps.
func (a *arena) pair(connections int) []contender {
	return []contender{
		a.dovepush(house, a.overIMAP(connections)),
		a.rawClient(yardIMAP, connections, "-set"),
		a.rawClient(yardIMAP+twoSteps, connections, "-set", "-two"),
	}
}

// comparison is what is measured in turns on one Dovecot.
type comparison struct {
	what       string                     // for the title
	yard       string                     // the contender by which all are measured
	settings   map[dovecot.Version]string // Dovecot's, if not the arena's
	users      int
	contenders func(*arena) []contender
}

// compare runs contenders in turns, and prints two tables.
func (b *bench) compare(ctx context.Context, v dovecot.Version, c comparison) error {
	a, err := newArena(ctx, b.programs, v, c.settings, c.users)
	if err != nil {
		return err
	}
	defer a.close()
	first, again, err := b.inTurns(ctx, a, c.contenders(a))
	if err != nil {
		return err
	}
	printRates(b.tables, title(a, c.what, fromNothing), c.yard, first)
	printRates(b.tables, title(a, c.what, allRight), c.yard, again)
	return nil
}

// What stands in titles.
const (
	onStock     = "stock process settings"
	fromNothing = "from nothing"
	allRight    = "all right already"
)

func title(a *arena, what, meets string) string {
	return fmt.Sprintf("Dovecot %s, %s: %s", a.server.Full, what, meets)
}

// inTurns returns what was measured from nothing, and then again.
func (b *bench) inTurns(ctx context.Context, a *arena, contenders []contender) (first, again []row, err error) {
	first, again = make([]row, len(contenders)), make([]row, len(contenders))
	for round := range b.rounds {
		for turn := range contenders {
			i := (turn + round) % len(contenders) // nobody is always behind the same one
			c := contenders[i]
			users := a.users
			if c.most > 0 {
				users = users[:min(c.most, len(users))]
			}
			f, g, err := b.turn(ctx, a, c, users)
			if err != nil {
				return nil, nil, fmt.Errorf("%s, round %d: %w", c.name, round+1, err)
			}
			first[i].name, again[i].name = c.name, c.name
			first[i].samples, again[i].samples = append(first[i].samples, f), append(again[i].samples, g)
		}
	}
	return first, again, nil
}

// turn has one contender write all entries, and then look at them.
func (b *bench) turn(ctx context.Context, a *arena, c contender, users []string) (first, again sample, err error) {
	if err := a.reset(users); err != nil {
		return first, again, err
	}
	if c.forget != nil {
		if err := c.forget(); err != nil {
			return first, again, err
		}
	}
	if first, err = a.run(ctx, c.first, users); err != nil {
		return first, again, err
	}
	if err := a.check(ctx, users); err != nil {
		return first, again, fmt.Errorf("it has succeeded, but %w", err)
	}
	if again, err = a.run(ctx, c.again, users); err != nil {
		return first, again, err
	}
	fmt.Fprintf(b.progress, "%s  %-29s %5d users  %6.0f/s, again %6.0f/s", a.server.Version, c.name, len(users), first.rate(), again.rate())
	if first.wall > time.Second { // the kernel's ticks are coarse
		fmt.Fprintf(b.progress, "; %.1f and %.1f cores busy with something else", first.others, again.others)
	}
	fmt.Fprintln(b.progress)
	return first, again, a.check(ctx, users)
}

// startUp measures the whole process for one user, another one each time.
func (b *bench) startUp(ctx context.Context, v dovecot.Version) error {
	a, err := newArena(ctx, b.programs, v, nil, b.repetitions)
	if err != nil {
		return err
	}
	defer a.close()
	kept, fresh := a.registering(house), a.registering("dovepush, new registry")
	kept.forget = nil
	contenders := []contender{kept, fresh, a.rawClient(yardIMAP, connections, "-set"), a.rawClient(yardIMAP+twoSteps, connections, "-set", "-two")}
	rows := make([]row, len(contenders))
	// The registry that is kept has its file before it counts.
	if _, err := a.run(ctx, kept.first, a.users[:1]); err != nil {
		return err
	}
	for i, user := range a.users {
		for turn := range contenders {
			at := (turn + i) % len(contenders)
			s, err := a.oneUser(ctx, contenders[at], user)
			if err != nil {
				return fmt.Errorf("%s: %w", contenders[at].name, err)
			}
			rows[at].name, rows[at].samples = contenders[at].name, append(rows[at].samples, s)
		}
	}
	printTimes(b.tables, fmt.Sprintf("Dovecot %s: one user, the whole process", a.server.Full), yardIMAP, rows)
	return nil
}

func (a *arena) oneUser(ctx context.Context, c contender, user string) (sample, error) {
	if err := a.reset([]string{user}); err != nil {
		return sample{}, err
	}
	if c.forget != nil {
		if err := c.forget(); err != nil {
			return sample{}, err
		}
	}
	s, err := a.run(ctx, c.first, []string{user})
	if err != nil {
		return sample{}, err
	}
	return s, a.check(ctx, []string{user})
}
