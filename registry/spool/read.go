package spool

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

const (
	sqlStats = `
		SELECT name, waiting, dead, delivered, skipped, delivered_at, error, error_at,
		       (SELECT queued FROM deliveries WHERE target = name AND dead = 0 ORDER BY seq LIMIT 1)
		FROM targets ORDER BY name`

	// Each finds what must not be.
	sqlMiscounted = `
		SELECT count(*) FROM targets AS t
		WHERE waiting <> (SELECT count(*) FROM deliveries WHERE target = t.name AND dead = 0)
		   OR dead <> (SELECT count(*) FROM deliveries WHERE target = t.name AND dead = 1)`
	sqlHeadless = `
		SELECT count(*) FROM (
			SELECT 1 FROM deliveries WHERE dead = 0
			GROUP BY target, username HAVING sum(head) <> 1 OR min(seq) <> max(seq * head))`
)

// Stats returns how each target fares, in the order of their names. It does
// not take longer when more wait.
func (s *Spool) Stats(ctx context.Context) (list []TargetStats, err error) {
	rows, err := s.readers.QueryContext(ctx, sqlStats)
	if err != nil {
		return nil, explain(s.path, "read stats", err)
	}
	defer rows.Close()
	for rows.Next() {
		var t TargetStats
		var deliveredAt, errorAt, oldest sql.NullInt64
		if err := rows.Scan(&t.Target, &t.Waiting, &t.Dead, &t.Delivered, &t.Skipped, &deliveredAt, &t.LastError, &errorAt, &oldest); err != nil {
			return nil, explain(s.path, "read stats", err)
		}
		if deliveredAt.Valid {
			t.DeliveredAt = fromMillis(deliveredAt.Int64)
		}
		if errorAt.Valid {
			t.LastErrorAt = fromMillis(errorAt.Int64)
		}
		if oldest.Valid {
			t.Oldest = fromMillis(oldest.Int64)
		}
		list = append(list, t)
	}
	return list, explain(s.path, "read stats", rows.Err())
}

// Check looks for damage in the file, and for rows that contradict one another.
// It reads the whole file: some seconds for a million events.
func (s *Spool) Check(ctx context.Context) (err error) {
	if err := s.still(); err != nil {
		return err
	}
	// A connection of its own sees the file as it now is on the disk, not as
	// pages cached earlier.
	db, err := at(s.path).Pool(1, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, explain(s.path, "check", db.Close())) }()
	if _, err := at(s.path).Version(ctx, db, len(schema)); err != nil {
		return err
	}
	var finding string
	if err := db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&finding); err != nil {
		return explain(s.path, "check", err)
	}
	if finding != "ok" {
		return at(s.path).Corrupt("check", finding)
	}
	tx, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return explain(s.path, "check", err)
	}
	defer func() { err = errors.Join(err, explain(s.path, "check", tx.Rollback())) }()
	for what, query := range map[string]string{"targets are miscounted": sqlMiscounted, "users have no first event, or a wrong one": sqlHeadless} {
		var n int64
		if err := tx.QueryRowContext(ctx, query).Scan(&n); err != nil {
			return explain(s.path, "check", err)
		}
		if n > 0 {
			return at(s.path).Corrupt("check", fmt.Sprint(n, " ", what))
		}
	}
	return nil
}

// statements are those of the writer.
var statements = []string{
	sqlForgetSeen, sqlSee, sqlBoundSeen, sqlTarget, sqlWaiting, sqlSkip, sqlAdd, sqlCount,
	sqlTake, sqlLease, sqlRecover, sqlHasten, sqlGiveBack,
	sqlDelete, sqlKill, sqlPromote, sqlRetry, sqlDelivered, sqlFailed, sqlOverdue,
	sqlSomeDead, sqlSomeOld, sqlSomeAlive, sqlDeadCount, sqlRemove, sqlDrop, sqlRevive, sqlOldSeen,
}
