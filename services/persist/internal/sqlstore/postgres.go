package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

const (
	// copyFrom is the number of rows from which COPY beats one INSERT with parameters.
	copyFrom = 24
	// countBytes is the size up to which rows are counted exactly.
	countBytes = 1 << 30
	// sizeRows is after how many inserted rows the size is looked at.
	sizeRows = 100_000
)

// postgresDialect uses one pool: PostgreSQL lets writers and readers work side by side.
type postgresDialect struct {
	db    *sqlx.DB
	now   func() time.Time
	since atomic.Int64 // rows inserted since the size was last looked at

	mu   sync.Mutex
	days map[string]bool // partitions known to exist
}

// postgresURL checks the URL and adds a bound to connecting where it has none.
func postgresURL(raw string) (string, error) {
	u, err := url.Parse(raw)
	if err != nil {
		// The parser's error would repeat the URL, password included.
		return "", errors.New("DATABASE_URL is not a valid URL: escape special characters of the password as %XX")
	}
	q := u.Query()
	if q.Get("connect_timeout") == "" {
		q.Set("connect_timeout", "5")
	}
	if q.Get("application_name") == "" {
		q.Set("application_name", "tidegate-persist")
	}
	u.RawQuery = q.Encode()
	return u.String(), nil
}

func openPostgres(ctx context.Context, dsn string, pw password, now func() time.Time) (*postgresDialect, error) {
	db := sqlx.NewDb(sql.OpenDB(postgresConnector{dsn, pw, cancelGrace}), "postgres")
	db.SetMaxOpenConns(8)
	db.SetMaxIdleConns(4)
	db.SetConnMaxIdleTime(5 * time.Minute)
	if err := db.PingContext(ctx); err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	return &postgresDialect{db: db, now: now, days: map[string]bool{}}, nil
}

func (d *postgresDialect) version(ctx context.Context) (string, error) {
	var v string
	if err := d.db.GetContext(ctx, &v, "SHOW server_version"); err != nil {
		return "", fmt.Errorf("read the PostgreSQL version: %w", err)
	}
	v, _, _ = strings.Cut(v, " ")
	return "PostgreSQL " + v, nil
}

func (d *postgresDialect) writer() *sqlx.DB       { return d.db }
func (d *postgresDialect) reader() *sqlx.DB       { return d.db }
func (d *postgresDialect) close() error           { return d.db.Close() }
func (d *postgresDialect) defaultMaxBytes() int64 { return 50 << 30 }

func (d *postgresDialect) maxRows() int              { return 0 }
func (d *postgresDialect) positionSQL() string       { return raisePosition }
func (d *postgresDialect) failed(error)              {}
func (d *postgresDialect) bigint(expr string) string { return "CAST(" + expr + " AS BIGINT)" }

func (d *postgresDialect) migration() (string, goose.Dialect, []goose.ProviderOption) {
	options := []goose.ProviderOption{goose.WithTableName(versionTable)}
	// Two instances that start at once must not migrate at once.
	if l, err := lock.NewPostgresSessionLocker(); err == nil { // only invalid options fail, and there are none
		options = append(options, goose.WithSessionLocker(l))
	}
	return "postgresql", goose.DialectPostgres, options
}

func (d *postgresDialect) sizeDue(inserted int64) (due, inline bool) {
	if d.since.Add(inserted) < sizeRows {
		return false, false
	}
	d.since.Store(0)
	return true, false // rewriting a partition can take minutes
}

