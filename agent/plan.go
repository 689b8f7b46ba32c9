package agent

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"dovepush/registry"
)

// Listed is a user who should be registered.
type Listed struct {
	User     string
	Identity string // instead of the default one; plain
}

// Scope says which registrations a sweep looks at that nothing has changed for.
type Scope string

// The scopes.
const (
	Due  Scope = "due"  // those whose time has come
	All  Scope = "all"  // all that the sweep is about
	None Scope = "none" // none: entries are written and removed, but not looked at
)

// Aim says what a sweep is to bring about.
type Aim struct {
	// Listed yields who should be registered, in the order of their names
	// compared byte by byte, each once. nil: whoever is in the registry.
	Listed iter.Seq2[Listed, error]
	// Prune unregisters who is not listed. Whom Dovecot does not know either is
	// forgotten.
	Prune  bool
	Verify Scope
	// Dir is where the plan's temporary files go; empty: where such files
	// belong.
	Dir string
}

// Planned is what a plan has for a user.
type Planned int

// What a plan can have for a user.
const (
	Add     Planned = iota // he is to be registered, or is not yet
	Change                 // his identity is another now, or is to be signed anew
	Look                   // his entry is to be verified
	Remove                 // he is to be unregistered, or is not yet
	Invalid                // what is listed cannot be registered
)

// Step is what a plan has for one user.
type Step struct {
	Planned
	User, Server string
	Err          error // why he is Invalid
}

// Plan is what a sweep will do.
type Plan struct {
	Added, Changed, Verified, Removed, Invalid int64 // users, as Planned
	Unchanged                                  int64 // nothing is to be done for these
	// Failing and Conflicting are listed users for whom nothing is to be done
	// now, although they are not registered: what is wrong with them was told
	// when they were last looked at.
	Failing, Conflicting int64
	// Pruned is how many will be removed only because they are not listed, and
	// Registered how many there are of whom these could be.
	Pruned, Registered int64
	// Listed is how many users the list has.
	Listed int64

	wishes int64 // steps that change what should be
	agent  *Agent
	aim    Aim
	lanes  map[string]*lanes // by server
	broken *spool
	each   func(Step) error
}

// lanes are what is to be done on a server, in this order: Dovecot may refuse
// those of each lane rather than those of the lane before, which delays
// everybody who comes after.
type lanes [4]*spool

const (
	known   = iota // he has been there
	fresh          // he is new
	leaving        // he is to be unregistered: often because there is no mailbox any more
	slow           // he was refused when he was last tried
)

// Steps is how many users there is something to do for.
func (p *Plan) Steps() int64 { return p.Added + p.Changed + p.Verified + p.Removed + p.Invalid }

