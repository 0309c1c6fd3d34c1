package sqlstore

import (
	"context"
	"fmt"
	"math"
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
	TS  int64
	ID  string
	Rev uint32 // only where revisions are listed
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
		// The first condition follows from the second; MySQL's optimizer finds its range in the first only.
		w.add(ts+" <= ?", c.TS)
		w.add("("+ts+", "+id+") < (?, ?)", c.TS, c.ID)
	}
}

// newest leaves one row of each id: the one with the highest revision. as is the table's alias in the query.
func (w *where) newest(table Table, as string) {
	w.add(strings.ReplaceAll("NOT EXISTS (SELECT 1 FROM "+string(table)+" n WHERE n.id = @.id AND "+
		"(n.revision > @.revision OR (n.revision = @.revision AND n.ts > @.ts)))", "@", as))
}

func (w *where) String() string {
	if len(w.conds) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(w.conds, " AND ")
}

func (s *Store) selectRows(ctx context.Context, dst any, what, query string, args []any) error {
	if err := s.d.reader().SelectContext(ctx, dst, s.d.reader().Rebind(query), args...); err != nil {
		s.d.failed(err)
		return fmt.Errorf("read %s: %w", what, err)
	}
	return nil
}

// AttackQuery filters attacks; zero fields match everything. An attack is in the range when any of its time
// is: it began before the end and was not over before the beginning. A revision is in it when it was made then.
type AttackQuery struct {
	Range      Range
	Type       string
	ID         string
	ActiveOnly bool
	// Stale is a time in ns: an attack that has no end, and no revision since then, is over, as classify tells of one that goes
	// on each second. It has stopped and did not see the attack again.
	Stale int64
	// AllRevisions selects the revisions of the attack ID instead of the newest of each attack.
	AllRevisions bool
	Limit        int
	After        Cursor // TS is the attack's FirstNs; with AllRevisions the revision's TS, and Rev its number
}

// Attacks returns the newest revision of each attack, the latest begun first, or all revisions of one, the newest
// first.
func (s *Store) Attacks(ctx context.Context, q AttackQuery) ([]Attack, error) {
	var w where
	from, to := q.Range.bounds()
	w.equal("type", q.Type)
	w.equal("id", q.ID)
	if q.ActiveOnly {
		w.add("(state <> ? AND ts >= ?)", StateEnded, q.Stale)
	}
	order := "first_ns DESC, id DESC"
	if q.AllRevisions {
		order = "revision DESC, ts DESC"
		w.add("ts >= ? AND ts < ?", from, to)
		if q.After != (Cursor{}) {
			w.add("(revision, ts) < (?, ?)", int64(q.After.Rev), q.After.TS)
		}
	} else {
		w.add("first_ns < ?", to)
		w.add("(ts >= ? OR (state <> ? AND ts >= ?))", from, StateEnded, q.Stale)
		w.after("first_ns", "id", q.After)
		w.newest("attacks", "a")
	}
	var out []Attack
	err := s.selectRows(ctx, &out, "attacks", "SELECT "+strings.Join(columns[Attacks], ", ")+" FROM attacks a"+
		w.String()+" ORDER BY "+order+" LIMIT ?", append(w.args, q.Limit))
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

// AuditQuery filters the audit of changes; zero fields match everything.
type AuditQuery struct {
	Range  Range
	Actor  string
	Action string
	Target string
	Limit  int
	After  Cursor
}

// Audits returns the newest revision of each change, by its time, newest first.
func (s *Store) Audits(ctx context.Context, q AuditQuery) ([]Audit, error) {
	query, args := auditSQL(q)
	var out []Audit
	err := s.selectRows(ctx, &out, "audit", query, args)
	return out, err
}

func auditSQL(q AuditQuery) (string, []any) {
	var w where
	from, to := q.Range.bounds()
	w.add("ts >= ? AND ts < ?", from, to)
	w.after("ts", "id", q.After)
	w.equal("actor", q.Actor)
	w.equal("action", q.Action)
	w.equal("target", q.Target)
	w.newest(Audits, "a")
	return "SELECT " + strings.Join(columns[Audits], ", ") + " FROM audit a" + w.String() +
		" ORDER BY ts DESC, id DESC LIMIT ?", append(w.args, q.Limit)
}
