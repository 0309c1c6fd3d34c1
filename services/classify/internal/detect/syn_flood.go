package detect

import (
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/header"
)

// synFlood: syn − 2·handshakes ≥ SYN. A completed handshake pays for its own SYN and for one retransmission,
// so a busy server stays below zero while SYNs that lead nowhere add up. SYNs of a lone source that walks
// over ports are taken out: they are a port scan; so are those of allowed sources. Of windows that have no SYN among their samples the same share is. Beside a
// fast scan a sample of a client's SYN stands for hundreds: those count only when a second has several of them.
// Below five times the threshold it has to be more than one window's burst of many sources.
var synFlood = Flood{
	Type:  SYNFlood,
	Burst: 5,
	Measure: func(s *Sums, t *Thresholds) Measure {
		if s.SYN == 0 {
			return Measure{}
		}
		scan := float64(s.SYNScan)
		if s.Samples.SYNBeside < evidence {
			scan += float64(s.SYNBeside)
		}
		if seen := s.SYN - s.SYNUnseen; seen > 0 {
			scan *= float64(s.SYN) / float64(seen)
		}
		excess := max(0, float64(s.SYN)-scan-2*float64(s.Handshakes))
		size := 60.0
		if s.Packets > 0 {
			size = min(size, float64(s.Bytes)/float64(s.Packets))
		}
		m := Measure{
			Level: excess / t.SYN, Packets: uint64(excess), Bytes: uint64(excess * size),
			Features: map[string]float64{"syn": float64(s.SYN), "handshakes": float64(s.Handshakes), "excess_syn": excess,
				"sources": s.Sources, "scan_share": scan / float64(s.SYN)},
			Limits: map[string]float64{"excess_syn": t.SYN},
		}
		if s.SYNUnseen == s.SYN && float64(s.Packets) > s.Samples.All {
			m.Level = min(m.Level, 0.99) // enough to go on, not to start: nobody knows whose they are
		}
		return m
	},
	Kind: isSYN,
}

func isSYN(f *header.Facts) bool {
	return f.Protocol == 6 && !f.Later && f.Flags&(policy.SYN|policy.ACK|policy.RST|policy.FIN) == policy.SYN
}
