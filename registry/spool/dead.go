package spool

import (
	"context"
	"database/sql"
	"errors"
	"iter"
	"time"
)

const (
	sqlDead = `
		SELECT seq, event, username, received, died, attempts, reason, length(body) FROM deliveries
		WHERE target = $1 AND dead = 1 AND seq > $2 ORDER BY seq LIMIT $3`

	sqlSomeDead = `SELECT seq FROM deliveries WHERE target = $1 AND dead = 1 ORDER BY seq LIMIT $2`
	sqlSomeOld  = `SELECT seq FROM deliveries WHERE target = $1 AND dead = 1 AND died < $2 ORDER BY seq LIMIT $3`
	// The newest first: each user's first event, on which the others wait, goes
	// last, also if the rest of the steps never comes.
	sqlSomeAlive = `SELECT seq FROM deliveries WHERE target = $1 AND dead = 0 ORDER BY seq DESC LIMIT $2`
	sqlDeadCount = `SELECT dead FROM targets WHERE name = $1`
	sqlRemove    = `DELETE FROM deliveries WHERE seq = $1`
	sqlDrop      = `DELETE FROM targets WHERE name = $1`

	// As a new row it has a number behind all others of its user.
	sqlRevive = `
		INSERT INTO deliveries (target, username, event, received, queued, next_at, attempts, refusals, head, leased, dead, reason, body)
		SELECT target, username, event, received, $2, $2, 0, 0,
		       NOT EXISTS (SELECT 1 FROM deliveries AS o WHERE o.target = d.target AND o.username = d.username AND o.dead = 0),
		       0, 0, '', body
		FROM deliveries AS d WHERE seq = $1`

	sqlOldSeen = `
		DELETE FROM seen WHERE n IN (SELECT n FROM seen ORDER BY n LIMIT $2) AND at < $1`
)

// Dead streams the dead letters of a target, oldest first. Between pages no
// transaction is open. An error, ctx's included, comes last.
func (s *Spool) Dead(ctx context.Context, target string) iter.Seq2[DeadLetter, error] {
	return func(yield func(DeadLetter, error) bool) {
		var after int64
		for {
			page, err := s.deadPage(ctx, target, after)
			if err != nil {
				yield(DeadLetter{}, explain(s.path, "list dead letters", err))
				return
			}
			for _, letter := range page {
				if !yield(letter, nil) {
					return
				}
				after = letter.ID
			}
			if len(page) < step {
				return
			}
		}
	}
}

func (s *Spool) deadPage(ctx context.Context, target string, after int64) (page []DeadLetter, err error) {
	rows, err := s.readers.QueryContext(ctx, sqlDead, target, after, step)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		l := DeadLetter{Target: target}
		var received, died int64
		if err := rows.Scan(&l.ID, &l.Event, &l.User, &received, &died, &l.Attempts, &l.Reason, &l.Size); err != nil {
			return nil, err
		}
		l.Received, l.Died = fromMillis(received), fromMillis(died)
		page = append(page, l)
	}
	return page, rows.Err()
}

// Revive has all dead letters of a target forwarded again, in their order, but
// behind what waits for their users by now. It returns how many these were;
// Options.Most does not apply.
func (s *Spool) Revive(ctx context.Context, target string) (int64, error) {
	now := millis(s.now())
	return s.steps(ctx, "revive", func(tx *transaction) (n int64, err error) {
		ids, err := numbers(tx, sqlSomeDead, target, step)
		for _, id := range ids {
			if _, err := tx.exec(sqlRevive, id, now); err != nil {
				return 0, err
			}
			if _, err := tx.exec(sqlRemove, id); err != nil {
				return 0, err
			}
		}
		if err == nil && len(ids) > 0 {
			_, err = tx.exec(sqlCount, target, len(ids), -len(ids))
		}
		return int64(len(ids)), err
	})
}

