package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"modernc.org/sqlite"
	sqlitelib "modernc.org/sqlite/lib"
)

// TestSQLiteRows: of a batch with a bad row at its end only that row is left out, and no batch stays known to SQLite.
func TestSQLiteRows(t *testing.T) {
	var wg sync.WaitGroup
	for range 2 { // two databases at once, which share the function
		s := openStore(t, Config{DataDir: t.TempDir()}, nil)
		wg.Add(1)
		go func() {
			defer wg.Done()
			const n = 4100
			flows := someFlows(n, now.Add(-time.Hour), "a")
			flows[n-1].VLAN = 5000
			r, err := s.Insert(context.Background(), Batch{Flows: flows, Stream: "S", Seq: 7})
			if err != nil || r.Count[Flows] != (Count{Committed: n - 1, Rejected: 1}) {
				t.Errorf("insert: %+v, %v", r, err)
			}
			if len(r.Rejections) != 1 || !strings.Contains(r.Rejections[0], "CHECK constraint failed: vlan") {
				t.Errorf("reasons: %q", r.Rejections)
			}
			flows[n-1].VLAN = 7
			r, err = s.Insert(context.Background(), Batch{Flows: flows})
			if err != nil || r.Count[Flows] != (Count{Committed: 1, Duplicate: n - 1}) {
				t.Errorf("insert again: %+v, %v", r, err)
			}
			if rows := count(t, s, Flows); rows != n {
				t.Errorf("%d rows are there, want %d", rows, n)
			}
		}()
	}
	wg.Wait()
	pending.Range(func(number, _ any) bool {
		t.Errorf("batch %v is still known", number)
		return true
	})
}

// TestSQLiteInsertFunction: the function takes the number of a batch under way, in a statement of its connection's own.
func TestSQLiteInsertFunction(t *testing.T) {
	s := openStore(t, Config{DataDir: t.TempDir()}, nil)
	db := s.d.writer()
	for query, want := range map[string]string{
		"SELECT tidegate_insert(0)":                                   "no batch has number 0",
		"SELECT tidegate_insert('x')":                                 "no batch has number 0",
		"SELECT tidegate_insert()":                                    "wrong number of arguments",
		"CREATE VIEW v AS SELECT tidegate_insert(1); SELECT * FROM v": "unsafe use of tidegate_insert",
	} {
		if _, err := db.Exec(query); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", query, err, want)
		}
	}
	number := pendingLast.Add(1)
	defer pending.Delete(number)
	many := len(columns[Flows]) + 1
	for _, c := range []struct {
		row  badRow
		want string
		code int
	}{
		{badRow(many), fmt.Sprintf("value %d is not taken", many), sqlitelib.SQLITE_RANGE},
		{0, "NOT NULL constraint failed: flows.ts", sqlitelib.SQLITE_CONSTRAINT_NOTNULL},
		{1, "NOT NULL constraint failed: flows.id", sqlitelib.SQLITE_CONSTRAINT_NOTNULL},
	} {
		pending.Store(number, &pendingRows{Flows, []record{c.row}})
		_, err := db.Exec("SELECT tidegate_insert(?)", number)
		var e *sqlite.Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), c.want) || e.Code() != c.code {
			t.Errorf("%d values: %v, want %q with code %d", c.row, err, c.want, c.code)
		}
	}
	if n := count(t, s, Flows); n != 0 {
		t.Errorf("%d rows are there", n)
	}
}

// badRow puts so many values.
type badRow int

func (badRow) key() (int64, string) { return 0, "" }

func (r badRow) put(to values) {
	for range r {
		to.num(7)
	}
}
