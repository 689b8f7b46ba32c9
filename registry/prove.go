package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// Proof is a notification that came for somebody.
type Proof struct {
	// Names are identities, or user names, by which he may be registered: the
	// first by which somebody is counts. If nobody is, the first that is the
	// name of a user with another identity: Dovecot without user_from_metadata
	// names the login, whatever the entry says.
	Names []string
	At    time.Time // when it came
}

const (
	// An identity is looked for in an index of those that are not the user's name.
	named = `(identity = $1 AND identity <> username AND identity <> '' OR username = $1 AND identity IN ('', username))`

	sqlProve = `UPDATE registrations SET proven_at = $2 WHERE ` + named + ` AND (proven_at IS NULL OR proven_at < $2)`
	sqlNamed = `SELECT 1 FROM registrations WHERE ` + named + ` LIMIT 1`

	sqlProveLogin = `UPDATE registrations SET proven_at = $2 WHERE username = $1 AND (proven_at IS NULL OR proven_at < $2)`
	sqlLogin      = `SELECT 1 FROM registrations WHERE username = $1 LIMIT 1`
)

// Prove notes when notifications came, all in one transaction that is durable
// when Prove returns. A name is that of every row with this identity, and of
// every row of this user whose identity is his name, or empty; see
// [Proof.Names] for others of his. The time of the last notification counts, in whatever order they are proven. What is no news
// changes nothing.
//
// It returns, in the order of proofs, whether anybody is registered by one of
// the names.
func (r *Registry) Prove(ctx context.Context, proofs ...Proof) (known []bool, err error) {
	for _, p := range proofs {
		if p.At.IsZero() {
			return nil, fmt.Errorf("registry %s: prove: a notification without a time", r.path)
		}
	}
	if len(proofs) == 0 {
		return nil, nil
	}
	var found []bool
	err = r.writer.submit(ctx, "prove", len(proofs), func(ctx context.Context, tx transaction) error {
		found = make([]bool, len(proofs))
		for i, p := range proofs {
			var err error
			if found[i], err = prove(ctx, tx, p); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err // found may still be written to
	}
	return found, nil
}

// prove takes one statement where a notification is news for the first name.
func prove(ctx context.Context, tx transaction, p Proof) (known bool, err error) {
	for _, by := range [...]struct{ prove, known string }{{sqlProve, sqlNamed}, {sqlProveLogin, sqlLogin}} {
		for _, name := range p.Names {
			n, err := tx.exec(ctx, by.prove, name, millis(p.At))
			if err != nil || n > 0 {
				return n > 0, err
			}
			switch err := tx.row(ctx, by.known, name).Scan(&n); {
			case err == nil:
				return true, nil
			case !errors.Is(err, sql.ErrNoRows):
				return false, err
			}
		}
	}
	return false, nil
}
