package enforce

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
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
		cfg := DefaultConfig()
		cfg.Ifaces, cfg.Node, cfg.Enforce = []string{"test0"}, "node-1", true
		s, err := New(cfg, Deps{Telemetry: telemetry.Discard("enforce")})
		if err != nil {
			t.Fatal(err)
		}
		gate := newFakeGate()
		s.ports[0].gate, s.synced = gate, true
		for range 2 { // the second time one is in force before
			s.apply([]delivery{{bus.RuleUpdate{ID: "r1", Revision: second.Revision - 1, Rule: &first}, time.Now()}, {second, time.Now()}})
			if there, _ := gate.Rules(); len(there) > 0 {
				t.Errorf("%s: the first version is in force: %v", name, there)
			}
			s.apply([]delivery{{bus.RuleUpdate{ID: "r1", Revision: second.Revision + 1, Rule: &first}, time.Now()}})
			if there, _ := gate.Rules(); len(there) != 1 {
				t.Fatalf("%s: a third version is not in force", name)
			}
			second.Revision = 5
		}
	}
}
