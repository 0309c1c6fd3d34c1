package packet

import "encoding/binary"

// Link types of capture files (tcpdump.org/linktypes.html) that DecodeLink reads.
const (
	LinkNull       = 0
	LinkEthernet   = 1
	LinkPPP        = 9
	LinkRawOld     = 12 // DLT_RAW on most systems
	LinkRawOpenBSD = 14
	LinkRaw        = 101
	LinkCiscoHDLC  = 104
	LinkWLAN       = 105
	LinkLoop       = 108
	LinkCooked     = 113
	LinkRadiotap   = 127
	LinkPPI        = 192
	LinkIPv4       = 228
	LinkIPv6       = 229
	LinkNFLOG      = 239
	LinkCooked2    = 276
)

// DecodeLink reads a frame of a capture file's link type; the rest is as in Decode.
func (p *Packet) DecodeLink(linkType int, frame []byte) Reason {
	if linkType == LinkEthernet {
		return p.Decode(frame)
	}
	*p = Packet{}
	switch linkType {
	case LinkRaw, LinkRawOld, LinkRawOpenBSD, LinkIPv4, LinkIPv6:
		if len(frame) == 0 {
			return TruncatedLink
		}
		switch frame[0] >> 4 {
		case 4:
			return p.network(frame, EtherTypeIPv4, 0)
		case 6:
			return p.network(frame, EtherTypeIPv6, 0)
		}
		return NotIP
	case LinkNull, LinkLoop:
		// The family is in the byte order of the machine that captured, so it is accepted in both.
		if len(frame) < 4 {
			return TruncatedLink
		}
		family := binary.LittleEndian.Uint32(frame)
		if family > 0xFFFF {
			family = binary.BigEndian.Uint32(frame)
		}
		switch family {
		case 2:
			return p.network(frame, EtherTypeIPv4, 4)
		case 10, 24, 28, 30: // AF_INET6 of Linux, NetBSD, FreeBSD and Darwin
			return p.network(frame, EtherTypeIPv6, 4)
		}
		return NotIP
	case LinkPPP: // RFC 1661 2, perhaps behind address and control (RFC 1662 3.1)
		head := 0
		if len(frame) >= 2 && frame[0] == 0xFF && frame[1] == 3 {
			head = 2
		}
		if len(frame) < head+2 {
			return TruncatedLink
		}
		return p.ppp(frame, head)
	case LinkCiscoHDLC: // address, control, EtherType
		if len(frame) < 4 {
			return TruncatedLink
		}
		return p.network(frame, binary.BigEndian.Uint16(frame[2:]), 4)
	case LinkCooked:
		if len(frame) < 16 {
			return TruncatedLink
		}
		return p.network(frame, binary.BigEndian.Uint16(frame[14:]), 16)
	case LinkWLAN:
		return p.wlan(frame, 0)
	case LinkRadiotap: // version, padding, length of the header (radiotap.org)
		if len(frame) < 4 || len(frame) < int(binary.LittleEndian.Uint16(frame[2:])) {
			return TruncatedLink
		}
		return p.wlan(frame, int(binary.LittleEndian.Uint16(frame[2:])))
	case LinkPPI: // version, flags, length and link type of what follows, in little-endian order (CACE PPI 3.1)
		if len(frame) < 8 {
			return TruncatedLink
		}
		size := int(binary.LittleEndian.Uint16(frame[2:]))
		if size < 8 || len(frame) < size {
			return TruncatedLink
		}
		switch binary.LittleEndian.Uint32(frame[4:]) {
		case LinkEthernet:
			return p.ethernet(frame, size)
		case LinkWLAN:
			return p.wlan(frame, size)
		}
		return UnsupportedLinkType
	case LinkNFLOG:
		return p.nflog(frame)
	case LinkCooked2:
		if len(frame) < 20 {
			return TruncatedLink
		}
		return p.network(frame, binary.BigEndian.Uint16(frame), 20)
	}
	return UnsupportedLinkType
}

// maxNFLOG bounds the attributes of a record; the kernel writes about twenty kinds.
const maxNFLOG = 64

// nflog finds the packet among the attributes of a Linux netfilter log record (tcpdump.org/linktypes/LINKTYPE_NFLOG.html):
// family, version, resource, then attributes of length and type in the order of the machine that captured, little-endian
// here, padded to four bytes.
func (p *Packet) nflog(frame []byte) Reason {
	const payload = 9
	off := 4
	for range maxNFLOG {
		if len(frame) < off+4 {
			break
		}
		size := int(binary.LittleEndian.Uint16(frame[off:]))
		if size < 4 || len(frame) < off+size {
			break
		}
		if binary.LittleEndian.Uint16(frame[off+2:])&0x7FFF == payload {
			switch frame[0] {
			case 2:
				return p.network(frame[:off+size], EtherTypeIPv4, off+4)
			case 10:
				return p.network(frame[:off+size], EtherTypeIPv6, off+4)
			}
			return NotIP
		}
		off += (size + 3) &^ 3
	}
	return TruncatedLink
}
