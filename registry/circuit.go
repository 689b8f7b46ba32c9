package registry

import (
	"context"
	"fmt"
	"time"
)

// Circuit says that a server fails for everybody, so that nobody else is tried
// there for now.
type Circuit struct {
	Server   string
	Since    time.Time // when it was opened first
	ProbeAt  time.Time // when the server is tried again
	Failures int       // tries that failed since
	Failure  Failure   // why
}

const (
	sqlOpenCircuit = `
		INSERT INTO circuits (server, since, probe_at, failures, kind, message) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (server) DO UPDATE SET since = min(circuits.since, excluded.since), probe_at = excluded.probe_at,
			failures = excluded.failures, kind = excluded.kind, message = excluded.message`

	sqlCloseCircuit = `DELETE FROM circuits WHERE server = $1`
)

// OpenCircuit notes that a server fails for everybody, durably. If that was
// noted already, the earlier Since stands.
func (r *Registry) OpenCircuit(ctx context.Context, c Circuit) error {
	if c.Failures < 1 {
		return fmt.Errorf("registry %s: open circuit of server %q: %d failures", r.path, c.Server, c.Failures)
	}
	if err := checkText("server", c.Server, maxName); err != nil {
		return fmt.Errorf("registry %s: open circuit: %w", r.path, err)
	}
	kind, message := c.Failure.columns()
	_, err := r.change(ctx, "open circuit",
		call{sqlOpenCircuit, []any{c.Server, millis(c.Since), millis(c.ProbeAt), c.Failures, kind, message}})
	return err
}

// CloseCircuit notes that a server works.
func (r *Registry) CloseCircuit(ctx context.Context, server string) error {
	_, err := r.change(ctx, "close circuit", call{sqlCloseCircuit, []any{server}})
	return err
}

// Circuits returns the servers that fail for everybody, in the order of their
// names.
func (r *Registry) Circuits(ctx context.Context) ([]Circuit, error) {
	rows, err := r.readers.QueryContext(ctx, `SELECT server, since, probe_at, failures, kind, message FROM circuits ORDER BY server`)
	if err != nil {
		return nil, explain(r.path, "list circuits", err)
	}
	defer rows.Close()
	var list []Circuit
	for rows.Next() {
		var c Circuit
		var since, probe any
		if err := rows.Scan(&c.Server, &since, &probe, &c.Failures, &c.Failure.Kind, &c.Failure.Message); err != nil {
			return nil, explain(r.path, "list circuits", err)
		}
		c.Since, c.ProbeAt = fromMillis(since), fromMillis(probe)
		list = append(list, c)
	}
	return list, explain(r.path, "list circuits", rows.Err())
}
