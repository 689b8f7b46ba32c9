package registry

import (
	"strings"
	"testing"
)

// TestWhatIsAskedAllTheTimeWalksOverNoRowsInVain reads SQLite's plans, which
// do not depend on the rows: nothing ever collects statistics about them.
// https://www.sqlite.org/eqp.html
func TestWhatIsAskedAllTheTimeWalksOverNoRowsInVain(t *testing.T) {
	const (
		due     = "registrations_due (server=? AND <expr>=? AND next_at<?)"
		primary = "SEARCH registrations USING PRIMARY KEY (username=? AND server=?)"
	)
	r, _ := fresh(t)
	for name, tc := range map[string]struct {
		query string
		args  int
		want  []string // each of them is the end of a step
	}{
		"what is due":      {sqlDue, 5, []string{"SEARCH registrations USING INDEX " + due}},
		"what is due next": {sqlNextDue, 4, []string{"SEARCH registrations USING INDEX registrations_due (server=? AND <expr>=? AND next_at>?)"}},
		"servers":          {sqlServers, 0, []string{"SEARCH registrations USING COVERING INDEX registrations_due", "SEARCH registrations USING COVERING INDEX registrations_due (server>?)"}},
		"what waits": {sqlBacklogs, 2, []string{
			"SEARCH registrations USING COVERING INDEX registrations_due",
			"SEARCH registrations USING COVERING INDEX registrations_due (server>?)",
			"SEARCH registrations USING COVERING INDEX " + due,
			"SCAN registrations USING INDEX registrations_claimed", // the claimed only
			"SEARCH registrations USING INDEX " + due,
			"SEARCH registrations USING COVERING INDEX " + due,
			"SCAN registrations USING INDEX registrations_claimed",
			"SEARCH registrations USING COVERING INDEX registrations_failing (server=? AND error_kind=?)",
		}},
		"pending, due too late":    {sqlLateState, 5, []string{"SEARCH registrations USING INDEX registrations_state (server=? AND state=? AND username>?)"}},
		"failing, due too late":    {sqlLateKind, 5, []string{"SEARCH registrations USING INDEX registrations_failing (server=? AND error_kind=? AND username>?)"}},
		"settled, due too late":    {sqlLateSettled, 5, []string{"SEARCH registrations USING INDEX registrations_due (server=? AND <expr>=? AND (next_at,username)>(?,?))"}},
		"refused, due too late":    {sqlLateRefused, 5, []string{"SEARCH registrations USING INDEX registrations_due (server=? AND <expr>=? AND (next_at,username)>(?,?))"}},
		"spread":                   {sqlSpread, 5, []string{primary}},
		"hasten":                   {sqlHasten, 3, []string{primary}},
		"read to claim":            {rowsSelect.text(3), 6, []string{primary}},
		"claim":                    {sqlClaim, 7, []string{primary}},
		"claim several":            {rowsClaim.text(3), 8, []string{primary}},
		"record":                   {sqlRecord, 15, []string{primary}},
		"record, for a newer wish": {sqlLearn, 7, []string{primary}},
		"record, gone":             {sqlGone, 4, []string{primary}},
		"release":                  {sqlRelease, 1, []string{"SEARCH registrations USING INDEX registrations_claimed (claimed_by=?)"}},
		"reclaim":                  {sqlReclaim, 2, []string{"SEARCH registrations USING INDEX registrations_claimed (claimed_by=?)"}},
		"prove": {sqlProve, 2, []string{
			"SEARCH registrations USING INDEX registrations_identity (identity=?)", "SEARCH registrations USING PRIMARY KEY (username=?)"}},
		"who is known": {sqlNamed, 1, []string{
			"SEARCH registrations USING INDEX registrations_identity (identity=?)", "SEARCH registrations USING PRIMARY KEY (username=?)"}},
		"prove by login":             {sqlProveLogin, 2, []string{"SEARCH registrations USING PRIMARY KEY (username=?)"}},
		"whose login":                {sqlLogin, 1, []string{"SEARCH registrations USING PRIMARY KEY (username=?)"}},
		"who is proven":              {sqlProven, 1, []string{"SCAN registrations USING INDEX registrations_state"}},
		"standings, page after page": {sqlStandings, 5, []string{"SEARCH registrations USING PRIMARY KEY ((username,server)>(?,?))"}},
	} {
		var got []string
		for _, step := range plan(t, r, tc.query, tc.args) {
			if strings.Contains(step, " registrations ") {
				got = append(got, step)
			}
			if strings.Contains(step, "TEMP B-TREE") && name != "who is proven" { // which sorts days, and the few

				t.Errorf("%s: sorts: %s", name, step)
			}
		}
		if a, b := strings.Join(got, "\n"), strings.Join(tc.want, "\n"); a != b {
			t.Errorf("%s:\n%s\nwant\n%s", name, a, b)
		}
	}
}

func plan(t *testing.T, r *Registry, query string, args int) (steps []string) {
	t.Helper()
	rows, err := r.writer.db.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+query, make([]any, args)...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var id, parent, unused int
		var step string
		if err := rows.Scan(&id, &parent, &unused, &step); err != nil {
			t.Fatal(err)
		}
		steps = append(steps, step)
	}
	if err := rows.Err(); err != nil || len(steps) == 0 {
		t.Fatal(steps, err)
	}
	return steps
}

// The plan calls an index covering that is not: SQLite reads each row, should
// its expression have to be worked out again.
func TestWhatIsDueIsCountedWithoutReadingTheRows(t *testing.T) {
	r, _ := fresh(t)
	query := "EXPLAIN " + strings.ReplaceAll(countDue, "name", "'main'") + "1"
	rows, err := r.writer.db.QueryContext(t.Context(), query, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	steps := 0
	for ; rows.Next(); steps++ {
		var addr, p1, p2, p3, p4, p5, comment any
		var opcode string
		if err := rows.Scan(&addr, &opcode, &p1, &p2, &p3, &p4, &p5, &comment); err != nil {
			t.Fatal(err)
		}
		if opcode == "NotFound" { // looks up a row by its key
			t.Errorf("step %v: %s", addr, opcode)
		}
	}
	if err := rows.Err(); err != nil || steps == 0 {
		t.Errorf("%d steps, error %v", steps, err)
	}
}
