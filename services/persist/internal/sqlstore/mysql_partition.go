package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	// The lowest partition takes what is older than the days, the highest what is newer.
	pastName, restName = "p_past", "p_rest"
	// cutName is the part of a partition that is about to be dropped.
	cutName = "p_cut"
	// fillDays is the longest run of days that is made at once, and how far back rows get days of their own; older
	// ones stay in the lowest partition.
	fillDays = 32
	// deleteRows is how many rows one deleting transaction takes; on Galera a larger one would hold up the cluster.
	deleteRows = 5000
)

// section is a partition as the server has it: rows below bound ns that are in none before it.
type section struct {
	name  string
	bound int64 // 0: no bound
}

func dayPartition(day int64) string {
	return "p" + time.Unix(0, day*dayNs).UTC().Format("20060102")
}

// sections lists the partitions of t in order.
func (d *mysqlDialect) sections(ctx context.Context, t Table) ([]section, error) {
	rows, err := d.db.QueryContext(ctx, `SELECT partition_name, CASE partition_description WHEN 'MAXVALUE' THEN 0
		ELSE CAST(partition_description AS SIGNED) END FROM information_schema.partitions
		WHERE table_schema = DATABASE() AND table_name = ? AND partition_name IS NOT NULL ORDER BY partition_ordinal_position`, string(t))
	if err != nil {
		return nil, fmt.Errorf("list partitions of %s: %w", t, err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err is checked
	var out []section
	for rows.Next() {
		var s section
		if err := rows.Scan(&s.name, &s.bound); err != nil {
			return nil, fmt.Errorf("list partitions of %s: %w", t, err)
		}
		out = append(out, s)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list partitions of %s: %w", t, err)
	}
	d.mu.Lock()
	d.parts[t] = out
	d.mu.Unlock()
	return out, nil
}

// prepare makes the partitions that rows need.
func (d *mysqlDialect) prepare(ctx context.Context, t Table, rows []record) error {
	if !slices.Contains(partitioned, t) {
		return nil
	}
	today := d.now().UnixNano() / dayNs
	last := int64(-1)
	for _, r := range rows {
		ts, _ := r.key()
		day := ts / dayNs
		if day == last || ts <= 0 || day <= today-fillDays || day > today+futureDays {
			continue
		}
		last = day
		if err := d.makeDay(ctx, t, day); err != nil {
			return err
		}
	}
	return nil
}

func (d *mysqlDialect) ahead(ctx context.Context, now time.Time) error {
	for _, t := range partitioned {
		if _, err := d.sections(ctx, t); err != nil {
			return err
		}
		if err := d.makeDay(ctx, t, now.UnixNano()/dayNs+daysAhead); err != nil {
			return err
		}
	}
	return nil
}

// makeDay cuts the days up to and with day off the highest partition, or from day on off the lowest, unless it is
// among the days that are there. Only rows in those two outer partitions are moved, of which there are few.
func (d *mysqlDialect) makeDay(ctx context.Context, t Table, day int64) error {
	d.mu.Lock()
	have := d.parts[t]
	d.mu.Unlock()
	if covered(have, day) {
		return nil
	}
	for attempt := 0; ; attempt++ {
		have, err := d.sections(ctx, t)
		if err != nil || covered(have, day) {
			return err
		}
		if len(have) > 1 && have[0].bound/dayNs-day > fillDays {
			return nil // the table was made under a clock that was ahead
		}
		_, err = d.db.ExecContext(ctx, splitSQL(t, have, day, d.now().UnixNano()/dayNs))
		switch mysqlCode(err) {
		case erPartitionOrder, erSamePartition, erUnknownPartition, erDeadlock:
			if attempt < 5 { // another instance was faster
				continue
			}
		}
		if err != nil {
			d.failed(err)
			return fmt.Errorf("make partition %s of %s: %w", dayPartition(day), t, err)
		}
	}
}

// covered tells whether day lies in one of the inner partitions.
func covered(have []section, day int64) bool {
	if len(have) < 2 {
		return false
	}
	return day*dayNs >= have[0].bound && (day+1)*dayNs <= have[len(have)-2].bound
}

// splitSQL is the statement that makes the days between what is there and day.
func splitSQL(t Table, have []section, day, today int64) string {
	below := func(name string, bound int64) string {
		return fmt.Sprintf("PARTITION %s VALUES LESS THAN (%d)", name, bound)
	}
	var parts []string
	old := restName
	switch {
	case len(have) < 2: // the first time
		day = max(day, today)
		from := min(day, max(today, day-fillDays))
		parts = append(parts, below(pastName, from*dayNs))
		for n := from; n <= day; n++ {
			parts = append(parts, below(dayPartition(n), (n+1)*dayNs))
		}
		parts = append(parts, "PARTITION "+restName+" VALUES LESS THAN MAXVALUE")
	case day*dayNs < have[0].bound:
		old = have[0].name
		parts = append(parts, below(old, day*dayNs))
		for n := day; n < have[0].bound/dayNs; n++ {
			parts = append(parts, below(dayPartition(n), (n+1)*dayNs))
		}
	default:
		// After a long pause the first new day takes the gap.
		for n := max(have[len(have)-2].bound/dayNs, day-fillDays); n <= day; n++ {
			parts = append(parts, below(dayPartition(n), (n+1)*dayNs))
		}
		parts = append(parts, "PARTITION "+restName+" VALUES LESS THAN MAXVALUE")
	}
	return fmt.Sprintf("ALTER TABLE %s REORGANIZE PARTITION %s INTO (%s)", t, old, strings.Join(parts, ", "))
}

// dropSection removes a partition and returns how many rows it had.
func (d *mysqlDialect) dropSection(ctx context.Context, t Table, s section) (int64, error) {
	var n int64
	if err := d.db.GetContext(ctx, &n, fmt.Sprintf("SELECT count(*) FROM %s PARTITION (%s)", t, s.name)); err != nil {
		if mysqlCode(err) == erNoPartition { // another instance was faster
			return 0, nil
		}
		return 0, fmt.Errorf("count partition %s of %s: %w", s.name, t, err)
	}
	if _, err := d.db.ExecContext(ctx, fmt.Sprintf("ALTER TABLE %s DROP PARTITION %s", t, s.name)); err != nil {
		if mysqlCode(err) == erUnknownPartition {
			return 0, nil
		}
		return 0, fmt.Errorf("drop partition %s of %s: %w", s.name, t, err)
	}
	return n, nil
}

// deleteOld removes rows of t older than before, in steps.
func (d *mysqlDialect) deleteOld(ctx context.Context, t Table, before int64, removed func(Table, int64)) error {
	for {
		// By key, the oldest first: the same rows on every node and replica.
		res, err := d.db.ExecContext(ctx, fmt.Sprintf("DELETE FROM %s WHERE ts < ? ORDER BY ts LIMIT %d", t, deleteRows), before)
		if err != nil {
			return fmt.Errorf("delete old rows of %s: %w", t, err)
		}
		n, err := res.RowsAffected()
		if err != nil {
			return fmt.Errorf("delete old rows of %s: %w", t, err)
		}
		removed(t, n)
		if n < deleteRows {
			return nil
		}
	}
}

func (d *mysqlDialect) prune(ctx context.Context, t Table, before int64, removed func(Table, int64)) error {
	if slices.Contains(partitioned, t) {
		have, err := d.sections(ctx, t)
		if err != nil {
			return err
		}
		for _, s := range inner(have) {
			if s.bound > before {
				break // the whole day has to be over
			}
			n, err := d.dropSection(ctx, t, s)
			if err != nil {
				return err
			}
			removed(t, n)
		}
		before = before / dayNs * dayNs // what is left are old rows in the lowest partition
	}
	return d.deleteOld(ctx, t, before, removed)
}

// inner is the partitions by day.
func inner(have []section) []section {
	if len(have) < 3 {
		return nil
	}
	return have[1 : len(have)-1]
}

// shrink drops the oldest days. When only the current day is left, its oldest quarter is cut off and dropped, which
// needs room for a copy and makes inserts wait meanwhile; a cap of more than one day's rows avoids it.
func (d *mysqlDialect) shrink(ctx context.Context, max int64, removed func(Table, int64)) error {
	if n, err := d.size(ctx); err != nil || n <= max {
		return err
	}
	for _, t := range Tables {
		above := func() (bool, error) {
			n, err := d.sizeAfter(ctx, t)
			return n > max, err
		}
		if !slices.Contains(partitioned, t) {
			if err := d.shrinkTable(ctx, t, above, removed); err != nil {
				return err
			}
			continue
		}
		have, err := d.sections(ctx, t)
		if err != nil {
			return err
		}
		today := d.now().UnixNano() / dayNs
		if i := slices.IndexFunc(have, func(s section) bool { return s.name == cutName }); i >= 0 { // cut was interrupted
			n, err := d.dropSection(ctx, t, have[i])
			if err != nil {
				return err
			}
			removed(t, n)
			have = slices.Delete(have, i, i+1)
		}
		for i, s := range have {
			if days := inner(have); i > 0 && i <= len(days) && s.bound <= today*dayNs {
				if more, err := above(); err != nil || !more {
					return err
				}
				n, err := d.dropSection(ctx, t, s)
				if err != nil {
					return err
				}
				removed(t, n)
				continue
			}
			if err := d.cutUntil(ctx, t, s, above, removed); err != nil {
				return err
			}
		}
	}
	return nil
}

// cutUntil drops the oldest quarter of a partition until the size is right or the partition empty.
func (d *mysqlDialect) cutUntil(ctx context.Context, t Table, s section, above func() (bool, error), removed func(Table, int64)) error {
	for {
		var some []int64
		if err := d.db.SelectContext(ctx, &some, fmt.Sprintf("SELECT 1 FROM %s PARTITION (%s) LIMIT 1", t, s.name)); err != nil || len(some) == 0 {
			return err
		}
		if more, err := above(); err != nil || !more {
			return err
		}
		n, err := d.cut(ctx, t, s)
		if err != nil {
			return fmt.Errorf("shrink partition %s of %s: %w", s.name, t, err)
		}
		if n == 0 {
			return nil
		}
		removed(t, n)
	}
}

// cut splits the oldest quarter off a partition and drops it; interrupted in between, the next shrink drops it.
func (d *mysqlDialect) cut(ctx context.Context, t Table, s section) (int64, error) {
	var rows, at int64
	if err := d.db.GetContext(ctx, &rows, fmt.Sprintf("SELECT count(*) FROM %s PARTITION (%s)", t, s.name)); err != nil || rows == 0 {
		return 0, err
	}
	err := d.db.GetContext(ctx, &at, fmt.Sprintf("SELECT ts FROM %s PARTITION (%s) ORDER BY ts LIMIT 1 OFFSET %d", t, s.name, rows/4))
	if errors.Is(err, sql.ErrNoRows) { // others delete at the same time
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if at++; s.bound != 0 && at >= s.bound { // all of it
		res, err := d.db.ExecContext(ctx, fmt.Sprintf("DELETE FROM %s PARTITION (%s) ORDER BY ts LIMIT %d", t, s.name, deleteRows))
		if err != nil {
			return 0, err
		}
		return res.RowsAffected()
	}
	bound := "MAXVALUE"
	if s.bound != 0 {
		bound = fmt.Sprintf("(%d)", s.bound)
	}
	if _, err := d.db.ExecContext(ctx, fmt.Sprintf("ALTER TABLE %s REORGANIZE PARTITION %s INTO (PARTITION %s VALUES LESS THAN (%d), PARTITION %s VALUES LESS THAN %s)",
		t, s.name, cutName, at, s.name, bound)); err != nil {
		return 0, err
	}
	return d.dropSection(ctx, t, section{name: cutName, bound: at})
}

// shrinkTable deletes the oldest quarter of a small table until the size is right or the table is empty.
func (d *mysqlDialect) shrinkTable(ctx context.Context, t Table, above func() (bool, error), removed func(Table, int64)) error {
	for {
		if more, err := above(); err != nil || !more {
			return err
		}
		var rows, at int64
		if err := d.db.GetContext(ctx, &rows, "SELECT count(*) FROM "+string(t)); err != nil || rows == 0 {
			return err
		}
		if err := d.db.GetContext(ctx, &at, fmt.Sprintf("SELECT ts FROM %s ORDER BY ts LIMIT 1 OFFSET %d", t, rows/4)); err != nil {
			return fmt.Errorf("find the oldest rows of %s: %w", t, err)
		}
		if err := d.deleteOld(ctx, t, at+1, removed); err != nil {
			return err
		}
		// Rebuilding gives the space back.
		if _, err := d.db.ExecContext(ctx, "ALTER TABLE "+string(t)+" ENGINE=InnoDB"); err != nil {
			return fmt.Errorf("give back the space of %s: %w", t, err)
		}
	}
}
