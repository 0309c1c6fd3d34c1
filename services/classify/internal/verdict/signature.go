package verdict

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/detect"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/header"
)

// narrowing is one more condition on a match.
type narrowing struct {
	name  string
	apply func(m *policy.Match)
}

// bySignature finds the conditions that separate the attack from the baseline. Ports and addresses that all
// samples share always count; flags, length and TTL only where they keep good packets out, each as wide as
// it may be without reaching good ones.
func bySignature(in *Input) Choice {
	m := base(in)
	need := minAttackShare - in.Contamination
	if p, share := common(in.Attack, func(f *header.Facts) (uint16, bool) { return f.DstPort, hasPorts(f) }); share >= need && len(in.Attack) >= 4 {
		m.DstPort, m.HasDstPort = p, true
	}
	if p, share := common(in.Attack, func(f *header.Facts) (uint16, bool) { return f.SrcPort, hasPorts(f) }); share >= need &&
		len(in.Attack) >= 8 && !m.HasSrcPort {
		m.SrcPort, m.HasSrcPort = p, true
	}
	if n := in.Attack[0].Length; len(in.Good) == 0 && len(in.Attack) >= 32 && constantLength(in.Attack) {
		// Nothing is known of good packets, so the rule spares those of other lengths.
		m.LengthMin, m.LengthMax = n, n
	}
	attack, good := shares(in, &m)
	var used []string
	for good > maxGoodShare {
		best, bestGood, bestAttack := narrowing{}, good, attack
		for _, n := range narrowings(in, &m) {
			t := m
			n.apply(&t)
			if a, g := shares(in, &t); a >= need && g < bestGood {
				best, bestGood, bestAttack = n, g, a
			}
		}
		if best.apply == nil {
			break
		}
		best.apply(&m)
		used = append(used, best.name)
		good, attack = bestGood, bestAttack
	}
	c := Choice{Key: KeySignature, AttackShare: math.Min(1, attack/(1-math.Min(in.Contamination, 0.5))), GoodShare: good}
	r := Rule{Action: policy.Drop, Match: m, Priority: PriorityDrop, Comment: in.Type + " signature"}
	if in.Type == detect.SYNFlood && (len(in.Good) == 0 || good > maxGoodShare) {
		// Nothing tells good clients' SYNs apart but that they come again.
		r.Action, r.RatePPS, r.SYNRetry = policy.RateLimit, synsPerSource, true
	}
	c.Rules = append(c.Rules, r)
	if in.Fragments >= 0.02 && !in.GoodFragments && (in.Type == detect.AmpDNS || in.Type == detect.AmpNTP || in.Type == detect.UDPFlood) {
		// Later fragments of large answers have no ports for the signature to see.
		f := policy.Match{Dst: m.Dst, HasProtocol: true, Protocol: m.Protocol, Fragment: policy.FragmentsOnly}
		c.Rules = append(c.Rules, Rule{Action: policy.Drop, Match: f, Priority: PriorityDrop, Comment: in.Type + " fragments"})
	}
	allows := exceptions(in, &m)
	c.Rules = append(c.Rules, allows...)
	c.GoodHit = left(in, &m, allows)
	c.Explanation = explain(in, &m, used, &c, len(allows))
	return c
}

// left is the share of good samples that a match hits and no exception lets through.
func left(in *Input, m *policy.Match, allows []Rule) float64 {
	hit := 0
	for i := range in.Good {
		f := &in.Good[i]
		if f.Matched(m) && !slices.ContainsFunc(allows, func(r Rule) bool { return f.Matched(&r.Match) }) {
			hit++
		}
	}
	return float64(hit) / float64(max(1, len(in.Good)))
}

func explain(in *Input, m *policy.Match, used []string, c *Choice, allows int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "About %.0f sources, too many to list, send this to %s, so packets that match \"%s\" are dropped", in.Sources, TargetName(in.Target), m)
	if c.Rules[0].SYNRetry {
		b.WriteString(" until they come again, as a client's do and a made-up source's do not")
	}
	switch {
	case len(in.Good) == 0:
		b.WriteString("; no good traffic of this kind was seen before to compare with")
	case c.GoodShare > maxGoodShare:
		fmt.Fprintf(&b, "; nothing in the headers tells good ones apart (%.0f%% of them match)", 100*c.GoodShare)
	case len(used) > 0:
		fmt.Fprintf(&b, "; its %s keeps good ones out", strings.Join(used, " and "))
	}
	b.WriteString(".")
	if allows > 0 {
		fmt.Fprintf(&b, " %d exception(s) let known good peers through.", allows)
	}
	return b.String()
}

