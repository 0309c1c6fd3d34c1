package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlitelib "modernc.org/sqlite/lib"
)

// sqliteStep is how many rows one deleting transaction takes, so that inserts wait for tens of milliseconds.
const sqliteStep = 10_000

// sqlitePragmas are the settings of the connection that writes. auto_vacuum takes effect only before the first page is
// written; the driver runs the pragmas in alphabetical order, busy_timeout first. synchronous FULL: a message is
// acknowledged after the commit, so the commit has to survive a power cut.
var sqlitePragmas = []string{"busy_timeout(10000)", "auto_vacuum(incremental)", "journal_mode(wal)", "synchronous(full)",
	"journal_size_limit(16777216)", "wal_autocheckpoint(4096)", "cache_size(-32768)", "temp_store(memory)"}

// sqliteDialect has one connection that writes and a pool that reads: in WAL mode readers never wait.
type sqliteDialect struct {
	path string
	w, r *sqlx.DB
}

// sqlitePath turns a DATABASE_URL into a path.
func sqlitePath(raw, dir string) (string, error) {
	if raw == "" {
		return filepath.Join(dir, "persist.db"), nil
	}
	p := raw
	if s, ok := strings.CutPrefix(p, "sqlite://"); ok {
		p = "file:" + s
	}
	if strings.HasPrefix(p, "file:") {
		u, err := url.Parse(p)
		if err != nil {
			return "", fmt.Errorf("DATABASE_URL is not a file: URL: %w", err)
		}
		if u.RawQuery != "" {
			return "", errors.New("DATABASE_URL for sqlite takes no options after '?': give the path only")
		}
		p = u.Opaque
		if p == "" {
			p = u.Path
		}
		if u.Host != "" {
			p = u.Host + p // sqlite://relative/path
		}
	}
	if p == "" || p == ":memory:" {
		return "", errors.New("DATABASE_URL for sqlite must name a file: what is only in memory is lost with the process")
	}
	return p, nil
}

func openSQLite(ctx context.Context, path string) (*sqliteDialect, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("make the folder of the database: %w", sqliteFileError{err})
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("path of the database %s: %w", path, err)
	}
	// Made here, so that nobody else reads whose traffic it holds, and so that a folder without permission
	// is named in the error.
	f, err := os.OpenFile(abs, os.O_RDWR|os.O_CREATE, 0o600) //nolint:gosec // the operator's own path
	if err != nil {
		return nil, fmt.Errorf("open the SQLite database: %w", sqliteFileError{err})
	}
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("open the SQLite database: %w", err)
	}
	if err := registerInsert(); err != nil {
		return nil, fmt.Errorf("make %s known to SQLite: %w", insertFunction, err)
	}
	common := url.Values{"_pragma": sqlitePragmas}
	common.Set("_txlock", "immediate")
	dsn := func(v url.Values) string { return (&url.URL{Scheme: "file", Path: abs, RawQuery: v.Encode()}).String() }
	w, err := sqlx.Open("sqlite", dsn(common))
	if err != nil {
		return nil, fmt.Errorf("open SQLite database %s: %w", path, err)
	}
	w.SetMaxOpenConns(1)
	w.SetConnMaxIdleTime(0)
	d := &sqliteDialect{path: abs, w: w}
	var vacuum int
	if err := w.GetContext(ctx, &vacuum, "PRAGMA auto_vacuum"); err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("open SQLite database %s: %w", path, err)
	}
	if vacuum != 2 { // a file that was made elsewhere: rebuild it once
		if _, err := w.ExecContext(ctx, "VACUUM"); err != nil {
			_ = w.Close()
			return nil, fmt.Errorf("set incremental vacuum on %s: %w", path, err)
		}
	}
	ro := url.Values{"_pragma": {"busy_timeout(10000)", "query_only(1)", "cache_size(-16384)", "temp_store(memory)"}}
	if d.r, err = sqlx.Open("sqlite", dsn(ro)); err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("open SQLite database %s: %w", path, err)
	}
	d.r.SetMaxOpenConns(4)
	return d, nil
}

func (d *sqliteDialect) version(ctx context.Context) (string, error) {
	var v string
	if err := d.r.GetContext(ctx, &v, "SELECT sqlite_version()"); err != nil {
		return "", fmt.Errorf("read the SQLite version: %w", err)
	}
	return "SQLite " + v, nil
}

func (d *sqliteDialect) writer() *sqlx.DB { return d.w }
func (d *sqliteDialect) reader() *sqlx.DB { return d.r }

func (d *sqliteDialect) migration() (string, goose.Dialect, []goose.ProviderOption) {
	return "sqlite", goose.DialectSQLite3, []goose.ProviderOption{goose.WithTableName(versionTable)}
}

func (d *sqliteDialect) maxRows() int              { return 0 }
func (d *sqliteDialect) positionSQL() string       { return raisePosition }
func (d *sqliteDialect) failed(error)              {}
func (d *sqliteDialect) bigint(expr string) string { return "CAST(" + expr + " AS BIGINT)" }

