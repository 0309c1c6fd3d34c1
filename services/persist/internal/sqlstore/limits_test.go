package sqlstore

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/dbtest"
)

func between(t *testing.T, s *Store, from, to int64) int64 {
	t.Helper()
	var n int64
	if err := s.d.reader().Get(&n, s.d.reader().Rebind("SELECT count(*) FROM flows WHERE ts >= ? AND ts < ?"), from, to); err != nil {
		t.Fatal(err)
	}
	return n
}

const end = int64(1<<63 - 1)

func testRetention(t *testing.T, p place) {
	var pruned atomic.Int64
	s := p.open(t, func(c *Config) {
		c.FlowRetention, c.EventRetention = 7*24*time.Hour, 30*24*time.Hour
		c.Now = func() time.Time { return now }
		c.OnPrune = func(table Table, n int64, reason string) {
			if reason != PrunedByAge {
				t.Errorf("reason %s", reason)
			}
			if table == Flows {
				pruned.Add(n)
			}
		}
	})
	insert(t, s, Batch{Flows: append(someFlows(12_000, now.Add(-9*24*time.Hour), "old"), someFlows(300, now.Add(-24*time.Hour), "new")...),
		Verdicts:     []Verdict{{TS: now.Add(-31 * 24 * time.Hour).UnixNano(), ID: "old", Rules: "[]", Evidence: "{}"}, {TS: now.Add(-29 * 24 * time.Hour).UnixNano(), ID: "new", Rules: "[]", Evidence: "{}"}},
		Enforcements: []Enforcement{{TS: now.Add(-32 * 24 * time.Hour).UnixNano(), ID: "old"}, {TS: now.Add(-29 * 24 * time.Hour).UnixNano(), ID: "new"}},
		Attacks:      []Attack{{ID: "old", TS: now.Add(-31 * 24 * time.Hour).UnixNano(), TopSources: "[]"}, {ID: "new", TS: now.Add(-time.Hour).UnixNano(), TopSources: "[]"}},
		Audits:       []Audit{{ID: "old", TS: now.Add(-31 * 24 * time.Hour).UnixNano()}, {ID: "new", TS: now.Add(-29 * 24 * time.Hour).UnixNano()}}})
	cut := now.Add(-7 * 24 * time.Hour).UnixNano()
	total, young := between(t, s, 0, end), between(t, s, cut, end)
	if err := s.Maintain(context.Background()); err != nil {
		t.Fatal(err)
	}
	left := between(t, s, 0, end)
	if n := between(t, s, 0, cut-dayNs); n != 0 { // a partition goes when its whole day is over
		t.Errorf("%d rows are a day too old", n)
	}
	if n := between(t, s, cut, end); n < young {
		t.Errorf("%d young rows left of %d", n, young)
	}
	if pruned.Load() != total-left || pruned.Load() < 12_000 {
		t.Errorf("%d rows counted as pruned, %d are gone", pruned.Load(), total-left)
	}
	for _, table := range []Table{Verdicts, Enforcements, Attacks, Audits} {
		var ids []string
		if err := s.d.reader().Select(&ids, fmt.Sprintf("SELECT id FROM %s WHERE id IN ('old', 'new')", table)); err != nil {
			t.Fatal(err)
		}
		if len(ids) != 1 || ids[0] != "new" {
			t.Errorf("%s: left %v, want new", table, ids)
		}
	}
}

func testFarClocks(t *testing.T, p place) {
	s := p.open(t, nil)
	far := now.Add(20 * 24 * time.Hour)
	flows := append(someFlows(30, far, "future"), someFlows(30, time.Unix(1, 0), "past")...)
	if got := insert(t, s, Batch{Flows: flows}).Count[Flows]; got.Committed != 60 {
		t.Fatalf("%+v", got)
	}
	// Fifteen days later that day gets its partition, and the early rows move there.
	later := p.open(t, func(c *Config) { c.Now = func() time.Time { return far.Add(-24 * time.Hour) }; c.FlowRetention = -1 })
	if got := insert(t, later, Batch{Flows: append(someFlows(30, far.Add(time.Minute), "future2"), flows[:30]...)}).Count[Flows]; got != (Count{Committed: 30, Duplicate: 30}) {
		t.Fatalf("%+v", got)
	}
	if n := between(t, later, far.UnixNano(), end); n != 60 {
		t.Errorf("%d rows in the future, want 60", n)
	}
	if err := s.Maintain(context.Background()); err != nil {
		t.Fatal(err)
	}
	if n := between(t, s, 0, dayNs); n != 0 {
		t.Errorf("%d rows of 1970 left", n)
	}
}

