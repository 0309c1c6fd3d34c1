package sqlstore

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tidegate-mesh/tidegate/libs/dbtest"
)

// place is a database of one dialect that can be opened several times.
type place struct{ cfg Config }

func (p place) open(t *testing.T, change func(*Config)) *Store { return openStore(t, p.cfg, change) }

// servers are the kinds of database server of a run; MySQL, which comes from another release of Debian, and the
// cluster are in the full one only (TIDEGATE_FULL=1).
func servers() []string {
	kinds := []string{dbtest.PostgreSQL, dbtest.MariaDB}
	if os.Getenv("TIDEGATE_FULL") == "1" {
		kinds = append(kinds, dbtest.MySQL, dbtest.Galera)
	}
	return kinds
}

// eachDialect runs the suite over every dialect; a new one is added here.
func eachDialect(t *testing.T, f func(t *testing.T, p place)) {
	t.Run("sqlite", func(t *testing.T) { f(t, place{Config{DataDir: t.TempDir()}}) })
	for _, kind := range servers() {
		t.Run(kind, func(t *testing.T) { f(t, place{Config{Type: kind, URL: dbtest.Start(t, kind).URL}}) })
	}
}

func openStore(t testing.TB, cfg Config, change func(*Config)) *Store {
	t.Helper()
	if change != nil {
		change(&cfg)
	}
	s, err := Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func addr(s string) Addr { return Addr{netip.MustParseAddr(s)} }

// someFlows makes n flows one millisecond apart from begin on.
func someFlows(n int, begin time.Time, sensor string) []Flow {
	out := make([]Flow, n)
	for i := range out {
		ts := begin.Add(time.Duration(i) * time.Millisecond).UnixNano()
		out[i] = Flow{
			TS: ts, ID: fmt.Sprintf("%s/1/%d/0", sensor, i), LastNs: ts + 5e6, Sensor: sensor,
			Src: Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}, Dst: addr("192.0.2.7"),
			SrcPort: uint32(1024 + i%60000), DstPort: []uint32{443, 53, 80}[i%3], Protocol: 6, VLAN: 12,
			App: []string{"tls", "dns", "http"}[i%3], Host: fmt.Sprintf("h%d.example", i%10), ALPN: "h2",
			PacketsFwd: 3, PacketsRev: 2, BytesFwd: 300 + int64(i), BytesRev: 200, TCPFlagsFwd: 0x1b, TCPFlagsRev: 0x12, EndReason: 3,
			JA3: "3", JA4: "t13d", HASSH: "h", Confidence: "certain", HostSource: "sni", TLSVersion: "1.3", UserAgent: "curl/8 'ü\\\t\n",
			HTTPMethod: "GET", DNSType: "A", DNSRcode: "NOERROR", DNSAnswers: "192.0.2.1,192.0.2.2", Risks: 1<<63 | 1<<5 | 1,
			Tunnel: sql.NullInt64{Int64: math.MaxUint32, Valid: i%2 == 0}, // the others have none
		}
		if !out[i].Tunnel.Valid {
			out[i].Tunnel.Int64 = 0
		}
		if i%3 != 0 { // the others are of a sensor that did not measure it
			out[i].RTTClientUs, out[i].RTTServerUs = null(int64(i)), null(math.MaxUint32)
			out[i].RetransmitsFwd, out[i].RetransmitsRev = null(0), null(int64(i))
		}
	}
	return out
}

func null(n int64) sql.NullInt64 { return sql.NullInt64{Int64: n, Valid: true} }

