package spool

import (
	"context"
	"database/sql"
	"time"
)

const (
	sqlNext = `SELECT next_at FROM deliveries WHERE target = $1 AND head = 1 ORDER BY next_at LIMIT 1`

	// Rows are read one by one, not changed by one statement: RETURNING has no order.
	sqlTake = `
		SELECT seq, event, username, body, received, queued, attempts, refusals FROM deliveries
		WHERE target = $1 AND head = 1 AND next_at <= $2 ORDER BY next_at, seq LIMIT $3`
	sqlLease = `UPDATE deliveries SET attempts = attempts + 1, leased = 1, next_at = $2 WHERE seq = $1`

	sqlRecover = `
		UPDATE deliveries SET leased = 0, next_at = min(next_at, $2)
		WHERE target = $1 AND leased = 1`

	sqlHasten = `UPDATE deliveries SET next_at = $2 WHERE target = $1 AND head = 1 AND next_at > $3`

	sqlTargets = `SELECT name FROM targets ORDER BY name`
)

// Take returns up to n deliveries to a target that are due, the longest due
// first: of each user the oldest only, so that nobody's events overtake one
// another. Before it returns, it has noted the attempt, and that each is not
// due again before lease is over; by then the caller must have said what came
// of it. It holds n bodies in memory. If nothing is due, it costs one look into
// an index, however many wait.
func (s *Spool) Take(ctx context.Context, target string, n int, lease time.Duration) ([]Delivery, error) {
	now := s.now()
	// Looking first keeps the writer for those who have something to write.
	switch next, some, err := s.Next(ctx, target); {
	case err != nil:
		return nil, err
	case !some || next.After(now):
		return nil, nil
	}
	var taken []Delivery
	err := s.writer.submit(ctx, "take", &change{do: func(tx *transaction) error {
		var err error
		if taken, err = due(tx, target, now, n); err != nil {
			return err
		}
		for i := range taken {
			taken[i].Attempts++
			if _, err := tx.exec(sqlLease, taken[i].ID, millis(now.Add(lease))); err != nil {
				return err
			}
		}
		return nil
	}})
	if err != nil {
		return nil, err // taken may still be written to
	}
	return taken, nil
}

func due(tx *transaction, target string, now time.Time, n int) (list []Delivery, err error) {
	rows, err := tx.query(sqlTake, target, millis(now), n)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		d := Delivery{Target: target}
		var received, queued int64
		if err := rows.Scan(&d.ID, &d.Event, &d.User, &d.Body, &received, &queued, &d.Attempts, &d.Refusals); err != nil {
			return nil, err
		}
		d.Received, d.Queued = fromMillis(received), fromMillis(queued)
		list = append(list, d)
	}
	return list, rows.Err()
}

// Next returns when the next delivery to a target is due, those under way
// included, and whether any waits.
func (s *Spool) Next(ctx context.Context, target string) (time.Time, bool, error) {
	var at int64
	switch err := s.readers.QueryRowContext(ctx, sqlNext, target).Scan(&at); err {
	case nil:
		return fromMillis(at), true, nil
	case sql.ErrNoRows:
		return time.Time{}, false, nil
	default:
		return time.Time{}, false, explain(s.path, "look what is next", err)
	}
}

// Recover makes due what was taken and not settled, whatever its lease: for
// the process that forwards, before it takes anything. It returns how many
// these were.
func (s *Spool) Recover(ctx context.Context) (int64, error) {
	now := millis(s.now())
	return s.forEachTarget(ctx, "recover", func(tx *transaction, target string) (int64, error) {
		return tx.exec(sqlRecover, target, now)
	})
}

// Hasten makes due what is due only after latest, which is so after the clock
// was set back. It returns how many these were.
func (s *Spool) Hasten(ctx context.Context, target string, latest time.Time) (int64, error) {
	now := millis(s.now())
	var n int64
	err := s.writer.submit(ctx, "hasten", &change{do: func(tx *transaction) error {
		var err error
		n, err = tx.exec(sqlHasten, target, now, millis(latest))
		return err
	}})
	if err != nil {
		return 0, err // n may still be written to
	}
	return n, nil
}

func (s *Spool) forEachTarget(ctx context.Context, op string, do func(tx *transaction, target string) (int64, error)) (int64, error) {
	targets, err := s.targets(ctx)
	if err != nil {
		return 0, err
	}
	var total int64
	err = s.writer.submit(ctx, op, &change{do: func(tx *transaction) error {
		total = 0
		for _, target := range targets {
			n, err := do(tx, target)
			if err != nil {
				return err
			}
			total += n
		}
		return nil
	}})
	if err != nil {
		return 0, err
	}
	return total, nil
}

// targets returns the names of all targets that ever had an event, and have
// not been dropped.
func (s *Spool) targets(ctx context.Context) (names []string, err error) {
	rows, err := s.readers.QueryContext(ctx, sqlTargets)
	if err != nil {
		return nil, explain(s.path, "list targets", err)
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, explain(s.path, "list targets", err)
		}
		names = append(names, name)
	}
	return names, explain(s.path, "list targets", rows.Err())
}
