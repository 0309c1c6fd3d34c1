package xdp

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"net/netip"

	"github.com/tidegate-mesh/tidegate/libs/policy"
)

// plain unmaps an IPv4-mapped prefix, so that one network has one form.
func plain(p netip.Prefix) netip.Prefix {
	if p.IsValid() && p.Addr().Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// bits128 is a prefix's length within a 16-byte address.
func bits128(p netip.Prefix) uint8 {
	if p.Addr().Is4() {
		return uint8(p.Bits() + 96) //nolint:gosec // at most 128
	}
	return uint8(p.Bits()) //nolint:gosec // at most 128
}

// prefixMask has the first n bits set.
func prefixMask(n uint8) (m [16]byte) {
	for i := range m {
		left := min(max(int(n)-8*i, 0), 8)
		m[i] = byte(uint16(0xff00) >> left) //nolint:gosec // the lower byte is meant
	}
	return m
}

func familyOf(p netip.Prefix) uint8 {
	switch {
	case !p.IsValid():
		return 0
	case p.Addr().Is4():
		return 4
	}
	return 6
}

// shape splits a match into what rules of its shape share, the mask without id and variant, and its own
// part of the lookup key, without the mask's id. Specificity is the number of header bits that the match
// fixes; ranges count by the bits that they leave open.
func shape(m *policy.Match) (mask, ruleKey, error) {
	k := mask{LenMax: math.MaxUint16, TTLMax: math.MaxUint8, Fragment: uint8(m.Fragment)}
	var key ruleKey
	if err := m.Validate(); err != nil {
		return k, key, err
	}
	if m.Fragment > policy.WholeOnly {
		return k, key, fmt.Errorf("unknown fragment requirement %d", m.Fragment)
	}
	spec := 0
	address := func(p netip.Prefix, into, mask *[16]byte, n *uint8) error {
		p = plain(p)
		if !p.IsValid() {
			return nil
		}
		if k.Family != 0 && k.Family != familyOf(p) {
			return errors.New("source and destination are of different address families")
		}
		if k.Family == 0 {
			spec++
		}
		k.Family = familyOf(p)
		if p.Bits() == 0 {
			return nil
		}
		*n, *into = bits128(p), p.Addr().As16()
		*mask = prefixMask(*n)
		spec += p.Bits()
		return nil
	}
	if err := errors.Join(address(m.Src, &key.Src, &k.SrcMask, &k.SrcBits), address(m.Dst, &key.Dst, &k.DstMask, &k.DstBits)); err != nil {
		return k, key, err
	}
	if m.HasProtocol {
		k.ProtocolMask, key.Protocol = math.MaxUint8, m.Protocol
		spec += 8
	}
	if m.HasSrcPort {
		k.SrcPortMask, key.SrcPort = math.MaxUint16, portBytes(m.SrcPort)
		spec += 16
	}
	if m.HasDstPort {
		k.DstPortMask, key.DstPort = math.MaxUint16, portBytes(m.DstPort)
		spec += 16
	}
	k.TCPMask, key.TCPFlags = m.TCPFlagsMask, m.TCPFlags
	spec += bits.OnesCount8(m.TCPFlagsMask)
	k.LenMin, k.TTLMin = m.LengthMin, m.TTLMin
	if m.LengthMax != 0 {
		k.LenMax = m.LengthMax
	}
	if m.TTLMax != 0 {
		k.TTLMax = m.TTLMax
	}
	spec += 16 - bits.Len16(k.LenMax-k.LenMin) + 8 - bits.Len8(k.TTLMax-k.TTLMin)
	if m.Fragment != policy.AnyFragment {
		spec++
	}
	k.Specificity = uint16(spec) //nolint:gosec // at most 400
	return k, key, nil
}

// match is the inverse of shape. A prefix of length 0 comes back only where it says the family.
func match(k *mask, key *ruleKey) policy.Match {
	m := policy.Match{
		Src: prefixOf(key.Src, k.SrcBits, k.Family), Dst: prefixOf(key.Dst, k.DstBits, k.Family),
		HasProtocol: k.ProtocolMask != 0, Protocol: key.Protocol,
		HasSrcPort: k.SrcPortMask != 0, SrcPort: bytesPort(key.SrcPort),
		HasDstPort: k.DstPortMask != 0, DstPort: bytesPort(key.DstPort),
		TCPFlags: key.TCPFlags, TCPFlagsMask: k.TCPMask,
		LengthMin: k.LenMin, TTLMin: k.TTLMin, Fragment: policy.Fragment(k.Fragment),
	}
	if k.LenMax != math.MaxUint16 {
		m.LengthMax = k.LenMax
	}
	if k.TTLMax != math.MaxUint8 {
		m.TTLMax = k.TTLMax
	}
	switch {
	case m.Src.IsValid() || m.Dst.IsValid():
	case k.Family == 4:
		m.Src = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	case k.Family == 6:
		m.Src = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return m
}

func prefixOf(addr [16]byte, n, family uint8) netip.Prefix {
	switch {
	case n == 0:
		return netip.Prefix{}
	case family == 4:
		return netip.PrefixFrom(netip.AddrFrom16(addr).Unmap(), int(n)-96)
	}
	return netip.PrefixFrom(netip.AddrFrom16(addr), int(n))
}

// less orders masks in a set: the program takes the first hit and goes on only among equally specific ones.
func less(a, b *mask) int {
	if a.Specificity != b.Specificity {
		return int(b.Specificity) - int(a.Specificity)
	}
	return int(a.ID) - int(b.ID)
}

func sameShape(a, b *mask) bool {
	x, y := *a, *b
	x.ID, y.ID = 0, 0
	x.Common, y.Common = common{}, common{}
	return x == y
}

// only is the common part of a mask with one rule: all that the mask looks at.
func only(m *mask, k *ruleKey) common {
	c := common{
		SrcCare: m.SrcMask, SrcWant: k.Src, DstCare: m.DstMask, DstWant: k.Dst,
		SrcPortWant: k.SrcPort, DstPortWant: k.DstPort,
		ProtocolCare: m.ProtocolMask, ProtocolWant: k.Protocol, TCPCare: m.TCPMask, TCPWant: k.TCPFlags,
	}
	if m.SrcPortMask != 0 {
		c.SrcPortCare = [2]byte{0xff, 0xff}
	}
	if m.DstPortMask != 0 {
		c.DstPortCare = [2]byte{0xff, 0xff}
	}
	return c
}

// and is the common part of what two parts have in common.
func (c common) and(o common) common {
	meet(c.SrcCare[:], c.SrcWant[:], o.SrcCare[:], o.SrcWant[:])
	meet(c.DstCare[:], c.DstWant[:], o.DstCare[:], o.DstWant[:])
	meet(c.SrcPortCare[:], c.SrcPortWant[:], o.SrcPortCare[:], o.SrcPortWant[:])
	meet(c.DstPortCare[:], c.DstPortWant[:], o.DstPortCare[:], o.DstPortWant[:])
	c.ProtocolCare &= o.ProtocolCare &^ (c.ProtocolWant ^ o.ProtocolWant)
	c.ProtocolWant &= c.ProtocolCare
	c.TCPCare &= o.TCPCare &^ (c.TCPWant ^ o.TCPWant)
	c.TCPWant &= c.TCPCare
	return c
}

// meet keeps of care the bits that both look at and agree on.
func meet(care, want, otherCare, otherWant []byte) {
	for i := range care {
		care[i] &= otherCare[i] &^ (want[i] ^ otherWant[i])
		want[i] &= care[i]
	}
}
