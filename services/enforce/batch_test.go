package enforce

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
)

// TestTwoVersionsInABatch: of two versions that come together only the second counts, whatever becomes of it.
func TestTwoVersionsInABatch(t *testing.T) {
	first := drop("r1", time.Minute)
	broad, away := first, first
	broad.Match.Src = netip.MustParsePrefix("0.0.0.0/0")
	away.Scope = policy.Scope{Node: "another"}
	for name, second := range map[string]bus.RuleUpdate{
		"refused":    {ID: "r1", Revision: 2, Rule: &broad},
		"unreadable": {ID: "r1", Revision: 2, Err: errors.New("no JSON")},
		"elsewhere":  {ID: "r1", Revision: 2, Rule: &away},
		"deleted":    {ID: "r1", Revision: 2},
	} {
		gate := newFakeGate()
		s := idle(t, nil, gate)
		for range 2 { // the second time one is in force before
			s.apply([]delivery{watched(bus.RuleUpdate{ID: "r1", Revision: second.Revision - 1, Rule: &first}), watched(second)})
			if there, _ := gate.Rules(); len(there) > 0 {
				t.Errorf("%s: the first version is in force: %v", name, there)
			}
			s.apply([]delivery{watched(bus.RuleUpdate{ID: "r1", Revision: second.Revision + 1, Rule: &first})})
			if there, _ := gate.Rules(); len(there) != 1 {
				t.Fatalf("%s: a third version is not in force", name)
			}
			second.Revision = 5
		}
	}
}

// TestOwnWrite: AddRule hands its version over beside the watch. It is in force once, and it does not bring back what
// the watch has ended already.
func TestOwnWrite(t *testing.T) {
	gate := newFakeGate()
	s := idle(t, nil, gate)
	s.synced = false
	rule := drop("r1", time.Minute)
	own := func(revision uint64) delivery {
		return delivery{bus.RuleUpdate{ID: "r1", Revision: revision, Rule: &rule}, time.Now(), true}
	}
	check := func(when string, entries, written int) {
		t.Helper()
		if there := mustRules(t, gate); len(there) != entries || gate.written() != written {
			t.Errorf("%s: %d entries, %d written, want %d and %d", when, len(there), gate.written(), entries, written)
		}
	}
	s.apply([]delivery{own(3)})
	check("before the watch has begun", 0, 0)
	s.apply([]delivery{watched(bus.RuleUpdate{Restarted: true})})
	s.apply([]delivery{own(4)})
	check("in the repetition", 0, 0)
	s.apply([]delivery{watched(bus.RuleUpdate{ID: "r0", Revision: 4}), watched(bus.RuleUpdate{Synced: true})})
	s.apply([]delivery{own(5)})
	check("ahead of the watch", 1, 1)
	s.apply([]delivery{watched(bus.RuleUpdate{ID: "r1", Revision: 5, Rule: &rule})})
	check("its echo", 1, 1)
	s.apply([]delivery{watched(bus.RuleUpdate{ID: "r1", Revision: 7})})
	check("deleted", 0, 1)
	s.apply([]delivery{own(6)})
	check("a version from before the deletion", 0, 1)
	s.apply([]delivery{watched(bus.RuleUpdate{Restarted: true}), watched(bus.RuleUpdate{ID: "r0", Revision: 1}), watched(bus.RuleUpdate{Synced: true})})
	s.apply([]delivery{own(2)})
	check("in a bucket made again", 1, 2)
	s.apply([]delivery{watched(bus.RuleUpdate{ID: "r1", Revision: 1})})
	check("a deletion from before it", 1, 2)
	again := []delivery{watched(bus.RuleUpdate{Restarted: true}), watched(bus.RuleUpdate{ID: "r0", Revision: 1}), watched(bus.RuleUpdate{Synced: true})}
	s.apply(again)
	check("a repetition from before it", 1, 2)
	s.apply(again)
	check("a second one without it", 0, 2)
}

// brokenGate takes nothing at all.
type brokenGate struct{ *fakeGate }

func (brokenGate) PutRules([]xdp.Rule) error { return errors.New("input/output error") }

// TestOneInterfaceFails: a gate that takes nothing costs only the rules that were to be written to it.
func TestOneInterfaceFails(t *testing.T) {
	whole := newFakeGate()
	s := idle(t, nil, brokenGate{newFakeGate()}, whole)
	both, other := drop("both", time.Minute), drop("other", time.Minute)
	other.Scope = policy.Scope{Iface: "test1"}
	s.apply([]delivery{watched(bus.RuleUpdate{ID: "both", Revision: 1, Rule: &both}), watched(bus.RuleUpdate{ID: "other", Revision: 2, Rule: &other})})
	if st := s.rules["both"].state; st != refused {
		t.Errorf("a rule that could not be written is %s", st)
	}
	if _, there := whole.get(policy.NumericID("other")); !there || s.rules["other"].state != active {
		t.Errorf("a rule of the other interface alone is %s: %+v", s.rules["other"].state, s.rules["other"].refusal)
	}
}