func (d *postgresDialect) bulk(ctx context.Context, tx *sqlx.Tx, t Table, rows []record) (int64, error) {
	if len(rows) < copyFrom {
		list := make([]any, 0, copyFrom*len(columns[t]))
		for _, r := range rows {
			list = args(d, r, list)
		}
		res, err := tx.ExecContext(ctx, tx.Rebind(multiRow(t, len(rows))), list...)
		if err != nil {
			return 0, err
		}
		return res.RowsAffected()
	}
	// Rows that are there already are rare: they come when an acknowledgement was lost. So COPY writes into the table, which
	// costs half of what the way around them does.
	if _, err := tx.ExecContext(ctx, "SAVEPOINT before_copy"); err != nil {
		return 0, err
	}
	n, err := d.copy(ctx, tx, string(t), t, rows)
	if !duplicate(err) {
		return n, err
	}
	if _, err := tx.ExecContext(ctx, "ROLLBACK TO SAVEPOINT before_copy"); err != nil {
		return 0, err
	}
	cols := strings.Join(columns[t], ", ")
	stage := "stage_" + string(t)
	// The staging table lives as long as its connection; it has the parent's types and none of its indexes.
	if _, err := tx.ExecContext(ctx, fmt.Sprintf(
		"CREATE TEMP TABLE IF NOT EXISTS %s ON COMMIT DELETE ROWS AS SELECT %s FROM %s WITH NO DATA", stage, cols, t)); err != nil {
		return 0, fmt.Errorf("staging table: %w", err)
	}
	if _, err := d.copy(ctx, tx, "pg_temp."+stage, t, rows); err != nil {
		return 0, err
	}
	res, err := tx.ExecContext(ctx, fmt.Sprintf("INSERT INTO %s (%s) SELECT %s FROM pg_temp.%s ON CONFLICT (%s) DO NOTHING",
		t, cols, cols, stage, conflict[t]))
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// copy writes rows of t into a table of its shape.
func (d *postgresDialect) copy(ctx context.Context, tx *sqlx.Tx, into string, t Table, rows []record) (int64, error) {
	q, err := tx.PrepareContext(ctx, fmt.Sprintf("COPY %s (%s) FROM STDIN", into, strings.Join(columns[t], ", ")))
	if err != nil {
		return 0, fmt.Errorf("begin copy: %w", err)
	}
	list := make([]any, 0, len(columns[t]))
	for _, r := range rows {
		list = args(d, r, list[:0])
		if _, err := q.ExecContext(ctx, list...); err != nil {
			return 0, errors.Join(fmt.Errorf("copy: %w", err), q.Close())
		}
	}
	res, err := q.ExecContext(ctx)
	if err != nil {
		return 0, errors.Join(fmt.Errorf("copy: %w", err), q.Close())
	}
	if err := q.Close(); err != nil {
		return 0, fmt.Errorf("end copy: %w", err)
	}
	return res.RowsAffected()
}

// duplicate: 23505 is a key that is there already.
func duplicate(err error) bool {
	var e *pq.Error
	return errors.As(err, &e) && e.Code == "23505"
}

// conflict: class 40 is a transaction that was rolled back for another one, 55P03 a lock that did not come in time.
func (d *postgresDialect) conflict(err error) bool {
	var e *pq.Error
	return errors.As(err, &e) && (e.Code.Class() == "40" || e.Code == "55P03")
}

// invalid: class 22 is a value the type does not take, class 23 a constraint (Appendix A of PostgreSQL's
// manual).
func (d *postgresDialect) invalid(err error) bool {
	var e *pq.Error
	if !errors.As(err, &e) {
		return false
	}
	c := e.Code.Class()
	return c == "22" || c == "23"
}

func (d *postgresDialect) addr(a netip.Addr) any {
	if !a.IsValid() {
		return nil // fails NOT NULL
	}
	return a.WithZone("").String()
}

func (d *postgresDialect) addrText(column string) string {
	return "host(" + column + ") AS " + column
}

// inPrefix compares with the first and the last address, which a btree index on inet serves with bound
// parameters too; IPv4 sorts before IPv6.
func (d *postgresDialect) inPrefix(column string, p netip.Prefix) (string, []any) {
	lo, hi := prefixRange(p)
	return "(" + column + " BETWEEN ? AND ?)", []any{lo.String(), hi.String()}
}

func (d *postgresDialect) size(ctx context.Context) (n int64, err error) {
	err = d.db.GetContext(ctx, &n, `SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c
		WHERE c.oid IN ('attacks'::regclass, 'verdicts'::regclass, 'audit'::regclass)
		OR c.oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent IN ('flows'::regclass, 'enforcements'::regclass))`)
	if err != nil {
		return 0, fmt.Errorf("size of the tables: %w", err)
	}
	return n, nil
}

func (d *postgresDialect) rowCount(ctx context.Context, t Table) (n int64, err error) {
	var bytes int64
	if err := d.db.GetContext(ctx, &bytes, `SELECT (pg_total_relation_size($1::regclass) + coalesce((SELECT
		sum(pg_total_relation_size(inhrelid)) FROM pg_inherits WHERE inhparent = $1::regclass), 0))::bigint`, string(t)); err != nil {
		return 0, err
	}
	if bytes <= countBytes {
		err = d.db.GetContext(ctx, &n, "SELECT count(*) FROM "+string(t))
		return n, err
	}
	err = d.db.GetContext(ctx, &n, `SELECT coalesce(sum(greatest(reltuples, 0)), 0)::bigint FROM pg_class WHERE relkind = 'r'
		AND (oid = $1::regclass OR oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = $1::regclass))`, string(t))
	return n, err
}
