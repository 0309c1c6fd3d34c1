package detect

import "github.com/tidegate-mesh/tidegate/services/classify/internal/header"

// udpFlood: max(packets/UDPPackets, bits/UDPBits) of UDP, less the share that comes from peers the
// destination talks with, and only while reflector ports send less than half of it.
var udpFlood = Flood{
	Type:  UDPFlood,
	Steep: true,
	Measure: func(s *Sums, t *Thresholds) Measure {
		if s.UDP == 0 {
			return Measure{}
		}
		strange := 1 - ratio(s.Stand.UDPGood, s.Stand.UDP, 0)
		reflected := 0.0
		if s.UDP > 0 {
			reflected = float64(s.Reflected) / float64(s.UDP)
		}
		packets := float64(s.UDP) * strange
		share := 0.0
		if s.Stand.Length > 0 {
			share = s.Stand.UDPBytes / s.Stand.Length
		} else if s.Packets > 0 {
			share = float64(s.UDP) / float64(s.Packets)
		}
		bits := 8 * float64(s.Bytes) * share * strange
		m := Measure{
			Level: max(packets/t.UDPPackets, bits/t.UDPBits), Packets: uint64(packets), Bytes: uint64(bits / 8),
			Features: map[string]float64{"udp_packets": packets, "udp_bits": bits, "reflector_share": reflected,
				"sources": s.Sources, "unknown_peer_share": strange},
			Limits: map[string]float64{"udp_packets": t.UDPPackets, "udp_bits": t.UDPBits, "reflector_share": 0.5},
		}
		if reflected >= 0.5 {
			m.Level = 0
		}
		return m
	},
	Kind: func(f *header.Facts) bool { return f.Protocol == 17 },
}
