package detect

import (
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/packet"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

// TestAmplifications: each reflector's port leads to its type, and only to it, at the same boundary.
func TestAmplifications(t *testing.T) {
	th := DefaultThresholds()
	for port, want := range map[uint32]string{
		161: AmpSNMP, 500: AmpISAKMP, 4500: AmpISAKMP, 47808: AmpBACnet, 37810: AmpDHDiscover, 1900: AmpSSDP, 389: AmpCLDAP, 11211: AmpMemcached,
		19: AmpOther, 427: AmpOther, 5353: AmpOther, 3283: AmpOther,
	} {
		for _, tt := range []struct {
			packets, bytes uint64
			sources, level float64
		}{
			{299, 299 * 1000, 50, 299.0 / 300},
			{300, 300 * 1000, 50, 1},
			{300, 300 * 1000, 2, 0.99}, // one server that is slow to be forgotten
			{7000, 6_250_000, 2, 7000.0 / 300},
		} {
			s := FromTarget(&flowv1.Target{Counters: &flowv1.Counters{Packets: tt.packets, Bytes: tt.bytes, Udp: tt.packets},
				Reflectors: []*flowv1.Reflector{{Port: port, Packets: tt.packets, Bytes: tt.bytes}}})
			s.Sources = tt.sources
			for _, f := range Floods() {
				level := f.Measure(&s, &th).Level
				switch {
				case f.Type == want && level != tt.level:
					t.Errorf("port %d, %+v: %s has level %v", port, tt, f.Type, level)
				case f.Type != want && level != 0:
					t.Errorf("port %d, %+v: %s has level %v too", port, tt, f.Type, level)
				}
			}
		}
		h := packet.Header{Src: stranger, Dst: host}
		facts, _ := sampled(t, h.AppendUDP(nil, uint16(port), 4000, make([]byte, 64)), h.AppendUDP(nil, 4000, uint16(port), make([]byte, 64))) //nolint:gosec // a port
		for _, f := range amplifications() {
			if f.Kind(&facts[0]) != (f.Type == want) || f.Kind(&facts[1]) {
				t.Errorf("port %d: %s is made of answers %v, of questions %v", port, f.Type, f.Kind(&facts[0]), f.Kind(&facts[1]))
			}
		}
	}
}
