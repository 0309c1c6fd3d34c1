package verdict

import (
	"fmt"
	"net/netip"
	"sort"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/detect"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/header"
)

// Keys of verdicts.
const (
	KeySources   = "sources"
	KeySignature = "signature"
	KeyNone      = "none" // an alert: nothing is blocked
)

// Priorities of the rules that verdicts make, among equally specific ones.
const (
	PriorityDrop  = 100
	PriorityAllow = 200
)

// Bounds of one verdict.
const (
	MaxSources = 16
	MaxAllows  = 64
)

// synsPerSource is how many connections a second a client that showed itself may begin while it is not known whether the
// SYNs are an attack's: many clients may stand behind one address.
const synsPerSource = 20

// What a signature must reach on the samples.
const (
	minAttackShare = 0.995
	maxGoodShare   = 0.02
)

// Input is what a choice is made from. Attack holds samples of the flood's kind; a few good ones among them
// are expected: Contamination, 0 … 1. Good are baseline samples of the same kind.
type Input struct {
	Type          string       // of the flood
	Target        netip.Prefix // a host, or a network whose hosts are flooded together
	FirstNs       int64        // when the attack began
	Attack, Good  []header.Facts
	Fragments     float64 // share of later fragments among the destination's samples during the attack
	GoodFragments bool    // the baseline has fragments
	Contamination float64
	Sources       float64 // estimate of distinct sources
	Peers         *Peers
}

// Rule is what a verdict says to do; ids, leases and the like are the engine's.
type Rule struct {
	Action   policy.Action
	Match    policy.Match
	RatePPS  uint64 // of RateLimit
	SYNRetry bool   // see policy.Rule
	Priority int32
	Comment  string
	AttackID string // of the attack whose rule this is already, if not of the verdict's own
}

// Choice is the outcome.
type Choice struct {
	Key         string
	Rules       []Rule
	AttackShare float64
	GoodShare   float64
	GoodHit     float64 // of GoodShare what the exceptions leave
	Explanation string
}

// Choose decides what to block. ok is false when the samples do not suffice.
func Choose(in *Input) (Choice, bool) {
	in.Attack = strangers(in)
	if len(in.Attack) == 0 {
		return Choice{}, false
	}
	if c, ok := bySources(in); ok {
		return c, true
	}
	if in.Type == detect.HTTPFlood {
		// A signature of requests would hit every visitor.
		return Choice{Key: KeyNone, Explanation: fmt.Sprintf("About %.0f sources send requests to %s, too many to list, and nothing in the headers tells them from visitors; "+
			"nothing is blocked.", in.Sources, TargetName(in.Target))}, true
	}
	return bySignature(in), true
}

// strangers leaves out samples of good peers, unless one of them alone makes a fifth of all: then the peer
// itself takes part.
func strangers(in *Input) []header.Facts {
	if in.Peers == nil {
		return in.Attack
	}
	counts := make(map[[16]byte]int)
	for i := range in.Attack {
		counts[in.Attack[i].Src]++
	}
	out := make([]header.Facts, 0, len(in.Attack))
	for i := range in.Attack {
		f := &in.Attack[i]
		if counts[f.Src]*5 < len(in.Attack) && in.Peers.Trusted(f.Dst, f.Src, f.Protocol, f.SrcPort, in.FirstNs) {
			continue
		}
		out = append(out, *f)
	}
	return out
}

// base is the match that every packet of the flood's kind satisfies.
func base(in *Input) policy.Match {
	m := policy.Match{Dst: in.Target, HasProtocol: true, Protocol: in.Attack[0].Protocol}
	switch in.Type {
	case detect.SYNFlood:
		m.TCPFlags, m.TCPFlagsMask = policy.SYN, policy.SYN|policy.ACK|policy.FIN|policy.RST
	case detect.ACKFlood:
		m.TCPFlags, m.TCPFlagsMask = policy.ACK, policy.SYN|policy.ACK|policy.FIN|policy.RST
	case detect.SYNACKReflection:
		m.TCPFlags, m.TCPFlagsMask = policy.SYN|policy.ACK, policy.SYN|policy.ACK|policy.FIN|policy.RST
	case detect.RSTFINFlood:
		m.TCPFlags, m.TCPFlagsMask = policy.RST, policy.RST|policy.SYN
		if v, _ := common(in.Attack, func(f *header.Facts) (uint16, bool) { return uint16(f.Flags & policy.RST), true }); v == 0 {
			m.TCPFlags, m.TCPFlagsMask = policy.FIN, policy.FIN|policy.RST|policy.SYN
		}
	case detect.InvalidFlags:
		v, _ := common(in.Attack, func(f *header.Facts) (uint16, bool) { return uint16(f.Flags), true })
		m.TCPFlags, m.TCPFlagsMask = uint8(v), 0xFF //nolint:gosec // came from a uint8
	case detect.FragmentFlood:
		m.Fragment = policy.FragmentsOnly
	case detect.AmpDNS:
		m.SrcPort, m.HasSrcPort = 53, true
	case detect.AmpNTP:
		m.SrcPort, m.HasSrcPort = 123, true
	}
	return m
}

// bySources blocks the sources when at most MaxSources of them make all of the attack, as far as the samples
// tell: three samples a source at least, or a handful of sources that the estimate confirms.
func bySources(in *Input) (Choice, bool) {
	counts := make(map[[16]byte]int)
	for i := range in.Attack {
		counts[in.Attack[i].Src]++
	}
	type source struct {
		addr [16]byte
		n    int
	}
	list := make([]source, 0, len(counts))
	for a, n := range counts {
		list = append(list, source{a, n})
	}
	sort.Slice(list, func(i, j int) bool {
		if list[i].n != list[j].n {
			return list[i].n > list[j].n
		}
		return string(list[i].addr[:]) < string(list[j].addr[:])
	})
	covered, k := 0, 0
	need := max(0.9, minAttackShare-in.Contamination) * float64(len(in.Attack))
	for k < len(list) && k < MaxSources && float64(covered) < need {
		covered += list[k].n
		k++
	}
	if float64(covered) < need || len(in.Attack) < 3*k && in.Sources > float64(2*k+2) {
		return Choice{}, false
	}
	m := base(in)
	c := Choice{Key: KeySources, AttackShare: float64(covered) / float64(len(in.Attack))}
	hit := 0
	for _, s := range list[:k] {
		r := m
		addr := flow.Addr(s.addr)
		r.Src = netip.PrefixFrom(addr, addr.BitLen())
		if in.Peers == nil || !in.Peers.KnownIn(in.Target, s.addr) {
			// A stranger: all it sends to the target by this protocol goes.
			r.TCPFlags, r.TCPFlagsMask, r.HasSrcPort, r.SrcPort = 0, 0, false, 0
		}
		c.Rules = append(c.Rules, Rule{Action: policy.Drop, Match: r, Priority: PriorityDrop, Comment: in.Type + " source"})
		for i := range in.Good {
			if in.Good[i].Matched(&r) {
				hit++
			}
		}
	}
	if len(in.Good) > 0 {
		c.GoodShare = float64(hit) / float64(len(in.Good))
		c.GoodHit = c.GoodShare
	}
	c.Explanation = fmt.Sprintf("%d source(s) send %.0f%% of the sampled attack packets to %s, so these sources are blocked toward it.",
		k, 100*c.AttackShare, TargetName(in.Target))
	return c, true
}

// TargetName writes a target: an address for a host, else CIDR notation.
func TargetName(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}