// Plan compares what is listed with the registry, and returns what there is to
// do, having changed nothing. The list is read to its end: if that fails, so
// does the plan. each, if it is not nil, is called for everybody for whom
// something is to be done, in order. The plan must be closed.
//
// Memory does not grow with the number of users: what is to be done goes to
// temporary files.
func (a *Agent) Plan(ctx context.Context, aim Aim, each func(Step) error) (*Plan, error) {
	p := &Plan{agent: a, aim: aim, lanes: make(map[string]*lanes), each: each}
	if err := p.draw(ctx); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// Close gives back what the plan holds.
func (p *Plan) Close() error {
	var errs []error
	for _, s := range p.spools() {
		errs = append(errs, s.close())
	}
	return errors.Join(errs...)
}

func (p *Plan) spools() (list []*spool) {
	for _, l := range p.lanes {
		list = append(list, l[:]...)
	}
	list = append(list, p.broken)
	return slices.DeleteFunc(list, func(s *spool) bool { return s == nil })
}

// draw merges two streams in the same order: what is listed, and the rows.
func (p *Plan) draw(ctx context.Context) error {
	next, stop := iter.Pull2(p.agent.options.Registry.Standings(ctx))
	defer stop()
	row, err, more := next()
	if p.aim.Listed != nil {
		for listed, failed := range p.aim.Listed {
			if failed != nil {
				return failed
			}
			for ; more && err == nil && row.User < listed.User; row, err, more = next() {
				if err := p.unlisted(row); err != nil {
					return err
				}
			}
			p.Listed++
			server, routed := p.agent.options.Route(listed.User)
			if !routed {
				server = ""
			}
			found := false // for him on his server
			for ; more && err == nil && row.User == listed.User; row, err, more = next() {
				switch {
				case row.Server == server:
					found = true
					err = p.listed(row, listed)
				case !routed && row.Wanted == registry.Present && !row.Expired:
					// The settings have lost his domain, the list has not.
				default:
					err = p.unlisted(row)
				}
				if err != nil {
					return err
				}
			}
			if more && err != nil {
				return err
			}
			if !found {
				if err := p.wish(server, fresh, step{kind: Add, user: listed.User, identity: listed.Identity}); err != nil {
					return err
				}
			}
		}
	}
	for ; more && err == nil; row, err, more = next() {
		if p.aim.Listed == nil {
			err = p.known(row)
		} else {
			err = p.unlisted(row)
		}
		if err != nil {
			return err
		}
	}
	return err
}

// listed plans for a row whose user is listed.
func (p *Plan) listed(row registry.Standing, listed Listed) error {
	if row.Wanted == registry.Present && !row.Expired {
		p.Registered++
	}
	st := step{user: listed.User, identity: listed.Identity}
	plain := p.agent.plainOf(listed.User, listed.Identity)
	switch signed := p.agent.sign(plain); {
	case row.Wanted == registry.Absent || row.Expired:
		st.kind = Add
	case row.Identity == signed:
		return p.standing(row, false)
	case p.agent.plain(row.Identity) == plain:
		return p.standing(row, p.agent.outdated(row.Identity))
	default:
		st.kind = Change
	}
	return p.wish(row.Server, laneOf(row, st.kind), st)
}

// known plans for a row where there is no list.
func (p *Plan) known(row registry.Standing) error {
	if row.Wanted == registry.Absent || row.Expired {
		return p.unfinished(row)
	}
	return p.standing(row, p.agent.outdated(row.Identity))
}

// unlisted plans for a row whose user is not listed, at least not on its
// server. Others' users are left alone, but who is to be unregistered, whoever
// said so, has not been finished with.
func (p *Plan) unlisted(row registry.Standing) error {
	if row.Wanted == registry.Absent || row.Expired {
		return p.unfinished(row)
	}
	if _, ours := p.agent.sites[row.Server]; !ours {
		return nil // out of reach
	}
	p.Registered++
	if !p.aim.Prune {
		return nil
	}
	p.Pruned++
	return p.wish(row.Server, laneOf(row, Remove), step{kind: Remove, user: row.User, identity: row.Identity, revision: row.Revision})
}

// standing plans for a row that says what it should. Who is pending is tried
// whenever there is a sweep: it must not end well while he waits for another
// attempt, or others are at work on him.
//
// A row that is outdated, but for that says what it should, is signed anew when
// it is claimed. Who was refused is no hurry, as in unfinished.
func (p *Plan) standing(row registry.Standing, outdated bool) error {
	asked := p.aim.Verify == All || p.aim.Verify == Due && row.Due
	switch {
	case row.State == registry.Pending:
		return p.look(row, Add)
	case outdated && (asked || !row.Refused):
		return p.look(row, Change)
	case asked:
		return p.look(row, Look)
	case row.State == registry.Failed && p.aim.Listed != nil:
		p.Failing++
	case row.State == registry.Conflict && p.aim.Listed != nil:
		p.Conflicting++
	default:
		p.Unchanged++
	}
	return nil
}

// unfinished plans for a row whose user is to be unregistered already. Who was
// refused is no hurry: his time will come.
func (p *Plan) unfinished(row registry.Standing) error {
	if row.Refused && !row.Due && p.aim.Verify != All && !p.aim.Prune {
		return nil
	}
	return p.look(row, Remove)
}

// look plans for a row that need not change first.
func (p *Plan) look(row registry.Standing, kind Planned) error {
	if _, ours := p.agent.sites[row.Server]; !ours {
		return nil
	}
	return p.put(row.Server, laneOf(row, kind), step{kind: kind, user: row.User})
}

// wish plans a change of what should be.
func (p *Plan) wish(server string, lane int, st step) error {
	st.intend = true
	if _, err := p.agent.wished(server, st); err != nil {
		st.kind = Invalid
		if p.broken == nil {
			var err error
			if p.broken, err = newSpool(p.aim.Dir); err != nil {
				return err
			}
		}
		if err := p.broken.add(st); err != nil {
			return err
		}
		return p.count(Step{st.kind, st.user, server, err})
	}
	p.wishes++
	return p.put(server, lane, st)
}

func laneOf(row registry.Standing, kind Planned) int {
	switch {
	case row.Refused:
		return slow
	case kind == Add:
		return fresh
	case kind == Remove:
		return leaving
	}
	return known
}

func (p *Plan) put(server string, lane int, st step) error {
	l := p.lanes[server]
	if l == nil {
		l = new(lanes)
		p.lanes[server] = l
	}
	if l[lane] == nil {
		var err error
		if l[lane], err = newSpool(p.aim.Dir); err != nil {
			return err
		}
	}
	if err := l[lane].add(st); err != nil {
		return err
	}
	return p.count(Step{Planned: st.kind, User: st.user, Server: server})
}

func (p *Plan) count(st Step) error {
	switch st.Planned {
	case Add:
		p.Added++
	case Change:
		p.Changed++
	case Look:
		p.Verified++
	case Remove:
		p.Removed++
	case Invalid:
		p.Invalid++
	}
	if p.each == nil {
		return nil
	}
	return p.each(st)
}

// String is the word of a dry run.
func (p Planned) String() string {
	switch p {
	case Add:
		return "add"
	case Change:
		return "change"
	case Look:
		return "verify"
	case Remove:
		return "remove"
	case Invalid:
		return "invalid"
	}
	return fmt.Sprintf("Planned(%d)", int(p))
}
