// Package packet decodes frames in place: Ethernet II and IEEE 802.3 with SNAP, up to two VLAN tags, a VN-Tag, PPPoE,
// MPLS, ARP, IPv4 with options, IPv6 with extension headers, TCP, UDP, SCTP, ICMP and ICMPv6. A Packet is reused from frame to frame and keeps
// offsets, never pointers, so a decode neither allocates nor holds on to the frame.
package packet

import (
	"encoding/binary"

	"github.com/tidegate-mesh/tidegate/libs/flow"
)

// EtherTypes (IEEE 802 numbers) that the decoder follows.
const (
	EtherTypeIPv4 = 0x0800
	EtherTypeARP  = 0x0806
	EtherTypeVLAN = 0x8100
	EtherTypeIPv6 = 0x86DD
	EtherTypeQinQ = 0x88A8
	// etherTypeOldQinQ is the tag that switches used before IEEE 802.1ad settled on 0x88A8.
	etherTypeOldQinQ = 0x9100
	etherTypePPPoE   = 0x8864 // its session stage
	etherTypeMPLS    = 0x8847
	etherTypeMPLSUp  = 0x8848 // with labels that the upstream router assigned (RFC 5332)
	etherTypeVNTag   = 0x8926 // between a switch and its port extender
	// etherTypeMin is the lowest EtherType; below are lengths of IEEE 802.3 frames.
	etherTypeMin = 0x0600
)

// IANA protocol numbers.
const (
	ProtoHopByHop = 0
	ProtoICMP     = 1
	ProtoTCP      = 6
	ProtoUDP      = 17
	ProtoRouting  = 43
	ProtoFragment = 44
	ProtoAH       = 51
	ProtoICMPv6   = 58
	ProtoNone     = 59
	ProtoDestOpts = 60
	ProtoSCTP     = 132
	protoMobility = 135
	protoHIP      = 139
	protoShim6    = 140
)

// TCP flags (RFC 9293 3.1, RFC 3168 for the last two).
const (
	FlagFIN = 1 << iota
	FlagSYN
	FlagRST
	FlagPSH
	FlagACK
	FlagURG
	FlagECE
	FlagCWR
)

// MaxExtensions bounds the IPv6 extension headers of a packet (RFC 8200 4.1 expects each at most once, and
// destination options twice).
const MaxExtensions = 8

// Packet is what one frame's headers say. The zero value is ready for use; one goroutine owns it. Offsets
// index the decoded frame. After a Reason other than OK the fields read so far are valid.
type Packet struct {
	Src, Dst         [16]byte // IPv4 is mapped (RFC 4291 2.5.5.2); for ARP sender and target protocol address
	SrcPort, DstPort uint16   // TCP, UDP and SCTP; 0 otherwise and for later fragments
	VLAN             uint16   // outermost VLAN id, 0 = untagged
	EtherType        uint16   // innermost; below 0x0600 it is the length of an IEEE 802.3 frame without SNAP
	IPLen            uint16   // bytes of the IP packet: IPv4 total length, IPv6 40 + payload length
	Proto            uint8    // IANA protocol after extension headers; flow.ProtocolARP for ARP
	TTL              uint8    // or hop limit
	TCPFlags         uint8
	ICMPType         uint8 // ICMP and ICMPv6
	ICMPCode         uint8
	IsV6             bool
	IsIP             bool
	IsARP            bool
	Fragment         bool // any fragment, also the first; an IPv6 atomic fragment (RFC 6946) is none
	LaterFragment    bool // no transport header in it
	ARPOp            uint16
	Seq, Ack         uint32
	Window           uint16 // TCP, unscaled
	Tunnel           uint32 // of a packet that Inner decoded; 0 = none
	L3, L4, Payload  int    // L4 and Payload are 0 until reached
	PayloadLen       int    // bytes after the transport header, bounded by IP length and captured bytes
}

// Key returns the flow key in the packet's own direction.
func (p *Packet) Key() flow.Key {
	return flow.Key{
		Src: p.Src, Dst: p.Dst, SrcPort: p.SrcPort, DstPort: p.DstPort, VLAN: p.VLAN, Protocol: p.Proto, Tunnel: p.Tunnel,
	}
}

// Decode reads an Ethernet frame without its frame check sequence. It never panics and never allocates, and
// keeps no reference to the frame.
func (p *Packet) Decode(frame []byte) Reason {
	*p = Packet{}
	if len(frame) < 14 {
		return TruncatedEthernet
	}
	return p.network(frame, binary.BigEndian.Uint16(frame[12:]), 14)
}

