package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// UsualDay is what one classifier learned on one day about the rates of hosts. Data is its own encoding.
type UsualDay struct {
	Node      string `db:"node"`
	Day       int64  `db:"day"` // since 1970-01-01 UTC
	UpdatedNs int64  `db:"updated_ns"`
	Data      []byte `db:"data"`
}

// usualDays is how long they are kept: longer than a classifier can be told to look back (28).
const usualDays = 32

// PutUsual stores a day in the place of what its node had stored of it.
func (s *Store) PutUsual(ctx context.Context, d UsualDay) (err error) {
	defer func() {
		if err != nil {
			s.d.failed(err)
			err = fmt.Errorf("store the usual rates of %s: %w", d.Node, err)
		}
	}()
	tx, err := s.d.writer().BeginTxx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it does nothing
	if _, err := tx.ExecContext(ctx, tx.Rebind("DELETE FROM usual_days WHERE node = ? AND day = ?"), d.Node, d.Day); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, tx.Rebind("INSERT INTO usual_days (node, day, updated_ns, data) VALUES (?, ?, ?, ?)"),
		d.Node, d.Day, d.UpdatedNs, d.Data); err != nil {
		return err
	}
	return tx.Commit()
}

// NextUsual returns what the first node after a name, in the order of bytes, stored of a day; false: there is none.
func (s *Store) NextUsual(ctx context.Context, day int64, after string) (d UsualDay, ok bool, err error) {
	r := s.d.reader()
	err = r.GetContext(ctx, &d, r.Rebind("SELECT node, day, updated_ns, data FROM usual_days WHERE day = ? AND node > ? ORDER BY node LIMIT 1"), day, after)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return d, false, nil
	case err != nil:
		s.d.failed(err)
		return d, false, fmt.Errorf("read the usual rates: %w", err)
	}
	return d, true, nil
}

func (s *Store) pruneUsual(ctx context.Context, now time.Time) error {
	w := s.d.writer()
	if _, err := w.ExecContext(ctx, w.Rebind("DELETE FROM usual_days WHERE day < ?"), now.Unix()/(24*60*60)-usualDays); err != nil {
		s.d.failed(err)
		return fmt.Errorf("remove old usual rates: %w", err)
	}
	return nil
}
