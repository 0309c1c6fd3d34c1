package detect

import (
	"testing"

	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

// TestFlowFlood: a steady second of new flows is an attack, a burst is not, and a settled peer may begin ten times as many.
func TestFlowFlood(t *testing.T) {
	th := DefaultThresholds()
	for name, tt := range map[string]struct {
		perSlot uint64
		slots   int
		settled bool
		proto   uint8
		want    bool
	}{
		"below":             {99, 10, false, 6, false},
		"at":                {100, 10, false, 6, true},
		"burst":             {1000, 3, false, 6, false},
		"settled peer":      {999, 10, true, 6, false},
		"settled, too many": {1000, 10, true, 6, true},
		"UDP":               {1000, 10, false, 17, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := NewScanner(stranger, 1e18)
			at := int64(1e18)
			for range tt.slots {
				p := trial{src: stranger, dst: host, port: 443, proto: tt.proto, ttl: 64}
				w := p.source()
				w.Attempts, w.TopHostAttempts = tt.perSlot, tt.perSlot
				w.DstPorts = []*flowv1.PortCount{{Port: 443, Packets: tt.perSlot}}
				s.Add(w, at, at+int64(Slot))
				at += int64(Slot)
			}
			scan, ok := s.FlowFlood(&th, tt.settled)
			if ok != tt.want {
				t.Errorf("found %v, want %v: %+v", ok, tt.want, scan.Measure)
			}
			if ok && (scan.Type != FlowFlood || scan.Host != host || scan.Measure.Level < 1) {
				t.Errorf("found %+v", scan)
			}
		})
	}
}