func testSizeCap(t *testing.T, p place) {
	const limit = 6 << 20
	var pruned atomic.Int64
	s := p.open(t, func(c *Config) {
		c.MaxBytes, c.FlowRetention = limit, -1
		c.OnPrune = func(table Table, n int64, _ string) {
			if table == Flows {
				pruned.Add(n)
			}
		}
	})
	ctx := context.Background()
	if err := s.Maintain(ctx); err != nil {
		t.Fatal(err)
	}
	events := count(t, s, Verdicts)
	start, first := between(t, s, 0, end), pruned.Load()
	inserted := int64(0)
	for round := range 12 { // half of it in the past, half today
		begin := now.Add(time.Duration(min(round-6, 0))*24*time.Hour + time.Duration(round)*10*time.Second)
		r := insert(t, s, Batch{Flows: someFlows(4000, begin, fmt.Sprint("cap", round))})
		inserted += r.Count[Flows].Committed
		if round%3 == 2 {
			if err := s.Maintain(ctx); err != nil {
				t.Fatal(err)
			}
			size, err := s.Size(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if size > limit {
				t.Errorf("round %d: %d bytes, cap %d", round, size, limit)
			}
		}
	}
	left := between(t, s, 0, end)
	if gone := start + inserted - left; gone != pruned.Load()-first || gone == 0 {
		t.Errorf("%d rows are gone, %d counted", gone, pruned.Load()-first)
	}
	rows, err := s.Flows(ctx, FlowQuery{FlowFilter: FlowFilter{Range: Range{To: now.Add(time.Hour).UnixNano()}}, Limit: 4000})
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) == 0 || rows[0].Sensor != "cap11" {
		t.Errorf("the newest rows are gone: %d left", len(rows))
	}
	again := insert(t, s, Batch{Flows: someFlows(4000, now.Add(110*time.Second), "cap11")}).Count[Flows]
	if again.Duplicate == 0 || again.Duplicate+again.Committed != 4000 {
		t.Errorf("the last batch again: %+v", again) // the shrunk partition still has its unique key
	}
	if n := count(t, s, Verdicts); n != events {
		t.Errorf("%d verdicts left of %d although flows were there to go", n, events)
	}
}

