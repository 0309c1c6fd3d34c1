package detect

import "github.com/tidegate-mesh/tidegate/services/classify/internal/header"

// icmpFlood: icmp · share of echo requests and unreachables among the ICMP samples ≥ ICMP. Echo replies are
// left out: the destination asked for them.
var icmpFlood = Flood{
	Type: ICMPFlood,
	Measure: func(s *Sums, t *Thresholds) Measure {
		if s.ICMP == 0 {
			return Measure{}
		}
		share := ratio(s.Stand.ICMPFlood, s.Stand.ICMP, 1)
		n := float64(s.ICMP) * share
		bytes := uint64(0)
		if s.Packets > 0 {
			bytes = scaled(s.Bytes, n/float64(s.Packets))
		}
		return Measure{
			Level: n / t.ICMP, Packets: uint64(n), Bytes: bytes,
			Features: map[string]float64{"icmp": float64(s.ICMP), "request_share": share, "sources": s.Sources},
			Limits:   map[string]float64{"icmp": t.ICMP},
		}
	},
	Kind: isICMPFlood,
}

// isICMPFlood: ICMP echo request and destination unreachable (RFC 792), ICMPv6 echo request and destination
// unreachable (RFC 4443).
func isICMPFlood(f *header.Facts) bool {
	switch f.Protocol {
	case 1:
		return f.Later || f.ICMPType == 8 || f.ICMPType == 3
	case 58:
		return f.Later || f.ICMPType == 128 || f.ICMPType == 1
	}
	return false
}
