package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lib/pq"
)

const (
	dayNs = int64(24 * time.Hour)
	// daysAhead are made before their rows come.
	daysAhead = 2
	// Rows whose clock is further off than this stay in the default partition: a broken clock must not make
	// thousands of tables.
	pastDays, futureDays = 400, 7
	// partitionLock is the advisory lock under which partitions are made and dropped ("tidegate" in ASCII).
	partitionLock = 0x7469646567617465
	// lockTimeout bounds how long DDL waits for readers, and with it how long inserts queue behind it.
	lockTimeout = "10s"
)

// partitioned are the tables that PostgreSQL holds by day.
var partitioned = []Table{Flows, Enforcements}

// partition is one day of a table; a default partition has day < 0.
type partition struct {
	name string
	day  int64 // days since 1970
}

func dayName(t Table, day int64) string {
	return string(t) + "_p" + time.Unix(0, day*dayNs).UTC().Format("20060102")
}

// prepare makes the partitions that rows need.
func (d *postgresDialect) prepare(ctx context.Context, t Table, rows []record) error {
	if !slices.Contains(partitioned, t) {
		return nil
	}
	today := d.now().UnixNano() / dayNs
	last := int64(-1)
	for _, r := range rows {
		ts, _ := r.key()
		day := ts / dayNs
		if day == last || ts <= 0 || day < today-pastDays || day > today+futureDays {
			continue
		}
		last = day
		if err := d.makeDay(ctx, t, day); err != nil {
			return err
		}
	}
	return nil
}

func (d *postgresDialect) ahead(ctx context.Context, now time.Time) error {
	today := now.UnixNano() / dayNs
	for _, t := range partitioned {
		for day := today; day <= today+daysAhead; day++ {
			if err := d.makeDay(ctx, t, day); err != nil {
				return err
			}
		}
	}
	return nil
}

