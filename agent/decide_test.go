package agent

import (
	"testing"

	"dovepush/imapmeta"
)

// The policy, row by row.
func TestDecide(t *testing.T) {
	const (
		mine   = imapmeta.Value("user=alice")
		before = imapmeta.Value("user=old")
		theirs = imapmeta.Value("user=somebody")
	)
	keep, set, remove := imapmeta.Keep(), imapmeta.Set(mine), imapmeta.Remove()
	register := wish{present: true, value: mine, known: true}
	renamed := wish{present: true, value: mine, known: true, written: []imapmeta.Value{before}}
	unregister := wish{value: mine, known: true}
	with := func(w wish, change func(*wish)) wish { change(&w); return w }
	force := func(w *wish) { w.replace = true }
	unknown := func(w *wish) { w.known = false }
	interrupted := func(w *wish) { w.written = []imapmeta.Value{before, mine} }

	for _, row := range []struct {
		name   string
		wish   wish
		have   imapmeta.Value
		change imapmeta.Change
		as     Verdict
	}{
		{"register, absent: set it", register, imapmeta.Absent, set, Added},
		{"register, absent, never seen: set it", with(register, unknown), imapmeta.Absent, set, Added},
		{"register, our own value: nothing", register, mine, keep, Unchanged},
		{"register, our own value, registry lost: recorded, not written", with(register, unknown), mine, keep, Adopted},
		{"register, a value we wrote earlier: replace it", renamed, before, set, Changed},
		{"register, the new identity is there already", renamed, mine, keep, Unchanged},
		{"register, interrupted before either value was confirmed, the old one is there", with(renamed, interrupted), before, set, Changed},
		{"register, interrupted before either value was confirmed, the new one is there", with(renamed, interrupted), mine, keep, Unchanged},
		{"register, foreign: keep it", register, theirs, keep, Conflict},
		{"register, foreign, never seen: keep it", with(register, unknown), theirs, keep, Conflict},
		{"register, foreign, replace: replace it", with(register, force), theirs, set, Changed},
		{"register, foreign to a changed identity: keep it", renamed, theirs, keep, Conflict},
		{"register, absent, replace: set it", with(register, force), imapmeta.Absent, set, Added},
		{"register, our own value, replace: nothing", with(register, force), mine, keep, Unchanged},

		{"unregister, our value: remove it", unregister, mine, remove, Removed},
		{"unregister, our value, registry lost: remove it", with(unregister, unknown), mine, remove, Removed},
		{"unregister, a value we wrote earlier: remove it", with(unregister, interrupted), before, remove, Removed},
		{"unregister, absent: done", unregister, imapmeta.Absent, keep, Unchanged},
		{"unregister, foreign: keep it", unregister, theirs, keep, Conflict},
		{"unregister, foreign, force: remove it", with(unregister, force), theirs, remove, Removed},
		{"unregister, absent, force: done", with(unregister, force), imapmeta.Absent, keep, Unchanged},
	} {
		t.Run(row.name, func(t *testing.T) {
			change, as := decide(row.wish, row.have)
			if change != row.change || as != row.as {
				t.Errorf("decide = %v, %s; want %v, %s", change, as, row.change, row.as)
			}
		})
	}
}
