package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/pressly/goose/v3/database"
)

// versionStore is goose's own for MySQL but for the table: no AUTO_INCREMENT, whose values on Galera depend on the
// node, and the version as the primary key, which every table needs there. Times come without the driver's parseTime.
type versionStore struct{ database.Store }

func newVersionStore() versionStore {
	s, err := database.NewStore(database.DialectMySQL, versionTable)
	if err != nil {
		panic(err) // the dialect and the name are constants
	}
	return versionStore{s}
}

// CreateVersionTable implements database.Store. Goose inserts version 0 afterwards; interrupted in between, it does
// both again.
func (versionStore) CreateVersionTable(ctx context.Context, db database.DBTxConn) error {
	_, err := db.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS `+versionTable+` (
		version_id BIGINT    NOT NULL PRIMARY KEY,
		is_applied BOOLEAN   NOT NULL,
		tstamp     TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
	) ENGINE=InnoDB`)
	if err != nil {
		return fmt.Errorf("make the table of schema versions: %w", err)
	}
	return nil
}

// GetMigration implements database.Store.
func (versionStore) GetMigration(ctx context.Context, db database.DBTxConn, version int64) (*database.GetMigrationResult, error) {
	var r database.GetMigrationResult
	var at int64
	err := db.QueryRowContext(ctx, "SELECT is_applied, CAST(UNIX_TIMESTAMP(tstamp) AS SIGNED) FROM "+versionTable+" WHERE version_id = ?", version).Scan(&r.IsApplied, &at)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("schema version %d: %w", version, database.ErrVersionNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read schema version %d: %w", version, err)
	}
	r.Timestamp = time.Unix(at, 0)
	return &r, nil
}

// ListMigrations implements database.Store.
func (versionStore) ListMigrations(ctx context.Context, db database.DBTxConn) ([]*database.ListMigrationsResult, error) {
	rows, err := db.QueryContext(ctx, "SELECT version_id, is_applied FROM "+versionTable+" ORDER BY version_id DESC")
	if err != nil {
		return nil, fmt.Errorf("list schema versions: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err is checked
	var out []*database.ListMigrationsResult
	for rows.Next() {
		var r database.ListMigrationsResult
		if err := rows.Scan(&r.Version, &r.IsApplied); err != nil {
			return nil, fmt.Errorf("list schema versions: %w", err)
		}
		out = append(out, &r)
	}
	return out, rows.Err()
}

const (
	// lockTable holds one row for each lock that is or was taken.
	lockTable = "tidegate_schema_lock"
	// lockFor is after how long a lock whose owner is silent may be taken; a third of it is how often the owner speaks.
	lockFor = 30 * time.Second
	// lockRetry is how often others look whether it is free.
	lockRetry = 250 * time.Millisecond
)

// rowLock is a lock as a row with an owner and an expiry. GET_LOCK would not do: on Galera each node has its own. Taking
// the row is an UPDATE that the whole cluster certifies, so that of two nodes one wins. The server's clock counts.
// It implements goose's lock.SessionLocker; the lock does not belong to the session, but ends with its owner's process.
type rowLock struct {
	db    *sqlx.DB
	owner string
	hold  time.Duration

	mu     sync.Mutex
	cancel context.CancelFunc
	done   chan struct{}
}

func newRowLock(db *sqlx.DB) *rowLock {
	return &rowLock{db: db, owner: ownerName(), hold: lockFor}
}

// SessionLock takes the lock or waits for it until ctx ends.
func (l *rowLock) SessionLock(ctx context.Context, _ *sql.Conn) error {
	if err := l.takeWhenFree(ctx); err != nil {
		return fmt.Errorf("wait for another instance that changes the schema: %w", err)
	}
	keep, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	l.mu.Lock()
	l.cancel, l.done = cancel, done
	l.mu.Unlock()
	go func() {
		defer close(done)
		tick := time.NewTicker(l.hold / 3)
		defer tick.Stop()
		for {
			select {
			case <-keep.Done():
				return
			case <-tick.C:
				// When this fails others take over once the row has expired; all statements can be repeated.
				_, _ = l.take(keep)
			}
		}
	}()
	return nil
}

func (l *rowLock) takeWhenFree(ctx context.Context) error {
	for ready := false; ; {
		err := error(nil)
		taken := false
		if !ready {
			err = l.prepare(ctx)
			ready = err == nil
		}
		if err == nil {
			taken, err = l.take(ctx)
		}
		switch {
		case taken:
			return nil
		case err == nil:
		case mysqlCode(err) == erDeadlock, mysqlCode(err) == erLockWaitTimeout, mysqlCode(err) == erDupKey, mysqlCode(err) == erTableExists:
			// Another instance was faster.
		default:
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lockRetry):
		}
	}
}

// prepare makes the table and the row, once for all time.
func (l *rowLock) prepare(ctx context.Context) error {
	if _, err := l.db.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS `+lockTable+` (
		name       VARCHAR(64) NOT NULL PRIMARY KEY,
		owner      VARCHAR(64) NOT NULL,
		expires_us BIGINT      NOT NULL
	) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin`); err != nil {
		return err
	}
	_, err := l.db.ExecContext(ctx, "INSERT INTO "+lockTable+" (name, owner, expires_us) VALUES ('schema', '', 0) ON DUPLICATE KEY UPDATE name = "+lockTable+".name")
	return err
}

const serverMicros = "CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS SIGNED)"

// take takes the row when it is free or expired, or holds on to it.
func (l *rowLock) take(ctx context.Context) (bool, error) {
	res, err := l.db.ExecContext(ctx, "UPDATE "+lockTable+" SET owner = ?, expires_us = "+serverMicros+" + ? WHERE name = 'schema' AND (owner IN ('', ?) OR expires_us < "+serverMicros+")",
		l.owner, l.hold.Microseconds(), l.owner)
	if err != nil {
		return false, err
	}
	n, err := res.RowsAffected()
	return n == 1, err
}

// SessionUnlock lets go of the lock.
func (l *rowLock) SessionUnlock(ctx context.Context, _ *sql.Conn) error {
	l.mu.Lock()
	cancel, done := l.cancel, l.done
	l.cancel, l.done = nil, nil
	l.mu.Unlock()
	if cancel == nil {
		return errors.New("the lock of the schema is not held")
	}
	cancel()
	<-done
	ctx, stop := context.WithTimeout(ctx, 5*time.Second)
	defer stop()
	if _, err := l.db.ExecContext(ctx, "UPDATE "+lockTable+" SET owner = '', expires_us = 0 WHERE name = 'schema' AND owner = ?", l.owner); err != nil {
		return fmt.Errorf("let go of the lock of the schema (it ends by itself in %s): %w", l.hold, err)
	}
	return nil
}
