package agent

import (
	"context"
	"errors"
	"log/slog"

	"dovepush/imapmeta"
	"dovepush/registry"
)

// tell logs what Run has done, if it is news: that a registration's state or
// the kind of its failure changed, that an entry had drifted, or that a server
// began or ceased to fail for everybody. What goes on as before is not said.
func (a *Agent) tell(ctx context.Context, s *site, before registry.Registration, result Result, turned turn) {
	if stopped(ctx, result.Err) {
		return
	}
	log := a.options.Log.With("server", s.Name)
	entry := s.circuit.entry(a.options.Now())
	switch turned {
	case opened:
		log.Error("server fails for everybody, nobody else is tried", "err", result.Err, hint(result.Err), "probe", entry.ProbeAt)
		return
	case reopened:
		level := slog.LevelDebug
		if entry.Failures&(entry.Failures-1) == 0 { // 2, 4, 8 and so on: it may take days
			level = slog.LevelInfo
		}
		log.Log(context.Background(), level, "server still fails for everybody", "err", result.Err, "since", entry.Since, "tries", entry.Failures, "probe", entry.ProbeAt)
		return
	case closed:
		log.Info("server works again")
	}
	if registryTrouble(result) {
		a.registryFailed("record", result.Err)
		return
	}
	log = log.With("user", before.User)
	if errors.Is(result.Err, ErrLate) {
		log.Warn("took too long, looking again", "err", result.Err)
		return
	}
	now := result.Registration
	switch {
	case result.Err == nil && now == nil:
		log.Info("unregistered", "entry", string(result.Verdict))
	case now == nil:
		log.Warn("forgotten", "err", result.Err)
	case result.Verdict == Conflict && before.State != registry.Conflict:
		log.Warn("conflict, the entry was kept", "err", result.Conflict)
	case result.Verdict == Conflict:
	case result.Err == nil && before.State == registry.Registered && result.Verdict != Unchanged:
		log.Warn("the entry had drifted, mended", "entry", string(result.Verdict))
	case now.Revision > before.Revision: // asked for something else meanwhile: that will be told
	case result.Err == nil && (before.State != now.State || before.Error != nil):
		log.Info("settled", "state", string(now.State), "entry", string(result.Verdict))
	case result.Err == nil:
	case imapmeta.KindOf(result.Err) == imapmeta.Server, isUnreached(result.Err) && s.circuit.failing(), errors.Is(result.Err, ErrDoubt):
		// said for the server; not a failure
	case before.State != now.State || before.Error == nil || before.Error.Kind != string(imapmeta.KindOf(result.Err)):
		log.Warn("failed", "state", string(now.State), "kind", string(imapmeta.KindOf(result.Err)), "err", result.Err, "next", now.NextAt)
	}
}

// registryTrouble reports whether the work could not be recorded. No row
// after a failure means that, too, unless the user was given up.
func registryTrouble(result Result) bool {
	for _, trouble := range []error{registry.ErrFull, registry.ErrBusy, registry.ErrPermission, registry.ErrCorrupt} {
		if errors.Is(result.Err, trouble) {
			return true
		}
	}
	return result.Err != nil && result.Registration == nil && !errors.Is(result.Err, imapmeta.ErrNoUser) && !errors.Is(result.Err, ErrLate)
}

// hint returns what an admin can do about a failure; nothing, if it does not say.
func hint(err error) slog.Attr {
	var e *imapmeta.Error
	if errors.As(err, &e) && e.Hint != "" {
		return slog.String("hint", e.Hint)
	}
	return slog.Attr{}
}
