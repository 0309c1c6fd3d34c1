package detect

import (
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/header"
)

// invalidFlags: impossible TCP flags, by the share of them that each window's samples have (8 of windows sampled in part, or those do
// not count) ≥ Invalid. Single ones count for port_scan.
var invalidFlags = Flood{
	Type: InvalidFlags,
	Measure: func(s *Sums, t *Thresholds) Measure {
		if s.Samples.Invalid == 0 {
			return Measure{}
		}
		n := s.of(func(c *Shares) float64 { return c.Invalid })
		share := ratio(n, float64(s.Packets), 0)
		return Measure{
			Level: n / t.Invalid, Packets: uint64(n), Bytes: scaled(s.Bytes, share),
			Features: map[string]float64{"invalid_flags": n, "share": share, "sources": s.Sources},
			Limits:   map[string]float64{"invalid_flags": t.Invalid},
		}
	},
	Kind: isInvalid,
}

// isInvalid tells flags that no stack sends (RFC 9293 3.10.7): none of SYN, RST and ACK, SYN with FIN or RST, FIN with RST.
func isInvalid(f *header.Facts) bool {
	if f.Protocol != 6 || f.Later {
		return false
	}
	v := f.Flags
	return v&(policy.SYN|policy.RST|policy.ACK) == 0 || v&policy.SYN != 0 && v&(policy.FIN|policy.RST) != 0 || v&policy.FIN != 0 && v&policy.RST != 0
}
