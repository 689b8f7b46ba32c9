package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

const (
	// wish is what becomes of a row that is there already.
	wish = `
		ON CONFLICT (username, server) DO UPDATE SET
			identity = excluded.identity, value = excluded.value, wanted = excluded.wanted,
			expires_at = excluded.expires_at, force = excluded.force, next_at = excluded.next_at,
			revision = registrations.revision + 1, attempts = 0, error_kind = '', error_message = '',
			state = CASE
				WHEN excluded.wanted = 'present' AND registrations.state = 'registered'
					AND registrations.value = excluded.value THEN registrations.state
				ELSE excluded.state END`

	// other is the condition that a row wants something else, or did so until
	// it expired: a wish is due now.
	other = `(registrations.wanted <> excluded.wanted OR registrations.identity <> excluded.identity
			OR registrations.value <> excluded.value
			OR registrations.wanted = 'present' AND registrations.expires_at <= excluded.next_at)`

	sqlRevision = `SELECT revision FROM registrations WHERE username = $1 AND server = $2`
)

var (
	rowsIntend = rowsQuery{
		// What all have in common is bound once. It comes first, for a ? has the
		// number after the highest that stands before it.
		head: `WITH common AS (SELECT ?1, ?2, ?3, ?4, ?5, ?6) INSERT INTO registrations (` + columns + `) VALUES `,
		row:  `(?, ?1, ?, ?, ?2, ?3, ?4, 0, ?5, NULL, NULL, NULL, '', '', ?6, '` + noneWritten + `', NULL, 1, '', NULL)`,
		tail: wish,
	}
	rowsIntendIfOther = rowsQuery{rowsIntend.head, rowsIntend.row, wish + ` WHERE ` + other}
)

// Intend changes what should be, all intents in one transaction that is
// durable when Intend returns. Each makes its row due now and begins it
// afresh: attempts 0, no error, a higher revision. A registration that holds
// the same value stays registered while it is looked at again; any other is
// pending, or removing. A claim is left alone: who holds it will find the
// higher revision when recording. Intents for the same row count in their
// order. Those sorted by user and server are the quickest.
func (r *Registry) Intend(ctx context.Context, intents ...Intent) error {
	for _, in := range intents {
		if err := in.check(); err != nil {
			return fmt.Errorf("registry %s: intend: %w", r.path, err)
		}
	}
	if len(intents) == 0 {
		return nil
	}
	return r.writer.submit(ctx, "intend", len(intents), func(ctx context.Context, tx transaction) error {
		return intendEach(ctx, tx, intents, r.now())
	})
}

// IntendOne is Intend for one, and returns the row as it is then: the zero
// Registration if the intent was passed over and there is none.
func (r *Registry) IntendOne(ctx context.Context, in Intent) (Registration, error) {
	if err := in.check(); err != nil {
		return Registration{}, fmt.Errorf("registry %s: intend: %w", r.path, err)
	}
	var reg Registration
	err := r.writer.submit(ctx, "intend", 1, func(ctx context.Context, tx transaction) (err error) {
		if err := intendEach(ctx, tx, []Intent{in}, r.now()); err != nil {
			return err
		}
		reg, err = scanRow(tx.row(ctx, sqlSelect, in.User, in.Server))
		if errors.Is(err, sql.ErrNoRows) && in.Revision != 0 {
			reg, err = Registration{}, nil
		}
		return err
	})
	if err != nil {
		return Registration{}, err // reg may still be written to
	}
	return reg, nil
}

// intendEach carries out intents in their order, as many alike at a time as
// stand together.
func intendEach(ctx context.Context, tx transaction, intents []Intent, now time.Time) error {
	for len(intents) > 0 {
		first, n := intents[0], 1
		if first.Revision != 0 {
			current, err := isCurrent(ctx, tx, first)
			if err != nil {
				return fmt.Errorf("user %q on server %q: %w", first.User, first.Server, err)
			}
			if !current {
				intents = intents[1:]
				continue
			}
		} else {
			for n < len(intents) && intents[n].alike(first) {
				n++
			}
		}
		query := rowsIntend
		if first.OnlyIfOther {
			query = rowsIntendIfOther
		}
		if err := intendRows(ctx, tx, query, intents[:n], now); err != nil {
			return err
		}
		intents = intents[n:]
	}
	return nil
}

// alike reports whether two intents can be carried out by one statement.
func (in Intent) alike(other Intent) bool {
	return in.Server == other.Server && in.Wanted == other.Wanted && in.ExpiresAt.Equal(other.ExpiresAt) && in.Force == other.Force &&
		in.OnlyIfOther == other.OnlyIfOther && in.Revision == 0 && other.Revision == 0
}

func isCurrent(ctx context.Context, tx transaction, in Intent) (bool, error) {
	var revision int64
	err := tx.row(ctx, sqlRevision, in.User, in.Server).Scan(&revision)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return revision == in.Revision, err
}

// intendRows carries out intents that are alike.
func intendRows(ctx context.Context, tx transaction, query rowsQuery, intents []Intent, now time.Time) error {
	first, state := intents[0], Pending
	if first.Wanted == Absent {
		state = Removing
	}
	args := []any{first.Server, string(first.Wanted), string(state), millis(first.ExpiresAt), millis(now), bit(first.Force)}
	common := len(args)
	return tx.inSteps(ctx, query, len(intents), func(stmt *sql.Stmt, from, to int) error {
		args = args[:common]
		for _, in := range intents[from:to] {
			args = append(args, in.User, in.Identity, in.Value)
		}
		if _, err := stmt.ExecContext(unwatched(ctx), args...); err != nil {
			return fmt.Errorf("user %q on server %q, or one of the next %d: %w", intents[from].User, first.Server, to-from-1, err)
		}
		return nil
	})
}
