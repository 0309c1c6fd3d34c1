package sqlstore

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/jmoiron/sqlx"
	"modernc.org/sqlite/vtab"
)

// sqliteStatement is how many rows one INSERT takes. SQLite can undo a statement and keeps, for the time that it
// runs, a copy of each page which the statement is the first to change: with few rows a statement the same pages are
// copied again and again, with many the copies take memory, at worst two pages of an index a row, 8 KiB.
const sqliteStatement = 2_000

// rowsModule is the name of the virtual table from which INSERT takes its rows. Parameters would be slower: the driver
// looks for each one in the list of all, so that the time grows with the square of rows in a statement.
const rowsModule = "tidegate_rows"

// pending are the rows that INSERTs under way may ask for, by number.
var (
	pending     sync.Map // uint64 → pendingRows
	pendingLast atomic.Uint64
)

type pendingRows struct {
	d    dialect
	rows []record
}

// registerRows makes the module known to each connection that is opened afterwards.
var registerRows = sync.OnceValue(func() error { return vtab.RegisterModule(nil, rowsModule, rowsOfTable{}) })

func (d *sqliteDialect) bulk(ctx context.Context, tx *sqlx.Tx, t Table, rows []record) (int64, error) {
	// The table belongs to the connection and is made again on another one.
	if _, err := tx.ExecContext(ctx, fmt.Sprintf("CREATE VIRTUAL TABLE IF NOT EXISTS temp.new_%s USING %s (%s)", t, rowsModule, t)); err != nil {
		return 0, fmt.Errorf("table of new rows: %w", err)
	}
	cols := strings.Join(columns[t], ", ")
	query := fmt.Sprintf("INSERT INTO main.%s (%s) SELECT %s FROM temp.new_%s WHERE batch = ? ON CONFLICT (%s) DO NOTHING",
		t, cols, cols, t, conflict[t])
	var inserted int64
	for len(rows) > 0 {
		n := min(sqliteStatement, len(rows))
		number := pendingLast.Add(1)
		pending.Store(number, pendingRows{d, rows[:n]})
		res, err := tx.ExecContext(ctx, query, int64(number)) //nolint:gosec // counts from 1
		pending.Delete(number)
		if err != nil {
			return 0, err
		}
		k, err := res.RowsAffected()
		if err != nil {
			return 0, err
		}
		inserted += k
		rows = rows[n:]
	}
	return inserted, nil
}

// rowsOfTable is the module: its argument is a Table, its columns are those of the table and batch, the number that
// the reader has to give.
type rowsOfTable struct{}

// Create implements vtab.Module.
func (rowsOfTable) Create(c vtab.Context, args []string) (vtab.Table, error) {
	if len(args) != 4 { // the module's, the database's and the virtual table's names come first
		return nil, fmt.Errorf("%s takes one argument, the name of a table", rowsModule)
	}
	cols := columns[Table(args[3])]
	if cols == nil {
		return nil, fmt.Errorf("%s: no table %q", rowsModule, args[3])
	}
	return newRows{batch: len(cols)}, c.Declare("CREATE TABLE x(" + strings.Join(cols, ", ") + ", batch HIDDEN)")
}

// Connect implements vtab.Module.
func (m rowsOfTable) Connect(c vtab.Context, args []string) (vtab.Table, error) {
	return m.Create(c, args)
}

// newRows is the virtual table; batch is the place of its hidden column.
type newRows struct{ batch int }

// BestIndex implements vtab.Table: the one way to read is by the number.
func (t newRows) BestIndex(info *vtab.IndexInfo) error {
	for i := range info.Constraints {
		c := &info.Constraints[i]
		if c.Column == t.batch && c.Op == vtab.OpEQ && c.Usable {
			c.ArgIndex, c.Omit = 0, true
			info.EstimatedRows, info.EstimatedCost = sqliteStatement, sqliteStatement
			return nil
		}
	}
	return errors.New("new rows are read by the number of their batch")
}

// Open implements vtab.Table.
func (newRows) Open() (vtab.Cursor, error) { return &rowsCursor{}, nil }

// Disconnect implements vtab.Table.
func (newRows) Disconnect() error { return nil }

// Destroy implements vtab.Table.
func (newRows) Destroy() error { return nil }

// rowsCursor reads a batch from its first row to its last; args is the row that it stands on.
type rowsCursor struct {
	pendingRows
	at   int
	args []any
}

// Filter implements vtab.Cursor: it begins with the batch of a number.
func (c *rowsCursor) Filter(_ int, _ string, vals []vtab.Value) error {
	number, ok := vals[0].(int64)
	if !ok {
		return fmt.Errorf("the number of a batch has type %T", vals[0])
	}
	p, ok := pending.Load(uint64(number)) //nolint:gosec // counts from 1
	if !ok {
		return fmt.Errorf("no batch has number %d", number)
	}
	c.pendingRows, c.at = p.(pendingRows), -1 //nolint:forcetypeassert // nothing else is stored
	return c.Next()
}

// Next implements vtab.Cursor.
func (c *rowsCursor) Next() error {
	if c.at++; !c.Eof() {
		c.args = c.rows[c.at].args(c.d, c.args[:0])
	}
	return nil
}

// Eof implements vtab.Cursor.
func (c *rowsCursor) Eof() bool { return c.at >= len(c.rows) }

// Column implements vtab.Cursor.
func (c *rowsCursor) Column(i int) (vtab.Value, error) {
	if v, ok := c.args[i].(driver.Valuer); ok { // a text that may be NULL
		return v.Value()
	}
	return c.args[i], nil
}

// Rowid implements vtab.Cursor.
func (c *rowsCursor) Rowid() (int64, error) { return int64(c.at), nil }

// Close implements vtab.Cursor.
func (c *rowsCursor) Close() error { return nil }
