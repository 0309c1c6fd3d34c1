package enforce

import (
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
)

// TestRenews: any packet renews a rule; one that waits for retries needs SYNs that nobody sends again.
func TestRenews(t *testing.T) {
	begun := time.Unix(1_700_000_000, 0)
	for _, tt := range []struct {
		name             string
		retry            bool
		state            state
		packets, dropped uint64
		want             bool
	}{
		{"one packet", false, active, 1, 1, true},
		{"none", false, active, 0, 0, false},
		{"a flood", true, active, 600, 600, true},
		{"a flood and its share of clients", true, active, 1800, 1200, true},
		{"clients only", true, active, 2000, 1000, false},
		{"clients that wait", true, active, 2000, 1100, false},
		{"scanners", true, active, 100, 100, false},
		{"in shadow", true, shadow, 1, 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := &ruleState{rule: policy.Rule{SYNRetry: tt.retry}, state: tt.state, since: begun}
			st := xdp.RuleStat{Packets: tt.packets, Dropped: tt.dropped}
			now := begun.Add(10 * time.Second)
			earned := r.earned(&st)
			if got := r.renews(earned, now); got != tt.want {
				t.Errorf("renews %v with %d earned, want %v", got, earned, tt.want)
			}
			r.leaseHits, r.leaseAt = earned, now
			if r.renews(r.earned(&st), now.Add(10*time.Second)) {
				t.Error("renews without anything new")
			}
		})
	}
}
