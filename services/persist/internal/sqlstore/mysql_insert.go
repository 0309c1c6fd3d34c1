package sqlstore

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/go-sql-driver/mysql"
	"github.com/jmoiron/sqlx"
)

const (
	// loadFrom is the number of rows from which LOAD DATA beats INSERT with parameters.
	loadFrom = 24
	// insertParameters bounds the parameters of one INSERT; the protocol has room for 65,535.
	insertParameters = 16_000
	// loadChunk is about how much of LOAD DATA's text is made at a time.
	loadChunk = 32 << 10
)

// loadable are the tables whose rows come by LOAD DATA: those that come in thousands.
var loadable = map[Table]bool{Flows: true, Enforcements: true}

func (d *mysqlDialect) bulk(ctx context.Context, tx *sqlx.Tx, t Table, rows []record) (int64, error) {
	if !d.load.Load() || !loadable[t] || len(rows) < loadFrom {
		return d.insertData(ctx, tx, t, rows)
	}
	if _, err := tx.ExecContext(ctx, "SAVEPOINT before_load"); err != nil {
		return 0, err
	}
	n, err := d.loadData(ctx, tx, t, rows)
	switch mysqlCode(err) {
	case erNotAllowedCommand, erLocalInfile, erNoLocalPrivilege, erLocalDisabled:
		d.load.Store(false) // the setting was changed
	default:
		if !errors.Is(err, errManyWarnings) {
			return n, err
		}
	}
	if _, err := tx.ExecContext(ctx, "ROLLBACK TO SAVEPOINT before_load"); err != nil {
		return 0, err
	}
	return d.insertData(ctx, tx, t, rows)
}

// insertData sends INSERTs of many rows. ON DUPLICATE KEY leaves a row as it is and keeps all other errors, which
// INSERT IGNORE would not.
func (d *mysqlDialect) insertData(ctx context.Context, tx *sqlx.Tx, t Table, rows []record) (inserted int64, err error) {
	most := insertParameters / len(columns[t])
	list := make([]any, 0, min(most, len(rows))*len(columns[t]))
	var q *sql.Stmt
	defer func() {
		if q != nil {
			err = errors.Join(err, q.Close())
		}
	}()
	for prepared := 0; len(rows) > 0; {
		n := min(most, len(rows))
		if n != prepared {
			if q != nil {
				if err := q.Close(); err != nil {
					return inserted, err
				}
			}
			if q, err = tx.PrepareContext(ctx, insertRows(t, n)+" ON DUPLICATE KEY UPDATE id = "+string(t)+".id"); err != nil {
				return inserted, err
			}
			prepared = n
		}
		list = list[:0]
		for _, r := range rows[:n] {
			list = args(d, r, list)
		}
		rows = rows[n:]
		res, err := q.ExecContext(ctx, list...)
		if err != nil {
			return inserted, err
		}
		k, err := res.RowsAffected() // 1 a new row, 0 a row that stays as it is
		if err != nil {
			return inserted, err
		}
		inserted += k
	}
	return inserted, nil
}

var loads atomic.Uint64

// loadData sends rows through LOAD DATA LOCAL. The server makes of every error a warning, and of a row that does not
// fit one that does; any warning but that of a duplicate key is therefore an error here, and nothing is committed.
func (d *mysqlDialect) loadData(ctx context.Context, tx *sqlx.Tx, t Table, rows []record) (int64, error) {
	name := "tidegate-" + strconv.FormatUint(loads.Add(1), 10)
	r := &loadReader{d: d, rows: rows}
	mysql.RegisterReaderHandler(name, func() io.Reader { return r })
	defer mysql.DeregisterReaderHandler(name)
	// The text is bytes: the columns' character set is checked when they are stored.
	res, err := tx.ExecContext(ctx, fmt.Sprintf("LOAD DATA LOCAL INFILE 'Reader::%s' INTO TABLE %s CHARACTER SET binary (%s)",
		name, t, strings.Join(columns[t], ", ")))
	if err != nil {
		return 0, err
	}
	inserted, err := res.RowsAffected()
	if err != nil {
		return 0, err
	}
	return inserted, checkWarnings(ctx, tx, int64(len(rows))-inserted)
}

// errManyWarnings means that the server did not keep all of a statement's warnings (max_error_count).
var errManyWarnings = errors.New("more warnings than the server keeps")

// checkWarnings looks for another warning than that of a duplicate key among those of the last statement, which left
// out so many rows.
func checkWarnings(ctx context.Context, tx *sqlx.Tx, leftOut int64) error {
	rows, err := tx.QueryContext(ctx, "SHOW WARNINGS")
	if err != nil {
		return err
	}
	defer rows.Close() //nolint:errcheck // rows.Err is checked
	for rows.Next() {
		var level, text string
		var code uint16
		if err := rows.Scan(&level, &code, &text); err != nil {
			return err
		}
		if code != erDupKey {
			return fmt.Errorf("%w: %s (%d)", errRowChanged, text, code)
		}
		leftOut--
	}
	if err := rows.Err(); err != nil {
		return err
	}
	if leftOut > 0 {
		return errManyWarnings
	}
	return nil
}

// loadReader is rows as LOAD DATA's text: fields end with a tab, rows with a line feed, a backslash escapes.
type loadReader struct {
	d    *mysqlDialect
	rows []record
	args []any
	buf  bytes.Buffer
}

// Read implements io.Reader.
func (r *loadReader) Read(p []byte) (int, error) {
	if r.buf.Len() == 0 {
		for len(r.rows) > 0 && r.buf.Len() < loadChunk {
			r.args = args(r.d, r.rows[0], r.args[:0])
			r.rows = r.rows[1:]
			for i, v := range r.args {
				if i > 0 {
					r.buf.WriteByte('\t')
				}
				if err := appendField(&r.buf, v); err != nil {
					return 0, err
				}
			}
			r.buf.WriteByte('\n')
		}
	}
	return r.buf.Read(p)
}

func appendField(b *bytes.Buffer, v any) error {
	switch v := v.(type) {
	case nil:
		b.WriteString(`\N`)
	case int64:
		b.Write(strconv.AppendInt(b.AvailableBuffer(), v, 10))
	case float64:
		b.Write(strconv.AppendFloat(b.AvailableBuffer(), v, 'g', -1, 64))
	case bool:
		if v {
			b.WriteByte('1')
		} else {
			b.WriteByte('0')
		}
	case string:
		appendEscaped(b, v)
	case []byte:
		appendEscaped(b, v)
	default:
		return fmt.Errorf("LOAD DATA of a %T", v)
	}
	return nil
}

func appendEscaped[T string | []byte](b *bytes.Buffer, s T) {
	from := 0
	for i := range len(s) {
		c := s[i]
		switch c {
		case '\t', '\n', '\\':
		case 0:
			c = '0'
		default:
			continue
		}
		b.WriteString(string(s[from:i]))
		b.WriteByte('\\')
		b.WriteByte(c)
		from = i + 1
	}
	b.WriteString(string(s[from:]))
}
