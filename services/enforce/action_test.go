package enforce

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
)

// TestActions: what enforce expects of a target holds for every one of them.
func TestActions(t *testing.T) {
	for _, tt := range []struct {
		name   string
		counts bool
		open   func(t *testing.T) Action
	}{
		{"XDP", true, func(t *testing.T) Action {
			l := newLink(t, 0)
			g, err := openXDP(l.bpffs, telemetry.Discard("enforce"))(l.iface)
			if err != nil {
				t.Fatal(err)
			}
			return g
		}},
		{"upstream", false, func(*testing.T) Action { return newAnnouncer("/bin/cat", 10, false, telemetry.Discard("enforce")) }},
		{"fake", true, func(*testing.T) Action { return newFakeGate() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := tt.open(t)
			defer func() {
				if err := a.Close(); err != nil {
					t.Error(err)
				}
			}()
			holds := func(want ...xdp.Rule) {
				t.Helper()
				there, err := a.Rules()
				if err != nil || len(there) != len(want) {
					t.Fatalf("it holds %v, %v", there, err)
				}
				for _, w := range want {
					found := false
					for _, r := range there {
						found = found || sameEntry(r, w)
					}
					if !found {
						t.Errorf("it holds %+v and not %+v", there, w)
					}
				}
			}
			one, two := dropTo(1, "203.0.113.7/32", 17), dropTo(2, "203.0.113.8/32", 17)
			allow := xdp.Rule{ID: 3, Action: policy.Allow, Match: policy.Match{Src: netip.MustParsePrefix("192.0.2.1/32")}}
			mustPut(t, a, one, two, allow)
			mustPut(t, a, one)
			holds(one, two, allow)
			two.Match.Protocol = 6 // another version of the same
			mustPut(t, a, two)
			holds(one, two, allow)

			bad := dropTo(4, "203.0.113.9/32", 17)
			bad.Match.HasProtocol, bad.Match.Protocol, bad.Match.HasDstPort, bad.Match.Host = false, 0, tt.counts, "" // ports without a protocol
			if !tt.counts {
				bad.Match.TTLMax = 7
			}
			good := dropTo(5, "203.0.113.10/32", 17)
			if tt.name != "fake" {
				failed := make(map[uint64]error)
				if whole := ruleErrors(a.PutRules([]xdp.Rule{bad, good}), failed); whole != nil || failed[4] == nil || len(failed) != 1 {
					t.Errorf("one that it cannot take: %v, %v", whole, failed)
				}
				holds(one, two, allow, good)
			}
			if _, err := a.RuleStats([]uint64{1, 99}); tt.counts != (err == nil) || !tt.counts && !errors.Is(err, ErrNoCounters) {
				t.Errorf("counters: %v", err)
			}
			if err := a.DeleteRules([]uint64{1, 99}); err != nil {
				t.Error(err)
			}
			if failed, err := align(a, map[uint64]xdp.Rule{2: two, 6: dropTo(6, "203.0.113.11/32", 6)}); err != nil || len(failed) > 0 {
				t.Errorf("align: %v, %v", failed, err)
			}
			holds(two, dropTo(6, "203.0.113.11/32", 6))
		})
	}
}
