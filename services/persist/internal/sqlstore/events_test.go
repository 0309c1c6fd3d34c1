package sqlstore

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func testAttacks(t *testing.T, p place) {
	s := p.open(t, nil)
	ctx := context.Background()
	at := func(min int) int64 { return now.Add(-2*time.Hour).UnixNano() + int64(min)*60e9 }
	attack := func(id string, rev uint32, state string, first, ts int) Attack {
		return Attack{ID: id, Revision: rev, TS: at(ts), Type: "syn_flood", Target: "192.0.2.7", State: state, Sensor: "s", FirstNs: at(first),
			DetectedNs: at(first) + 1e8, UpdatedNs: at(ts), Packets: int64(rev) * 1000, PPS: 1234.5, BPS: 1e9, Sources: 7,
			TopSources: `["10.0.0.1", "10.0.0.2"]`, TraceID: "abc"}
	}
	var batch []Attack
	for rev := uint32(1); rev <= 5; rev++ {
		batch = append(batch, attack("x", rev, "updated", 0, int(rev)))
	}
	batch = append(batch, attack("x", 6, StateEnded, 0, 6), attack("y", 1, "started", 10, 10), attack("y", 2, "updated", 10, 11), attack("z", 1, "started", 20, 20))
	batch[len(batch)-1].Type = "udp_flood"
	if got := insert(t, s, Batch{Attacks: batch}).Count[Attacks]; got.Committed != 9 {
		t.Fatalf("%+v", got)
	}
	if got := insert(t, s, Batch{Attacks: batch}).Count[Attacks]; got.Duplicate != 9 {
		t.Fatalf("again: %+v", got)
	}
	for _, c := range []struct {
		name string
		q    AttackQuery
		want string
	}{
		{"all", AttackQuery{}, "z1 y2 x6"},
		{"active", AttackQuery{ActiveOnly: true}, "z1 y2"},
		{"active, of one nobody tells any more", AttackQuery{ActiveOnly: true, Stale: at(15)}, "z1"},
		{"over since nobody tells of it", AttackQuery{Range: Range{From: at(12)}, Stale: at(15)}, "z1"},
		{"type", AttackQuery{Type: "syn_flood"}, "y2 x6"},
		{"id", AttackQuery{ID: "x"}, "x6"},
		{"under way in the range", AttackQuery{Range: Range{From: at(5), To: at(15)}}, "y2 x6"},
		{"over before the range", AttackQuery{Range: Range{From: at(7)}}, "z1 y2"},
		{"begun after the range", AttackQuery{Range: Range{To: at(10)}}, "x6"},
		{"next page", AttackQuery{After: Cursor{TS: at(20), ID: "z"}}, "y2 x6"},
	} {
		c.q.Limit = 10
		rows, err := s.Attacks(ctx, c.q)
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
	// Revisions of one attack in pages, the newest first.
	var revisions []string
	for after := (Cursor{}); ; {
		rows, err := s.Attacks(ctx, AttackQuery{ID: "x", AllRevisions: true, Limit: 4, After: after})
		if err != nil {
			t.Fatal(err)
		}
		if len(rows) == 0 {
			break
		}
		for _, a := range rows {
			revisions = append(revisions, fmt.Sprint(a.ID, a.Revision))
			after = Cursor{TS: a.TS, ID: a.ID, Rev: a.Revision}
		}
	}
	if g := strings.Join(revisions, " "); g != "x6 x5 x4 x3 x2 x1" {
		t.Errorf("revisions of x: %q", g)
	}
	if rows, err := s.Attacks(ctx, AttackQuery{ID: "x", AllRevisions: true, Range: Range{From: at(2), To: at(4)}, Limit: 10}); err != nil || len(rows) != 2 || rows[0].Revision != 3 {
		t.Errorf("revisions made in a range: %+v, %v", rows, err)
	}
	rows, err := s.Attacks(ctx, AttackQuery{ID: "z", Limit: 1})
	if err != nil || len(rows) != 1 {
		t.Fatal(rows, err)
	}
	if d := cmp.Diff(batch[8], rows[0]); d != "" {
		t.Errorf("an attack changed on its way (-want +got):\n%s", d)
	}
}

func testEvents(t *testing.T, p place) {
	s := p.open(t, nil)
	ctx := context.Background()
	var b Batch
	for i := range int64(40) {
		ts := now.UnixNano() + i/2 // pairs share a time stamp
		b.Verdicts = append(b.Verdicts, Verdict{TS: ts, ID: fmt.Sprint("v", i), AttackID: fmt.Sprint("x", i%4), Type: "syn_flood", Target: "192.0.2.7",
			Sensor: "s", KeyKind: "signature", Explanation: "many", Rules: `[]`, Evidence: `{}`, TraceID: "t", Traceparent: "p"})
		b.Enforcements = append(b.Enforcements, Enforcement{TS: ts, ID: fmt.Sprint("e", i), Node: "n", RuleID: fmt.Sprint("r", i%2), AttackID: fmt.Sprint("x", i%4),
			State: "applied", Reason: "r", Detail: "d", ApplyNs: 5, FirstDropNs: 6, TimeToFirstDropNs: 7, Packets: 8, Bytes: 9, Shadow: i%2 == 0, Action: "drop", TraceID: "t"})
	}
	r := insert(t, s, b)
	if r.Count[Verdicts].Committed != 40 || r.Count[Enforcements].Committed != 40 {
		t.Fatalf("%+v", r)
	}
	if r := insert(t, s, b); r.Count[Verdicts].Duplicate != 40 || r.Count[Enforcements].Duplicate != 40 {
		t.Fatalf("%+v", r)
	}
	vs, err := s.Verdicts(ctx, VerdictQuery{AttackID: "x1", Limit: 100})
	if err != nil || len(vs) != 10 {
		t.Fatalf("verdicts of x1: %d, %v", len(vs), err)
	}
	if vs, err = s.Verdicts(ctx, VerdictQuery{ID: "v7", Limit: 100}); err != nil || len(vs) != 1 || cmp.Diff(b.Verdicts[7].Explanation, vs[0].Explanation) != "" || vs[0].Rules != "[]" {
		t.Fatalf("verdict v7: %+v, %v", vs, err)
	}
	es, err := s.Enforcements(ctx, EnforcementQuery{RuleID: "r1", AttackID: "x3", Limit: 100, Range: Range{From: now.UnixNano() + 10}})
	if err != nil || len(es) != 5 {
		t.Fatalf("enforcements: %d, %v", len(es), err)
	}
	seen := map[string]bool{}
	var after Cursor
	for {
		es, err := s.Enforcements(ctx, EnforcementQuery{Limit: 7, After: after})
		if err != nil {
			t.Fatal(err)
		}
		if len(es) == 0 {
			break
		}
		for _, e := range es {
			if seen[e.ID] {
				t.Fatalf("%s comes again", e.ID)
			}
			seen[e.ID] = true
			if want := b.Enforcements[slices.IndexFunc(b.Enforcements, func(x Enforcement) bool { return x.ID == e.ID })]; e != want {
				t.Fatalf("an enforcement changed: %+v, want %+v", e, want)
			}
		}
		after = Cursor{TS: es[len(es)-1].TS, ID: es[len(es)-1].ID}
	}
	if len(seen) != 40 {
		t.Fatalf("%d enforcements in pages", len(seen))
	}
}
