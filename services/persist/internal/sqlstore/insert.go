package sqlstore

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
)

// Batch is what one Insert commits: rows, and with them how far the stream they came from has been read.
type Batch struct {
	Flows        []Flow
	Attacks      []Attack
	Verdicts     []Verdict
	Enforcements []Enforcement
	Audits       []Audit
	// Stream and Seq, when Stream is set, raise the stored position of the stream, or, when Anew, replace it: the stream
	// was made anew and its sequences began at 1 again.
	Stream string
	Seq    uint64
	Anew   bool
}

// Count says what became of rows.
type Count struct{ Committed, Duplicate, Rejected int64 }

// Result counts the rows of one Insert by table.
type Result struct {
	Count map[Table]Count
	// Rejections are the database's reasons, at most 8 of them.
	Rejections []string
}

func (r *Result) add(t Table, c Count) {
	n := r.Count[t]
	n.Committed += c.Committed
	n.Duplicate += c.Duplicate
	n.Rejected += c.Rejected
	r.Count[t] = n
}

type group struct {
	table Table
	rows  []record
}

func groupOf[T any, P interface {
	*T
	record
}](t Table, rows []T) group {
	g := group{table: t, rows: make([]record, len(rows))}
	for i := range rows {
		g.rows[i] = P(&rows[i])
	}
	// Sorted inserts touch each page of the clustered key once, and two writers that meet on the same rows
	// lock them in the same order.
	slices.SortFunc(g.rows, func(a, b record) int {
		ta, ia := a.key()
		tb, ib := b.key()
		return cmp.Or(cmp.Compare(ta, tb), strings.Compare(ia, ib))
	})
	return g
}

// Insert commits b. Rows that are there already are counted as duplicates and left as they are. A row that
// the database rejects is left out and counted; the rest is committed, then in several transactions.
// An error means that the database could not be used; part of b may be committed, and inserting b again
// is safe. Result is complete only without an error.
func (s *Store) Insert(ctx context.Context, b Batch) (Result, error) {
	res := Result{Count: map[Table]Count{}}
	var groups []group
	for _, g := range []group{groupOf(Flows, b.Flows), groupOf(Attacks, b.Attacks),
		groupOf(Verdicts, b.Verdicts), groupOf(Enforcements, b.Enforcements), groupOf(Audits, b.Audits)} {
		if len(g.rows) == 0 {
			continue
		}
		groups = append(groups, g)
		if err := s.d.prepare(ctx, g.table, g.rows); err != nil {
			return res, fmt.Errorf("prepare %s: %w", g.table, err)
		}
	}
	parts := s.parts(groups)
	for i, part := range parts {
		var pos position
		if i == len(parts)-1 { // the position says that everything before it is there
			pos = position{b.Stream, b.Seq, b.Anew}
		}
		err := s.commit(ctx, part, pos, &res)
		if err != nil && s.d.invalid(err) {
			for _, g := range part {
				if err = s.split(ctx, g, &res); err != nil {
					return res, err
				}
			}
			err = s.commit(ctx, nil, pos, &res)
		}
		if err != nil {
			return res, err
		}
	}
	var inserted int64
	for _, c := range res.Count {
		inserted += c.Committed
	}
	if due, inline := s.d.sizeDue(inserted); s.cfg.MaxBytes > 0 && due {
		if inline {
			// The rows are safe already; a failure to prune now is found again by the next batch.
			_ = s.capSize(ctx)
		} else {
			select {
			case s.full <- struct{}{}:
			default: // told already
			}
		}
	}
	return res, nil
}

// parts shares groups out among transactions of at most the dialect's number of rows; there is at least one.
func (s *Store) parts(groups []group) [][]group {
	limit := s.d.maxRows()
	if limit <= 0 {
		return [][]group{groups}
	}
	parts, room := [][]group{nil}, limit
	for _, g := range groups {
		for len(g.rows) > 0 {
			if room == 0 {
				parts, room = append(parts, nil), limit
			}
			n := min(room, len(g.rows))
			parts[len(parts)-1] = append(parts[len(parts)-1], group{g.table, g.rows[:n]})
			g.rows, room = g.rows[n:], room-n
		}
	}
	return parts
}

// position is how far a stream was read; no stream: it stays as it is.
type position struct {
	stream string
	seq    uint64
	anew   bool
}

// commit inserts groups in one transaction.
func (s *Store) commit(ctx context.Context, groups []group, pos position, res *Result) (err error) {
	if len(groups) == 0 && pos.stream == "" {
		return nil
	}
	defer func() {
		if err != nil {
			s.d.failed(err)
		}
	}()
	tx, err := s.d.writer().BeginTxx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it does nothing
	counts := make([]Count, len(groups))
	for i, g := range groups {
		n, err := s.d.bulk(ctx, tx, g.table, g.rows)
		if err != nil {
			return fmt.Errorf("insert %d rows into %s: %w", len(g.rows), g.table, err)
		}
		counts[i] = Count{Committed: n, Duplicate: int64(len(g.rows)) - n}
	}
	if pos.anew {
		if _, err := tx.ExecContext(ctx, tx.Rebind("DELETE FROM stream_positions WHERE stream = ?"), pos.stream); err != nil {
			return fmt.Errorf("forget the position of %s: %w", pos.stream, err)
		}
	}
	if pos.stream != "" {
		if _, err := tx.ExecContext(ctx, tx.Rebind(s.d.positionSQL()), pos.stream, int64(pos.seq)); err != nil { //nolint:gosec // sequences stay far below 2^63
			return fmt.Errorf("store the position of %s: %w", pos.stream, err)
		}
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	for i, g := range groups {
		res.add(g.table, counts[i])
	}
	return nil
}

// raisePosition is positionSQL where ON CONFLICT is known.
const raisePosition = `INSERT INTO stream_positions (stream, seq) VALUES (?, ?)
	ON CONFLICT (stream) DO UPDATE SET seq = excluded.seq WHERE excluded.seq > stream_positions.seq`

// split commits a group by halves until the rejected rows stand alone.
func (s *Store) split(ctx context.Context, g group, res *Result) error {
	err := s.commit(ctx, []group{g}, position{}, res)
	if err == nil {
		return nil
	}
	if !s.d.invalid(err) {
		return err
	}
	if len(g.rows) > 1 {
		half := len(g.rows) / 2
		if err := s.split(ctx, group{g.table, g.rows[:half]}, res); err != nil {
			return err
		}
		return s.split(ctx, group{g.table, g.rows[half:]}, res)
	}
	res.add(g.table, Count{Rejected: 1})
	if len(res.Rejections) < 8 {
		_, id := g.rows[0].key()
		res.Rejections = append(res.Rejections, fmt.Sprintf("%s %q: %v", g.table, id, err))
	}
	return nil
}

// multiRow is an INSERT of n rows that leaves existing rows alone, where ON CONFLICT is known.
func multiRow(t Table, n int) string {
	return insertRows(t, n) + " ON CONFLICT (" + conflict[t] + ") DO NOTHING"
}

// insertRows is an INSERT of n rows with parameters.
func insertRows(t Table, n int) string {
	cols := columns[t]
	one := "(" + strings.TrimSuffix(strings.Repeat("?, ", len(cols)), ", ") + ")"
	return fmt.Sprintf("INSERT INTO %s (%s) VALUES %s", t, strings.Join(cols, ", "),
		strings.TrimSuffix(strings.Repeat(one+", ", n), ", "))
}