func (d *sqliteDialect) conflict(err error) bool {
	var e *sqlite.Error
	return errors.As(err, &e) && e.Code()&0xff == sqlitelib.SQLITE_BUSY
}

func (d *sqliteDialect) prepare(context.Context, Table, []record) error { return nil }
func (d *sqliteDialect) ahead(context.Context, time.Time) error         { return nil }
func (d *sqliteDialect) defaultMaxBytes() int64                         { return 2 << 30 }
func (d *sqliteDialect) sizeDue(int64) (due, inline bool)               { return true, true } // two calls of stat

func (d *sqliteDialect) close() error {
	return errors.Join(d.r.Close(), d.w.Close())
}

func (d *sqliteDialect) invalid(err error) bool {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code() & 0xff {
	case sqlitelib.SQLITE_CONSTRAINT, sqlitelib.SQLITE_MISMATCH, sqlitelib.SQLITE_TOOBIG:
		return true
	}
	return false
}

func (d *sqliteDialect) addr(a netip.Addr) any {
	if !a.IsValid() {
		return []byte{} // fails the length check
	}
	b := a.As16()
	return b[:]
}

func (d *sqliteDialect) addrText(column string) string { return column }

func (d *sqliteDialect) inPrefix(column string, p netip.Prefix) (string, []any) {
	return bytesInPrefix(column, p)
}

func (d *sqliteDialect) size(context.Context) (int64, error) {
	var total int64
	for _, suffix := range []string{"", "-wal"} {
		st, err := os.Stat(d.path + suffix)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, fmt.Errorf("size of the database: %w", err)
		}
		if err == nil {
			total += st.Size()
		}
	}
	return total, nil
}

func (d *sqliteDialect) rowCount(ctx context.Context, t Table) (n int64, err error) {
	err = d.r.GetContext(ctx, &n, "SELECT count(*) FROM "+string(t))
	return n, err
}

// step deletes about sqliteStep of the oldest rows of t that are older than before, and returns how many.
func (d *sqliteDialect) step(ctx context.Context, t Table, before int64) (int64, error) {
	tx, err := d.w.BeginTxx(ctx, nil)
	if err != nil {
		return 0, err
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it does nothing
	var cut []int64
	if err := tx.SelectContext(ctx, &cut, fmt.Sprintf("SELECT ts FROM %s WHERE ts < ? ORDER BY ts LIMIT 1 OFFSET %d",
		t, sqliteStep), before); err != nil {
		return 0, err
	}
	end := before
	if len(cut) == 1 {
		end = cut[0] + 1 // at least one time stamp goes
	}
	res, err := tx.ExecContext(ctx, fmt.Sprintf("DELETE FROM %s WHERE ts < ?", t), end)
	if err != nil {
		return 0, err
	}
	n, err := res.RowsAffected()
	if err != nil {
		return 0, err
	}
	return n, tx.Commit()
}

func (d *sqliteDialect) prune(ctx context.Context, t Table, before int64, removed func(Table, int64)) error {
	total := int64(0)
	for {
		n, err := d.step(ctx, t, before)
		if err != nil {
			return err
		}
		removed(t, n)
		total += n
		if n < sqliteStep {
			break
		}
	}
	if total == 0 {
		return nil
	}
	return d.giveBack(ctx)
}

// giveBack returns free pages and the write-ahead log to the file system. Readers that are under way can
// keep part of the log; the next call gets it.
func (d *sqliteDialect) giveBack(ctx context.Context) error {
	for _, q := range []string{"PRAGMA incremental_vacuum", "PRAGMA wal_checkpoint(TRUNCATE)"} {
		rows, err := d.w.QueryContext(ctx, q) // incremental_vacuum frees one page each time it is stepped
		if err != nil {
			return fmt.Errorf("%s: %w", q, err)
		}
		for rows.Next() { //nolint:revive // stepping is the work
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return fmt.Errorf("%s: %w", q, err)
		}
	}
	return nil
}

// used is what the pages in use take; deleted pages count only until giveBack.
func (d *sqliteDialect) used(ctx context.Context) (int64, error) {
	var v [3]int64
	for i, p := range []string{"page_count", "freelist_count", "page_size"} {
		if err := d.w.GetContext(ctx, &v[i], "PRAGMA "+p); err != nil {
			return 0, err
		}
	}
	return (v[0] - v[1]) * v[2], nil
}

func (d *sqliteDialect) shrink(ctx context.Context, max int64, removed func(Table, int64)) error {
	if n, err := d.size(ctx); err != nil || n <= max {
		return err
	}
	if err := d.giveBack(ctx); err != nil { // often it is only the log
		return err
	}
	if n, err := d.size(ctx); err != nil || n <= max {
		return err
	}
	const forever = int64(1<<63 - 2)
	low := max - max/32 // room for some batches, so that not each of them prunes
	for _, t := range Tables {
		for {
			n, err := d.used(ctx)
			if err != nil {
				return err
			}
			if n <= low {
				return d.giveBack(ctx)
			}
			k, err := d.step(ctx, t, forever)
			if err != nil {
				return err
			}
			removed(t, k)
			if k == 0 {
				break
			}
		}
	}
	return d.giveBack(ctx)
}
