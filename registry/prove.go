package registry

import (
	"context"
	"time"
)

// An identity is looked for in an index of those that are not the user's name.
const (
	sqlProveIdentity = `
		UPDATE registrations SET proven_at = $2
		WHERE identity = $1 AND identity <> username AND identity <> '' AND (proven_at IS NULL OR proven_at < $2)`
	sqlProveUser = `
		UPDATE registrations SET proven_at = $2
		WHERE username = $1 AND (identity = username OR identity = '') AND (proven_at IS NULL OR proven_at < $2)`
)

// Prove notes that a notification for identity came at a time, in every row
// with that identity, or with that user name and no identity. It returns how
// many rows that is new to; 0 also means that nobody is known by that name.
func (r *Registry) Prove(ctx context.Context, identity string, at time.Time) (int64, error) {
	args := []any{identity, millis(at)}
	return r.change(ctx, "prove", call{sqlProveIdentity, args}, call{sqlProveUser, args})
}