// makeDay makes the partition of one day unless it is there. Rows of that day which lie in the default
// partition move into it.
func (d *postgresDialect) makeDay(ctx context.Context, t Table, day int64) error {
	name := dayName(t, day)
	d.mu.Lock()
	known := d.days[name]
	d.mu.Unlock()
	if known {
		return nil
	}
	tx, err := d.db.BeginTxx(ctx, nil)
	if err != nil {
		return fmt.Errorf("partition %s: %w", name, err)
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it does nothing
	var there bool
	if _, err := tx.ExecContext(ctx, "SET LOCAL lock_timeout = '"+lockTimeout+"'"); err != nil {
		return fmt.Errorf("partition %s: %w", name, err)
	}
	if _, err := tx.ExecContext(ctx, "SELECT pg_advisory_xact_lock($1)", int64(partitionLock)); err != nil {
		return fmt.Errorf("partition %s: %w", name, err)
	}
	if err := tx.GetContext(ctx, &there, "SELECT to_regclass($1) IS NOT NULL", name); err != nil {
		return fmt.Errorf("partition %s: %w", name, err)
	}
	if !there {
		from, to := day*dayNs, (day+1)*dayNs
		for _, q := range []string{
			fmt.Sprintf("CREATE TABLE %s (LIKE %s INCLUDING DEFAULTS INCLUDING CONSTRAINTS)", name, t),
			fmt.Sprintf("WITH moved AS (DELETE FROM %s_default WHERE ts >= %d AND ts < %d RETURNING *) INSERT INTO %s SELECT * FROM moved", t, from, to, name),
			fmt.Sprintf("ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM (%d) TO (%d)", t, name, from, to),
		} {
			if _, err := tx.ExecContext(ctx, q); err != nil {
				return fmt.Errorf("make partition %s: %w", name, err)
			}
		}
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("make partition %s: %w", name, err)
	}
	d.mu.Lock()
	d.days[name] = true
	d.mu.Unlock()
	return nil
}

// partitions lists the days of t, oldest first, without the default partition.
func (d *postgresDialect) partitions(ctx context.Context, t Table) ([]partition, error) {
	var names []string
	if err := d.db.SelectContext(ctx, &names, `SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
		WHERE i.inhparent = $1::regclass ORDER BY c.relname`, string(t)); err != nil {
		return nil, fmt.Errorf("list partitions of %s: %w", t, err)
	}
	var out []partition
	for _, n := range names {
		date, ok := strings.CutPrefix(n, string(t)+"_p")
		if !ok {
			continue
		}
		at, err := time.Parse("20060102", date)
		if err != nil {
			continue // not ours
		}
		out = append(out, partition{n, at.Unix() / 86400})
	}
	return out, nil
}

// drop removes a partition and returns how many rows it had.
func (d *postgresDialect) drop(ctx context.Context, t Table, p partition) (int64, error) {
	tx, err := d.db.BeginTxx(ctx, nil)
	if err != nil {
		return 0, fmt.Errorf("drop partition %s: %w", p.name, err)
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it does nothing
	if _, err := tx.ExecContext(ctx, "SET LOCAL lock_timeout = '"+lockTimeout+"'"); err != nil {
		return 0, fmt.Errorf("drop partition %s: %w", p.name, err)
	}
	if _, err := tx.ExecContext(ctx, "SELECT pg_advisory_xact_lock($1)", int64(partitionLock)); err != nil {
		return 0, fmt.Errorf("drop partition %s: %w", p.name, err)
	}
	// This lock lets no row arrive between the count and the drop; the parent, and with it every insert, is
	// locked only for the drop itself.
	if _, err := tx.ExecContext(ctx, "LOCK TABLE "+p.name+" IN EXCLUSIVE MODE"); err != nil {
		var e *pq.Error
		if errors.As(err, &e) && e.Code == "42P01" {
			return 0, nil // another instance was faster
		}
		return 0, fmt.Errorf("lock partition %s: %w", p.name, err)
	}
	var n int64
	if err := tx.GetContext(ctx, &n, "SELECT count(*) FROM "+p.name); err != nil {
		return 0, fmt.Errorf("count partition %s: %w", p.name, err)
	}
	if _, err := tx.ExecContext(ctx, "DROP TABLE "+p.name); err != nil {
		return 0, fmt.Errorf("drop partition %s: %w", p.name, err)
	}
	if err := tx.Commit(); err != nil {
		return 0, fmt.Errorf("drop partition %s: %w", p.name, err)
	}
	d.mu.Lock()
	delete(d.days, p.name)
	d.mu.Unlock()
	return n, nil
}

// deleteOld removes rows of table (a plain table or a partition) older than before.
func (d *postgresDialect) deleteOld(ctx context.Context, table string, before int64) (int64, error) {
	res, err := d.db.ExecContext(ctx, fmt.Sprintf("DELETE FROM %s WHERE ts < $1", table), before)
	if err != nil {
		return 0, fmt.Errorf("delete old rows of %s: %w", table, err)
	}
	return res.RowsAffected()
}

func (d *postgresDialect) prune(ctx context.Context, t Table, before int64, removed func(Table, int64)) error {
	rest := string(t)
	if slices.Contains(partitioned, t) {
		rest += "_default"
		parts, err := d.partitions(ctx, t)
		if err != nil {
			return err
		}
		for _, p := range parts {
			if (p.day+1)*dayNs > before {
				continue // the whole day has to be over
			}
			n, err := d.drop(ctx, t, p)
			if err != nil {
				return err
			}
			removed(t, n)
		}
	}
	n, err := d.deleteOld(ctx, rest, before)
	if err != nil {
		return err
	}
	removed(t, n)
	return nil
}

// shrink drops the oldest days. When only the current day is left, the partition is replaced by one without
// its oldest quarter, which needs room for the part that stays and makes inserts wait meanwhile; a cap of more
// than one day's rows avoids it.
func (d *postgresDialect) shrink(ctx context.Context, max int64, removed func(Table, int64)) error {
	for _, t := range Tables {
		above := func() (bool, error) {
			n, err := d.size(ctx)
			return n > max, err
		}
		if !slices.Contains(partitioned, t) {
			if err := d.shrinkTable(ctx, string(t), above, func(n int64) { removed(t, n) }); err != nil {
				return err
			}
			continue
		}
		if err := d.replaceUntil(ctx, t, partition{string(t) + "_default", -1}, above, removed); err != nil {
			return err
		}
		parts, err := d.partitions(ctx, t)
		if err != nil {
			return err
		}
		today := d.now().UnixNano() / dayNs
		for _, p := range parts {
			if p.day >= today {
				if err := d.replaceUntil(ctx, t, p, above, removed); err != nil {
					return err
				}
				continue
			}
			if more, err := above(); err != nil || !more {
				return err
			}
			n, err := d.drop(ctx, t, p)
			if err != nil {
				return err
			}
			removed(t, n)
		}
	}
	return nil
}

// replaceUntil takes the oldest quarter out of a partition until the size is right or the partition empty.
func (d *postgresDialect) replaceUntil(ctx context.Context, t Table, p partition, above func() (bool, error), removed func(Table, int64)) error {
	for {
		if more, err := above(); err != nil || !more {
			return err
		}
		n, err := d.replace(ctx, t, p)
		if err != nil {
			return fmt.Errorf("shrink partition %s: %w", p.name, err)
		}
		if n == 0 {
			return nil
		}
		removed(t, n)
	}
}

// replace puts a copy without the oldest quarter of the rows in a partition's place, in one transaction: when
// it is interrupted, nothing is lost. It returns how many rows went.
func (d *postgresDialect) replace(ctx context.Context, t Table, p partition) (int64, error) {
	tx, err := d.db.BeginTxx(ctx, nil)
	if err != nil {
		return 0, err
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it does nothing
	for _, q := range []string{
		"SET LOCAL lock_timeout = '" + lockTimeout + "'",
		fmt.Sprintf("SELECT pg_advisory_xact_lock(%d)", int64(partitionLock)),
		"LOCK TABLE " + p.name + " IN EXCLUSIVE MODE", // readers go on until the drop
	} {
		if _, err := tx.ExecContext(ctx, q); err != nil {
			return 0, err
		}
	}
	var rows int64
	if err := tx.GetContext(ctx, &rows, "SELECT count(*) FROM "+p.name); err != nil || rows == 0 {
		return 0, err
	}
	var cut int64
	if err := tx.GetContext(ctx, &cut, fmt.Sprintf("SELECT ts FROM %s ORDER BY ts LIMIT 1 OFFSET %d", p.name, rows/4)); err != nil {
		return 0, err
	}
	bound := "DEFAULT"
	if p.day >= 0 {
		bound = fmt.Sprintf("FOR VALUES FROM (%d) TO (%d)", p.day*dayNs, (p.day+1)*dayNs)
	}
	fresh := p.name + "_new"
	for _, q := range []string{
		fmt.Sprintf("CREATE TABLE %s (LIKE %s INCLUDING DEFAULTS INCLUDING CONSTRAINTS)", fresh, t),
		fmt.Sprintf("INSERT INTO %s SELECT * FROM %s WHERE ts > %d", fresh, p.name, cut),
		"DROP TABLE " + p.name,
		fmt.Sprintf("ALTER TABLE %s RENAME TO %s", fresh, p.name),
		fmt.Sprintf("ALTER TABLE %s ATTACH PARTITION %s %s", t, p.name, bound),
	} {
		if _, err := tx.ExecContext(ctx, q); err != nil {
			return 0, err
		}
	}
	var left int64
	if err := tx.GetContext(ctx, &left, "SELECT count(*) FROM "+p.name); err != nil {
		return 0, err
	}
	return rows - left, tx.Commit()
}

// shrinkTable deletes the oldest quarter of a small table until the size is right or the table is empty.
func (d *postgresDialect) shrinkTable(ctx context.Context, table string, above func() (bool, error), removed func(int64)) error {
	for {
		if more, err := above(); err != nil || !more {
			return err
		}
		var rows int64
		if err := d.db.GetContext(ctx, &rows, "SELECT count(*) FROM "+table); err != nil {
			return fmt.Errorf("count %s: %w", table, err)
		}
		if rows == 0 {
			return nil
		}
		var cut int64
		if err := d.db.GetContext(ctx, &cut, fmt.Sprintf("SELECT ts FROM %s ORDER BY ts LIMIT 1 OFFSET %d", table, rows/4)); err != nil {
			return fmt.Errorf("find the oldest rows of %s: %w", table, err)
		}
		n, err := d.deleteOld(ctx, table, cut+1)
		if err != nil {
			return err
		}
		removed(n)
		if _, err := d.db.ExecContext(ctx, "VACUUM FULL "+table); err != nil {
			return fmt.Errorf("give back the space of %s: %w", table, err)
		}
	}
}
