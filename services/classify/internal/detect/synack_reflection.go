package detect

import (
	"net/netip"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/header"
)

// synACKReflection: out_of_state · share of SYN-ACKs among the strangers' TCP samples ≥ SYNACK. Few reflectors that repeat
// their SYN-ACK for minutes are found by Repeats.
var synACKReflection = Flood{
	Type: SYNACKReflection, Stray: true,
	Measure: func(s *Sums, t *Thresholds) Measure {
		return stray(s, s.Stand.SYNACK, "stray_syn_ack", t.SYNACK)
	},
	Kind: isSYNACK,
}

func isSYNACK(f *header.Facts) bool {
	const mask = policy.SYN | policy.ACK | policy.RST | policy.FIN
	return f.Protocol == 6 && !f.Later && f.Flags&mask == policy.SYN|policy.ACK
}

const (
	repeatsNs    = int64(600e9)
	maxTuples    = 2_048
	usualRepeats = 6 // SYN-ACKs of one connection that nobody answers: the first and Linux's five
)

// Repeats counts SYN-ACKs that come again and again: Σ max(0, n − 6) over the connections of one destination within ten
// minutes ≥ SYNACKAgain. A victim of somebody else's flood, whose answers reach many addresses (backscatter), repeats each
// a few times only. One goroutine owns it; the zero value is empty.
type Repeats struct {
	tuples map[tuple]*repeated
	excess map[[16]byte]float64 // by destination
	since  int64
}

type tuple struct {
	src, dst     [16]byte
	sport, dport uint16
}

type repeated struct {
	n       int
	firstNs int64
}

// Add takes in a sample.
func (r *Repeats) Add(f *header.Facts, t *Thresholds) (Scan, bool) {
	if !isSYNACK(f) {
		return Scan{}, false
	}
	if r.tuples == nil || f.TimeNs-r.since > repeatsNs || f.TimeNs < r.since-repeatsNs || len(r.tuples) >= maxTuples {
		r.tuples, r.excess, r.since = make(map[tuple]*repeated), make(map[[16]byte]float64), f.TimeNs
	}
	k := tuple{f.Src, f.Dst, f.SrcPort, f.DstPort}
	x := r.tuples[k]
	if x == nil {
		x = &repeated{firstNs: f.TimeNs}
		r.tuples[k] = x
	}
	if x.n++; x.n <= usualRepeats {
		return Scan{}, false
	}
	r.excess[f.Dst]++
	n := r.excess[f.Dst]
	host := flow.Addr(f.Dst)
	return Scan{
		Type: SYNACKReflection, Target: netip.PrefixFrom(host, host.BitLen()), Host: host, Packets: uint64(x.n), Sources: 1, FirstNs: x.firstNs,
		Measure: Measure{Level: n / t.SYNACKAgain, Packets: uint64(x.n), Features: map[string]float64{"repeated_syn_ack": n},
			Limits: map[string]float64{"repeated_syn_ack": t.SYNACKAgain}},
	}, n >= t.SYNACKAgain
}
