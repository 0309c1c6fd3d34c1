package detect

import (
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/header"
)

// ackFlood: out_of_state · share of plain ACKs among the strangers' TCP samples ≥ ACK. A packet of a known flow never is
// out of state, so downloads, whose ACKs are many, do not count. Those of a lone source that walks over ports are taken out:
// they are a port scan.
var ackFlood = Flood{
	Type: ACKFlood, Stray: true,
	Measure: func(s *Sums, t *Thresholds) Measure {
		return stray(s, s.Stand.ACK-min(s.Stand.ACK, s.Stand.ACKScan), "stray_ack", t.ACK)
	},
	Kind: isACK,
}

func isACK(f *header.Facts) bool {
	return f.Protocol == 6 && !f.Later && f.Flags&(policy.SYN|policy.ACK|policy.RST|policy.FIN) == policy.ACK
}

// stray measures TCP packets outside any flow, n of which the samples show to be of the kind.
func stray(s *Sums, n float64, name string, limit float64) Measure {
	if n == 0 || s.OutOfState == 0 {
		return Measure{}
	}
	share := ratio(n, s.Stand.Stray, 0)
	packets := float64(s.OutOfState) * share
	size := 60.0
	if s.Packets > 0 {
		size = float64(s.Bytes) / float64(s.Packets)
	}
	return Measure{
		Level: packets / limit, Packets: uint64(packets), Bytes: uint64(packets * size),
		Features: map[string]float64{name: packets, "out_of_state": float64(s.OutOfState), "share": share, "sources": s.Sources},
		Limits:   map[string]float64{name: limit},
	}
}
