package registry

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
)

// rowsQuery is a statement about several rows. To begin and to end a statement
// costs more than a row does.
type rowsQuery struct{ head, row, tail string }

// text is the statement for n rows. Its parameters have no names: the driver
// would spend more on a name than on the value.
func (q rowsQuery) text(n int) string {
	return q.head + strings.Repeat(q.row+", ", n-1) + q.row + q.tail
}

// rowsQueries are prepared for each of rowsSizes, in that order, when there is
// a call for so many rows.
var (
	rowsQueries = []rowsQuery{rowsIntend, rowsIntendIfOther, rowsSelect, rowsClaim}
	rowsSizes   = []int{1, 10, 100}
)

// prepare prepares what a change of so many rows can use. It must not be
// called inside a transaction: it would wait for the one connection for ever.
func (w *writer) prepare(ctx context.Context, rows int) error {
	for len(w.rows) < len(rowsSizes) && rowsSizes[len(w.rows)] <= rows {
		stmts := make(map[rowsQuery]*sql.Stmt)
		for _, q := range rowsQueries {
			stmt, err := w.db.PrepareContext(ctx, q.text(rowsSizes[len(w.rows)]))
			if err != nil {
				return fmt.Errorf("prepare statements: %w", err)
			}
			stmts[q] = stmt
		}
		w.rows = append(w.rows, stmts)
	}
	return nil
}

// inSteps has do carry out a statement for the rows from one up to another,
// until it has had all n.
func (tx transaction) inSteps(ctx context.Context, q rowsQuery, n int, do func(stmt *sql.Stmt, from, to int) error) error {
	for from := 0; from < n; {
		size := len(tx.w.rows) - 1
		for rowsSizes[size] > n-from {
			size--
		}
		to := from + rowsSizes[size]
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := do(tx.bind(tx.w.rows[size][q]), from, to); err != nil {
			return err
		}
		from = to
	}
	return nil
}
