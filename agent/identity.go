package agent

import (
	"context"
	"time"

	"dovepush/imapmeta"
	"dovepush/registry"
)

// sign returns a plain identity as it stands in a value and in the registry.
func (a *Agent) sign(plain string) string {
	if a.options.Sign == nil {
		return plain
	}
	return a.options.Sign(plain)
}

// plain is what sign once made an identity of the registry from.
func (a *Agent) plain(stored string) string {
	if a.options.Plain == nil {
		return stored
	}
	return a.options.Plain(stored)
}

// outdated reports whether sign would make another of an identity of the
// registry, which fits into a value. One that does not stays as it is.
func (a *Agent) outdated(stored string) bool {
	signed := a.sign(a.plain(stored))
	if a.options.Sign == nil || signed == stored {
		return false
	}
	_, err := imapmeta.NewValue(signed)
	return err == nil
}

// plainOf is the plain identity of a user who asks for one, or for none.
func (a *Agent) plainOf(user, asked string) string {
	if asked != "" {
		return asked
	}
	return a.options.Identity(user)
}

// complete adds to an intent what follows from its user and its plain identity,
// and signs that. Nothing is not signed: it must stay a bad identity.
func (a *Agent) complete(intent *registry.Intent) error {
	intent.Identity = a.plainOf(intent.User, intent.Identity)
	value, err := imapmeta.NewValue(intent.Identity)
	if err == nil && a.options.Sign != nil {
		intent.Identity = a.sign(intent.Identity)
		value, err = imapmeta.NewValue(intent.Identity)
	}
	intent.Value = string(value)
	return err
}

// completeStored is complete for an identity of the registry.
func completeStored(intent *registry.Intent) error {
	value, err := imapmeta.NewValue(intent.Identity)
	intent.Value = string(value)
	return err
}

// signAnew sees to it that claimed rows which should be present are signed as
// sign does it now: so the key is changed by and by, whatever the rows are
// looked at for. As the claim has noted the old value as one of ours, the entry
// is no conflict. What changes is what should be, and it is claimed again, before
// the new value can be written. Lost are rows that are not the owner's any more.
func (a *Agent) signAnew(ctx context.Context, owner, server string, until, retryAt time.Time, regs ...registry.Registration) (ours, lost []registry.Registration, err error) {
	var intents []registry.Intent
	var users []string
	old := make(map[string]registry.Registration)
	for _, reg := range regs {
		if reg.Wanted != registry.Present || !a.outdated(reg.Identity) {
			continue
		}
		intent := registry.Intent{Key: reg.Key(), Identity: a.plain(reg.Identity), Wanted: registry.Present,
			ExpiresAt: reg.ExpiresAt, Force: reg.Force, Revision: reg.Revision}
		if a.complete(&intent) == nil {
			intents, users, old[reg.User] = append(intents, intent), append(users, reg.User), reg
		}
	}
	if len(intents) == 0 {
		return regs, nil, nil
	}
	if err := a.options.Registry.Intend(ctx, intents...); err != nil {
		return nil, nil, err
	}
	claims, err := a.options.Registry.ClaimEach(ctx, server, owner, until, retryAt, users)
	if err != nil {
		return nil, nil, err
	}
	signed := make(map[string]registry.Claim)
	for i, user := range users {
		signed[user] = claims[i]
	}
	for _, reg := range regs {
		before, isOld := old[reg.User]
		claim := signed[reg.User]
		switch {
		case !isOld:
			ours = append(ours, reg)
		case claim.Outcome != registry.Taken:
			lost = append(lost, reg)
		default:
			ours = append(ours, asBefore(claim.Registration, before))
		}
	}
	return ours, lost, nil
}

// asBefore is a row that was signed anew and claimed again, with what is to
// be remembered of it: the first claim's doubt is our own, and a user who was
// refused, or has a conflict, is not another one for his signature.
func asBefore(reg, before registry.Registration) registry.Registration {
	reg.DoubtUntil = before.DoubtUntil
	if before.State == registry.Failed || before.State == registry.Conflict {
		reg.State, reg.Error = before.State, before.Error
	}
	return reg
}
