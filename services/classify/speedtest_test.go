package classify

import (
	"net/netip"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/detect"
)

// TestUDPSpeedTest: 50,000 packets a second of one source are a flood at once, also when the server answers the first; not when
// a connection with the same source controls them.
func TestUDPSpeedTest(t *testing.T) {
	tester := netip.MustParseAddr("192.0.2.7")
	for _, tt := range []struct {
		name     string
		answered []uint8 // protocols in which payload went both ways before
		found    bool
	}{
		{"speed test", []uint8{6, 17}, false},
		{"answered", []uint8{17}, true},
		{"after a page", []uint8{6}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t)
			var b flowv1.FlowBatch
			b.Sensor, b.Epoch = "lab", 1
			for i, protocol := range tt.answered {
				id := uint64(i) //nolint:gosec // few
				flow.AppendOpen(&b, &flow.Open{ID: id, FirstNs: l.now, Key: flow.Key{Src: tester.As16(), Dst: victim.As16(), SrcPort: 40000, DstPort: 5201, Protocol: protocol}})
				flow.AppendSegment(&b, id, 0, 0, l.now, []byte("begin"))
				flow.AppendSegment(&b, id, 1, 0, l.now, []byte("begin"))
			}
			var res BatchResult
			if err := l.e.Batch(&b, &res); err != nil {
				t.Fatal(err)
			}
			found := false
			for range 15 {
				h := packet.Header{Src: tester, Dst: victim, TTL: 64}
				f := h.AppendUDP(nil, 40000, 5201, make([]byte, 1400))
				for i := range int64(5000) {
					l.frame(f, i*1e4, false)
				}
				for _, a := range l.close().Attacks {
					found = found || a.GetType() == detect.UDPFlood
				}
			}
			if found != tt.found {
				t.Errorf("found is %v, want %v", found, tt.found)
			}
		})
	}
}
