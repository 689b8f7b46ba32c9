package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"dovepush/imapmeta"
	"dovepush/registry"
)

// checkRegistry looks at the registry. It must not create it: the file would
// belong to whoever runs doctor, and that may be root.
func (d *doctor) checkRegistry(ctx context.Context) {
	s := step{link: "registry"}
	path := d.config.Registry.Path
	current := false
	d.do(ctx, s, func() finding {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return ok("none yet: " + path + " comes with the first registration")
		}
		seen, err := registry.Inspect(ctx, path)
		switch {
		case err != nil:
			return fail(max(faultOf(err), Transient), err.Error(), "")
		case seen.Version == 0:
			return ok(path + " is empty")
		case seen.Version < seen.Newest:
			return warn(fmt.Sprintf("%s is sound, but of schema %d and so older than this dovepush, which has %d; nothing more is looked at", path, seen.Version, seen.Newest),
				"start the service, or run dovepush status: either brings it up to date; then run doctor again")
		}
		if d.registry, err = registry.Open(ctx, path, d.Now); err != nil {
			return failure(err)
		}
		current = true
		return d.countRows(ctx, path)
	})
	if current {
		d.noteTrouble(ctx, s)
	}
}

func (d *doctor) countRows(ctx context.Context, path string) finding {
	counts, err := d.registry.Counts(ctx)
	if err != nil {
		return failure(err)
	}
	proven, err := d.registry.Proven(ctx, d.Now().Add(-7*24*time.Hour))
	if err != nil {
		return failure(err)
	}
	states, order := map[registry.State]int64{}, []registry.State{registry.Registered, registry.Pending, registry.Removing, registry.Conflict, registry.Failed}
	for _, c := range counts {
		states[c.State] += c.N
	}
	var ever, lately int64
	for _, p := range proven {
		ever, lately = ever+p.Ever, lately+p.Lately
	}
	text := path + ": sound"
	for _, state := range order {
		if n := states[state]; n > 0 || state == registry.Registered {
			text += fmt.Sprintf(", %d %s", n, state)
		}
		if state == registry.Registered {
			text += fmt.Sprintf(" (%d proven, %d of them this week)", ever, lately)
		}
	}
	switch {
	case states[registry.Conflict] > 0:
		return warn(text, "dovepush list --state conflict shows whose entries somebody else wrote; dovepush register USER --force replaces one")
	case states[registry.Failed] > 0:
		return warn(text, "dovepush list --state failed says why")
	}
	return ok(text)
}

// noteTrouble tells what dovepush has noted of servers that fail.
func (d *doctor) noteTrouble(ctx context.Context, s step) {
	circuits, err := d.registry.Circuits(ctx)
	if err != nil {
		d.tell(s, failure(err))
	}
	for _, c := range circuits {
		d.tell(s, warn(fmt.Sprintf("server %s fails for everybody since %s, after %s: %s", c.Server, clock(c.Since), count(c.Failures, "attempt"), c.Failure.Message),
			"mend what the links of this server say; dovepush tries again by itself at "+clock(c.ProbeAt)))
	}
	endpoints, err := d.registry.Endpoints(ctx)
	if err != nil {
		d.tell(s, failure(err))
	}
	for _, e := range endpoints {
		d.tell(s, warn(fmt.Sprintf("DoveAdm endpoint %s of server %s is set aside since %s (%s): %s", e.URL, e.Server, clock(e.Since), e.Reason, e.Failure.Message),
			"mend what the links of this server say; dovepush looks again at "+clock(e.CheckAt)))
	}
}

func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

// userOf is whose mailbox on a server is looked at, and whether it may be
// written to; empty: nobody's.
func (d *doctor) userOf(ctx context.Context, server string) (user string, named bool) {
	if d.User != "" {
		if s, found := d.config.ServerFor(d.User); found && s.Name == server {
			return d.User, true
		}
	}
	if d.registry == nil {
		return "", false
	}
	for row, err := range d.registry.List(ctx, registry.Filter{Server: server, State: registry.Registered, Limit: 1}) {
		if err == nil {
			return row.User, false
		}
	}
	return "", false
}

// entryState is how the user's entry and the registry agree.
type entryState struct {
	looked bool // at the entry
	agrees bool // present as it should be
	row    registry.Registration
	found  bool // the row
}

// compare holds an entry against the registry.
func (d *doctor) compare(ctx context.Context, server, user string, have imapmeta.Value) finding {
	state := entryState{looked: true}
	if d.registry != nil {
		var err error
		if state.row, state.found, err = d.registry.Get(ctx, registry.Key{User: user, Server: server}); err != nil {
			return failure(err)
		}
	}
	state.agrees = state.found && state.row.Wanted == registry.Present && have == imapmeta.Value(state.row.Value)
	if user == d.User {
		d.entry = state
	}
	return compared(user, state, have)
}

func compared(user string, s entryState, have imapmeta.Value) finding {
	wanted := s.found && s.row.Wanted == registry.Present
	switch {
	case s.agrees:
		return ok(user + ": present, as registered")
	case wanted && have == imapmeta.Absent:
		return fail(Unavailable, user+" is registered, but the entry is gone", "dovepush verify "+shell(user)+" writes it again; a new INBOX or another attribute dict loses entries")
	case wanted && s.row.State == registry.Pending:
		return warn(user+": the registration is not carried out yet", "dovepush verify "+shell(user)+" does it now")
	case wanted:
		return fail(Unavailable, user+" is registered, but the entry holds what somebody else wrote", "dovepush register "+shell(user)+" --force replaces it")
	case have == imapmeta.Absent:
		return ok(user + " is not registered and has no entry")
	case s.found:
		return warn(user+": the removal is not carried out yet", "dovepush verify "+shell(user)+" does it now")
	}
	return warn(user+" is not registered here, but has an entry", "dovepush register "+shell(user)+" takes it over, dovepush unregister "+shell(user)+" --force removes it")
}
