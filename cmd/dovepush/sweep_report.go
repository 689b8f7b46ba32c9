package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"dovepush/agent"
	"dovepush/imapmeta"
)

// maxFaults bounds how many users are named with what is wrong with them.
const maxFaults = 10

// summary is the JSON of a sweep, and of a dry run.
type summary struct {
	Added     int64   `json:"added"`
	Changed   int64   `json:"changed"`
	Removed   int64   `json:"removed"`
	Adopted   int64   `json:"adopted"`
	Unchanged int64   `json:"unchanged"`
	Conflicts int64   `json:"conflicts"`
	Failed    int64   `json:"failed"`
	Deferred  int64   `json:"deferred"`
	Seconds   float64 `json:"seconds"`
}

// planned is the JSON of what a sweep would do, and planStep of one user's part.
type planned struct {
	DryRun    bool    `json:"dry_run"`
	Added     int64   `json:"added"`
	Changed   int64   `json:"changed"`
	Verified  int64   `json:"verified"`
	Removed   int64   `json:"removed"`
	Unchanged int64   `json:"unchanged"`
	Failed    int64   `json:"failed"`
	Seconds   float64 `json:"seconds"`
}

type planStep struct {
	User   string `json:"user"`
	Server string `json:"server,omitempty"`
	Action string `json:"action"`
	Error  any    `json:"error,omitempty"`
}

// sweepReport tells of a sweep: a progress bar on a terminal, objects on
// request, and at the end what was done and what went wrong.
type sweepReport struct {
	*app
	flags     reconcileFlags
	began     time.Time
	sum       summary
	dry       *planned
	code      int
	server    bool           // a fault is a server's
	faults    []agent.Result // the first ones
	more      int64          // faults that are not among them
	unwritten error
	recorded  int64      // without waiting
	screen    *aroundBar // standard error, if it is a terminal
	drawn     time.Time
}

