package spool

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
)

const (
	sqlForgetSeen = `DELETE FROM seen WHERE key = $1 AND (at < $2 OR at > $3)`
	sqlSee        = `INSERT INTO seen (key, at) VALUES ($1, $2) ON CONFLICT DO NOTHING`
	sqlBoundSeen  = `DELETE FROM seen WHERE n <= (SELECT max(n) FROM seen) - $1`

	sqlTarget = `
		INSERT INTO targets (name, waiting, dead, skipped, delivered, error) VALUES ($1, 0, 0, 0, 0, '')
		ON CONFLICT DO NOTHING`
	sqlWaiting = `SELECT waiting FROM targets WHERE name = $1`
	sqlSkip    = `UPDATE targets SET skipped = skipped + 1 WHERE name = $1`

	sqlAdd = `
		INSERT INTO deliveries (target, username, event, received, queued, next_at, attempts, refusals, head, leased, dead, reason, body)
		VALUES ($1, $2, $3, $4, $4, $5, 0, 0,
		        NOT EXISTS (SELECT 1 FROM deliveries WHERE target = $1 AND username = $2 AND dead = 0),
		        0, 0, '', $6)`

	// Of counts, $2 is added to waiting and $3 to dead.
	sqlCount = `UPDATE targets SET waiting = waiting + $2, dead = dead + $3 WHERE name = $1`
)

// Add queues an event for targets, behind all others of the same user. It
// returns when the event will survive the end of the process. Added is false
// if an event with the same key came in the last Options.SeenFor, whether it
// is delivered or not; then nothing is changed.
//
// Targets for which Options.Most events wait are passed over and counted: the
// error wraps ErrFull and names them, and added tells whether another target
// has the event.
func (s *Spool) Add(ctx context.Context, event Event, targets []Target) (added bool, err error) {
	if err := event.check(targets); err != nil {
		return false, fmt.Errorf("spool: add: %w", err)
	}
	now := s.now()
	var duplicate bool
	var full []string
	err = s.writer.submit(ctx, "add", &change{do: func(tx *transaction) error {
		duplicate, full = false, nil
		var fits []Target
		for _, t := range targets {
			waiting, err := s.waiting(tx, t.Name)
			if err != nil {
				return err
			}
			if waiting < s.options.Most {
				fits = append(fits, t)
			}
		}
		// An event that nobody gets must be new when it comes again.
		if event.Key != "" && (len(fits) > 0 || len(targets) == 0) {
			fresh, err := s.see(tx, event.Key, millis(now))
			if err != nil || !fresh {
				duplicate = err == nil
				return err
			}
		}
		for _, t := range targets {
			if len(fits) == 0 || fits[0].Name != t.Name {
				full = append(full, t.Name)
				if _, err := tx.exec(sqlSkip, t.Name); err != nil {
					return err
				}
				continue
			}
			fits = fits[1:]
			if _, err := tx.exec(sqlAdd, t.Name, event.User, event.ID, millis(event.Received), millis(now), event.bodyFor(t)); err != nil {
				return err
			}
			if _, err := tx.exec(sqlCount, t.Name, 1, 0); err != nil {
				return err
			}
		}
		return nil
	}})
	switch {
	case err != nil:
		return false, err
	case duplicate:
		return false, nil
	case len(full) > 0:
		return len(full) < len(targets), fmt.Errorf("spool %s: add: %w for %s: %d, which is the most", s.path, ErrFull, strings.Join(full, ", "), s.options.Most)
	}
	return true, nil
}

// waiting makes the target known, too.
func (s *Spool) waiting(tx *transaction, target string) (n int64, err error) {
	if _, err := tx.exec(sqlTarget, target); err != nil {
		return 0, err
	}
	err = tx.row(sqlWaiting, target).Scan(&n)
	return n, err
}

// see remembers a key and reports whether it had not been seen.
func (s *Spool) see(tx *transaction, key string, now int64) (fresh bool, err error) {
	sum := sha256.Sum256([]byte(key))
	hash := sum[:16]
	window := s.options.SeenFor.Milliseconds()
	// What is far in the future is from before the clock was set back.
	if _, err := tx.exec(sqlForgetSeen, hash, now-window, now+window); err != nil {
		return false, err
	}
	n, err := tx.exec(sqlSee, hash, now)
	if err != nil || n == 0 {
		return false, err
	}
	_, err = tx.exec(sqlBoundSeen, s.options.MostSeen)
	return true, err
}