// network follows VLAN tags from off, where the header that etherType names begins.
func (p *Packet) network(frame []byte, etherType uint16, off int) Reason {
	tags, extended := 0, false
	for {
		p.EtherType = etherType
		p.L3 = off
		switch etherType {
		case EtherTypeIPv4:
			return p.ipv4(frame, off)
		case EtherTypeIPv6:
			return p.ipv6(frame, off)
		case EtherTypeARP:
			return p.arp(frame, off)
		case EtherTypeVLAN, EtherTypeQinQ, etherTypeOldQinQ:
			if tags == 2 {
				return TooManyVLANs
			}
			if len(frame) < off+4 {
				return TruncatedVLAN
			}
			if tags == 0 {
				p.VLAN = binary.BigEndian.Uint16(frame[off:]) & 0x0FFF
			}
			etherType = binary.BigEndian.Uint16(frame[off+2:])
			off += 4
			tags++
		case etherTypePPPoE: // RFC 2516 4: version and type 1, code 0, session, length; then PPP
			if len(frame) < off+8 {
				return TruncatedLink
			}
			if frame[off] != 0x11 || frame[off+1] != 0 {
				return NotIP
			}
			return p.ppp(frame, off+6)
		case etherTypeMPLS, etherTypeMPLSUp:
			return p.mpls(frame, off)
		case etherTypeVNTag:
			if extended {
				return NotIP
			}
			if len(frame) < off+6 {
				return TruncatedLink
			}
			etherType = binary.BigEndian.Uint16(frame[off+4:])
			off += 6
			extended = true
		default:
			if etherType < etherTypeMin {
				return p.snap(frame, off)
			}
			return NotIP
		}
	}
}

// snap reads what an IEEE 802.3 frame carries below LLC and SNAP with EtherTypes (RFC 1042). Other LLC is a plain NotIP.
func (p *Packet) snap(frame []byte, off int) Reason {
	b := frame[off:]
	if len(b) < 8 || b[0] != 0xAA || b[1] != 0xAA || b[2] != 3 || b[3]|b[4]|b[5] != 0 {
		return NotIP
	}
	switch etherType := binary.BigEndian.Uint16(b[6:]); etherType {
	case EtherTypeIPv4, EtherTypeIPv6, EtherTypeARP:
		return p.network(frame, etherType, off+8)
	}
	return NotIP
}

// ppp reads a PPP protocol number (RFC 1661 2) at off, which is inside the frame with two bytes.
func (p *Packet) ppp(frame []byte, off int) Reason {
	switch binary.BigEndian.Uint16(frame[off:]) {
	case 0x0021:
		return p.network(frame, EtherTypeIPv4, off+2)
	case 0x0057:
		return p.network(frame, EtherTypeIPv6, off+2)
	}
	return NotIP
}

// maxLabels bounds the label stack of a frame.
const maxLabels = 8

// mpls follows a label stack (RFC 3032 2.1) from off. Nothing says what is below it; IP is told by its version.
func (p *Packet) mpls(frame []byte, off int) Reason {
	for range maxLabels {
		if len(frame) < off+5 {
			return TruncatedLink
		}
		bottom := frame[off+2]&1 != 0
		off += 4
		if !bottom {
			continue
		}
		switch frame[off] >> 4 {
		case 4:
			return p.network(frame, EtherTypeIPv4, off)
		case 6:
			return p.network(frame, EtherTypeIPv6, off)
		}
		return NotIP
	}
	return NotIP
}

// mapped writes an IPv4 address in its IPv4-mapped form.
func mapped(dst *[16]byte, v4 []byte) {
	dst[10], dst[11] = 0xFF, 0xFF
	copy(dst[12:], v4[:4])
}

// arp reads an ARP message (RFC 826) for IPv4 over Ethernet. Others stay a plain NotIP.
func (p *Packet) arp(frame []byte, off int) Reason {
	b := frame[off:]
	if len(b) < 8 {
		return TruncatedARP
	}
	if binary.BigEndian.Uint16(b[2:]) != EtherTypeIPv4 || b[4] != 6 || b[5] != 4 {
		return NotIP
	}
	if len(b) < 28 {
		return TruncatedARP
	}
	p.IsARP = true
	p.Proto = flow.ProtocolARP
	p.ARPOp = binary.BigEndian.Uint16(b[6:])
	mapped(&p.Src, b[14:18])
	mapped(&p.Dst, b[24:28])
	return NotIP
}

// ipv4 reads an IPv4 header (RFC 791) at off.
func (p *Packet) ipv4(frame []byte, off int) Reason {
	b := frame[off:]
	if len(b) < 20 {
		return TruncatedIPv4
	}
	if b[0]>>4 != 4 {
		return BadIPv4Version
	}
	header := int(b[0]&0x0F) * 4
	if header < 20 {
		return BadIPv4HeaderLength
	}
	p.IsIP = true
	p.TTL = b[8]
	p.Proto = b[9]
	mapped(&p.Src, b[12:16])
	mapped(&p.Dst, b[16:20])
	total := int(binary.BigEndian.Uint16(b[2:]))
	if total == 0 {
		// Segmentation offload leaves 0 in captures of the sending host: the frame's own length stands in.
		total = min(len(b), 0xFFFF)
	}
	p.IPLen = uint16(total) //nolint:gosec // at most 65,535
	if total < header {
		return BadIPv4TotalLength
	}
	if len(b) < header {
		return TruncatedIPv4
	}
	frag := binary.BigEndian.Uint16(b[6:])
	p.Fragment = frag&0x3FFF != 0
	p.LaterFragment = frag&0x1FFF != 0
	return p.transport(frame[:off+min(total, len(b))], off+header)
}

