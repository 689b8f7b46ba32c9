package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"dovepush/registry"
)

// circuit is the JSON of a server that fails for everybody.
type circuit struct {
	Since    time.Time        `json:"since"`
	ProbeAt  time.Time        `json:"probe_at"` // when it is tried again
	Failures int              `json:"failures"` // tries since
	Error    registry.Failure `json:"error"`
}

// circuits returns the servers that fail for everybody.
func circuits(ctx context.Context, r *registry.Registry) (map[string]*circuit, error) {
	list, err := r.Circuits(ctx)
	if err != nil {
		return nil, err
	}
	open := make(map[string]*circuit, len(list))
	for _, c := range list {
		open[c.Server] = &circuit{c.Since, c.ProbeAt, c.Failures, c.Failure}
	}
	return open, nil
}

// table prints registrations: a line, or a JSON object, each.
type table struct {
	w         io.Writer
	asObjects bool
	open      map[string]*circuit
	header    bool // still to be printed
	now       func() time.Time
}

func (a *app) newTable(ctx context.Context, r *registry.Registry, asObjects bool) (*table, error) {
	open, err := circuits(ctx, r)
	return &table{w: a.stdout, asObjects: asObjects, open: open, header: !asObjects, now: time.Now}, err
}

// entry is the JSON of a registration, and of what keeps it waiting.
type entry struct {
	registry.Registration
	Circuit *circuit `json:"circuit,omitempty"` // of its server, if it waits for that
}

// A table that measures its columns would have to hold all rows: they are as
// wide as most names need.
const rowFormat = "%-32s %-12s %-7s %-10s %-20s %-8s %-8s %-8s %-12s %s\n"

func (t *table) print(row registry.Registration) error {
	now := t.now()
	var held *circuit
	if c := t.open[row.Server]; c != nil && !row.NextAt.IsZero() && !row.NextAt.After(now) {
		held = c
	}
	if t.asObjects {
		return printJSON(t.w, entry{row, held})
	}
	if t.header {
		t.header = false
		if _, err := fmt.Fprintf(t.w, rowFormat, "USER", "SERVER", "WANTED", "STATE", "IDENTITY", "WRITTEN", "VERIFIED", "PROVEN", "NEXT", "ERROR"); err != nil {
			return err
		}
	}
	message := "-"
	switch {
	case held != nil:
		message = held.Error.Kind + ": " + held.Error.Message
	case row.Error != nil:
		message = row.Error.Kind + ": " + row.Error.Message
	}
	_, err := fmt.Fprintf(t.w, rowFormat, printable(row.User), printable(row.Server), row.Wanted, row.State, printable(cmp.Or(row.Identity, "-")),
		since(row.WrittenAt, now), since(row.VerifiedAt, now), since(row.ProvenAt, now), next(row, held, now), printable(message))
	return err
}

// next says when a registration is looked at.
func next(row registry.Registration, held *circuit, now time.Time) string {
	switch {
	case row.ClaimedBy != "" && row.ClaimedUntil.After(now):
		return "now"
	case held != nil:
		return "held"
	case row.NextAt.After(now) && row.Error != nil && row.Error.Kind == "retry":
		return "retry " + until(row.NextAt, now)
	}
	return until(row.NextAt, now)
}

// tally is the JSON of status without a user.
type tally struct {
	Total    int64                               `json:"total"`
	States   map[registry.State]int64            `json:"states"`
	Servers  map[string]map[registry.State]int64 `json:"servers"`
	Due      int64                               `json:"due"`
	Retrying int64                               `json:"retrying"`
	Backlog  map[string]backlog                  `json:"backlog"`
	Circuits map[string]*circuit                 `json:"circuits"`
	// Endpoints are those of DoveAdm that are set aside, by server.
	Endpoints map[string][]endpoint `json:"endpoints,omitempty"`
	// Proven are the registered users for whom a notification has come, by server.
	Proven map[string]proven `json:"proven,omitempty"`
}

// proven is the JSON of how many registered users are proven.
type proven struct {
	Ever   int64 `json:"ever"`
	Lately int64 `json:"lately"` // within the last seven days
}

// week is what counts as lately.
const week = 7 * 24 * time.Hour

// endpoint is the JSON of a DoveAdm endpoint that is set aside.
type endpoint struct {
	Endpoint string           `json:"endpoint"`
	Since    time.Time        `json:"since"`
	CheckAt  time.Time        `json:"check_at"` // when it is looked at again
	Reason   string           `json:"reason"`
	Error    registry.Failure `json:"error"`
}

// setAside returns the endpoints that are set aside, by server.
func setAside(ctx context.Context, r *registry.Registry) (map[string][]endpoint, error) {
	list, err := r.Endpoints(ctx)
	if err != nil {
		return nil, err
	}
	out := make(map[string][]endpoint)
	for _, e := range list {
		out[e.Server] = append(out[e.Server], endpoint{e.URL, e.Since, e.CheckAt, e.Reason, e.Failure})
	}
	return out, nil
}

