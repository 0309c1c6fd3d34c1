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