// Forget deletes all dead letters of a target, and returns how many these were.
func (s *Spool) Forget(ctx context.Context, target string) (int64, error) {
	return s.steps(ctx, "forget", func(tx *transaction) (int64, error) {
		ids, err := numbers(tx, sqlSomeDead, target, step)
		if err != nil {
			return 0, err
		}
		return bury(tx, target, ids)
	})
}

// Drop forgets a target: what waits for it, its dead letters, its numbers.
// Nothing else does that, for a target may be missing in the configuration by
// mistake. It returns how many deliveries, waiting or dead, are gone.
func (s *Spool) Drop(ctx context.Context, target string) (int64, error) {
	dead, err := s.Forget(ctx, target)
	if err != nil {
		return dead, err
	}
	waiting, err := s.steps(ctx, "drop", func(tx *transaction) (int64, error) {
		ids, err := numbers(tx, sqlSomeAlive, target, step)
		if err != nil {
			return 0, err
		}
		for _, id := range ids {
			if _, err := tx.exec(sqlRemove, id); err != nil {
				return 0, err
			}
		}
		if len(ids) == 0 {
			_, err = tx.exec(sqlDrop, target)
		} else {
			_, err = tx.exec(sqlCount, target, -len(ids), 0)
		}
		return int64(len(ids)), err
	})
	return dead + waiting, err
}

// Limits says what Prune leaves. A zero value is no limit.
type Limits struct {
	DeadSince time.Time // dead letters that died since
	Dead      int64     // the youngest dead letters of each target
}

// Prune deletes dead letters beyond the limits, and keys that nobody needs any
// more. It returns how many dead letters these were.
func (s *Spool) Prune(ctx context.Context, l Limits) (total int64, err error) {
	targets, err := s.targets(ctx)
	if err != nil {
		return 0, err
	}
	for _, target := range targets {
		n, err := s.steps(ctx, "prune", func(tx *transaction) (int64, error) {
			if l.DeadSince.IsZero() {
				return 0, nil
			}
			ids, err := numbers(tx, sqlSomeOld, target, millis(l.DeadSince), step)
			if err != nil {
				return 0, err
			}
			return bury(tx, target, ids)
		})
		if total += n; err != nil {
			return total, err
		}
		n, err = s.steps(ctx, "prune", func(tx *transaction) (int64, error) {
			var dead int64
			err := tx.row(sqlDeadCount, target).Scan(&dead)
			if errors.Is(err, sql.ErrNoRows) { // dropped meanwhile
				return 0, nil
			}
			if err != nil || l.Dead <= 0 || dead <= l.Dead {
				return 0, err
			}
			ids, err := numbers(tx, sqlSomeDead, target, min(step, dead-l.Dead))
			if err != nil {
				return 0, err
			}
			return bury(tx, target, ids)
		})
		if total += n; err != nil {
			return total, err
		}
	}
	old := millis(s.now().Add(-s.options.SeenFor))
	_, err = s.steps(ctx, "prune", func(tx *transaction) (int64, error) {
		return tx.exec(sqlOldSeen, old, step)
	})
	return total, err
}

func bury(tx *transaction, target string, ids []int64) (int64, error) {
	for _, id := range ids {
		if _, err := tx.exec(sqlRemove, id); err != nil {
			return 0, err
		}
	}
	if len(ids) > 0 {
		if _, err := tx.exec(sqlCount, target, 0, -len(ids)); err != nil {
			return 0, err
		}
	}
	return int64(len(ids)), nil
}

// steps repeats a change, a transaction each time, until it finds nothing, and
// returns how many rows it found.
func (s *Spool) steps(ctx context.Context, op string, do func(tx *transaction) (int64, error)) (total int64, err error) {
	for {
		var n int64
		err := s.writer.submit(ctx, op, &change{deletes: true, do: func(tx *transaction) (err error) {
			n, err = do(tx)
			return err
		}})
		if err != nil {
			return total, err
		}
		if total += n; n == 0 {
			return total, nil
		}
	}
}
