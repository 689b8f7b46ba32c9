package agent

import (
	"slices"

	"dovepush/imapmeta"
)

// Verdict is what became of a registration at one look. The names are those of
// a sweep's summary.
type Verdict string

// The verdicts.
const (
	Added     Verdict = "added"     // the entry was absent, and was set
	Changed   Verdict = "changed"   // the entry held another value, and was set
	Removed   Verdict = "removed"   // the entry was ours, and was removed
	Adopted   Verdict = "adopted"   // the entry held what it should before we ever looked
	Unchanged Verdict = "unchanged" // the entry is what it should be
	Conflict  Verdict = "conflict"  // somebody else's value was found and kept
	Failed    Verdict = "failed"    // something is wrong with this user
	Deferred  Verdict = "deferred"  // not done now
)

// wish is what decide is to bring about.
type wish struct {
	present bool             // the entry should hold value; false: it should be absent
	value   imapmeta.Value   // ours, also when the entry should be absent
	written []imapmeta.Value // what else we wrote, or may have written before we were interrupted
	known   bool             // we have seen or written this registration's entry before
	replace bool             // a value that is not ours may be replaced, or removed
}

// decide is the whole policy: what to do about an entry that holds have.
func decide(w wish, have imapmeta.Value) (imapmeta.Change, Verdict) {
	ours := have == w.value || slices.Contains(w.written, have)
	switch {
	case w.present && have == imapmeta.Absent:
		return imapmeta.Set(w.value), Added
	case w.present && have == w.value && w.known:
		return imapmeta.Keep(), Unchanged
	case w.present && have == w.value:
		return imapmeta.Keep(), Adopted
	case w.present && (ours || w.replace):
		return imapmeta.Set(w.value), Changed
	case !w.present && have == imapmeta.Absent:
		return imapmeta.Keep(), Unchanged
	case !w.present && (ours || w.replace):
		return imapmeta.Remove(), Removed
	}
	return imapmeta.Keep(), Conflict
}
