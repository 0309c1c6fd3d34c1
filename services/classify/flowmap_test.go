package classify

import (
	"math/rand/v2"
	"testing"
)

// TestFlowMap compares with a map of Go's, through growth and removals in any order.
func TestFlowMap(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	m, want := newFlowMap(), map[flowID]int64{}
	var ids []flowID
	for round := range 60_000 {
		// Ids as ingest makes them: queue, generation, place in its table.
		id := flowID{1 + random.Uint32N(2), uint64(random.Uint32N(2))<<56 | uint64(random.Uint32N(3))<<24 | uint64(random.Uint32N(2000))}
		f := m.find(id)
		last, ok := want[id]
		if (f != nil) != ok || ok && (f.lastNs != last || f.id != id) {
			t.Fatalf("round %d: %+v is %+v, want %d, %v", round, id, f, last, ok)
		}
		switch {
		case !ok:
			f = m.add(id)
			if f.lastNs != 0 || f.label != nil {
				t.Fatalf("round %d: a new flow has what another left: %+v", round, f)
			}
			f.lastNs = int64(round)
			want[id], ids = int64(round), append(ids, id)
		case random.Uint32N(3) == 0:
			m.remove(id)
			delete(want, id)
		}
		if m.len() != len(want) {
			t.Fatalf("round %d: %d flows, want %d", round, m.len(), len(want))
		}
	}
	n := 0
	m.each(func(f *flowState) {
		if last, ok := want[f.id]; !ok || last != f.lastNs {
			t.Errorf("%+v is there", f.id)
		}
		n++
	})
	if n != len(want) {
		t.Errorf("%d flows, want %d", n, len(want))
	}
	for _, id := range ids {
		m.remove(id)
	}
	if m.len() != 0 || m.idlest() != nil {
		t.Errorf("%d flows are left", m.len())
	}
	for _, s := range m.slots {
		if s != 0 {
			t.Fatal("a slot is left")
		}
	}
}

// TestIdlest: what makes room is the idlest of a few, and none of those that make room is looked at for ever.
func TestIdlest(t *testing.T) {
	m := newFlowMap()
	for i := range uint64(100) {
		m.add(flowID{1, i}).lastNs = int64(100 - i) //nolint:gosec // below 100
	}
	gone := map[uint64]bool{}
	for range 12 { // eight at a time
		f := m.idlest()
		if f == nil || gone[f.id.id] {
			t.Fatalf("%+v after %d", f, len(gone))
		}
		gone[f.id.id] = true
		m.remove(f.id)
	}
	newest := 0
	for id := range gone {
		if id < 50 {
			newest++
		}
	}
	if newest > 6 {
		t.Errorf("%d of 12 were of the newer half", newest)
	}
}
