package registry

import (
	"context"
	"time"
)

// What is not registered, and was proven when it was, is taken off: few rows,
// as in sqlCounts.
const sqlProven = `
	WITH counted (server, ever, lately) AS (
		SELECT server, n, n * (day >= $1) FROM proven_days
		UNION ALL
		SELECT server, -1, -(proven_at / 86400000 >= $1) FROM registrations INDEXED BY registrations_state
		WHERE state <> 'registered' AND proven_at IS NOT NULL)
	SELECT server, sum(ever), sum(lately) FROM counted GROUP BY server ORDER BY server`

// ProvenCount is for how many of a server's rows in state registered a
// notification has come: see [Registry.Counts] for how many there are.
type ProvenCount struct {
	Server       string
	Ever, Lately int64
}

// Proven counts, by server and in the order of their names, the registrations
// for which a notification has come ever, and since the day in UTC of the time
// given. Servers without any are not in it. With a million rows it takes less
// than a millisecond, if nearly all of them are registered.
func (r *Registry) Proven(ctx context.Context, since time.Time) ([]ProvenCount, error) {
	const day = 24 * 60 * 60
	rows, err := r.readers.QueryContext(ctx, sqlProven, since.Unix()/day)
	if err != nil {
		return nil, explain(r.path, "count who is proven", err)
	}
	defer rows.Close()
	var counts []ProvenCount
	for rows.Next() {
		var c ProvenCount
		if err := rows.Scan(&c.Server, &c.Ever, &c.Lately); err != nil {
			return nil, explain(r.path, "count who is proven", err)
		}
		if c.Ever > 0 {
			counts = append(counts, c)
		}
	}
	return counts, explain(r.path, "count who is proven", rows.Err())
}
