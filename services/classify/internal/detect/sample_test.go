package detect

import (
	"math"
	"net/netip"
	"slices"
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
			tt.sums.weigh()
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

// TestLoneSamples: in a window of which only some packets are sampled, one query or request has no share of those that were not,
// however many windows have one; of a window that is sampled whole every one counts.
func TestLoneSamples(t *testing.T) {
	h := packet.Header{Src: stranger, Dst: host}
	frames := map[string][]byte{
		"dns":  h.AppendUDP(nil, 4000, 53, query("www.example.net", 1)),
		"http": tcpFrame(stranger, 80, packet.FlagACK|packet.FlagPSH, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
	}
	th := DefaultThresholds()
	for _, tt := range []struct {
		packets   uint64 // of a window
		samples   int    // of it, of the kind
		dns, http bool   // found
	}{{3000, 1, false, false}, {20, 20, false, true}, {3000, 40, true, true}} {
		for flood, want := range map[*Flood]bool{&dnsFlood: tt.dns, &httpFlood: tt.http} {
			frame := frames["dns"]
			if flood == &httpFlood {
				frame = frames["http"]
			}
			list := slices.Repeat([][]byte{frame}, tt.samples)
			for len(list) < min(64, int(tt.packets)) { //nolint:gosec // few
				list = append(list, tcpFrame(stranger, 443, packet.FlagACK, "x"))
			}
			facts, _ := sampled(t, list...)
			var s Series
			for i := range int64(Slots) {
				sums := Sums{Packets: tt.packets}
				sums.TakeSamples(facts, standing(Stranger), 0)
				s.Add(i*int64(Slot), &sums, nil)
			}
			second := s.Sum(Slots)
			if m := flood.Measure(&second, &th); m.Level >= 1 != want {
				t.Errorf("%s: %d of %d packets: level %v, %v", flood.Type, tt.samples, tt.packets, m.Level, m.Features)
			}
		}
	}
}

// TestFirstWindow: calm windows are sampled whole, so that a second has many samples of them beside those of a flood's first
// window; they say nothing of its packets.
func TestFirstWindow(t *testing.T) {
	h := packet.Header{Src: stranger, Dst: host}
	calm, _ := sampled(t, slices.Concat(
		slices.Repeat([][]byte{h.AppendUDP(nil, 4000, 53, query("www.example.net", 1))}, 8),
		slices.Repeat([][]byte{tcpFrame(stranger, 80, packet.FlagACK|packet.FlagPSH, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")}, 4),
		slices.Repeat([][]byte{tcpFrame(stranger, 443, packet.FlagSYN|packet.FlagFIN, "")}, 1),
		slices.Repeat([][]byte{h.AppendUDP(nil, 4000, 27015, []byte("x"))}, 20))...)
	burst, _ := sampled(t, slices.Repeat([][]byte{h.AppendUDP(nil, 4001, 443, []byte("x"))}, 64)...)
	of := func(f *header.Facts) Standing {
		if f.SrcPort == 4001 {
			return Peer
		}
		return Stranger
	}
	th := DefaultThresholds()
	var s Series
	for slot := range int64(Slots) {
		facts, sums := calm, Sums{Packets: uint64(len(calm)), UDP: 28, Bytes: 2000}
		if slot == Slots-1 {
			facts, sums = burst, Sums{Packets: 6000, UDP: 6000, Bytes: 180_000}
		}
		sums.TakeSamples(facts, of, 0)
		s.Add(slot*int64(Slot), &sums, nil)
	}
	second := s.Sum(Slots)
	for _, f := range Floods() {
		if m := f.Measure(&second, &th); m.Level >= 1 {
			t.Errorf("%s: level %v, %v", f.Type, m.Level, m.Features)
		}
	}
	if m := dnsFlood.Measure(&second, &th); m.Packets != 72 {
		t.Errorf("%d queries, want 72", m.Packets)
	}
}