func (a *app) newSweepReport(f reconcileFlags) *sweepReport {
	r := &sweepReport{app: a, flags: f, began: time.Now(), code: exitOK}
	if isTerminal(a.stderr) { // whatever is said while the bar is there must not run into it
		r.screen = &aroundBar{w: a.stderr}
		a.stderr = r.screen
		_ = a.openLog() // it worked before
	}
	return r
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// begin takes what will not be looked at into account, and draws the bar.
func (r *sweepReport) begin(p *agent.Plan) {
	r.sum.Unchanged, r.sum.Failed, r.sum.Conflicts = p.Unchanged, p.Failing, p.Conflicting
	if p.Failing > 0 {
		r.code = graver(r.code, exitNoUser)
		fmt.Fprintf(r.stderr, "dovepush: %d users failed before and are not due yet; dovepush list --state failed names them\n", p.Failing)
	}
	if p.Conflicting > 0 {
		r.code = graver(r.code, exitConflict)
		fmt.Fprintf(r.stderr, "dovepush: %d users have somebody else's entry and are not due yet; dovepush list --state conflict names them\n", p.Conflicting)
	}
	if r.screen == nil || p.Steps() == 0 || r.flags.json && isTerminal(r.stdout) {
		return
	}
	r.screen.bar = progressbar.NewOptions64(p.Steps(),
		progressbar.OptionSetWriter(r.screen.w),
		progressbar.OptionShowCount(),
		progressbar.OptionShowIts(),
		progressbar.OptionSetItsString("users"),
		progressbar.OptionSetPredictTime(true),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionClearOnFinish(),
	)
}

// aroundBar writes to where a progress bar may be drawn.
type aroundBar struct {
	bar *progressbar.ProgressBar // nil: there is none
	w   io.Writer
}

func (b *aroundBar) Write(p []byte) (int, error) {
	if b.bar != nil {
		_ = b.bar.Clear() // if it cannot be drawn, that does not matter
	}
	return b.w.Write(p)
}

// result takes one user's result.
func (r *sweepReport) result(result agent.Result) {
	r.code = graver(r.code, resultCode(result))
	switch result.Verdict {
	case agent.Added:
		r.sum.Added++
	case agent.Changed:
		r.sum.Changed++
	case agent.Removed:
		r.sum.Removed++
	case agent.Adopted:
		r.sum.Adopted++
	case agent.Unchanged:
		r.sum.Unchanged++
	case agent.Conflict:
		r.sum.Conflicts++
	case agent.Failed:
		r.sum.Failed++
	case agent.Deferred:
		r.sum.Deferred++
	}
	if r.flags.noWait && result.Err == nil {
		r.recorded++
	}
	fault := result.Err != nil || result.Verdict == agent.Conflict
	servers := result.Err != nil && imapmeta.KindOf(result.Err) == imapmeta.Server && !errors.Is(result.Err, agent.ErrLate)
	switch {
	case !fault, errors.Is(result.Err, context.Canceled):
	case len(r.faults) < maxFaults, servers && !r.server: // few meet a fault of the server's
		r.faults = append(r.faults, result)
	default:
		r.more++
	}
	r.server = r.server || servers
	if r.flags.json && result.Verdict != agent.Unchanged && !(r.flags.noWait && result.Err == nil) {
		r.unwritten = cmp.Or(r.unwritten, printJSON(r.stdout, asJSON(agent.Register, result)))
	}
	if r.screen == nil || r.screen.bar == nil {
		return
	}
	if failed := r.sum.Failed + r.sum.Deferred + r.sum.Conflicts - r.recorded; failed > 0 && time.Since(r.drawn) > time.Second {
		r.drawn = time.Now()
		r.screen.bar.Describe(fmt.Sprintf("%d failed", failed))
	}
	_ = r.screen.bar.Add(1)
}

// end takes how many users were not tried.
func (r *sweepReport) end(untried int64) {
	if r.screen != nil && r.screen.bar != nil {
		_ = r.screen.bar.Clear()
		r.screen.bar = nil
	}
	r.sum.Deferred += untried
	for _, result := range r.faults {
		if result.Err != nil {
			r.complain(result.User, result.Err)
		} else {
			r.unwritten = cmp.Or(r.unwritten, r.app.report(agent.Register, result))
		}
	}
	switch {
	case r.more > 0 && r.flags.json:
		fmt.Fprintf(r.stderr, "dovepush: and %d more\n", r.more)
	case r.more > 0:
		fmt.Fprintf(r.stderr, "dovepush: and %d more; --json tells of all\n", r.more)
	}
	if untried > 0 {
		r.code = graver(r.code, exitTemporary)
		fmt.Fprintf(r.stderr, "dovepush: %d users were not tried\n", untried)
	}
}

// step tells what a dry run would do for a user.
func (r *sweepReport) step(s agent.Step) error {
	if s.Err != nil {
		r.code = graver(r.code, exitCode(s.Err))
	}
	if !r.flags.json {
		if s.Err != nil {
			r.complain(s.User, s.Err)
		}
		return nil
	}
	line := planStep{User: s.User, Server: s.Server, Action: s.String()}
	if s.Err != nil {
		line.Error = failure(s.Err)
	}
	r.unwritten = cmp.Or(r.unwritten, printJSON(r.stdout, line))
	return nil
}

// plan tells what a dry run would do.
func (r *sweepReport) plan(p *agent.Plan) error {
	r.dry = &planned{true, p.Added, p.Changed, p.Verified, p.Removed, p.Unchanged, p.Invalid, r.seconds()}
	if r.flags.json {
		return nil
	}
	_, err := fmt.Fprintf(r.stdout, "would add %d, change %d, verify %d, remove %d; %d unchanged\n", p.Added, p.Changed, p.Verified, p.Removed, p.Unchanged)
	return err
}

func (r *sweepReport) seconds() float64 {
	return time.Since(r.began).Round(time.Millisecond).Seconds()
}

// close sums up: on standard output if something was wrong, or somebody looks,
// and in the file that was asked for.
func (r *sweepReport) close(code int) error {
	r.sum.Seconds = r.seconds()
	var object any = r.sum
	if r.dry != nil {
		object = r.dry
	}
	switch {
	case r.flags.json:
		r.unwritten = cmp.Or(r.unwritten, printJSON(r.stdout, object))
	case r.dry != nil:
	case r.flags.verbose || r.screen != nil || code != exitOK && r.sum != (summary{Seconds: r.sum.Seconds}):
		_, err := fmt.Fprintln(r.stdout, r.words())
		r.unwritten = cmp.Or(r.unwritten, err)
	}
	if r.flags.report == "" {
		return r.unwritten
	}
	return errors.Join(r.unwritten, writeReport(r.flags.report, object, code))
}

func (r *sweepReport) words() string {
	s := r.sum
	if r.flags.noWait {
		return fmt.Sprintf("recorded %d users, %d unchanged, in %s: dovepush serve does the rest, or the next dovepush reconcile", r.recorded, s.Unchanged, seconds(s.Seconds))
	}
	return fmt.Sprintf("added %d, changed %d, removed %d, adopted %d, unchanged %d, conflicts %d, failed %d, deferred %d in %s",
		s.Added, s.Changed, s.Removed, s.Adopted, s.Unchanged, s.Conflicts, s.Failed, s.Deferred, seconds(s.Seconds))
}

func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(100 * time.Millisecond).String()
}

// writeReport writes the summary, and the exit code, to a file: whole or not at
// all, for monitoring may read it at any time.
func writeReport(name string, object any, code int) (err error) {
	text, err := json.Marshal(object)
	if err != nil {
		return fmt.Errorf("--report: %w", err)
	}
	text = fmt.Appendf(text[:len(text)-1], ",\"exit\":%d}\n", code)
	if info, err := os.Stat(name); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("--report: %s is no regular file", name)
	}
	file, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*")
	if err != nil {
		return fmt.Errorf("--report: %w", err)
	}
	_, err = file.Write(text)
	err = errors.Join(err, file.Chmod(0o644), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), name)
	}
	if err != nil {
		return fmt.Errorf("--report: %w", errors.Join(err, os.Remove(file.Name())))
	}
	return nil
}
