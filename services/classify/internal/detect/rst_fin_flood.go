package detect

import (
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/header"
)

// rstFINFlood: out_of_state · share of RST and FIN among the strangers' TCP samples ≥ RSTFIN. Refusals of what the
// destination itself tried belong to a flow and do not count.
var rstFINFlood = Flood{
	Type: RSTFINFlood, Stray: true,
	Measure: func(s *Sums, t *Thresholds) Measure {
		return stray(s, s.Stand.RSTFIN, "stray_rst_fin", t.RSTFIN)
	},
	Kind: isRSTFIN,
}

func isRSTFIN(f *header.Facts) bool {
	return f.Protocol == 6 && !f.Later && f.Flags&policy.SYN == 0 && f.Flags&(policy.RST|policy.FIN) != 0 && !isInvalid(f)
}
