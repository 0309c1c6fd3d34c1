package verdict

import (
	"math"
	"net/netip"
	"sort"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/policy"
)

// maxLeak is the share of the attack that one verdict's exceptions may let through, by estimate.
const maxLeak = 0.004

// exceptions are allow rules for the target's good peers: the drop's own match with the peer's prefix as
// source, so that they are more specific than the drop and reach no other packet. Peers' networks are taken
// as wide as their peers justify, so that new clients beside known ones get through too: a /16 (v6 /48) for
// four peers, a /24 (/64) for one, but only where the attack's sources leave room.
func exceptions(in *Input, drop *policy.Match) []Rule {
	if in.Peers == nil {
		return nil
	}
	sport := uint16(0)
	if drop.HasSrcPort {
		sport = drop.SrcPort
	}
	v4 := in.Target.Addr().Is4()
	var peers []netip.Addr
	seen := make(map[netip.Addr]struct{}) // a peer of several hosts of the target counts once
	in.Peers.Each(in.Target, drop.Protocol, sport, in.FirstNs, func(a netip.Addr) {
		if _, again := seen[a]; !again && a.Is4() == v4 {
			seen[a] = struct{}{}
			peers = append(peers, a)
		}
	})
	sort.Slice(peers, func(i, j int) bool { return peers[i].Less(peers[j]) })
	attackers := density(in)
	type choice struct {
		prefix netip.Prefix
		peers  int
		leak   float64
	}
	lengths, minimum := []int{16, 24, 32}, []int{4, 1, 1}
	if !v4 {
		lengths = []int{48, 64, 128}
	}
	within := make(map[netip.Prefix]int)
	for _, a := range peers {
		for _, n := range lengths {
			within[netip.PrefixFrom(a, n).Masked()]++
		}
	}
	chosen := make(map[netip.Prefix]choice)
	for _, a := range peers {
		for i, n := range lengths {
			p := netip.PrefixFrom(a, n).Masked()
			leak := attackers.share(p)
			// A source seen attacking is no exception; a wide prefix must keep its part of the budget.
			if within[p] < minimum[i] || leak > maxLeak/8 && n != lengths[2] || attackers.seen(p) {
				continue
			}
			chosen[p] = choice{p, within[p], leak}
			break
		}
	}
	list := make([]choice, 0, len(chosen))
	for _, c := range chosen {
		list = append(list, c)
	}
	sort.Slice(list, func(i, j int) bool {
		if list[i].peers != list[j].peers {
			return list[i].peers > list[j].peers
		}
		return list[i].prefix.Addr().Less(list[j].prefix.Addr())
	})
	var rules []Rule
	budget := maxLeak
	for _, c := range list {
		if len(rules) == MaxAllows {
			break
		}
		if c.leak > budget {
			continue
		}
		budget -= c.leak
		m := *drop
		m.Src = c.prefix
		rules = append(rules, Rule{Action: policy.Allow, Match: m, Priority: PriorityAllow, Comment: in.Type + " good peer"})
	}
	return rules
}

// sources is how the attack's sampled sources spread over address space.
type sources struct {
	n      int
	counts map[netip.Prefix]int
}

const (
	step          = 4 // density is looked at for prefix lengths that are multiples of it
	enoughSamples = 3 // fewer in a network do not tell its density
)

func density(in *Input) sources {
	s := sources{n: len(in.Attack), counts: make(map[netip.Prefix]int)}
	for i := range in.Attack {
		a := flow.Addr(in.Attack[i].Src)
		for n := 0; n <= a.BitLen(); n += step {
			s.counts[netip.PrefixFrom(a, n).Masked()]++
		}
	}
	return s
}

// seen reports whether a sampled source lies in p; p's length is a multiple of step.
func (s *sources) seen(p netip.Prefix) bool { return s.counts[p] > 0 }

// share estimates which share of the attack comes from p: the densest network around p, of those with samples
// enough to tell, its sources spread evenly over it.
func (s *sources) share(p netip.Prefix) float64 {
	best := 0.0
	for n := 0; n <= p.Bits(); n += step {
		q := netip.PrefixFrom(p.Addr(), n).Masked()
		if s.counts[q] < enoughSamples && n > 0 {
			break
		}
		best = math.Max(best, float64(s.counts[q])/float64(max(1, s.n))*math.Exp2(float64(n-p.Bits())))
	}
	return best
}
