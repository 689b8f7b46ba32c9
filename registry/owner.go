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
	return r.writer.submit(ctx, "release", 1, func(ctx context.Context, tx transaction) error {
		_, err := tx.exec(ctx, sqlRelease, owner)
		return err
	})
}

// Owners returns who has claimed rows, whether in time or not.
func (r *Registry) Owners(ctx context.Context) ([]string, error) {
	rows, err := r.readers.QueryContext(ctx, `SELECT DISTINCT claimed_by FROM registrations WHERE claimed_by <> '' ORDER BY claimed_by`)
	if err != nil {
		return nil, explain(r.path, "list owners", err)
	}
	defer rows.Close()
	var owners []string
	for rows.Next() {
		var owner string
		if err := rows.Scan(&owner); err != nil {
			return nil, explain(r.path, "list owners", err)
		}
		owners = append(owners, owner)
	}
	return owners, explain(r.path, "list owners", rows.Err())
}

// Reclaim gives back the claims of owners that have ended without recording
// what came of their work, and makes the rows due at a time, if they are not
// due earlier. It returns how many these were.
func (r *Registry) Reclaim(ctx context.Context, at time.Time, owners ...string) (int64, error) {
	var total int64
	if len(owners) == 0 {
		return 0, nil
	}
	err := r.writer.submit(ctx, "reclaim", len(owners), func(ctx context.Context, tx transaction) error {
		total = 0
		for _, owner := range owners {
			n, err := tx.exec(ctx, sqlReclaim, owner, millis(at))
			if err != nil {
				return err
			}
			total += n
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	return total, nil
}
