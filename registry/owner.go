package registry

import (
	"context"
	"time"
)

const (
	sqlRelease = `UPDATE registrations SET claimed_by = '', claimed_until = NULL WHERE claimed_by = $1 AND claimed_by <> ''`

	sqlReclaim = `
		UPDATE registrations SET claimed_by = '', claimed_until = NULL, next_at = COALESCE(min(next_at, $2), $2)
		WHERE claimed_by = $1 AND claimed_by <> ''`
)

// Release gives back all claims of owner, for when it stops. The rows are
// looked at again when their claims said.
func (r *Registry) Release(ctx context.Context, owner string) error {
	_, err := r.change(ctx, "release", call{sqlRelease, []any{owner}})
	return err
}

// Owners returns who has claimed rows, whether in time or not.
func (r *Registry) Owners(ctx context.Context) ([]string, error) {
	return r.names(ctx, "list owners", `SELECT DISTINCT claimed_by FROM registrations WHERE claimed_by <> '' ORDER BY claimed_by`)
}

// Reclaim gives back the claims of owners that have ended without recording
// what came of their work, and makes the rows due at a time, if they are not
// due earlier. It returns how many these were.
func (r *Registry) Reclaim(ctx context.Context, at time.Time, owners ...string) (int64, error) {
	var calls []call
	for _, owner := range owners {
		calls = append(calls, call{sqlReclaim, []any{owner, millis(at)}})
	}
	return r.change(ctx, "reclaim", calls...)
}
