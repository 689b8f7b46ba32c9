package spool

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"time"
)

const (
	sqlDelete = `DELETE FROM deliveries WHERE seq = $1 AND dead = 0 RETURNING target, username, head`
	sqlKill   = `
		UPDATE deliveries SET dead = 1, head = 0, leased = 0, died = $2, reason = $3
		WHERE seq = $1 AND dead = 0 RETURNING target, username`
	sqlPromote = `
		UPDATE deliveries SET head = 1, next_at = min(next_at, $3)
		WHERE seq = (SELECT seq FROM deliveries WHERE target = $1 AND username = $2 AND dead = 0 ORDER BY seq LIMIT 1)
		  AND head = 0`
	sqlRetry = `
		UPDATE deliveries SET leased = 0, next_at = $2, refusals = refusals + $3, reason = $4
		WHERE seq = $1 AND dead = 0 RETURNING target`
	sqlGiveBack  = `UPDATE deliveries SET leased = 0, next_at = $2, attempts = attempts - 1 WHERE seq = $1 AND dead = 0 AND leased = 1`
	sqlDelivered = `
		UPDATE targets SET waiting = waiting - 1, delivered = delivered + 1, delivered_at = $2 WHERE name = $1`
	sqlFailed = `UPDATE targets SET error = $2, error_at = $3 WHERE name = $1`

	// What is under way is left alone. Rows stand in the order in which they were queued.
	sqlOverdue = `
		SELECT seq FROM (
			SELECT seq, queued, leased FROM deliveries WHERE target = $1 AND dead = 0 ORDER BY seq LIMIT $3)
		WHERE queued < $2 AND leased = 0`
)

// GiveBack makes due again what was taken and not tried: nothing of it counts.
func (s *Spool) GiveBack(ctx context.Context, ids ...int64) error {
	now := millis(s.now())
	return s.writer.submit(ctx, "give back", &change{do: func(tx *transaction) error {
		for _, id := range ids {
			if _, err := tx.exec(sqlGiveBack, id, now); err != nil {
				return err
			}
		}
		return nil
	}})
}

// Done deletes deliveries that have arrived, and makes the next of each user
// due. One that is not there any more is passed over.
func (s *Spool) Done(ctx context.Context, ids ...int64) error {
	now := millis(s.now())
	return s.writer.submit(ctx, "done", &change{deletes: true, do: func(tx *transaction) error {
		for _, id := range ids {
			var target, user string
			var head bool
			err := tx.row(sqlDelete, id).Scan(&target, &user, &head)
			if errors.Is(err, sql.ErrNoRows) {
				continue
			}
			if err != nil {
				return err
			}
			if _, err := tx.exec(sqlDelivered, target, now); err != nil {
				return err
			}
			if head {
				if _, err := tx.exec(sqlPromote, target, user, now); err != nil {
					return err
				}
			}
		}
		return nil
	}})
}

// Retry says that a delivery did not arrive, which was not the event's fault,
// and when to try again; the user's later events wait for it. The reason is
// kept and shown: it must hold nothing secret.
func (s *Spool) Retry(ctx context.Context, id int64, at time.Time, reason string) error {
	return s.retry(ctx, id, at, 0, reason)
}

// Refuse is Retry where the target did not want this event, and counts it.
func (s *Spool) Refuse(ctx context.Context, id int64, at time.Time, reason string) error {
	return s.retry(ctx, id, at, 1, reason)
}

func (s *Spool) retry(ctx context.Context, id int64, at time.Time, refusals int, reason string) error {
	now, reason := millis(s.now()), cut(reason)
	return s.writer.submit(ctx, "retry", &change{do: func(tx *transaction) error {
		var target string
		err := tx.row(sqlRetry, id, millis(at), refusals, reason).Scan(&target)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		_, err = tx.exec(sqlFailed, target, reason, now)
		return err
	}})
}

// Kill gives a delivery up: it becomes a dead letter, and the user's next event
// is due.
func (s *Spool) Kill(ctx context.Context, id int64, reason string) error {
	now, reason := millis(s.now()), cut(reason)
	return s.writer.submit(ctx, "kill", &change{do: func(tx *transaction) error {
		_, err := kill(tx, id, now, reason)
		return err
	}})
}

func kill(tx *transaction, id, now int64, reason string) (n int64, err error) {
	var target, user string
	err = tx.row(sqlKill, id, now, reason).Scan(&target, &user)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if _, err := tx.exec(sqlCount, target, -1, 1); err != nil {
		return 0, err
	}
	if _, err := tx.exec(sqlFailed, target, reason, now); err != nil {
		return 0, err
	}
	// The dead one need not have been the head, which then stays as it is.
	_, err = tx.exec(sqlPromote, target, user, now)
	return 1, err
}

// Expire gives up what was queued for a target before a time and is not under
// way, oldest first. It returns how many these were.
func (s *Spool) Expire(ctx context.Context, target string, before time.Time, reason string) (total int64, err error) {
	reason = cut(reason)
	for {
		now := millis(s.now())
		var n int64
		err := s.writer.submit(ctx, "expire", &change{do: func(tx *transaction) error {
			n = 0
			ids, err := numbers(tx, sqlOverdue, target, millis(before), step)
			if err != nil {
				return err
			}
			for _, id := range ids {
				killed, err := kill(tx, id, now, reason)
				if err != nil {
					return err
				}
				n += killed
			}
			return nil
		}})
		if err != nil {
			return total, err
		}
		if total += n; n == 0 {
			return total, nil
		}
	}
}

// step is how many rows a long change works on in one transaction: others
// write between.
const step = 200

func numbers(tx *transaction, query string, args ...any) (list []int64, err error) {
	rows, err := tx.query(query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var n int64
		if err := rows.Scan(&n); err != nil {
			return nil, err
		}
		list = append(list, n)
	}
	return list, rows.Err()
}

func cut(reason string) string {
	if len(reason) > maxReason {
		reason = reason[:maxReason]
	}
	return strings.ToValidUTF8(reason, "")
}
