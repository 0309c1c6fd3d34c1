package sqlstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jmoiron/sqlx"
	"github.com/pressly/goose/v3"
)

const (
	mysqlIdle = 4
	// galeraRows bounds a transaction on Galera: a write set is certified and applied as a whole by every node.
	galeraRows = 5000
)

// mysqlDialect is MySQL, MariaDB and Galera. It uses one pool: InnoDB lets writers and readers work side by side.
type mysqlDialect struct {
	kind  string
	db    *sqlx.DB
	now   func() time.Time
	since atomic.Int64 // rows inserted since the size was last looked at
	load  atomic.Bool  // LOAD DATA LOCAL can be used

	mu    sync.Mutex
	parts map[Table][]section // as last listed
}

func openMySQL(ctx context.Context, t target, now func() time.Time) (*mysqlDialect, error) {
	db := sqlx.NewDb(sql.OpenDB(&mysqlConnector{t: t}), "mysql")
	db.SetMaxOpenConns(8)
	db.SetMaxIdleConns(mysqlIdle)
	db.SetConnMaxIdleTime(5 * time.Minute)
	d := &mysqlDialect{kind: t.kind, db: db, now: now, parts: map[Table][]section{}}
	if err := d.look(ctx); err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("connect to %s: %w", title(t.kind), err)
	}
	return d, nil
}

// look finds out what the server can do.
func (d *mysqlDialect) look(ctx context.Context) error {
	var local bool
	if err := d.db.GetContext(ctx, &local, "SELECT @@GLOBAL.local_infile"); err != nil {
		return err
	}
	// On Galera LOAD DATA may be split into several transactions (wsrep_load_data_splitting).
	d.load.Store(local && d.kind != "galera")
	return nil
}

func title(kind string) string {
	switch kind {
	case "mysql":
		return "MySQL"
	case "mariadb":
		return "MariaDB"
	}
	return "Galera"
}

func (d *mysqlDialect) version(ctx context.Context) (string, error) {
	var v string
	if err := d.db.GetContext(ctx, &v, "SELECT version()"); err != nil {
		return "", fmt.Errorf("read the %s version: %w", title(d.kind), err)
	}
	v, _, _ = strings.Cut(v, "-")
	if d.kind == "galera" {
		return "MariaDB Galera " + v, nil
	}
	return title(d.kind) + " " + v, nil
}

func (d *mysqlDialect) writer() *sqlx.DB       { return d.db }
func (d *mysqlDialect) reader() *sqlx.DB       { return d.db }
func (d *mysqlDialect) close() error           { return d.db.Close() }
func (d *mysqlDialect) defaultMaxBytes() int64 { return 50 << 30 }

func (d *mysqlDialect) maxRows() int {
	if d.kind == "galera" {
		return galeraRows
	}
	return 0
}

func (d *mysqlDialect) migration() (string, goose.Dialect, []goose.ProviderOption) {
	return "mysql", goose.DialectCustom, []goose.ProviderOption{goose.WithStore(newVersionStore()), goose.WithSessionLocker(newRowLock(d.db))}
}

func (d *mysqlDialect) positionSQL() string {
	return "INSERT INTO stream_positions (stream, seq) VALUES (?, ?) ON DUPLICATE KEY UPDATE seq = GREATEST(seq, VALUES(seq))"
}

func (d *mysqlDialect) bigint(expr string) string { return "CAST(" + expr + " AS SIGNED)" }

func (d *mysqlDialect) sizeDue(inserted int64) (due, inline bool) {
	if d.since.Add(inserted) < sizeRows {
		return false, false
	}
	d.since.Store(0)
	return true, false // rewriting a partition can take minutes
}

// failed drops the connections that wait in the pool when err may mean that the node they lead to is no good: the
// next ones are made to a host that is. Connections in use find out by themselves.
func (d *mysqlDialect) failed(err error) {
	switch mysqlCode(err) {
	case erUnknownCommand, erCantLock, erServerShutdown, erReadOnly:
	case 0:
		if !errors.Is(err, mysql.ErrInvalidConn) && !errors.Is(err, driver.ErrBadConn) && !errors.Is(err, context.DeadlineExceeded) {
			return
		}
	default:
		return
	}
	d.db.SetMaxIdleConns(0)
	d.db.SetMaxIdleConns(mysqlIdle)
}

func (d *mysqlDialect) conflict(err error) bool {
	switch mysqlCode(err) {
	case erLockWaitTimeout, erDeadlock, erQueryInterrupted:
		return true
	}
	return false
}

// rowErrors are the errors for which a row is to blame: null, range, length, character set, constraint, JSON.
var rowErrors = []uint16{erBadNull, 1263, 1264, 1265, 1292, 1300, 1364, 1366, 1367, 1406, 1526, 3140, 3819, 3854, 4025}

// errRowChanged is what LOAD DATA LOCAL, which never stops at a row, would have made of rows that do not fit.
var errRowChanged = errors.New("a row does not fit its table")

func (d *mysqlDialect) invalid(err error) bool {
	return errors.Is(err, errRowChanged) || slices.Contains(rowErrors, mysqlCode(err))
}

func (d *mysqlDialect) addr(a netip.Addr) any {
	if !a.IsValid() {
		return nil // fails NOT NULL
	}
	b := a.As16()
	return b[:]
}

func (d *mysqlDialect) addrText(column string) string { return column }

func (d *mysqlDialect) inPrefix(column string, p netip.Prefix) (string, []any) {
	return bytesInPrefix(column, p)
}

func (d *mysqlDialect) size(ctx context.Context) (int64, error) { return d.sizeAfter(ctx, Tables...) }

// sizeAfter is the size after changes to some tables. The servers keep sizes as statistics, which are only as new as
// the last ANALYZE. LOCAL: other nodes and replicas look for themselves.
func (d *mysqlDialect) sizeAfter(ctx context.Context, changed ...Table) (int64, error) {
	names := make([]string, len(changed))
	for i, t := range changed {
		names[i] = string(t)
	}
	rows, err := d.db.QueryContext(ctx, "ANALYZE LOCAL TABLE "+strings.Join(names, ", "))
	if err != nil {
		return 0, fmt.Errorf("size of the tables: %w", err)
	}
	for rows.Next() { //nolint:revive // the answer is only that it was done
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return 0, fmt.Errorf("size of the tables: %w", err)
	}
	var n int64
	for _, t := range Tables {
		s, err := d.stats(ctx, t)
		if err != nil {
			return 0, err
		}
		n += s.Bytes
	}
	return n, nil
}

type tableStats struct {
	Bytes int64 `db:"bytes"`
	Rows  int64 `db:"table_rows"`
}

// stats are the server's, as new as its last look.
func (d *mysqlDialect) stats(ctx context.Context, t Table) (s tableStats, err error) {
	err = d.db.GetContext(ctx, &s, `SELECT CAST(COALESCE(data_length, 0) + COALESCE(index_length, 0) AS SIGNED) AS bytes,
		CAST(COALESCE(table_rows, 0) AS SIGNED) AS table_rows FROM information_schema.tables
		WHERE table_schema = DATABASE() AND table_name = ?`, string(t))
	if err != nil {
		return s, fmt.Errorf("size of %s: %w", t, err)
	}
	return s, nil
}

func (d *mysqlDialect) rowCount(ctx context.Context, t Table) (int64, error) {
	s, err := d.stats(ctx, t)
	if err != nil {
		return 0, err
	}
	if s.Bytes > countBytes {
		return s.Rows, nil
	}
	var n int64
	err = d.db.GetContext(ctx, &n, "SELECT count(*) FROM "+string(t))
	return n, err
}
