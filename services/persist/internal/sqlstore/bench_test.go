package sqlstore

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/dbtest"
)

// BenchmarkBulk compares rows a second committed through Insert, in batches as persist's writer makes them, with the
// database's own bulk tool: the same rows, table and server in the same run, by turns, median of five. SQLite's tool
// has a file of its own, with the same settings, since a change by another process empties the cache of pages that
// persist keeps; and as it takes no blobs, its table's addresses are texts of 16 bytes.
func BenchmarkBulk(b *testing.B) {
	const batches, size = 5, 20_000
	var flows []Flow
	for i := range batches {
		flows = append(flows, someFlows(size, now.Truncate(24*time.Hour).Add(time.Duration(i)*size*time.Millisecond), fmt.Sprint("b", i))...)
	}
	for i := range flows {
		flows[i].UserAgent = "curl/8.5.0" // what every tool's format takes as it is
		flows[i].Tunnel = sql.NullInt64{Int64: 1, Valid: true}
	}
	for kind, tool := range map[string]func(b *testing.B, cfg Config, s *Store, flows []Flow) (*Store, func()){ // gives the store that the function fills
		"sqlite": sqliteTool, dbtest.PostgreSQL: postgresTool, dbtest.MariaDB: mariadbTool,
	} {
		b.Run(kind, func(b *testing.B) {
			cfg := Config{Type: kind, DataDir: b.TempDir(), FlowRetention: -1, MaxBytes: -1}
			if kind != "sqlite" {
				cfg.URL = dbtest.Start(b, kind).URL
			}
			s := openStore(b, cfg, nil)
			filled, load := tool(b, cfg, s, flows)
			empty := func(s *Store) {
				statements := "TRUNCATE TABLE flows"
				if kind == "sqlite" {
					statements = "DELETE FROM flows; PRAGMA wal_checkpoint(TRUNCATE)"
				}
				if _, err := s.d.writer().Exec(statements); err != nil {
					b.Fatal(err)
				}
			}
			var own, tools, ratios []float64
			rate := func(f func()) float64 {
				begin := time.Now()
				f()
				return float64(len(flows)) / time.Since(begin).Seconds()
			}
			for b.Loop() {
				for range 5 {
					empty(filled)
					tools = append(tools, rate(load))
					empty(s)
					own = append(own, rate(func() {
						for i := 0; i < len(flows); i += size {
							r, err := s.Insert(context.Background(), Batch{Flows: flows[i : i+size], Stream: "B", Seq: uint64(i)}) //nolint:gosec // small
							if err != nil || r.Count[Flows].Committed != size {
								b.Fatal(r, err)
							}
						}
					}))
					ratios = append(ratios, own[len(own)-1]/tools[len(tools)-1])
				}
			}
			for unit, all := range map[string][]float64{"rows/s": own, "tool_rows/s": tools, "of_tool": ratios} {
				slices.Sort(all)
				b.ReportMetric(all[len(all)/2], unit)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// tsv writes rows into a file, as texts with tabs.
func tsv(b *testing.B, d dialect, flows []Flow, change func(list []any)) string {
	b.Helper()
	var buf bytes.Buffer
	for i := range flows {
		list := args(d, &flows[i], nil)
		if change != nil {
			change(list)
		}
		for j, v := range list {
			if j > 0 {
				buf.WriteByte('\t')
			}
			if err := appendField(&buf, v); err != nil {
				b.Fatal(err)
			}
		}
		buf.WriteByte('\n')
	}
	path := filepath.Join(b.TempDir(), "flows.tsv")
	if err := os.WriteFile(path, buf.Bytes(), 0o600); err != nil {
		b.Fatal(err)
	}
	return path
}

// run returns a call of a program that gets input and has to succeed.
func run(b *testing.B, input string, env []string, name string, args ...string) func() {
	b.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("TIDEGATE_CI") == "1" {
			b.Fatalf("%s is not installed", name)
		}
		b.Skipf("%s is not installed", name)
	}
	return func() {
		c := exec.Command(path, args...) //nolint:gosec // the databases' own tools
		c.Stdin, c.Env = strings.NewReader(input), append(os.Environ(), env...)
		if out, err := c.CombinedOutput(); err != nil || bytes.Contains(out, []byte("rror")) {
			b.Fatalf("%s: %v: %s", name, err, out)
		}
	}
}

func postgresTool(b *testing.B, cfg Config, s *Store, flows []Flow) (*Store, func()) {
	file := tsv(b, s.d, flows, nil)
	return s, run(b, fmt.Sprintf("\\copy flows (%s) FROM '%s'\n", strings.Join(columns[Flows], ", "), file), nil, "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", cfg.URL)
}

func mariadbTool(b *testing.B, cfg Config, s *Store, flows []Flow) (*Store, func()) {
	d, ok := s.d.(*mysqlDialect)
	if !ok {
		b.Fatalf("dialect %T", s.d)
	}
	var rows []record
	for i := range flows {
		rows = append(rows, &flows[i])
	}
	file := filepath.Join(b.TempDir(), "flows.tsv")
	text, err := io.ReadAll(&loadReader{d: d, rows: rows})
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		b.Fatal(err)
	}
	u, err := url.Parse(cfg.URL)
	if err != nil {
		b.Fatal(err)
	}
	return s, run(b, fmt.Sprintf("LOAD DATA LOCAL INFILE '%s' INTO TABLE flows CHARACTER SET binary (%s);\n", file, strings.Join(columns[Flows], ", ")),
		[]string{"MYSQL_PWD=" + dbtest.Password}, "mariadb", "--no-defaults", "--local-infile=1", "--host="+u.Hostname(), "--port="+u.Port(), "--user="+dbtest.User, dbtest.Database)
}

func sqliteTool(b *testing.B, cfg Config, _ *Store, flows []Flow) (*Store, func()) {
	cfg.DataDir = b.TempDir()
	s := openStore(b, cfg, nil)
	d := s.d.(*sqliteDialect) //nolint:forcetypeassert // SQLite's
	var schema []string
	if err := d.w.Select(&schema, "SELECT sql FROM sqlite_schema WHERE tbl_name = 'flows' AND sql IS NOT NULL ORDER BY type DESC"); err != nil {
		b.Fatal(err)
	}
	statements := "DROP TABLE flows;\n" + strings.ReplaceAll(strings.Join(schema, ";\n"), "BLOB", "TEXT")
	// Empty fields of a file are no NULLs: columns that persist leaves out go.
	for _, c := range []string{"asn_src", "asn_dst", "country_src", "country_dst", "iface_in", "iface_out"} {
		statements += ";\nALTER TABLE flows DROP COLUMN " + c
	}
	if _, err := d.w.Exec(statements); err != nil {
		b.Fatal(err)
	}
	short := func(v any) string { // 16 bytes that are text
		a := netip.AddrFrom16([16]byte(v.([]byte))).As16() //nolint:forcetypeassert // the dialect's
		return hex.EncodeToString(a[8:])
	}
	file := tsv(b, d, flows, func(list []any) { list[4], list[5] = short(list[4]), short(list[5]) })
	return s, run(b, "PRAGMA "+strings.Join(sqlitePragmas, ";\nPRAGMA ")+";\n.mode tabs\n.import "+file+" flows\n", nil, "sqlite3", d.path)
}
