package packet

import (
	"encoding/binary"
	"net/netip"
)

// Header is everything of a built frame below the transport header. The zero value of a field leaves it out
// or takes its default. It is only read, so many frames may be built from one Header, also concurrently.
type Header struct {
	DstMAC, SrcMAC  [6]byte
	VLAN, InnerVLAN uint16     // VLAN ids 1..4094; with InnerVLAN the outer tag is an 802.1ad one
	Src, Dst        netip.Addr // both IPv4 or both IPv6
	TTL             uint8      // or hop limit; 0 = 64
	TOS             uint8      // or traffic class
	ID              uint16     // IPv4 identification, low half of the IPv6 fragment identification
	DontFragment    bool       // IPv4
	FragmentOffset  uint16     // in 8-byte units, at most 8191
	MoreFragments   bool
	FlowLabel       uint32      // IPv6, 20 bits
	Options         []byte      // IPv4 options; padded with zeros to 4 bytes, at most 40 bytes are used
	Extensions      []Extension // IPv6 headers before a fragment header, in this order
}

// Extension is an IPv6 extension header (RFC 8200 4) of the option or routing form.
type Extension struct {
	Type uint8  // ProtoHopByHop, ProtoRouting, ProtoDestOpts
	Data []byte // what follows next-header and length; padded with zeros to a multiple of 8 bytes with them
}

// TCP is the TCP header of a built frame (RFC 9293 3.1).
type TCP struct {
	SrcPort, DstPort uint16
	Seq, Ack         uint32
	Flags            uint8
	Window           uint16
	Urgent           uint16
	Options          []byte // padded with zeros to 4 bytes, at most 40 bytes are used
}

// AppendTCP appends a whole frame with checksums to b and returns the extended slice. It does not allocate
// when b has room.
func (h *Header) AppendTCP(b []byte, t *TCP, payload []byte) []byte {
	options := t.Options[:min(len(t.Options), 40)]
	size := 20 + (len(options)+3)/4*4
	b = h.AppendIP(b, ProtoTCP, size+len(payload))
	at := len(b)
	b = binary.BigEndian.AppendUint16(b, t.SrcPort)
	b = binary.BigEndian.AppendUint16(b, t.DstPort)
	b = binary.BigEndian.AppendUint32(b, t.Seq)
	b = binary.BigEndian.AppendUint32(b, t.Ack)
	b = append(b, uint8(size/4)<<4, t.Flags) //nolint:gosec // at most 15 words
	b = binary.BigEndian.AppendUint16(b, t.Window)
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint16(b, t.Urgent)
	b = append(b, options...)
	for len(b)-at < size {
		b = append(b, 0)
	}
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[at+16:], h.checksum(ProtoTCP, b[at:]))
	return b
}

// AppendUDP appends a whole frame with checksums to b; see AppendTCP. payload is at most 65,507 bytes.
func (h *Header) AppendUDP(b []byte, srcPort, dstPort uint16, payload []byte) []byte {
	b = h.AppendIP(b, ProtoUDP, 8+len(payload))
	at := len(b)
	b = binary.BigEndian.AppendUint16(b, srcPort)
	b = binary.BigEndian.AppendUint16(b, dstPort)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload))) //nolint:gosec // bounded by the doc comment
	b = append(b, 0, 0)
	b = append(b, payload...)
	sum := h.checksum(ProtoUDP, b[at:])
	if sum == 0 {
		sum = 0xFFFF // RFC 768: 0 means no checksum
	}
	binary.BigEndian.PutUint16(b[at+6:], sum)
	return b
}

