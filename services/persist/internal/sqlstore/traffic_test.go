package sqlstore

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tidegate-mesh/tidegate/libs/policy"
)

func testAudit(t *testing.T, p place) {
	s := p.open(t, nil)
	ctx := context.Background()
	at := func(second int) int64 { return now.Add(-time.Hour).UnixNano() + int64(second)*1e9 }
	audit := func(id string, rev uint32, second int, actor, action, target, outcome string) Audit {
		return Audit{TS: at(second), ID: id, Revision: rev, Actor: actor, Role: "operator", Remote: "192.0.2.9", Action: action, Target: target,
			Outcome: outcome, Detail: "d", RequestID: "q", TraceID: "t", Gateway: "gw"}
	}
	batch := []Audit{
		audit("a", 1, 0, "ann", "rule.add", "r1", "requested"), audit("a", 2, 1, "ann", "rule.add", "r1", "done"),
		audit("b", 1, 2, "bob", "rule.revoke", "r1", "requested"), // its gateway ended
		audit("c", 1, 3, "ann", "panic.on", "", "requested"), audit("c", 2, 3, "ann", "panic.on", "", "refused"),
		audit("d", 1, 3, "ann", "rule.add", "r2", "requested"), audit("d", 2, 9, "ann", "rule.add", "r2", "failed"),
	}
	// The text stays as it was written, with what a parser would drop.
	batch[1].After = sql.NullString{String: `{"b": 1.50,  "a": "\u0000", "b": 2}`, Valid: true}
	if got := insert(t, s, Batch{Audits: batch}).Count[Audits]; got != (Count{Committed: 7}) {
		t.Fatalf("%+v", got)
	}
	more := make([]Audit, 30) // through both ways of inserting
	for i := range more {
		more[i] = audit(fmt.Sprint("m", i), 1, 100+i/3, "carl", "login.locked", "", "done")
	}
	if got := insert(t, s, Batch{Audits: append(more, batch...)}).Count[Audits]; got != (Count{Committed: 30, Duplicate: 7}) {
		t.Fatalf("again: %+v", got)
	}
	for _, c := range []struct {
		name string
		q    AuditQuery
		want string
	}{
		{"all of before", AuditQuery{Range: Range{To: at(100)}}, "d2 c2 b1 a2"},
		{"actor", AuditQuery{Actor: "bob"}, "b1"},
		{"action", AuditQuery{Action: "rule.add"}, "d2 a2"},
		{"target", AuditQuery{Target: "r1"}, "b1 a2"},
		{"together", AuditQuery{Actor: "ann", Action: "rule.add", Target: "r2"}, "d2"},
		{"time", AuditQuery{Range: Range{From: at(1), To: at(3)}}, "b1 a2"},
		{"an old revision in the range only", AuditQuery{Range: Range{From: at(3), To: at(9)}}, "c2"},
		{"nobody", AuditQuery{Actor: "eve"}, ""},
		{"next page", AuditQuery{After: Cursor{TS: at(3), ID: "c"}}, "b1 a2"},
	} {
		c.q.Limit = 20
		rows, err := s.Audits(ctx, c.q)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		var got []string
		for _, a := range rows {
			got = append(got, fmt.Sprint(a.ID, a.Revision))
		}
		if g := strings.Join(got, " "); g != c.want {
			t.Errorf("%s: %q, want %q", c.name, g, c.want)
		}
	}
	rows, err := s.Audits(ctx, AuditQuery{Range: Range{From: at(1), To: at(2)}, Limit: 1})
	if err != nil || len(rows) != 1 {
		t.Fatal(rows, err)
	}
	if d := cmp.Diff(batch[1], rows[0]); d != "" {
		t.Errorf("an audit changed on its way (-want +got):\n%s", d)
	}
	seen := map[string]bool{}
	for after := (Cursor{}); ; {
		rows, err := s.Audits(ctx, AuditQuery{Limit: 4, After: after})
		if err != nil {
			t.Fatal(err)
		}
		if len(rows) == 0 {
			break
		}
		for _, a := range rows {
			if seen[a.ID] {
				t.Fatalf("%s comes again", a.ID)
			}
			seen[a.ID], after = true, Cursor{TS: a.TS, ID: a.ID}
		}
	}
	if len(seen) != 34 {
		t.Errorf("%d changes in pages, want 34", len(seen))
	}
	if n := count(t, s, Audits); n != 37 {
		t.Errorf("%d rows, want 37", n)
	}
}