func insert(t *testing.T, s *Store, b Batch) Result {
	t.Helper()
	r, err := s.Insert(context.Background(), b)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func count(t *testing.T, s *Store, table Table) int64 {
	t.Helper()
	rows, err := s.Rows(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return rows[table]
}

var now = time.Now().UTC().Truncate(time.Second)

func TestConformance(t *testing.T) {
	eachDialect(t, func(t *testing.T, p place) {
		t.Run("upgrade", func(t *testing.T) { testUpgrade(t, p) })
		t.Run("flows", func(t *testing.T) { testFlows(t, p) })
		t.Run("attacks", func(t *testing.T) { testAttacks(t, p) })
		t.Run("verdicts and enforcements", func(t *testing.T) { testEvents(t, p) })
		t.Run("audit", func(t *testing.T) { testAudit(t, p) })
		t.Run("time series", func(t *testing.T) { testSeries(t, p) })
		t.Run("matching", func(t *testing.T) { testMatching(t, p) })
		t.Run("plans", func(t *testing.T) { testPlans(t, p) })
		t.Run("rejected rows", func(t *testing.T) { testRejected(t, p) })
		t.Run("reopen", func(t *testing.T) { testReopen(t, p) })
		t.Run("two writers", func(t *testing.T) { testTwoWriters(t, p) })
		t.Run("retention", func(t *testing.T) { testRetention(t, p) })
		t.Run("usual rates", func(t *testing.T) { testUsual(t, p) })
		t.Run("far clocks", func(t *testing.T) { testFarClocks(t, p) })
		t.Run("size cap", func(t *testing.T) { testSizeCap(t, p) })
	})
}

// testUpgrade begins with an empty database: a row of the first schema is there, whole, in the current one.
func testUpgrade(t *testing.T, p place) {
	ctx := context.Background()
	tgt, err := parse(p.cfg)
	if err != nil {
		t.Fatal(err)
	}
	d, err := connect(ctx, tgt, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	m, err := migrationsOf(d)
	if err != nil {
		t.Fatal(err)
	}
	first, added := int64(2), "ja3"
	if m.ListSources()[0].Version > 2 { // the family began later
		first, added = 4, "rtt_client_us"
	}
	if _, err := m.UpTo(ctx, first); err != nil {
		t.Fatal(err)
	}
	want := someFlows(2, now.Add(-time.Hour), "upgrade")[1]
	old := columns[Flows][:slices.Index(columns[Flows], added)]
	if _, err := d.writer().Exec(d.writer().Rebind(fmt.Sprintf("INSERT INTO flows (%s) VALUES (%s)", strings.Join(old, ", "),
		strings.TrimSuffix(strings.Repeat("?, ", len(old)), ", "))), args(d, &want, nil)[:len(old)]...); err != nil {
		t.Fatal(err)
	}
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
	s := p.open(t, nil)
	if added == "ja3" {
		want.JA3, want.JA4, want.HASSH, want.Confidence, want.HostSource, want.TLSVersion = "", "", "", "", "", ""
		want.UserAgent, want.HTTPMethod, want.DNSType, want.DNSRcode, want.DNSAnswers, want.Risks = "", "", "", "", "", 0
	}
	want.RTTClientUs, want.RTTServerUs, want.RetransmitsFwd, want.RetransmitsRev = sql.NullInt64{}, sql.NullInt64{}, sql.NullInt64{}, sql.NullInt64{}
	want.Tunnel = sql.NullInt64{}
	if got, err := s.Flows(ctx, FlowQuery{Limit: 9}); err != nil || !slices.Equal(got, []Flow{want}) {
		t.Fatalf("after the upgrade: %+v, %v, want %+v", got, err, want)
	}
	again := someFlows(100, now.Add(-time.Hour), "upgrade")
	if got := insert(t, s, Batch{Flows: again}).Count[Flows]; got != (Count{Committed: 99, Duplicate: 1}) {
		t.Errorf("after the upgrade: %+v", got)
	}
	if _, err := s.d.writer().Exec("DELETE FROM flows"); err != nil {
		t.Fatal(err)
	}
}

func testFlows(t *testing.T, p place) {
	s := p.open(t, nil)
	ctx := context.Background()
	flows := someFlows(1000, now.Add(-time.Hour), "a")
	v6 := flows[0]
	v6.ID, v6.TS, v6.Src, v6.Dst, v6.Host = "v6", flows[999].TS+1, addr("2001:db8::12:345"), addr("2001:db8:ffff::1"), ""
	r := insert(t, s, Batch{Flows: append(slices.Clone(flows), v6), Stream: "S", Seq: 9})
	if got := r.Count[Flows]; got != (Count{Committed: 1001}) {
		t.Fatalf("first insert: %+v", got)
	}
	// Ten of them again, alone and among new ones, through both ways of inserting.
	if got := insert(t, s, Batch{Flows: slices.Clone(flows[:10])}).Count[Flows]; got != (Count{Duplicate: 10}) {
		t.Fatalf("second insert: %+v", got)
	}
	mixed := append(someFlows(100, now.Add(-time.Minute), "b"), flows[:60]...)
	mixed = append(mixed, mixed[0]) // twice in one batch
	if got := insert(t, s, Batch{Flows: mixed}).Count[Flows]; got != (Count{Committed: 100, Duplicate: 61}) {
		t.Fatalf("mixed insert: %+v", got)
	}

	got, err := s.Flows(ctx, FlowQuery{FlowFilter: FlowFilter{Range: Range{From: v6.TS, To: v6.TS + 1}}, Limit: 10})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := s.Flows(ctx, FlowQuery{FlowFilter: FlowFilter{Range: Range{From: flows[1].TS, To: flows[1].TS + 1}}, Limit: 10}); err != nil || len(n) != 1 || n[0] != flows[1] {
		t.Errorf("a flow without a tunnel changed on its way: %+v, %v, want %+v", n, err, flows[1])
	}
	if d := cmp.Diff([]Flow{v6}, got, cmp.Comparer(func(a, b Addr) bool { return a == b })); d != "" {
		t.Fatalf("a flow changed on its way (-want +got):\n%s", d)
	}

	// Pages: every row once, newest first.
	seen := map[string]bool{}
	var after Cursor
	last := int64(math.MaxInt64)
	for pages := 0; ; pages++ {
		rows, err := s.Flows(ctx, FlowQuery{Limit: 97, After: after})
		if err != nil {
			t.Fatal(err)
		}
		if len(rows) == 0 {
			break
		}
		for _, f := range rows {
			if seen[f.ID] || f.TS > last {
				t.Fatalf("row %s comes again or out of order", f.ID)
			}
			seen[f.ID], last = true, f.TS
		}
		after = Cursor{TS: rows[len(rows)-1].TS, ID: rows[len(rows)-1].ID}
	}
	if len(seen) != 1101 {
		t.Fatalf("pages had %d rows, want 1101", len(seen))
	}

	a0 := flows[0]
	for _, c := range []struct {
		name string
		q    FlowFilter
		want int
	}{
		{"all", FlowFilter{}, 1101},
		{"range", FlowFilter{Range: Range{From: a0.TS, To: flows[10].TS}}, 10},
		{"from only", FlowFilter{Range: Range{From: flows[990].TS}}, 10 + 1 + 100},
		{"source prefix", FlowFilter{Prefix: netip.MustParsePrefix("10.0.1.0/24")}, 256},
		{"source address", FlowFilter{Prefix: netip.MustParsePrefix("10.0.3.1/32")}, 1},
		{"either end", FlowFilter{Prefix: netip.MustParsePrefix("192.0.2.0/24")}, 1100},
		{"mapped prefix", FlowFilter{Prefix: netip.MustParsePrefix("::ffff:10.0.1.0/120")}, 256},
		{"v6 prefix", FlowFilter{Prefix: netip.MustParsePrefix("2001:db8::/32")}, 1},
		{"all v4", FlowFilter{Prefix: netip.MustParsePrefix("0.0.0.0/0")}, 1100},
		{"all v6", FlowFilter{Prefix: netip.MustParsePrefix("::/0")}, 1},
		{"unmasked prefix", FlowFilter{Prefix: netip.MustParsePrefix("10.0.1.77/24")}, 256},
		{"nothing", FlowFilter{Prefix: netip.MustParsePrefix("172.16.0.0/12")}, 0},
		{"app", FlowFilter{App: "dns"}, 333 + 33},
		{"host", FlowFilter{Host: "h3.example"}, 110},
		{"destination port", FlowFilter{Port: 80}, 333 + 33},
		{"source port", FlowFilter{Port: 1024 + 500}, 1},
		{"together", FlowFilter{App: "tls", Host: "h0.example", Prefix: netip.MustParsePrefix("10.0.0.0/24"), Range: Range{To: flows[999].TS + 1}}, 9},
	} {
		rows, err := s.Flows(ctx, FlowQuery{FlowFilter: c.q, Limit: 10_000})
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if len(rows) != c.want {
			t.Errorf("%s: %d rows, want %d", c.name, len(rows), c.want)
		}
	}

	for by, want := range map[string]TopRow{
		"dst":  {Key: "192.0.2.7", Traffic: Traffic{Flows: 1100}},
		"app":  {Key: "tls", Traffic: Traffic{Flows: 334 + 34 + 1}},
		"port": {Key: "443", Traffic: Traffic{Flows: 334 + 34 + 1}},
	} {
		rows, err := s.Top(ctx, FlowFilter{}, by, 3)
		if err != nil {
			t.Fatal(err)
		}
		if len(rows) == 0 || rows[0].Key != want.Key || rows[0].Flows != want.Flows || rows[0].Packets != 5*want.Flows || rows[0].Bytes == 0 {
			t.Errorf("top by %s: %+v, want %+v first", by, rows, want)
		}
	}
	rows, err := s.Top(ctx, FlowFilter{Range: Range{To: flows[999].TS + 1}}, "src", 2)
	if err != nil || len(rows) != 2 || rows[0].Key != "10.0.3.231" || rows[0].Bytes != 300+999+200 {
		t.Errorf("top by src: %+v, %v", rows, err)
	}
	if rows, err := s.Top(ctx, FlowFilter{}, "host", 100); err != nil || len(rows) != 10 {
		t.Errorf("top by host: %d keys (want 10, none empty), %v", len(rows), err)
	}
	if _, err := s.Top(ctx, FlowFilter{}, "colour", 1); err == nil {
		t.Error("top by colour: no error")
	}
	// Top takes the filters of the listing.
	if rows, err := s.Top(ctx, FlowFilter{Prefix: netip.MustParsePrefix("10.0.1.0/24"), Port: 80}, "app", 10); err != nil || len(rows) != 1 ||
		rows[0].Key != "http" || rows[0].Flows != 85 {
		t.Errorf("top by app of a prefix and a port: %+v, %v", rows, err)
	}
	if rows, err := s.Top(ctx, FlowFilter{App: "dns", Host: "h3.example"}, "port", 10); err != nil || len(rows) != 1 || rows[0].Key != "53" {
		t.Errorf("top by port of an application and a host: %+v, %v", rows, err)
	}
}

func testRejected(t *testing.T, p place) {
	s := p.open(t, nil)
	for _, n := range []int{1, 10, 500} {
		flows := someFlows(n, now.Add(-30*time.Minute), fmt.Sprint("rej", n))
		flows[n/2].Protocol = 300
		bad := 1
		if n > 1 {
			flows[0].Src = Addr{}
			bad++
		}
		r := insert(t, s, Batch{Flows: flows, Stream: "R", Seq: uint64(n)})
		if got := r.Count[Flows]; got != (Count{Committed: int64(n - bad), Rejected: int64(bad)}) || len(r.Rejections) != bad {
			t.Errorf("%d rows, %d bad: %+v %v", n, bad, got, r.Rejections)
		}
	}
	pos, err := s.Positions(context.Background())
	if err != nil || pos["R"] != 500 {
		t.Errorf("position %v, %v: want R at 500", pos, err)
	}
}

func testReopen(t *testing.T, p place) {
	s := p.open(t, nil)
	flows := someFlows(1500, now.Add(-20*time.Minute), "reopen")
	insert(t, s, Batch{Flows: flows, Stream: "P", Seq: 7})
	insert(t, s, Batch{Flows: flows, Stream: "P", Seq: 5}) // never goes back
	before := count(t, s, Flows)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s = p.open(t, nil)
		if got := count(t, s, Flows); got != before {
			t.Fatalf("%d rows after reopening, want %d", got, before)
		}
		if pos, err := s.Positions(context.Background()); err != nil || pos["P"] != 7 {
			t.Fatalf("positions %v, %v", pos, err)
		}
		if got := insert(t, s, Batch{Flows: flows}).Count[Flows]; got.Duplicate != 1500 {
			t.Fatalf("%+v", got)
		}
	}
	if _, err := s.d.writer().Exec("INSERT INTO tidegate_schema_version (version_id, is_applied) VALUES (999, true)"); err != nil {
		t.Fatal(err)
	}
	if err := s.migrate(context.Background()); err == nil || !strings.Contains(err.Error(), "upgrade the program") {
		t.Errorf("a newer schema: %v", err)
	}
	if _, err := s.d.writer().Exec("DELETE FROM tidegate_schema_version WHERE version_id = 999"); err != nil {
		t.Fatal(err)
	}
}

// testTwoWriters has two stores insert the same and different rows at once.
func testTwoWriters(t *testing.T, p place) {
	a, b := p.open(t, nil), p.open(t, nil)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var sum Count
	for i, s := range []*Store{a, b} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for j := range 10 {
				flows := append(someFlows(200, now.Add(time.Duration(-j)*24*time.Hour), fmt.Sprint("both", j)), someFlows(200, now, fmt.Sprint("own", i, j))...)
				var r Result
				var err error
				for range 10 { // a deadlock or a busy database is for the caller to retry
					if r, err = s.Insert(context.Background(), Batch{Flows: flows, Stream: "T", Seq: uint64(j + 1)}); err == nil {
						break
					}
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				sum.Committed += r.Count[Flows].Committed
				sum.Duplicate += r.Count[Flows].Duplicate
				mu.Unlock()
			}
		}()
	}
	wg.Wait()
	if sum != (Count{Committed: 6000, Duplicate: 2000}) {
		t.Errorf("%+v, want 6000 committed and 2000 duplicate", sum)
	}
}
