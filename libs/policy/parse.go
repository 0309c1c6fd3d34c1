package policy

import (
	"fmt"
	"strconv"
	"strings"
)

// ParseProtocol reads tcp, udp, icmp, icmpv6, sctp, gre in any case, or an IANA number up to 255.
func ParseProtocol(s string) (uint8, error) {
	switch strings.ToLower(s) {
	case "tcp":
		return 6, nil
	case "udp":
		return 17, nil
	case "icmp":
		return 1, nil
	case "icmpv6":
		return 58, nil
	case "sctp":
		return 132, nil
	case "gre":
		return 47, nil
	}
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil {
		return 0, fmt.Errorf("protocol %q: use tcp, udp, icmp, icmpv6, sctp, gre or a number up to 255", s)
	}
	return uint8(n), nil
}

// ParseRange reads "60" or "40-64": inclusive bounds, low not above high, high from 1 to limit.
func ParseRange(s string, limit uint16) (low, high uint16, err error) {
	a, b, isRange := strings.Cut(s, "-")
	if !isRange {
		b = a
	}
	l, err1 := strconv.ParseUint(a, 10, 16)
	h, err2 := strconv.ParseUint(b, 10, 16)
	if err1 != nil || err2 != nil || l > h || h > uint64(limit) || h == 0 {
		return 0, 0, fmt.Errorf("%q: give a number or a range LOW-HIGH of at most %d", s, limit)
	}
	return uint16(l), uint16(h), nil
}
