package live

import (
	"testing"

	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

// TestSummaryOfAPart: the part with the totals tells of the heaviest hosts of the whole window, not of its own.
func TestSummaryOfAPart(t *testing.T) {
	host := func(last byte) []byte { return []byte{10: 0xff, 11: 0xff, 12: 10, 15: last} }
	w := &flowv1.Window{
		Sensor: "s", Total: &flowv1.Counters{Packets: 100},
		Targets: []*flowv1.Target{{Addr: host(1), PrefixLen: 128, Counters: &flowv1.Counters{Packets: 3}}},
	}
	if s := summary(w); s.Packets != 100 || len(s.TopDst) != 1 || s.TopDst[0].Addr != "10.0.0.1" {
		t.Errorf("a whole window: %+v", s)
	}
	w.Part, w.TopDestinations = true, []*flowv1.AddrCount{{Addr: host(1), Packets: 3}, {Addr: host(2), Packets: 90, Bytes: 9}}
	if s := summary(w); s.Packets != 100 || len(s.TopDst) != 2 || s.TopDst[0].Addr != "10.0.0.2" || s.TopDst[0].Packets != 90 || s.TopDst[0].Bytes != 9 {
		t.Errorf("a part: %+v", s)
	}
}