// AppendICMP appends a whole frame with checksums to b: ICMP between IPv4 addresses, ICMPv6 between IPv6
// addresses. rest is the second word of the message, for an echo identifier and sequence number.
func (h *Header) AppendICMP(b []byte, typ, code uint8, rest uint32, payload []byte) []byte {
	proto := uint8(ProtoICMP)
	if h.Src.Is6() && !h.Src.Is4In6() {
		proto = ProtoICMPv6
	}
	b = h.AppendIP(b, proto, 8+len(payload))
	at := len(b)
	b = append(b, typ, code, 0, 0)
	b = binary.BigEndian.AppendUint32(b, rest)
	b = append(b, payload...)
	var sum uint16
	if proto == ProtoICMPv6 {
		sum = h.checksum(ProtoICMPv6, b[at:])
	} else {
		sum = Checksum(0, b[at:])
	}
	binary.BigEndian.PutUint16(b[at+2:], sum)
	return b
}

// AppendARP appends an ARP message for IPv4 over Ethernet (RFC 826) from SrcMAC and Src about Dst. targetMAC
// is zero in requests. op is 1 for a request and 2 for a reply.
func (h *Header) AppendARP(b []byte, op uint16, targetMAC [6]byte) []byte {
	b = h.appendEthernet(b, EtherTypeARP)
	b = append(b, 0, 1, 0x08, 0x00, 6, 4)
	b = binary.BigEndian.AppendUint16(b, op)
	b = append(b, h.SrcMAC[:]...)
	src, dst := h.Src.As4(), h.Dst.As4()
	b = append(b, src[:]...)
	b = append(b, targetMAC[:]...)
	return append(b, dst[:]...)
}

// AppendIP appends Ethernet and IP headers for size bytes of protocol proto, which the caller appends. It is
// the way to build fragments and protocols without a function here.
func (h *Header) AppendIP(b []byte, proto uint8, size int) []byte {
	ttl := h.TTL
	if ttl == 0 {
		ttl = 64
	}
	if h.Src.Is6() && !h.Src.Is4In6() {
		return h.appendIPv6(b, proto, ttl, size)
	}
	b = h.appendEthernet(b, EtherTypeIPv4)
	options := h.Options[:min(len(h.Options), 40)]
	header := 20 + (len(options)+3)/4*4
	at := len(b)
	b = append(b, 0x40|uint8(header/4), h.TOS)                //nolint:gosec // at most 15 words
	b = binary.BigEndian.AppendUint16(b, uint16(header+size)) //nolint:gosec // an IP packet fits 16 bits
	b = binary.BigEndian.AppendUint16(b, h.ID)
	frag := h.FragmentOffset & 0x1FFF
	if h.MoreFragments {
		frag |= 0x2000
	}
	if h.DontFragment {
		frag |= 0x4000
	}
	b = binary.BigEndian.AppendUint16(b, frag)
	b = append(b, ttl, proto, 0, 0)
	src, dst := h.Src.As4(), h.Dst.As4()
	b = append(b, src[:]...)
	b = append(b, dst[:]...)
	b = append(b, options...)
	for len(b)-at < header {
		b = append(b, 0)
	}
	binary.BigEndian.PutUint16(b[at+10:], Checksum(0, b[at:]))
	return b
}

func (h *Header) appendIPv6(b []byte, proto, ttl uint8, size int) []byte {
	b = h.appendEthernet(b, EtherTypeIPv6)
	fragment := h.MoreFragments || h.FragmentOffset != 0
	for _, e := range h.Extensions {
		size += (2 + len(e.Data) + 7) / 8 * 8
	}
	next := proto
	if fragment {
		size += 8
		next = ProtoFragment
	}
	first := next
	if len(h.Extensions) > 0 {
		first = h.Extensions[0].Type
	}
	b = binary.BigEndian.AppendUint32(b, 6<<28|uint32(h.TOS)<<20|h.FlowLabel&0xFFFFF)
	b = binary.BigEndian.AppendUint16(b, uint16(size)) //nolint:gosec // an IP packet fits 16 bits
	b = append(b, first, ttl)
	src, dst := h.Src.As16(), h.Dst.As16()
	b = append(b, src[:]...)
	b = append(b, dst[:]...)
	for i, e := range h.Extensions {
		following := next
		if i+1 < len(h.Extensions) {
			following = h.Extensions[i+1].Type
		}
		words := (2 + len(e.Data) + 7) / 8
		at := len(b)
		b = append(b, following, uint8(words-1)) //nolint:gosec // 2,048 bytes at most by the format
		b = append(b, e.Data...)
		for len(b)-at < words*8 {
			b = append(b, 0)
		}
	}
	if fragment {
		off := h.FragmentOffset << 3
		if h.MoreFragments {
			off |= 1
		}
		b = append(b, proto, 0)
		b = binary.BigEndian.AppendUint16(b, off)
		b = binary.BigEndian.AppendUint32(b, uint32(h.ID))
	}
	return b
}

