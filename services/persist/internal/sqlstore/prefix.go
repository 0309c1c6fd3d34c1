package sqlstore

import "net/netip"

// prefixRange returns the first and last address of p. An IPv4-mapped prefix counts as IPv4.
func prefixRange(p netip.Prefix) (lo, hi netip.Addr) {
	p = unmapPrefix(p).Masked()
	lo = p.Addr()
	b := lo.AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	hi, _ = netip.AddrFromSlice(b)
	return lo, hi
}

func unmapPrefix(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p
}
