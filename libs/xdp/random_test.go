package xdp

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/tidegate-mesh/tidegate/libs/policy"
)

// selects is the meaning of a match, read off the packet's description.
func selects(m *policy.Match, p *pkt, length int) bool {
	src, dst := netip.MustParseAddr(p.src), netip.MustParseAddr(p.dst)
	later := p.offset != 0
	fragment := later || p.more
	switch {
	case m.Src.IsValid() && !m.Src.Contains(src), m.Dst.IsValid() && !m.Dst.Contains(dst):
		return false
	case m.HasProtocol && m.Protocol != uint8(p.proto):
		return false
	case m.HasSrcPort && (later || m.SrcPort != p.sport), m.HasDstPort && (later || m.DstPort != p.dport):
		return false
	case m.TCPFlagsMask != 0 && (later || flagBits(p.flags)&m.TCPFlagsMask != m.TCPFlags):
		return false
	case length < int(m.LengthMin) || m.LengthMax != 0 && length > int(m.LengthMax):
		return false
	case m.Fragment == policy.FragmentsOnly && !fragment, m.Fragment == policy.WholeOnly && fragment:
		return false
	}
	return true
}

func flagBits(s string) (f uint8) {
	for _, r := range s {
		f |= map[rune]uint8{'F': policy.FIN, 'S': policy.SYN, 'R': policy.RST, 'P': policy.PSH, 'A': policy.ACK}[r]
	}
	return f
}

// TestRandomRules compares the program with the rules' meaning while rules come and go: many rules under
// few masks, so that what the rules of a mask have in common widens and masks are made and given up.
func TestRandomRules(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeHost})
	p := program(t, g)
	rng := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a test's numbers
	addrs := []string{"192.0.2.1", "192.0.2.2", "192.0.3.1", "203.0.113.9", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "2001:db9::1"}
	pick := func(n int) bool { return rng.IntN(n) == 0 }
	randomRule := func(id uint64) Rule {
		m := policy.Match{}
		four := pick(2)
		prefix := func() netip.Prefix {
			a := netip.MustParseAddr(addrs[rng.IntN(4)])
			bits := []int{16, 24, 32}[rng.IntN(3)]
			if !four {
				a = netip.MustParseAddr(addrs[4+rng.IntN(4)])
				bits = []int{32, 64, 128}[rng.IntN(3)]
			}
			return netip.PrefixFrom(a, bits).Masked()
		}
		if pick(2) {
			m.Src = prefix()
		}
		if pick(2) {
			m.Dst = prefix()
		}
		if pick(2) {
			m.HasProtocol, m.Protocol = true, []uint8{6, 17}[rng.IntN(2)]
			if m.HasDstPort = pick(2); m.HasDstPort {
				m.DstPort = uint16(rng.IntN(3))
			}
			if m.HasSrcPort = pick(4); m.HasSrcPort {
				m.SrcPort = uint16(rng.IntN(3))
			}
			if m.Protocol == 6 && pick(3) {
				m.TCPFlagsMask = policy.SYN | policy.ACK
				m.TCPFlags = m.TCPFlagsMask & uint8(rng.IntN(256))
			}
		}
		if pick(6) {
			m.LengthMax = 60
		}
		if pick(6) {
			m.Fragment = policy.FragmentsOnly
		}
		action := policy.Drop
		if pick(3) {
			action = policy.Allow
		}
		return Rule{ID: id, Match: m, Action: action, Priority: int32(id)}
	}
	rules := map[uint64]Rule{}
	dropped := 0
	for round := range 150 {
		for range 3 {
			rule := randomRule(uint64(1 + rng.IntN(24)))
			rules[rule.ID] = rule
			must(t, g.PutRules([]Rule{rule}))
		}
		id := uint64(1 + rng.IntN(24))
		delete(rules, id)
		must(t, g.DeleteRules([]uint64{id}))
		for range 20 {
			k := pkt{src: addrs[rng.IntN(4)], dst: addrs[rng.IntN(4)], sport: uint16(rng.IntN(3)), dport: uint16(rng.IntN(3)), payload: rng.IntN(80)}
			if pick(2) {
				k.src, k.dst = addrs[4+rng.IntN(4)], addrs[4+rng.IntN(4)]
			}
			if k.proto = layers.IPProtocolUDP; pick(2) {
				k.proto, k.flags = layers.IPProtocolTCP, []string{"S", "SA", "A", "R", ""}[rng.IntN(5)]
			}
			switch rng.IntN(8) {
			case 0:
				k.more = true
			case 1:
				k.offset, k.payload = 8, 64
			}
			frame := k.frame(t)
			var best *Rule
			var bestSpec uint16
			for _, rule := range rules {
				if !selects(&rule.Match, &k, len(frame)-14) {
					continue
				}
				m, _, err := shape(&rule.Match)
				must(t, err)
				if best == nil || m.Specificity > bestSpec || m.Specificity == bestSpec && rule.Priority > best.Priority {
					best, bestSpec = &rule, m.Specificity
				}
			}
			want := uint32(pass)
			if best != nil && best.Action == policy.Drop {
				want = drop
				dropped++
			}
			if got := send(t, p, frame); got != want {
				t.Fatalf("round %d: %+v: action %d, want %d (rule %+v)", round, k, got, want, best)
			}
		}
	}
	if dropped < 200 || dropped > 2800 {
		t.Errorf("%d of 3000 packets dropped: the rules test little", dropped)
	}
	// Another process reads the same masks from the keys.
	other := r.open(t, Options{})
	back, err := other.Rules()
	must(t, err)
	if len(back) != len(rules) {
		t.Errorf("%d rules read, want %d", len(back), len(rules))
	}
}