func (h *Header) appendEthernet(b []byte, etherType uint16) []byte {
	b = append(b, h.DstMAC[:]...)
	b = append(b, h.SrcMAC[:]...)
	if h.VLAN != 0 {
		tag := uint16(EtherTypeVLAN)
		if h.InnerVLAN != 0 {
			tag = EtherTypeQinQ
		}
		b = binary.BigEndian.AppendUint16(b, tag)
		b = binary.BigEndian.AppendUint16(b, h.VLAN&0x0FFF)
	}
	if h.InnerVLAN != 0 {
		b = binary.BigEndian.AppendUint16(b, EtherTypeVLAN)
		b = binary.BigEndian.AppendUint16(b, h.InnerVLAN&0x0FFF)
	}
	return binary.BigEndian.AppendUint16(b, etherType)
}

// checksum is the transport checksum over the pseudo header (RFC 9293 3.1, RFC 8200 8.1) and segment.
func (h *Header) checksum(proto uint8, segment []byte) uint16 {
	sum := uint32(proto) + uint32(len(segment)) //nolint:gosec // a segment fits 16 bits
	if h.Src.Is6() && !h.Src.Is4In6() {
		src, dst := h.Src.As16(), h.Dst.As16()
		sum = add(add(sum, src[:]), dst[:])
	} else {
		src, dst := h.Src.As4(), h.Dst.As4()
		sum = add(add(sum, src[:]), dst[:])
	}
	return Checksum(sum, segment)
}

// Checksum is the Internet checksum (RFC 1071) of b, begun with the unfolded sum initial.
func Checksum(initial uint32, b []byte) uint16 {
	sum := add(initial, b)
	sum = sum>>16 + sum&0xFFFF
	sum += sum >> 16
	return ^uint16(sum) //nolint:gosec // folded to 16 bits
}

// add returns sum plus the 16-bit words of b, folded so that it can be added to again.
func add(sum uint32, b []byte) uint32 {
	s := uint64(sum)
	for len(b) >= 4 {
		s += uint64(binary.BigEndian.Uint32(b))
		b = b[4:]
	}
	if len(b) >= 2 {
		s += uint64(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		s += uint64(b[0]) << 8
	}
	for s > 0xFFFFF {
		s = s>>16 + s&0xFFFF
	}
	return uint32(s) //nolint:gosec // at most 20 bits
}

// AppendMSS appends the maximum segment size option (RFC 9293 3.7.1).
func AppendMSS(options []byte, mss uint16) []byte {
	return binary.BigEndian.AppendUint16(append(options, 2, 4), mss)
}

// AppendSACKPermitted appends the SACK-permitted option (RFC 2018 2).
func AppendSACKPermitted(options []byte) []byte { return append(options, 4, 2) }

// AppendTimestamps appends the timestamps option (RFC 7323 3).
func AppendTimestamps(options []byte, value, echo uint32) []byte {
	options = binary.BigEndian.AppendUint32(append(options, 8, 10), value)
	return binary.BigEndian.AppendUint32(options, echo)
}

// AppendWindowScale appends the window scale option (RFC 7323 2) behind a no-operation, so that it fills a
// word.
func AppendWindowScale(options []byte, shift uint8) []byte { return append(options, 1, 3, 3, shift) }