// backlog is what waits on a server.
type backlog struct {
	Due       int64     `json:"due"`
	OldestDue time.Time `json:"oldest_due,omitzero"` // when the longest due fell due
	Retrying  int64     `json:"retrying"`
}

func (a *app) counts(ctx context.Context, r *registry.Registry, state registry.State, asObjects bool) error {
	counts, err := r.Counts(ctx)
	if err != nil {
		return err
	}
	waiting, err := r.Backlogs(ctx)
	if err != nil {
		return err
	}
	open, err := circuits(ctx, r)
	if err != nil {
		return err
	}
	out, err := setAside(ctx, r)
	if err != nil {
		return err
	}
	notified, err := r.Proven(ctx, time.Now().Add(-week))
	if err != nil {
		return err
	}
	sum := tally{States: map[registry.State]int64{}, Servers: map[string]map[registry.State]int64{}, Backlog: map[string]backlog{},
		Circuits: open, Endpoints: out, Proven: map[string]proven{}}
	for _, p := range notified {
		if state != "" && state != registry.Registered {
			break
		}
		sum.Proven[p.Server] = proven{p.Ever, p.Lately}
	}
	var shown []registry.Count
	for _, c := range counts {
		if state != "" && c.State != state {
			continue
		}
		shown = append(shown, c)
		sum.Total += c.N
		sum.States[c.State] += c.N
		if sum.Servers[c.Server] == nil {
			sum.Servers[c.Server] = map[registry.State]int64{}
		}
		sum.Servers[c.Server][c.State] = c.N
	}
	for _, b := range waiting {
		sum.Due += b.Due
		sum.Retrying += b.Retrying
		sum.Backlog[b.Server] = backlog{b.Due, b.Oldest, b.Retrying}
	}
	if asObjects {
		return printJSON(a.stdout, sum)
	}
	return printCounts(a.stdout, shown, sum, waiting, time.Now())
}

func printCounts(w io.Writer, counts []registry.Count, sum tally, waiting []registry.Backlog, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SERVER\tSTATE\tUSERS")
	for _, c := range counts {
		fmt.Fprintf(t, "%s\t%s\t%d\n", printable(c.Server), c.State, c.N)
	}
	fmt.Fprintf(t, "all\t\t%d\n", sum.Total)
	if err := t.Flush(); err != nil {
		return err
	}
	if len(sum.Proven) > 0 {
		fmt.Fprintln(t, "\nSERVER\tPROVEN\tLATELY")
		for _, server := range slices.Sorted(maps.Keys(sum.Proven)) {
			p, registered := sum.Proven[server], sum.Servers[server][registry.Registered]
			fmt.Fprintf(t, "%s\t%d of %d\t%d within 7 days\n", printable(server), p.Ever, registered, p.Lately)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	if sum.Due+sum.Retrying > 0 {
		fmt.Fprintln(t, "\nSERVER\tDUE\tSINCE\tRETRYING")
		for _, b := range waiting {
			oldest := "-"
			if !b.Oldest.IsZero() {
				oldest = since(b.Oldest, now)
			}
			fmt.Fprintf(t, "%s\t%d\t%s\t%d\n", printable(b.Server), b.Due, oldest, b.Retrying)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	for i, server := range slices.Sorted(maps.Keys(sum.Circuits)) {
		if i == 0 {
			fmt.Fprintln(w)
		}
		c := sum.Circuits[server]
		tries := "once"
		if c.Failures > 1 {
			tries = fmt.Sprintf("%d times", c.Failures)
		}
		if _, err := fmt.Fprintf(w, "server %s fails for everybody, since %s, tried %s, next try %s:\n  %s\n", printable(server),
			rough(now.Sub(c.Since)), tries, until(c.ProbeAt, now), printable(c.Error.Message)); err != nil {
			return err
		}
	}
	return printEndpoints(w, sum, now)
}

// printEndpoints prints the endpoints that servers do without. Where all are out
// the circuit has told.
func printEndpoints(w io.Writer, sum tally, now time.Time) error {
	first := true
	for _, server := range slices.Sorted(maps.Keys(sum.Endpoints)) {
		if sum.Circuits[server] != nil {
			continue
		}
		if first {
			fmt.Fprintln(w)
			first = false
		}
		for _, e := range sum.Endpoints[server] {
			if _, err := fmt.Fprintf(w, "server %s does without endpoint %s, since %s, next look %s:\n  %s\n", printable(server),
				printable(e.Endpoint), rough(now.Sub(e.Since)), until(e.CheckAt, now), printable(e.Error.Message)); err != nil {
				return err
			}
		}
	}
	return nil
}
