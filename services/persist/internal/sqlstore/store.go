// Package sqlstore keeps flows, attacks, verdicts, enforcement events and the audit of changes in an SQL database. What differs
// between databases is behind one small interface, dialect: connecting, bulk insert, addresses, partitions
// and size. Everything else, the queries included, is the same SQL everywhere, and one conformance suite runs
// over every dialect.
package sqlstore

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"net/netip"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/pressly/goose/v3"
)

//go:embed migrations
var migrations embed.FS

// versionTable is where goose notes which migrations were applied.
const versionTable = "tidegate_schema_version"

// Config says where rows go and how long they stay. The zero value of a limit means its default.
type Config struct {
	// Type is postgresql, mysql, mariadb, galera or sqlite; empty means: what URL says, and without a URL sqlite.
	Type string
	// URL is a postgres://, mysql:// or mariadb:// URL or, for sqlite, a path or a file: URL; default persist.db in
	// DataDir.
	URL     string
	DataDir string
	// PasswordFile holds the password of URL's user. It is read again for every new connection.
	PasswordFile string
	// FlowRetention and EventRetention are how long flows, and how long attacks, verdicts,
	// enforcements and audits stay; 7 and 90 days. Negative: for ever (the size cap still holds).
	FlowRetention, EventRetention time.Duration
	// MaxBytes caps what the tables take, indexes included; 2 GiB in SQLite, 50 GiB in the others.
	// Negative: no cap.
	MaxBytes int64
	// OnPrune is told how many rows retention or the cap removed; it may be called by Insert and Maintain
	// at the same time. Nil is allowed.
	OnPrune func(t Table, rows int64, reason string)
	// Now is the clock of retention and partitions, for tests; nil means time.Now.
	Now func() time.Time
}

// Reasons of pruning.
const (
	PrunedByAge  = "age"
	PrunedBySize = "size"
)

// Store is an open database with the current schema. It is safe for concurrent use; SQLite serialises
// writers.
type Store struct {
	d   dialect
	cfg Config

	pruning sync.Mutex // one pruner at a time
	full    chan struct{}
}

// dialect is what differs between databases. Adding one means implementing this, adding a folder of
// migrations and listing it in parse and in the conformance suite.
type dialect interface {
	// version names the database for people, for example "PostgreSQL 15.8".
	version(ctx context.Context) (string, error)
	// writer and reader are pools; they may be the same.
	writer() *sqlx.DB
	reader() *sqlx.DB
	// migration returns the folder under migrations, goose's dialect, and the options that name the version table
	// and the lock.
	migration() (folder string, d goose.Dialect, options []goose.ProviderOption)
	// bulk inserts rows and returns how many were new. rows is not empty and sorted by key.
	bulk(ctx context.Context, tx *sqlx.Tx, t Table, rows []record) (int64, error)
	// prepare is called before the transaction that inserts rows, for example to make partitions.
	prepare(ctx context.Context, t Table, rows []record) error
	// maxRows is how many rows one transaction may have; 0: any number.
	maxRows() int
	// positionSQL inserts a stream (1st parameter) at a position (2nd) or raises the position that is there.
	positionSQL() string
	// failed is told each error of a query or transaction, so that connections which are no good can be dropped.
	failed(err error)
	// conflict tells whether err is a transaction that met another one, so that the same rows may go in next time.
	conflict(err error) bool
	// invalid tells whether err is the fault of a row, so that the same row would fail again.
	invalid(err error) bool
	addr(a netip.Addr) any
	// addrText is an expression that Addr.Scan reads.
	addrText(column string) string
	inPrefix(column string, p netip.Prefix) (string, []any)
	// bigint is expr, a sum, as a 64-bit integer.
	bigint(expr string) string
	// size is what the tables take in bytes.
	size(ctx context.Context) (int64, error)
	// rowCount may be an estimate where counting would take long.
	rowCount(ctx context.Context, t Table) (int64, error)
	// prune removes rows of t older than before in bounded steps; shrink gives bytes back until the size
	// is at most max, oldest flows first. Both call removed after each step.
	prune(ctx context.Context, t Table, before int64, removed func(Table, int64)) error
	shrink(ctx context.Context, max int64, removed func(Table, int64)) error
	// sizeDue tells whether the size should be looked at after so many rows were inserted, and inline
	// whether the inserter itself should shrink, which suits short steps.
	sizeDue(inserted int64) (due, inline bool)
	// ahead makes what coming days need.
	ahead(ctx context.Context, now time.Time) error
	defaultMaxBytes() int64
	close() error
}

