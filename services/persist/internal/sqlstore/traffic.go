package sqlstore

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/tidegate-mesh/tidegate/libs/policy"
)

// FlowFilter selects flows; zero fields match everything. Prefix and Port match either end, Risks flows that carry all
// of them.
type FlowFilter struct {
	Range      Range
	Prefix     netip.Prefix
	App        string
	Host       string
	Port       uint16
	JA3        string
	JA4        string
	HASSH      string
	Confidence string
	Risks      Bits
}

func (s *Store) flowWhere(f FlowFilter) where {
	var w where
	from, to := f.Range.bounds()
	w.add("ts >= ? AND ts < ?", from, to)
	if f.Prefix.IsValid() {
		src, a := s.d.inPrefix("src_ip", f.Prefix)
		dst, b := s.d.inPrefix("dst_ip", f.Prefix)
		w.add("("+src+" OR "+dst+")", append(a, b...)...)
	}
	w.equal("app", f.App)
	w.equal("host", f.Host)
	w.equal("ja3", f.JA3)
	w.equal("ja4", f.JA4)
	w.equal("hassh", f.HASSH)
	w.equal("confidence", f.Confidence)
	if f.Risks != 0 {
		w.add("(risks & ?) = ?", int64(f.Risks), int64(f.Risks)) //nolint:gosec // the same 64 bits
	}
	if f.Port != 0 {
		w.add("(src_port = ? OR dst_port = ?)", int64(f.Port), int64(f.Port))
	}
	return w
}

// FlowQuery is one page of flows.
type FlowQuery struct {
	FlowFilter
	Limit int
	After Cursor
}

// Flows returns flows by time of their first packet, newest first.
func (s *Store) Flows(ctx context.Context, q FlowQuery) ([]Flow, error) {
	w := s.flowWhere(q.FlowFilter)
	w.after("ts", "id", q.After)
	cols := make([]string, len(columns[Flows]))
	for i, c := range columns[Flows] {
		if c == "src_ip" || c == "dst_ip" {
			c = s.d.addrText(c)
		}
		cols[i] = c
	}
	var out []Flow
	err := s.selectRows(ctx, &out, "flows", "SELECT "+strings.Join(cols, ", ")+" FROM flows"+w.String()+
		" ORDER BY ts DESC, id DESC LIMIT ?", append(w.args, q.Limit))
	return out, err
}

// Traffic counts flows and their packets and bytes, both directions unless something else is said.
type Traffic struct {
	Flows   int64 `db:"flows"`
	Packets int64 `db:"packets"`
	Bytes   int64 `db:"bytes"`
}

// sums are the columns of Traffic over flows.
func (s *Store) sums() string {
	return "count(*) AS flows, " + s.d.bigint("sum(packets_fwd + packets_rev)") + " AS packets, " +
		s.d.bigint("sum(bytes_fwd + bytes_rev)") + " AS bytes"
}

// TopRow is one key with the traffic of its flows.
type TopRow struct {
	Key string
	Traffic
}

// topKeys are what Top groups by; flows without such a key are left out.
var topKeys = map[string]struct{ column, condition string }{
	"src":  {"src_ip", ""},
	"dst":  {"dst_ip", ""},
	"app":  {"app", "app <> ''"},
	"host": {"host", "host <> ''"},
	"port": {"dst_port", "dst_port <> 0"},
}

// TopBy tells whether Top knows the key.
func TopBy(by string) bool { _, ok := topKeys[by]; return ok }