// ipv6 reads an IPv6 header and its extension headers (RFC 8200) at off.
func (p *Packet) ipv6(frame []byte, off int) Reason {
	b := frame[off:]
	if len(b) < 40 {
		return TruncatedIPv6
	}
	if b[0]>>4 != 6 {
		return BadIPv6Version
	}
	p.IsIP, p.IsV6 = true, true
	p.Src = [16]byte(b[8:24])
	p.Dst = [16]byte(b[24:40])
	p.TTL = b[7]
	next := b[6]
	p.Proto = next
	total := 40 + int(binary.BigEndian.Uint16(b[4:]))
	if total == 40 && next == ProtoHopByHop {
		total = len(b) // a jumbogram (RFC 2675) carries its length in the hop-by-hop header
	}
	p.IPLen = uint16(min(total, 0xFFFF)) //nolint:gosec // bounded on the left
	frame = frame[:off+min(total, len(b))]
	at := off + 40
	for depth := 0; ; depth++ {
		var size int
		switch next {
		case ProtoHopByHop, ProtoRouting, ProtoDestOpts, protoMobility, protoHIP, protoShim6:
			if len(frame) < at+8 {
				return TruncatedIPv6Extension
			}
			size = 8 + 8*int(frame[at+1])
		case ProtoAH: // RFC 4302 2.2: length in 4-byte words, minus 2
			if len(frame) < at+8 {
				return TruncatedIPv6Extension
			}
			size = 8 + 4*int(frame[at+1])
		case ProtoFragment:
			if len(frame) < at+8 {
				return TruncatedIPv6Extension
			}
			size = 8
			frag := binary.BigEndian.Uint16(frame[at+2:])
			p.Fragment = frag&0xFFF9 != 0
			p.LaterFragment = frag&0xFFF8 != 0
		default:
			p.Proto = next
			return p.transport(frame, at)
		}
		if depth == MaxExtensions {
			return TooManyIPv6Extensions
		}
		if len(frame) < at+size {
			return TruncatedIPv6Extension
		}
		next = frame[at]
		p.Proto = next
		at += size
		if p.LaterFragment {
			// What follows belongs to the middle of the packet, whatever the header says.
			return p.transport(frame, at)
		}
	}
}

// transport reads the header at off; frame ends where the IP packet or the captured bytes end.
func (p *Packet) transport(frame []byte, off int) Reason {
	p.L4 = off
	p.Payload = off
	p.PayloadLen = len(frame) - off
	if p.LaterFragment {
		return OK
	}
	b := frame[off:]
	header := 0
	switch p.Proto {
	case ProtoTCP: // RFC 9293 3.1
		if len(b) < 20 {
			p.PayloadLen = 0
			return TruncatedTCP
		}
		p.SrcPort = binary.BigEndian.Uint16(b)
		p.DstPort = binary.BigEndian.Uint16(b[2:])
		p.Seq = binary.BigEndian.Uint32(b[4:])
		p.Ack = binary.BigEndian.Uint32(b[8:])
		p.TCPFlags = b[13]
		p.Window = binary.BigEndian.Uint16(b[14:])
		header = int(b[12]>>4) * 4
		if header < 20 {
			p.PayloadLen = 0
			return BadTCPHeaderLength
		}
		if len(b) < header {
			p.PayloadLen = 0
			return TruncatedTCP
		}
	case ProtoUDP: // RFC 768
		if len(b) < 8 {
			p.PayloadLen = 0
			return TruncatedUDP
		}
		p.SrcPort = binary.BigEndian.Uint16(b)
		p.DstPort = binary.BigEndian.Uint16(b[2:])
		header = 8
		if size := int(binary.BigEndian.Uint16(b[4:])); size >= 8 {
			b = b[:min(size, len(b))]
		} else if size != 0 { // 0 is a jumbogram's (RFC 2675 4)
			p.PayloadLen = 0
			return BadUDPLength
		}
	case ProtoSCTP: // RFC 9260 3.1
		if len(b) < 12 {
			p.PayloadLen = 0
			return TruncatedSCTP
		}
		p.SrcPort = binary.BigEndian.Uint16(b)
		p.DstPort = binary.BigEndian.Uint16(b[2:])
		header = 12
	case ProtoICMP, ProtoICMPv6: // RFC 792, RFC 4443 2.1
		if len(b) < 4 {
			p.PayloadLen = 0
			if p.Proto == ProtoICMP {
				return TruncatedICMP
			}
			return TruncatedICMPv6
		}
		p.ICMPType = b[0]
		p.ICMPCode = b[1]
		header = min(8, len(b))
	}
	p.Payload = off + header
	p.PayloadLen = len(b) - header
	return OK
}