func hasPorts(f *header.Facts) bool {
	return !f.Later && (f.Protocol == 6 || f.Protocol == 17 || f.Protocol == 132)
}

func constantLength(facts []header.Facts) bool {
	for i := range facts {
		if facts[i].Length != facts[0].Length {
			return false
		}
	}
	return true
}

// common is the most frequent value and its share of all samples.
func common(facts []header.Facts, get func(f *header.Facts) (uint16, bool)) (uint16, float64) {
	counts := make(map[uint16]int)
	var top uint16
	for i := range facts {
		if v, ok := get(&facts[i]); ok {
			counts[v]++
			if counts[v] > counts[top] {
				top = v
			}
		}
	}
	return top, float64(counts[top]) / float64(len(facts))
}

// shares of the attack and of the good samples that m hits.
func shares(in *Input, m *policy.Match) (attack, good float64) {
	return share(in.Attack, m), share(in.Good, m)
}

func share(facts []header.Facts, m *policy.Match) float64 {
	if len(facts) == 0 {
		return 0
	}
	n := 0
	for i := range facts {
		if facts[i].Matched(m) {
			n++
		}
	}
	return float64(n) / float64(len(facts))
}

// narrowings lists the conditions that could still be added to m.
func narrowings(in *Input, m *policy.Match) []narrowing {
	var out []narrowing
	if in.Type == detect.SYNFlood && m.TCPFlagsMask != 0xFF {
		if v, _ := common(in.Attack, func(f *header.Facts) (uint16, bool) { return uint16(f.Flags), true }); v <= 0xFF {
			flags := uint8(v) //nolint:gosec // came from a uint8
			out = append(out, narrowing{"TCP flags", func(m *policy.Match) { m.TCPFlags, m.TCPFlagsMask = flags, 0xFF }})
		}
	}
	if m.Fragment == policy.AnyFragment {
		out = append(out, narrowing{"fragmentation", func(m *policy.Match) { m.Fragment = policy.FragmentsOnly }})
	}
	trims := []float64{0}
	if in.Contamination > 0 {
		trims = append(trims, in.Contamination/2, in.Contamination)
	}
	for _, trim := range trims {
		if m.LengthMin == 0 && m.LengthMax == 0 {
			if lo, hi, ok := interval(in, 65535, trim, func(f *header.Facts) int { return int(f.Length) }); ok {
				out = append(out, narrowing{"packet length", func(m *policy.Match) {
					m.LengthMin = uint16(lo) //nolint:gosec // 0 … 65,535
					if hi < 65535 {
						m.LengthMax = uint16(hi) //nolint:gosec // 0 … 65,535
					}
				}})
			}
		}
		if m.TTLMin == 0 && m.TTLMax == 0 {
			if lo, hi, ok := interval(in, 255, trim, func(f *header.Facts) int { return int(f.TTL) }); ok {
				out = append(out, narrowing{"time to live", func(m *policy.Match) {
					m.TTLMin = uint8(lo) //nolint:gosec // 0 … 255
					if hi < 255 {
						m.TTLMax = uint8(hi) //nolint:gosec // 0 … 255
					}
				}})
			}
		}
	}
	return out
}

// interval is the range of a field in the attack, less trim of the samples at either end, widened on both
// sides half the way to the nearest good value, and without bound where no good value lies. A spread attack has
// values that no sample shows, so a bound must leave a tenth of its spread. ok is false when it cannot, or when
// the interval says nothing.
func interval(in *Input, limit int, trim float64, get func(f *header.Facts) int) (lo, hi int, ok bool) {
	hist := make(map[int]int)
	for i := range in.Attack {
		hist[get(&in.Attack[i])]++
	}
	cut := int(trim * float64(len(in.Attack)))
	lo, hi = edge(hist, limit, cut, false), edge(hist, limit, cut, true)
	room := (hi - lo + 9) / 10
	below, above := -1, limit+1
	for i := range in.Good {
		switch v := get(&in.Good[i]); {
		case v < lo:
			below = max(below, v)
		case v > hi:
			above = min(above, v)
		}
	}
	down, up := (lo-below-1)/2, (above-hi-1)/2
	switch {
	case below < 0:
		lo = 0
	case down < room:
		return 0, 0, false
	default:
		lo -= down
	}
	switch {
	case above > limit:
		hi = limit
	case up < room:
		return 0, 0, false
	default:
		hi += up
	}
	return lo, hi, lo > 0 || hi < limit
}

// edge is the lowest or highest value after cut samples were left out at that end.
func edge(hist map[int]int, limit, cut int, top bool) int {
	for i := 0; i <= limit; i++ {
		v := i
		if top {
			v = limit - i
		}
		if cut -= hist[v]; cut < 0 {
			return v
		}
	}
	return 0
}