// Top returns the keys with the most bytes. by is src, dst, app, host or port (the destination's).
func (s *Store) Top(ctx context.Context, f FlowFilter, by string, limit int) ([]TopRow, error) {
	k, ok := topKeys[by]
	if !ok {
		return nil, fmt.Errorf("top by %q: use src, dst, app, host or port", by)
	}
	w := s.flowWhere(f)
	if k.condition != "" {
		w.add(k.condition)
	}
	key := k.column
	isAddr := by == "src" || by == "dst"
	if isAddr {
		key = s.d.addrText(k.column)
	}
	db := s.d.reader()
	rows, err := db.QueryxContext(ctx, db.Rebind("SELECT "+key+", "+s.sums()+" FROM flows"+w.String()+
		" GROUP BY "+k.column+" ORDER BY bytes DESC, "+k.column+" LIMIT ?"), append(w.args, limit)...)
	if err != nil {
		s.d.failed(err)
		return nil, fmt.Errorf("top by %s: %w", by, err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err is checked
	var out []TopRow
	for rows.Next() {
		var t TopRow
		var a Addr
		dst := any(&t.Key)
		if isAddr {
			dst = &a
		}
		if err := rows.Scan(dst, &t.Flows, &t.Packets, &t.Bytes); err != nil {
			return nil, fmt.Errorf("top by %s: %w", by, err)
		}
		if isAddr {
			t.Key = a.String()
		}
		out = append(out, t)
	}
	return out, rows.Err()
}

// Point is the traffic of the flows that began in one bucket of time; Start is its beginning in Unix ns, a multiple
// of the bucket's length.
type Point struct {
	Start int64 `db:"start"`
	Traffic
}

// Series returns the traffic in buckets of step ns, in order of time, empty ones left out. The caller bounds the
// range: each bucket of it can be a point.
func (s *Store) Series(ctx context.Context, f FlowFilter, step int64) ([]Point, error) {
	query, args := s.seriesSQL(f, step)
	var out []Point
	err := s.selectRows(ctx, &out, "time series", query, args)
	return out, err
}

func (s *Store) seriesSQL(f FlowFilter, step int64) (string, []any) {
	w := s.flowWhere(f)
	return "SELECT " + bucket(step) + " AS start, " + s.sums() + " FROM flows" + w.String() + " GROUP BY 1 ORDER BY 1", w.args
}

// bucket is the start of a flow's bucket; ts is positive. Dividing would not do: MySQL makes a fraction of it. The
// length is no parameter, so that PostgreSQL sees one expression.
func bucket(step int64) string {
	n := strconv.FormatInt(step, 10)
	return "ts - ts % " + n
}

// AppSeries is the series of one application.
type AppSeries struct {
	App    string
	Points []Point
}

// SeriesByApp returns a series for each of the limit applications with the most bytes, heaviest first. Flows without
// a label are in none.
func (s *Store) SeriesByApp(ctx context.Context, f FlowFilter, step int64, limit int) ([]AppSeries, error) {
	top, err := s.Top(ctx, f, "app", limit)
	if err != nil || len(top) == 0 {
		return nil, err
	}
	out, place := make([]AppSeries, len(top)), make(map[string]int, len(top))
	w := s.flowWhere(f)
	apps := make([]any, len(top))
	for i, t := range top {
		out[i].App, place[t.Key], apps[i] = t.Key, i, t.Key
	}
	w.add("app IN ("+strings.TrimSuffix(strings.Repeat("?, ", len(apps)), ", ")+")", apps...)
	var points []struct {
		App string `db:"app"`
		Point
	}
	if err := s.selectRows(ctx, &points, "time series", "SELECT app, "+bucket(step)+" AS start, "+s.sums()+" FROM flows"+
		w.String()+" GROUP BY 1, 2 ORDER BY 2", w.args); err != nil {
		return nil, err
	}
	for _, p := range points {
		i := place[p.App]
		out[i].Points = append(out[i].Points, p.Point)
	}
	return out, nil
}

// Matching returns what a rule with match m would have met among the flows of the range: all of it, and the limit
// applications with the most bytes of it. A rule sees packets, not flows, so each direction of a flow is compared on
// its own, source with source: only the packets and bytes of the directions that match are counted, and a flow
// counts once. A match by host is one of flows: both directions count. What a flow does not tell (TCP flags, length, TTL, fragments) is not looked at.
func (s *Store) Matching(ctx context.Context, r Range, m *policy.Match, limit int) (total Traffic, apps []TopRow, err error) {
	query, args := s.matchingSQL(r, m)
	db := s.d.reader()
	rows, err := db.QueryxContext(ctx, db.Rebind(query), args...)
	if err != nil {
		s.d.failed(err)
		return total, nil, fmt.Errorf("count what matches: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err is checked
	for rows.Next() {
		var t TopRow
		if err := rows.Scan(&t.Key, &t.Flows, &t.Packets, &t.Bytes); err != nil {
			return total, nil, fmt.Errorf("count what matches: %w", err)
		}
		total.Flows += t.Flows
		total.Packets += t.Packets
		total.Bytes += t.Bytes
		if t.Key != "" && len(apps) < limit {
			apps = append(apps, t)
		}
	}
	return total, apps, rows.Err()
}

func (s *Store) matchingSQL(r Range, m *policy.Match) (string, []any) {
	fwd := s.direction(m, "src_ip", "src_port", "dst_ip", "dst_port", "packets_fwd")
	rev := s.direction(m, "dst_ip", "dst_port", "src_ip", "src_port", "packets_rev")
	var w where
	from, to := r.bounds()
	w.add("ts >= ? AND ts < ?", from, to)
	if m.HasProtocol {
		w.add("protocol = ?", int64(m.Protocol))
	}
	if m.Host != "" {
		// A flow of the host is met in both directions; the match's source is who named it.
		rev = s.direction(m, "src_ip", "src_port", "dst_ip", "dst_port", "packets_rev")
		below := strings.NewReplacer("!", "!!", "_", "!_", "%", "!%").Replace(m.Host)
		w.add("(host = ? OR host LIKE ? ESCAPE '!')", m.Host, "%."+below)
		w.add("host_source = '' AND app NOT IN ('dns', 'mdns', 'llmnr')") // those only ask for it
	}
	args := append(append(fwd.args, rev.args...), w.args...)
	return "SELECT app, count(*) AS flows, " +
		s.d.bigint("sum(CASE WHEN fwd THEN packets_fwd ELSE 0 END + CASE WHEN rev THEN packets_rev ELSE 0 END)") + " AS packets, " +
		s.d.bigint("sum(CASE WHEN fwd THEN bytes_fwd ELSE 0 END + CASE WHEN rev THEN bytes_rev ELSE 0 END)") + " AS bytes " +
		"FROM (SELECT app, packets_fwd, packets_rev, bytes_fwd, bytes_rev, " +
		"(" + strings.Join(fwd.conds, " AND ") + ") AS fwd, (" + strings.Join(rev.conds, " AND ") + ") AS rev " +
		"FROM flows" + w.String() + ") AS f WHERE fwd OR rev GROUP BY app ORDER BY bytes DESC, app", args
}

// direction is the condition that one direction of a flow has packets and matches.
func (s *Store) direction(m *policy.Match, srcIP, srcPort, dstIP, dstPort, packets string) where {
	var w where
	w.add(packets + " > 0")
	if m.Src.IsValid() {
		cond, args := s.d.inPrefix(srcIP, m.Src)
		w.add(cond, args...)
	}
	if m.Dst.IsValid() {
		cond, args := s.d.inPrefix(dstIP, m.Dst)
		w.add(cond, args...)
	}
	if m.HasSrcPort {
		w.add(srcPort+" = ?", int64(m.SrcPort))
	}
	if m.HasDstPort {
		w.add(dstPort+" = ?", int64(m.DstPort))
	}
	return w
}
