package registry

import (
	"context"
	"fmt"
	"time"
)

// Endpoint says that a process has set an endpoint of a server's DoveAdm API
// aside: it asks others, if there are.
type Endpoint struct {
	Server  string
	URL     string    // as configured
	Since   time.Time // when it was set aside first
	CheckAt time.Time // when it is looked at again
	Reason  string    // why, in a word
	Failure Failure   // why
}

// A note of an endpoint counts until EndpointGrace after its CheckAt: whoever
// made it looks again then, and renews it if the endpoint still fails. If he
// has ended, nobody takes it back. The grace is for the look, some 10 s unless
// configured otherwise, and for the registry's lock.
const EndpointGrace = 2 * time.Minute

// MaxCheckInterval is how far ahead CheckAt may be. A note that seems to be for
// longer was made before the clock was set back, and does not count.
const MaxCheckInterval = 24 * time.Hour

const (
	sqlSetAside = `
		INSERT INTO endpoints (server, url, since, check_at, reason, kind, message) VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (server, url) DO UPDATE SET since = min(endpoints.since, excluded.since), check_at = excluded.check_at,
			reason = excluded.reason, kind = excluded.kind, message = excluded.message`

	// counting is the condition that a note counts: see endpointWindow.
	counting = `check_at > $1 AND check_at <= $2`

	sqlSweepEndpoints = `DELETE FROM endpoints WHERE NOT (` + counting + `)`

	sqlEndpoints = `
		SELECT server, url, since, check_at, reason, kind, message FROM endpoints
		WHERE ` + counting + ` ORDER BY server, url`

	sqlIsSetAside    = `SELECT EXISTS (SELECT 1 FROM endpoints WHERE server = $1 AND url = $2)`
	sqlEndpointWorks = `DELETE FROM endpoints WHERE server = $1 AND url = $2`
)

// endpointWindow is between what times the CheckAt of notes that count are. The
// grace at its end is for a clock that is put right by a little.
func endpointWindow(now time.Time) []any {
	return []any{millis(now.Add(-EndpointGrace)), millis(now.Add(MaxCheckInterval + EndpointGrace))}
}

func (e Endpoint) check() error {
	if err := checkText("server", e.Server, maxName); err != nil {
		return err
	}
	if err := checkText("URL", e.URL, maxURL); err != nil {
		return err
	}
	return checkText("reason", e.Reason, maxReason)
}

// SetAside notes that an endpoint is set aside, durably. If that was noted
// already, the earlier Since stands, unless that note does not count any more.
// A CheckAt more than MaxCheckInterval ahead is stored as that far ahead. It
// sweeps away all notes that do not count.
func (r *Registry) SetAside(ctx context.Context, e Endpoint) error {
	if err := e.check(); err != nil {
		return fmt.Errorf("registry %s: set endpoint aside: %w", r.path, err)
	}
	now := r.now()
	if most := now.Add(MaxCheckInterval); e.CheckAt.After(most) {
		e.CheckAt = most
	}
	kind, message := e.Failure.columns()
	_, err := r.change(ctx, "set endpoint aside",
		call{sqlSweepEndpoints, endpointWindow(now)},
		call{sqlSetAside, []any{e.Server, e.URL, millis(e.Since), millis(e.CheckAt), e.Reason, kind, message}})
	return err
}

// EndpointWorks notes that an endpoint works. It only reads if the endpoint was
// not noted as set aside.
func (r *Registry) EndpointWorks(ctx context.Context, server, url string) error {
	var noted bool
	if err := r.readers.QueryRowContext(ctx, sqlIsSetAside, server, url).Scan(&noted); err != nil || !noted {
		return explain(r.path, "look for endpoint", err)
	}
	_, err := r.change(ctx, "note that endpoint works", call{sqlEndpointWorks, []any{server, url}})
	return err
}

// Endpoints returns the endpoints that are set aside, in the order of server
// and URL: those whose notes count.
func (r *Registry) Endpoints(ctx context.Context) ([]Endpoint, error) {
	rows, err := r.readers.QueryContext(ctx, sqlEndpoints, endpointWindow(r.now())...)
	if err != nil {
		return nil, explain(r.path, "list endpoints", err)
	}
	defer rows.Close()
	var list []Endpoint
	for rows.Next() {
		var e Endpoint
		var since, check any
		if err := rows.Scan(&e.Server, &e.URL, &since, &check, &e.Reason, &e.Failure.Kind, &e.Failure.Message); err != nil {
			return nil, explain(r.path, "list endpoints", err)
		}
		e.Since, e.CheckAt = fromMillis(since), fromMillis(check)
		list = append(list, e)
	}
	return list, explain(r.path, "list endpoints", rows.Err())
}
