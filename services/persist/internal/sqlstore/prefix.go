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

// bytesInPrefix is the condition that a column of 16-byte addresses, IPv4 mapped, lies in p.
func bytesInPrefix(column string, p netip.Prefix) (string, []any) {
	lo, hi := prefixRange(p)
	l, h := lo.As16(), hi.As16()
	cond := column + " BETWEEN ? AND ?"
	args := []any{l[:], h[:]}
	mapped := netip.MustParsePrefix("::ffff:0:0/96")
	if lo.Is6() && !lo.Is4In6() && p.Bits() < 96 && p.Contains(mapped.Addr()) {
		// An IPv6 prefix does not mean the IPv4 addresses that are stored in the mapped range.
		l, h := netip.MustParseAddr("::ffff:0:0").As16(), netip.MustParseAddr("::ffff:ffff:ffff").As16()
		cond += " AND " + column + " NOT BETWEEN ? AND ?"
		args = append(args, l[:], h[:])
	}
	return "(" + cond + ")", args
}