// TestKilledMidBatch kills PostgreSQL again and again while rows go in; afterwards each is there once.
func TestKilledMidBatch(t *testing.T) {
	srv := dbtest.Start(t, dbtest.PostgreSQL)
	s := openStore(t, Config{Type: "postgresql", URL: srv.URL}, nil)
	const batches, size = 60, 500
	done := make(chan error, 1)
	failures := atomic.Int64{}
	go func() {
		for i := range batches {
			b := Batch{Flows: someFlows(size, now.Add(time.Duration(i)*time.Second), fmt.Sprint("k", i)), Stream: "K", Seq: uint64(i + 1)}
			deadline := time.Now().Add(30 * time.Second)
			for {
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				_, err := s.Insert(ctx, b)
				cancel()
				if err == nil {
					break
				}
				failures.Add(1)
				if time.Now().After(deadline) {
					done <- err
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		}
		done <- nil
	}()
	for i := range 3 {
		time.Sleep(time.Duration(120+70*i) * time.Millisecond)
		srv.Kill()
		time.Sleep(50 * time.Millisecond)
		srv.Run()
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if failures.Load() == 0 {
		t.Error("no insert failed: the database was not killed under load")
	}
	var n, distinct int64
	if err := s.d.reader().QueryRow("SELECT count(*), count(DISTINCT id) FROM flows").Scan(&n, &distinct); err != nil {
		t.Fatal(err)
	}
	if n != batches*size || distinct != n {
		t.Errorf("%d rows, %d distinct, want %d", n, distinct, batches*size)
	}
	if pos, err := s.Positions(context.Background()); err != nil || pos["K"] != batches {
		t.Errorf("positions %v, %v", pos, err)
	}
}

// TestSQLiteKilled kills the process that writes to SQLite: what it said was committed is there, once.
func TestSQLiteKilled(t *testing.T) {
	const size = 50
	base := time.Unix(1_800_000_000, 0) // the same in every process
	batch := func(i int) Batch {
		return Batch{Flows: someFlows(size, base.Add(time.Duration(i)*time.Second), fmt.Sprint("k", i)), Stream: "K", Seq: uint64(i + 1)}
	}
	if path := os.Getenv("SQLSTORE_WRITE_TO"); path != "" { // the child
		s := openStore(t, Config{URL: path}, nil)
		for i := 0; ; i++ {
			insert(t, s, batch(i))
			fmt.Println("committed", i)
		}
	}
	path := filepath.Join(t.TempDir(), "k.db")
	committed := -1
	for range 3 {
		c := exec.Command(os.Args[0], "-test.run=^TestSQLiteKilled$") //nolint:gosec // this test itself
		c.Env = append(os.Environ(), "SQLSTORE_WRITE_TO="+path)
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; n < 40 && lines.Scan(); n++ {
			var i int
			if _, err := fmt.Sscanf(lines.Text(), "committed %d", &i); err != nil {
				t.Fatalf("%q: %v", lines.Text(), err)
			}
			committed = max(committed, i)
		}
		_ = c.Process.Kill() // in the middle of some batch
		_ = c.Wait()
	}
	s := openStore(t, Config{URL: path}, nil)
	pos, err := s.Positions(context.Background())
	if err != nil || int(pos["K"]) <= committed || committed < 39 { //nolint:gosec // small
		t.Fatalf("position %v after batch %d was committed, %v", pos, committed, err)
	}
	stored := int(pos["K"]) //nolint:gosec // small
	if n := count(t, s, Flows); n != int64(stored*size) {
		t.Errorf("%d rows, want %d: each batch is there whole", n, stored*size)
	}
	var all Batch
	for i := range stored {
		all.Flows = append(all.Flows, batch(i).Flows...)
	}
	if got := insert(t, s, all).Count[Flows]; got != (Count{Duplicate: int64(stored * size)}) {
		t.Errorf("everything again: %+v", got)
	}
}

func TestParse(t *testing.T) {
	for _, c := range []struct{ kind, url, want, problem string }{
		{"", "", "sqlite data/persist.db", ""},
		{"sqlite", "x/y.db", "sqlite x/y.db", ""},
		{"sqlite", "file:/x/y.db", "sqlite /x/y.db", ""},
		{"sqlite", "file:///x/y.db", "sqlite /x/y.db", ""},
		{"", "sqlite:///x/y.db", "sqlite /x/y.db", ""},
		{"", "file:y.db", "sqlite y.db", ""},
		{"SQLite", "", "sqlite data/persist.db", ""},
		{"", "postgres://u:p@h/d?connect_timeout=9&application_name=x", "postgresql postgres://u:p@h/d?application_name=x&connect_timeout=9", ""},
		{"sqlite", "x=y@z.db", "sqlite x=y@z.db", ""},
		{"", "host=h user=u password=u:p dbname=d", "", "DB_TYPE=sqlite"},
		{"", "u:p@tcp(h:3306)/d", "", "DB_TYPE=sqlite"},
		{"sqlite", ":memory:", "", "must name a file"},
		{"sqlite", "file:x.db?mode=ro", "", "no options"},
		{"sqlite", "postgres://h/d", "", "DB_TYPE=postgresql"},
		{"sqlite", "mariadb://h/d", "", "DB_TYPE=mariadb"},
		{"mysql", "mysql://u:p@h/d", "mysql u@h:3306/d", ""},
		{"mysql", "mariadb://u:p@h/d?sslmode=disable", "mysql u@h:3306/d", ""},
		{"", "mysql://u@h:3307/d", "mysql u@h:3307/d", ""},
		{"", "mariadb://u:p%40%2F@[::1]/d", "mariadb u@[::1]:3306/d", ""},
		{"galera", "mysql://u:p@a,b:3307,[2001:db8::1]:3308/d?connect_timeout=2", "galera u@a:3306,b:3307,[2001:db8::1]:3308/d", ""},
		{"mysql", "mysql://u:p@a,b/d", "", "DB_TYPE=galera"},
		{"mysql", "postgres://u:p@a/d", "", "does not begin with mysql://"},
		{"postgresql", "mysql://u:p@a/d", "", "does not begin with postgres://"},
		{"mysql", "mysql://h/d", "", "names no user"},
		{"mysql", "mysql://u:p@h", "", "names no database"},
		{"mysql", "mysql://u:p@h:99999/d", "", "the host"},
		{"mysql", "mysql://u:p@/d", "", "the host"},
		{"mysql", "mysql://u:p%zz@h/d", "", "escape special characters"},
		{"mysql", "mysql://u:p@h/d?ssl=1", "", "not known"},
		{"mysql", "mysql://u:p@h/d?sslmode=always", "", "not known"},
		{"mysql", "mysql://u:p@h/d?sslmode=verify-full", "", "needs sslrootcert"},
		{"mysql", "mysql://u:p@h/d?sslcert=x", "", "belong together"},
		{"mysql", "mysql://u:p@h/d?connect_timeout=soon", "", "1 to 600"},
		{"postgresql", "", "", "DATABASE_URL is empty"},
		{"postgresql", "x.db", "", "does not begin with postgres://"},
		{"postgresql", "postgres://u:p%zz@h/d", "", "escape special characters"},
		{"", "oracle://u:p@h/d", "", "not supported"},
		{"mysql", "", "", "DATABASE_URL is empty"},
		{"galera", "", "", "mysql://user:password@host1:3306"},
		{"postgres", "", "", "did you mean postgresql?"},
		{"postgress", "", "", "did you mean postgresql?"},
		{"mariab", "", "", "did you mean mariadb?"},
		{"SQL Lite", "", "", "did you mean sqlite?"},
		{"glaera", "", "", "did you mean galera?"},
	} {
		got, err := parse(Config{Type: c.kind, URL: c.url, DataDir: "data"})
		switch {
		case c.problem == "" && err != nil:
			t.Errorf("%s %s: %v", c.kind, c.url, err)
		case c.problem == "" && got.kind+" "+got.url != c.want:
			t.Errorf("%s %s: %s %s, want %s", c.kind, c.url, got.kind, got.url, c.want)
		case c.problem != "" && (err == nil || !strings.Contains(err.Error(), c.problem)):
			t.Errorf("%s %s: %v, want an error with %q", c.kind, c.url, err, c.problem)
		}
		if err != nil && strings.Contains(err.Error(), "u:p") {
			t.Errorf("the error shows the password: %v", err)
		}
	}
}

func TestOpenFails(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := Open(ctx, Config{URL: "postgres://u:secret@127.0.0.1:1/d?sslmode=disable"}); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("closed port: %v", err)
	}
	dir := t.TempDir()
	if _, err := Open(ctx, Config{URL: dir}); err == nil {
		t.Error("a folder as the database: no error")
	}
	bad := filepath.Join(dir, "bad.db")
	writeFile(t, bad, strings.Repeat("this is no database. ", 300))
	if _, err := Open(ctx, Config{URL: bad}); err == nil || !strings.Contains(err.Error(), "not a database") {
		t.Errorf("a text file as the database: %v", err)
	}
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkInsert reports rows a second in batches as persist makes them.
func BenchmarkInsert(b *testing.B) {
	for _, kind := range append([]string{"sqlite"}, servers()...) {
		b.Run(kind, func(b *testing.B) {
			cfg := Config{DataDir: b.TempDir()}
			if kind != "sqlite" {
				cfg = Config{Type: kind, URL: dbtest.Start(b, kind).URL}
			}
			s := openStore(b, cfg, nil)
			const size = 10_000
			rows := 0
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				flows := someFlows(size, now.Add(time.Duration(i)*size*time.Millisecond-time.Hour), fmt.Sprint("b", i))
				b.StartTimer()
				if _, err := s.Insert(context.Background(), Batch{Flows: flows, Stream: "B", Seq: uint64(i)}); err != nil {
					b.Fatal(err)
				}
				rows += size
			}
			b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}
