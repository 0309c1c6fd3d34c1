package sqlstore

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"strings"
)

// Range selects rows by time in Unix ns: from inclusive, to exclusive; 0 leaves a side open.
type Range struct{ From, To int64 }

func (r Range) bounds() (int64, int64) {
	if r.To <= 0 {
		return r.From, math.MaxInt64
	}
	return r.From, r.To
}

// Cursor is the last row of a page; the next page begins after it. The zero Cursor is the beginning.
type Cursor struct {
	TS int64
	ID string
}

// where gathers conditions and their arguments.
type where struct {
	conds []string
	args  []any
}

func (w *where) add(cond string, args ...any) {
	w.conds = append(w.conds, cond)
	w.args = append(w.args, args...)
}

func (w *where) equal(column, value string) {
	if value != "" {
		w.add(column+" = ?", value)
	}
}

func (w *where) after(ts, id string, c Cursor) {
	if c != (Cursor{}) {
		w.add("("+ts+", "+id+") < (?, ?)", c.TS, c.ID)
	}
}

func (w *where) String() string {
	if len(w.conds) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(w.conds, " AND ")
}

func (s *Store) selectRows(ctx context.Context, dst any, what, query string, args []any) error {
	if err := s.d.reader().SelectContext(ctx, dst, s.d.reader().Rebind(query), args...); err != nil {
		return fmt.Errorf("read %s: %w", what, err)
	}
	return nil
}

// FlowQuery filters flows; zero fields match everything. Prefix and Port match either end.
type FlowQuery struct {
	Range  Range
	Prefix netip.Prefix
	App    string
	Host   string
	Port   uint16
	Limit  int
	After  Cursor
}

// Flows returns flows by time of their first packet, newest first.
func (s *Store) Flows(ctx context.Context, q FlowQuery) ([]Flow, error) {
	var w where
	from, to := q.Range.bounds()
	w.add("ts >= ? AND ts < ?", from, to)
	w.after("ts", "id", q.After)
	if q.Prefix.IsValid() {
		src, a := s.d.inPrefix("src_ip", q.Prefix)
		dst, b := s.d.inPrefix("dst_ip", q.Prefix)
		w.add("("+src+" OR "+dst+")", append(a, b...)...)
	}
	w.equal("app", q.App)
	w.equal("host", q.Host)
	if q.Port != 0 {
		w.add("(src_port = ? OR dst_port = ?)", int64(q.Port), int64(q.Port))
	}
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

// AttackQuery filters attacks; zero fields match everything. An attack is in the range when any of its time
// is: it began before the end and was not over before the beginning.
type AttackQuery struct {
	Range      Range
	Type       string
	ID         string
	ActiveOnly bool
	Limit      int
	After      Cursor // TS is the attack's FirstNs
}

// Attacks returns the newest revision of each attack, the latest begun first.
func (s *Store) Attacks(ctx context.Context, q AttackQuery) ([]Attack, error) {
	var w where
	from, to := q.Range.bounds()
	w.add("first_ns < ?", to)
	w.add("(state <> ? OR ts >= ?)", StateEnded, from)
	w.after("first_ns", "id", q.After)
	w.equal("type", q.Type)
	w.equal("id", q.ID)
	if q.ActiveOnly {
		w.add("state <> ?", StateEnded)
	}
	w.add(`NOT EXISTS (SELECT 1 FROM attacks n WHERE n.id = a.id
		AND (n.revision > a.revision OR (n.revision = a.revision AND n.ts > a.ts)))`)
	var out []Attack
	err := s.selectRows(ctx, &out, "attacks", "SELECT "+strings.Join(columns[Attacks], ", ")+" FROM attacks a"+
		w.String()+" ORDER BY first_ns DESC, id DESC LIMIT ?", append(w.args, q.Limit))
	return out, err
}

// VerdictQuery filters verdicts; zero fields match everything.
type VerdictQuery struct {
	Range    Range
	AttackID string
	ID       string
	Limit    int
	After    Cursor
}

// Verdicts returns verdicts, newest first.
func (s *Store) Verdicts(ctx context.Context, q VerdictQuery) ([]Verdict, error) {
	var w where
	from, to := q.Range.bounds()
	w.add("ts >= ? AND ts < ?", from, to)
	w.after("ts", "id", q.After)
	w.equal("attack_id", q.AttackID)
	w.equal("id", q.ID)
	var out []Verdict
	err := s.selectRows(ctx, &out, "verdicts", "SELECT "+strings.Join(columns[Verdicts], ", ")+" FROM verdicts"+
		w.String()+" ORDER BY ts DESC, id DESC LIMIT ?", append(w.args, q.Limit))
	return out, err
}

// EnforcementQuery filters enforcements; zero fields match everything.
type EnforcementQuery struct {
	Range    Range
	RuleID   string
	AttackID string
	Limit    int
	After    Cursor
}

// Enforcements returns enforcement events, newest first.
func (s *Store) Enforcements(ctx context.Context, q EnforcementQuery) ([]Enforcement, error) {
	var w where
	from, to := q.Range.bounds()
	w.add("ts >= ? AND ts < ?", from, to)
	w.after("ts", "id", q.After)
	w.equal("rule_id", q.RuleID)
	w.equal("attack_id", q.AttackID)
	var out []Enforcement
	err := s.selectRows(ctx, &out, "enforcements", "SELECT "+strings.Join(columns[Enforcements], ", ")+
		" FROM enforcements"+w.String()+" ORDER BY ts DESC, id DESC LIMIT ?", append(w.args, q.Limit))
	return out, err
}

// TopRow is one key with the traffic of all its flows, both directions.
type TopRow struct {
	Key     string
	Flows   int64
	Packets int64
	Bytes   int64
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

// Top returns the keys with the most bytes in the range. by is src, dst, app, host or port (the
// destination's).
func (s *Store) Top(ctx context.Context, r Range, by string, limit int) ([]TopRow, error) {
	k, ok := topKeys[by]
	if !ok {
		return nil, fmt.Errorf("top by %q: use src, dst, app, host or port", by)
	}
	var w where
	from, to := r.bounds()
	w.add("ts >= ? AND ts < ?", from, to)
	if k.condition != "" {
		w.add(k.condition)
	}
	key := k.column
	isAddr := by == "src" || by == "dst"
	if isAddr {
		key = s.d.addrText(k.column)
	}
	db := s.d.reader()
	rows, err := db.QueryxContext(ctx, db.Rebind("SELECT "+key+", count(*), CAST(sum(packets_fwd + packets_rev) AS BIGINT), "+
		"CAST(sum(bytes_fwd + bytes_rev) AS BIGINT) AS total FROM flows"+w.String()+
		" GROUP BY "+k.column+" ORDER BY total DESC, "+k.column+" LIMIT ?"), append(w.args, limit)...)
	if err != nil {
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