// testSeries compares with sums that Go makes of the same flows.
func testSeries(t *testing.T, p place) {
	s := p.open(t, nil)
	ctx := context.Background()
	begin := now.Add(-300 * 24 * time.Hour).Truncate(24 * time.Hour).Add(23*time.Hour + 59*time.Minute) // past midnight: two days
	flows := someFlows(3000, begin, "series")
	r := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // test data
	for i := range flows {
		flows[i].TS = begin.UnixNano() + r.Int64N(300e9)
		flows[i].App = []string{"tls", "dns", "http", ""}[r.IntN(4)]
		flows[i].BytesFwd = r.Int64N(1 << 40)
	}
	insert(t, s, Batch{Flows: flows})
	whole := Range{From: begin.UnixNano(), To: begin.UnixNano() + 300e9}
	part := Range{From: whole.From + 7e9 + 1, To: whole.To - 11e9}
	for _, c := range []struct {
		f    FlowFilter
		step int64
		take func(Flow) bool
	}{
		{FlowFilter{Range: whole}, 1e9, func(Flow) bool { return true }},
		{FlowFilter{Range: part}, 7e9 + 3, func(Flow) bool { return true }},
		{FlowFilter{Range: part, App: "dns", Port: 443}, 60e9, func(f Flow) bool { return f.App == "dns" && f.DstPort == 443 }},
		{FlowFilter{Range: whole, Prefix: netip.MustParsePrefix("10.0.1.0/24"), Host: "h4.example"}, 24 * 3600e9,
			func(f Flow) bool {
				return f.Host == "h4.example" && netip.MustParsePrefix("10.0.1.0/24").Contains(f.Src.Addr)
			}},
	} {
		want := map[int64]Traffic{}
		byApp := map[string]map[int64]Traffic{}
		for _, f := range flows {
			if f.TS < c.f.Range.From || f.TS >= c.f.Range.To || !c.take(f) {
				continue
			}
			start := f.TS - f.TS%c.step
			if byApp[f.App] == nil {
				byApp[f.App] = map[int64]Traffic{}
			}
			for _, m := range []map[int64]Traffic{want, byApp[f.App]} {
				sum := m[start]
				m[start] = Traffic{sum.Flows + 1, sum.Packets + f.PacketsFwd + f.PacketsRev, sum.Bytes + f.BytesFwd + f.BytesRev}
			}
		}
		check := func(what string, want map[int64]Traffic, points []Point) {
			got, last := map[int64]Traffic{}, int64(0)
			for _, p := range points {
				if p.Start <= last {
					t.Errorf("%s: %d after %d", what, p.Start, last)
				}
				last, got[p.Start] = p.Start, p.Traffic
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("%s, step %d (-want +got):\n%s", what, c.step, d)
			}
		}
		points, err := s.Series(ctx, c.f, c.step)
		if err != nil {
			t.Fatal(err)
		}
		check("all", want, points)
		series, err := s.SeriesByApp(ctx, c.f, c.step, 2)
		if err != nil {
			t.Fatal(err)
		}
		delete(byApp, "")
		if len(series) != min(2, len(byApp)) {
			t.Fatalf("%d series of %d applications", len(series), len(byApp))
		}
		bytes := func(m map[int64]Traffic) (n int64) {
			for _, p := range m {
				n += p.Bytes
			}
			return n
		}
		for i, a := range series {
			check(a.App, byApp[a.App], a.Points)
			heavier := 0
			for _, m := range byApp {
				if bytes(m) > bytes(byApp[a.App]) {
					heavier++
				}
			}
			if heavier != i {
				t.Errorf("%s is series %d but %d applications are heavier", a.App, i, heavier)
			}
		}
	}
	if series, err := s.SeriesByApp(ctx, FlowFilter{Range: whole, App: "nothing"}, 1e9, 10); err != nil || len(series) != 0 {
		t.Errorf("series of nothing: %v, %v", series, err)
	}
}