// Open connects, brings the schema up to date and makes what the next days need. An error can be temporary
// (database unreachable): callers retry. Errors of the configuration are found by Check beforehand.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	t, err := parse(cfg)
	if err != nil {
		return nil, err
	}
	if cfg.FlowRetention == 0 {
		cfg.FlowRetention = 7 * 24 * time.Hour
	}
	if cfg.EventRetention == 0 {
		cfg.EventRetention = 90 * 24 * time.Hour
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	d, err := connect(ctx, t, cfg.Now)
	if err != nil {
		return nil, err
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = d.defaultMaxBytes()
	}
	s := &Store{d: d, cfg: cfg, full: make(chan struct{}, 1)}
	if err := s.migrate(ctx); err != nil {
		_ = d.close()
		return nil, err
	}
	if err := d.ahead(ctx, cfg.Now()); err != nil {
		_ = d.close()
		return nil, fmt.Errorf("prepare partitions: %w", err)
	}
	return s, nil
}

// connect returns the dialect of t without looking at the schema. now is the clock of partitions.
func connect(ctx context.Context, t target, now func() time.Time) (dialect, error) {
	switch t.kind {
	case "sqlite":
		return openSQLite(ctx, t.url)
	case "postgresql":
		return openPostgres(ctx, t.url, t.password, now)
	}
	return openMySQL(ctx, t, now)
}

// migrationsOf returns what brings the schema of d up to date.
func migrationsOf(d dialect) (*goose.Provider, error) {
	folder, gd, opts := d.migration()
	files, err := fs.Sub(migrations, "migrations/"+folder)
	if err != nil {
		return nil, fmt.Errorf("migrations of %s: %w", folder, err)
	}
	opts = append(opts, goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
	p, err := goose.NewProvider(gd, d.writer().DB, files, opts...)
	if err != nil {
		return nil, fmt.Errorf("read migrations of %s: %w", folder, err)
	}
	return p, nil
}

func (s *Store) migrate(ctx context.Context) error {
	p, err := migrationsOf(s.d)
	if err != nil {
		return err
	}
	have, newest, err := p.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("read the schema version: %w", err)
	}
	if have > newest {
		return fmt.Errorf("the database has schema version %d, this program knows %d: upgrade the program", have, newest)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("bring the schema to version %d: %w", newest, err)
	}
	return nil
}

// Close ends all connections.
func (s *Store) Close() error { return s.d.close() }

// Ping tells whether the database answers.
func (s *Store) Ping(ctx context.Context) error { return s.d.writer().PingContext(ctx) }

// BatchRows is how many rows a caller should at most put into a Batch, so that it is one transaction; 0: any number.
func (s *Store) BatchRows() int { return s.d.maxRows() }

// Conflict tells whether err of Insert comes from a transaction that met another one, a deadlock for example: no sign
// that anything is wrong, unless it happens again and again.
func (s *Store) Conflict(err error) bool { return s.d.conflict(err) }

// Full receives when enough was inserted that the size cap should be looked at: call Maintain.
func (s *Store) Full() <-chan struct{} { return s.full }

// Version names the database for people.
func (s *Store) Version(ctx context.Context) (string, error) { return s.d.version(ctx) }

// Size is what the tables and indexes take in bytes (SQLite: the files).
func (s *Store) Size(ctx context.Context) (int64, error) { return s.d.size(ctx) }

// Rows counts the rows of each table. Where an exact count would read many gigabytes it is the database's
// estimate.
func (s *Store) Rows(ctx context.Context) (map[Table]int64, error) {
	out := make(map[Table]int64, len(Tables))
	for _, t := range Tables {
		n, err := s.d.rowCount(ctx, t)
		if err != nil {
			return nil, fmt.Errorf("count %s: %w", t, err)
		}
		out[t] = n
	}
	return out, nil
}

// Positions returns the highest stream sequence whose rows are committed, by stream.
func (s *Store) Positions(ctx context.Context) (map[string]uint64, error) {
	rows, err := s.d.reader().QueryxContext(ctx, "SELECT stream, seq FROM stream_positions")
	if err != nil {
		return nil, fmt.Errorf("read stream positions: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err is checked
	out := map[string]uint64{}
	for rows.Next() {
		var stream string
		var seq int64
		if err := rows.Scan(&stream, &seq); err != nil {
			return nil, fmt.Errorf("read stream positions: %w", err)
		}
		out[stream] = uint64(max(seq, 0)) //nolint:gosec // not negative
	}
	return out, rows.Err()
}
