package detect

import (
	"math"
	"net/netip"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/packet"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/header"
)

var (
	stranger = netip.MustParseAddr("192.0.2.1")
	host     = netip.MustParseAddr("198.51.100.1")
)

// levels checks a formula at its boundary.
type levels map[string]struct {
	sums  Sums
	level float64
}

func (l levels) check(t *testing.T, f *Flood) {
	t.Helper()
	th := DefaultThresholds()
	for name, tt := range l {
		t.Run(name, func(t *testing.T) {
			if m := f.Measure(&tt.sums, &th); math.Abs(m.Level-tt.level) > 1e-9 {
				t.Errorf("level %v, want %v: %v", m.Level, tt.level, m.Features)
			}
		})
	}
}

// sampled reads frames as a window's samples.
func sampled(t *testing.T, frames ...[]byte) (facts []header.Facts, raw [][]byte) {
	t.Helper()
	for _, f := range frames {
		s := &flowv1.HeaderSample{Header: f[14:min(len(f), 14+128)], Length: uint32(len(f) - 14)} //nolint:gosec // a frame
		x, ok := header.Parse(s)
		if !ok {
			t.Fatal("a frame is not read")
		}
		facts, raw = append(facts, x), append(raw, s.GetHeader())
	}
	return facts, raw
}

// standing takes all sources to be the same.
func standing(s Standing) func(*header.Facts) Standing {
	return func(*header.Facts) Standing { return s }
}

// tcpFrame is one of a source's TCP packets to the host.
func tcpFrame(src netip.Addr, port uint16, flags uint8, payload string) []byte {
	h := packet.Header{Src: src, Dst: host}
	return h.AppendTCP(nil, &packet.TCP{SrcPort: 40000, DstPort: port, Flags: flags}, []byte(payload))
}

// kinds checks which packets a flood is made of.
func kinds(t *testing.T, f *Flood, of, not [][]byte) {
	t.Helper()
	yes, _ := sampled(t, of...)
	no, _ := sampled(t, not...)
	for i := range yes {
		if !f.Kind(&yes[i]) {
			t.Errorf("packet %d is not of the kind: %+v", i, yes[i])
		}
	}
	for i := range no {
		if f.Kind(&no[i]) {
			t.Errorf("packet %d is of the kind: %+v", i, no[i])
		}
	}
}