func testMatching(t *testing.T, p place) {
	s := p.open(t, nil)
	ctx := context.Background()
	begin := now.Add(-200 * 24 * time.Hour).UnixNano()
	span := Range{From: begin, To: begin + 100}
	flow := func(i int64, src, dst string, sport, dport, protocol uint32, app string, packetsRev int64) Flow {
		return Flow{TS: begin + i, ID: fmt.Sprint("match", i), Src: addr(src), Dst: addr(dst), SrcPort: sport, DstPort: dport, Protocol: protocol, App: app,
			PacketsFwd: 10, BytesFwd: 1000, PacketsRev: packetsRev, BytesRev: 100_000 * packetsRev}
	}
	named := func(f Flow, host, source string) Flow { f.Host, f.HostSource = host, source; return f }
	elsewhere := Range{From: begin + 1000, To: begin + 1100}
	insert(t, s, Batch{Flows: []Flow{
		named(flow(1000, "10.9.1.1", "192.0.2.9", 5000, 443, 6, "tls", 4), "www.a_b.example", ""),
		named(flow(1001, "10.9.1.2", "192.0.2.9", 5000, 80, 6, "http", 1), "a_b.example", ""),
		named(flow(1002, "10.9.1.2", "192.0.2.9", 5001, 443, 6, "tls", 4), "www.axb.example", ""),
		named(flow(1003, "10.9.1.2", "192.0.2.9", 5002, 443, 6, "tls", 4), "xa_b.example", ""),
		named(flow(1004, "10.9.1.2", "192.0.2.9", 5003, 443, 6, "", 4), "a_b.example", "dns"),
		named(flow(1005, "10.9.1.2", "192.0.2.9", 5004, 53, 17, "dns", 1), "a_b.example", ""),
		flow(0, "10.9.0.1", "192.0.2.7", 5000, 443, 6, "tls", 4),
		flow(1, "10.9.0.2", "192.0.2.7", 443, 443, 6, "tls", 4),
		flow(2, "192.0.2.7", "10.9.0.1", 6000, 53, 17, "dns", 0), // never answered
		flow(3, "192.0.2.7", "10.9.0.3", 6001, 53, 17, "dns", 1),
		flow(4, "10.9.0.1", "10.9.0.2", 7000, 22, 6, "ssh", 4),
		flow(5, "2001:db8::1", "2001:db8::2", 8000, 80, 6, "", 4),
		flow(100, "10.9.0.1", "192.0.2.7", 5000, 443, 6, "tls", 4), // after the range
	}})
	prefix := netip.MustParsePrefix
	for _, c := range []struct {
		name string
		m    policy.Match
		want Traffic
		apps string
	}{
		{"everything", policy.Match{}, Traffic{6, 60 + 17, 6000 + 1_700_000}, "tls ssh dns"},
		{"towards a host", policy.Match{Dst: prefix("192.0.2.7/32")}, Traffic{3, 20 + 1, 2000 + 100_000}, "dns tls"},
		{"from a host", policy.Match{Src: prefix("192.0.2.7/32")}, Traffic{4, 8 + 20, 800_000 + 2000}, "tls dns"},
		{"inside a prefix", policy.Match{Src: prefix("10.9.0.0/24"), Dst: prefix("10.9.0.0/24")}, Traffic{1, 14, 401_000}, "ssh"},
		{"pair", policy.Match{Src: prefix("10.9.0.1/32"), Dst: prefix("10.9.0.2/32")}, Traffic{1, 10, 1000}, "ssh"},
		{"pair, answers", policy.Match{Src: prefix("10.9.0.2/32"), Dst: prefix("10.9.0.1/32")}, Traffic{1, 4, 400_000}, "ssh"},
		{"requests", policy.Match{Protocol: 6, HasProtocol: true, DstPort: 443, HasDstPort: true}, Traffic{2, 20 + 4, 2000 + 400_000}, "tls"},
		{"answers", policy.Match{Protocol: 17, HasProtocol: true, SrcPort: 53, HasSrcPort: true}, Traffic{1, 1, 100_000}, "dns"},
		{"other protocol", policy.Match{Protocol: 17, HasProtocol: true, DstPort: 443, HasDstPort: true}, Traffic{}, ""},
		{"IPv4 only", policy.Match{Dst: prefix("0.0.0.0/0")}, Traffic{5, 50 + 13, 5000 + 1_300_000}, "tls ssh dns"},
		{"IPv6", policy.Match{Src: prefix("2001:db8::2/128")}, Traffic{1, 4, 400_000}, ""},
	} {
		got, apps, err := s.Matching(ctx, span, &c.m, 3)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		var keys []string
		for _, a := range apps {
			keys = append(keys, a.Key)
		}
		if got != c.want || strings.Join(keys, " ") != c.apps {
			t.Errorf("%s: %+v %v, want %+v %s", c.name, got, keys, c.want, c.apps)
		}
	}
	for _, c := range []struct {
		m    policy.Match
		want Traffic
	}{
		{policy.Match{Host: "a_b.example"}, Traffic{2, 20 + 5, 2000 + 500_000}},
		{policy.Match{Host: "www.a_b.example", Protocol: 6, HasProtocol: true, DstPort: 443, HasDstPort: true}, Traffic{1, 14, 401_000}},
		{policy.Match{Host: "a_b.example", Src: prefix("10.9.1.2/32")}, Traffic{1, 11, 101_000}},
		{policy.Match{Host: "b.example"}, Traffic{}},
	} {
		if got, _, err := s.Matching(ctx, elsewhere, &c.m, 3); err != nil || got != c.want {
			t.Errorf("%s: %+v, %v, want %+v", c.m.String(), got, err, c.want)
		}
	}
	if _, apps, err := s.Matching(ctx, span, &policy.Match{}, 1); err != nil || len(apps) != 1 || apps[0] != (TopRow{"tls", Traffic{2, 28, 802_000}}) {
		t.Errorf("heaviest application: %+v, %v", apps, err)
	}
}

