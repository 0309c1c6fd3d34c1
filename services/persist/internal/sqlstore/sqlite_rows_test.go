package sqlstore

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestSQLiteStatements: a batch of several statements is one transaction, of which a bad row in the last statement
// leaves out only itself, and no batch stays known to the driver.
func TestSQLiteStatements(t *testing.T) {
	var wg sync.WaitGroup
	for range 2 { // two databases at once, which share the driver's module
		s := openStore(t, Config{DataDir: t.TempDir()}, nil)
		wg.Add(1)
		go func() {
			defer wg.Done()
			const n = 2*sqliteStatement + 100
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

// TestSQLiteNewRows: new rows are read with the number of a batch under way, or not at all.
func TestSQLiteNewRows(t *testing.T) {
	s := openStore(t, Config{DataDir: t.TempDir()}, nil)
	db := s.d.writer()
	if _, err := db.Exec("CREATE VIRTUAL TABLE temp.new_nothing USING tidegate_rows (nothing)"); err == nil || !strings.Contains(err.Error(), `no table "nothing"`) {
		t.Errorf("a table that is not there: %v", err)
	}
	if _, err := db.Exec("CREATE VIRTUAL TABLE temp.new_flows USING tidegate_rows (flows)"); err != nil {
		t.Fatal(err)
	}
	for query, want := range map[string]string{
		"SELECT ts FROM temp.new_flows":                    "by the number of their batch",
		"SELECT ts FROM temp.new_flows WHERE batch = 0":    "no batch has number 0",
		"SELECT ts FROM temp.new_flows WHERE batch = 'x'":  "has type string",
		"INSERT INTO temp.new_flows (ts) VALUES (1)":       "readonly",
		"SELECT ts FROM temp.new_flows WHERE batch > 1000": "by the number of their batch",
	} {
		if _, err := db.Exec(query); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", query, err, want)
		}
	}
}