// testPlans asks the databases how they would read: by the index on time, and of the flows only the days asked for.
func testPlans(t *testing.T, p place) {
	s := p.open(t, nil)
	day := now.Add(-20 * 24 * time.Hour).Truncate(24 * time.Hour)
	for i := range 5 {
		insert(t, s, Batch{Flows: someFlows(500, day.AddDate(0, 0, i), fmt.Sprint("plan", i))})
	}
	f := FlowFilter{Range: Range{From: day.AddDate(0, 0, 1).UnixNano() + 5e6, To: day.AddDate(0, 0, 1).UnixNano() + 9e6}}
	series, seriesArgs := s.seriesSQL(f, 1e9)
	audit, auditArgs := auditSQL(AuditQuery{Range: f.Range, Actor: "ann", Limit: 10})
	matching, matchingArgs := s.matchingSQL(f.Range, &policy.Match{HasProtocol: true, Protocol: 6})
	for _, c := range []struct {
		name, query string
		args        []any
		sqlite      string
		postgres    string
	}{
		{"time series", series, seriesArgs, "SEARCH flows USING PRIMARY KEY (ts>? AND ts<?)", "Index Cond: ((ts >="},
		{"audit", audit, auditArgs, "SEARCH a USING PRIMARY KEY (ts>? AND ts<?)", "Index Cond: ((ts >="},
		{"matching", matching, matchingArgs, "SEARCH flows USING PRIMARY KEY (ts>? AND ts<?)", "Index Cond: ((ts >="},
	} {
		if d, ok := s.d.(*mysqlDialect); ok {
			mysqlPlan(t, d, c.name, c.query, c.args, dayPartition(day.AddDate(0, 0, 1).UnixNano()/dayNs))
			continue
		}
		var plan string
		want := c.sqlite
		if _, ok := s.d.(*sqliteDialect); ok {
			var steps []struct {
				ID      int    `db:"id"`
				Parent  int    `db:"parent"`
				NotUsed int    `db:"notused"`
				Detail  string `db:"detail"`
			}
			if err := s.d.reader().Select(&steps, "EXPLAIN QUERY PLAN "+c.query, c.args...); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			for _, step := range steps {
				plan += step.Detail + "\n"
			}
			if c.name == "audit" && !strings.Contains(plan, "INDEX audit_id (id=?") {
				t.Errorf("newer revisions are not found by index:\n%s", plan)
			}
			if c.name == "audit" && strings.Contains(plan, "TEMP B-TREE") {
				t.Errorf("the audit is sorted instead of read in order:\n%s", plan)
			}
		} else {
			want = c.postgres
			tx, err := s.d.reader().Beginx()
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback()                                                  //nolint:errcheck // nothing to keep
			if _, err := tx.Exec("SET LOCAL enable_seqscan = off"); err != nil { // the tables are too small for the index to pay
				t.Fatal(err)
			}
			var lines []string
			if err := tx.Select(&lines, tx.Rebind("EXPLAIN "+c.query), c.args...); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			plan = strings.Join(lines, "\n")
			yes, no := dayName(Flows, day.AddDate(0, 0, 1).UnixNano()/dayNs), dayName(Flows, day.AddDate(0, 0, 2).UnixNano()/dayNs)
			if c.name != "audit" && (!strings.Contains(plan, yes) || strings.Contains(plan, no)) {
				t.Errorf("%s reads other days than asked for:\n%s", c.name, plan)
			}
		}
		if !strings.Contains(plan, want) {
			t.Errorf("%s: the plan has no %q:\n%s", c.name, want, plan)
		}
	}
}

// mysqlPlan checks that a query reads a range of the primary key, and of flows one partition.
func mysqlPlan(t *testing.T, d *mysqlDialect, name, query string, args []any, partition string) {
	t.Helper()
	how := "EXPLAIN PARTITIONS "
	if d.kind == "mysql" {
		how = "EXPLAIN FORMAT=TRADITIONAL "
	}
	rows, err := d.db.Queryx(how+query, args...)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err is checked
	plan := map[string]string{}
	for rows.Next() {
		row := map[string]any{}
		if err := rows.MapScan(row); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if row["table"] != nil {
			plan[fmt.Sprintf("%s", row["table"])] = fmt.Sprintf("%s %s %s", row["type"], row["key"], row["partitions"])
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if name == "audit" {
		if !strings.HasPrefix(plan["a"], "range PRIMARY") || !strings.Contains(plan["n"], " audit_id") {
			t.Errorf("the audit: plan %q", plan)
		}
	} else if plan["flows"] != "range PRIMARY "+partition {
		t.Errorf("%s: plan %q, want a range of the primary key in partition %s", name, plan, partition)
	}
}
