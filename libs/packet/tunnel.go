package packet

import "encoding/binary"

// UDP ports of tunnels. They are assigned to the tunnel and its header is checked beside them.
const (
	portGTPU       = 2152
	portVXLAN      = 4789
	portVXLANGPE   = 4790
	portGeneve     = 6081
	portCapwapData = 5247
	protoIPv4      = 4
	protoIPv6      = 41
	protoGRE       = 47
)

// Tunnel is a kind of tunnel.
type Tunnel uint8

// The kinds. Their String forms are fixed: they are metric labels.
const (
	NoTunnel  Tunnel = iota
	IPInIP           // IPv4 in IP (RFC 2003), IPv6 in IPv6 (RFC 2473)
	SixInFour        // IPv6 in IPv4 (RFC 4213)
	GRE              // RFC 2784, RFC 2890; also ERSPAN, and 802.11 as Aruba's access points send it
	VXLAN            // RFC 7348, and its generic extension
	Geneve           // RFC 8926
	GTPU             // 3GPP TS 29.281
	CAPWAP           // its data with 802.11 or 802.3 frames (RFC 5415, RFC 5416)

	// NumTunnels is the number of kinds, for arrays indexed by Tunnel.
	NumTunnels
)

var tunnelNames = [NumTunnels]string{"none", "ip_in_ip", "6in4", "gre", "vxlan", "geneve", "gtp_u", "capwap"}

// String returns the fixed name of the kind.
func (t Tunnel) String() string {
	if t < NumTunnels {
		return tunnelNames[t]
	}
	return "unknown"
}

// Carrier is the kind of tunnel that the packet belongs to, by its protocol and ports, or NoTunnel. What it carries need not
// be a packet: see Inner.
func (p *Packet) Carrier() Tunnel {
	switch p.Proto {
	case protoIPv4:
		return IPInIP
	case protoIPv6:
		if p.IsV6 {
			return IPInIP
		}
		return SixInFour
	case protoGRE:
		return GRE
	case ProtoUDP:
		switch {
		case p.DstPort == portVXLAN, p.DstPort == portVXLANGPE:
			return VXLAN
		case p.DstPort == portGeneve:
			return Geneve
		case p.DstPort == portGTPU, p.SrcPort == portGTPU:
			return GTPU
		case p.DstPort == portCapwapData, p.SrcPort == portCapwapData:
			return CAPWAP
		}
	}
	return NoTunnel
}

// Inner decodes the packet that p's packet carries in a tunnel into in. frame is the one that p was decoded from, with
// result OK; offsets in in index it too. It returns false, and leaves in undefined, when no IP packet with whole headers
// begins inside; a fragmented tunnel packet is never looked into, so that its flow keeps all of its fragments. in may carry
// another one again. in's VLAN is the inner tag's if there is one, else p's. Rules and meters of the kernel see the outer
// packet only.
//
// in's Tunnel is what tells networks with the same addresses apart: the network identifier of VXLAN or Geneve, or the key of
// GRE; where the tunnel has none, or 0, it is p's. The tunnel endpoint identifiers of GTP-U are left out: the receiver
// chooses them, so that each direction of a flow has its own, and nothing in the packets says which two belong together.
func (p *Packet) Inner(frame []byte, in *Packet) bool {
	kind := p.Carrier()
	if kind == NoTunnel || !p.IsIP || p.Fragment || p.PayloadLen <= 0 {
		return false
	}
	frame = frame[:p.Payload+p.PayloadLen]
	at := p.Payload
	*in = Packet{}
	var r Reason
	switch kind {
	case GRE:
		r = in.gre(frame, at)
	case VXLAN:
		if p.DstPort == portVXLANGPE {
			r = in.vxlanGPE(frame, at)
		} else {
			r = in.vxlan(frame, at)
		}
	case Geneve:
		r = in.geneve(frame, at)
	case GTPU:
		r = in.gtp(frame, at)
	case CAPWAP:
		r = in.capwap(frame, at)
	default:
		if p.Proto == protoIPv4 {
			r = in.network(frame, EtherTypeIPv4, at)
		} else {
			r = in.network(frame, EtherTypeIPv6, at)
		}
	}
	if in.VLAN == 0 {
		in.VLAN = p.VLAN
	}
	if in.Tunnel == 0 {
		in.Tunnel = p.Tunnel
	}
	return r == OK
}

// vni reads the 24 bits of a network identifier, which VXLAN and Geneve have in the same place of their header.
func vni(header []byte) uint32 { return binary.BigEndian.Uint32(header[4:]) >> 8 }

// ethernet decodes an Ethernet frame that begins at off.
func (p *Packet) ethernet(frame []byte, off int) Reason {
	if len(frame) < off+14 {
		return TruncatedEthernet
	}
	return p.network(frame, binary.BigEndian.Uint16(frame[off+12:]), off+14)
}

func (p *Packet) gre(frame []byte, off int) Reason {
	b := frame[off:]
	if len(b) < 4 {
		return TruncatedLink
	}
	flags := binary.BigEndian.Uint16(b)
	if flags&0x4007 != 0 {
		return NotIP // source routing (RFC 1701) and version 1 (PPTP)
	}
	size := 4
	for _, bit := range []uint16{0x8000, 0x2000, 0x1000} { // checksum, key, sequence number
		if flags&bit != 0 {
			size += 4
		}
	}
	if len(b) < size {
		return TruncatedLink
	}
	if flags&0x2000 != 0 {
		key := 4
		if flags&0x8000 != 0 {
			key = 8
		}
		p.Tunnel = binary.BigEndian.Uint32(b[key:])
	}
	switch kind := binary.BigEndian.Uint16(b[2:]); kind {
	case 0x6558: // transparent Ethernet bridging
		return p.ethernet(frame, off+size)
	case 0x88BE: // ERSPAN (draft-foschiano-erspan 4): type II has a header and numbers its packets, type I neither
		if flags&0x1000 != 0 {
			size += 8
		}
		return p.ethernet(frame, off+size)
	case 0x22EB: // type III: a longer header, and perhaps a part of the platform's own
		if len(b) < size+12 {
			return TruncatedLink
		}
		if b[size+11]&1 != 0 {
			size += 8
		}
		return p.ethernet(frame, off+size+12)
	default:
		if kind&^0x01F0 == 0x8200 { // Aruba numbers its tunnels 0x8200, 0x8210 ... 0x83F0
			return p.wlan(frame, off+size)
		}
		return p.network(frame, kind, off+size)
	}
}

func (p *Packet) vxlan(frame []byte, off int) Reason {
	b := frame[off:]
	if len(b) < 8 || b[0]&0x08 == 0 {
		return NotIP
	}
	p.Tunnel = vni(b)
	return p.ethernet(frame, off+8)
}

// vxlanGPE reads the generic extension (draft-ietf-nvo3-vxlan-gpe 3): without the P bit it is plain VXLAN.
func (p *Packet) vxlanGPE(frame []byte, off int) Reason {
	b := frame[off:]
	if len(b) < 8 || b[0]&0x08 == 0 {
		return NotIP
	}
	p.Tunnel = vni(b)
	if b[0]&0x04 == 0 {
		return p.ethernet(frame, off+8)
	}
	switch b[3] {
	case 1:
		return p.network(frame, EtherTypeIPv4, off+8)
	case 2:
		return p.network(frame, EtherTypeIPv6, off+8)
	case 3:
		return p.ethernet(frame, off+8)
	}
	return NotIP
}

// geneve reads a header of version 0 with its options; control packets carry no frame.
func (p *Packet) geneve(frame []byte, off int) Reason {
	b := frame[off:]
	if len(b) < 8 || b[0]&0xC0 != 0 || b[1]&0x80 != 0 {
		return NotIP
	}
	size := 8 + 4*int(b[0]&0x3F)
	if len(b) < size {
		return TruncatedLink
	}
	p.Tunnel = vni(b)
	switch kind := binary.BigEndian.Uint16(b[2:]); kind {
	case 0x6558:
		return p.ethernet(frame, off+size)
	default:
		return p.network(frame, kind, off+size)
	}
}

func (p *Packet) gtp(frame []byte, off int) Reason {
	b := frame[off:]
	if len(b) < 8 || b[0]>>4 != 3 || b[1] != 0xFF { // version 1, protocol GTP, message G-PDU
		return NotIP
	}
	size := 8
	if b[0]&7 != 0 {
		size = 12
		if len(b) < size {
			return TruncatedLink
		}
		for next := b[11]; b[0]&4 != 0 && next != 0; {
			if len(b) < size+1 || b[size] == 0 {
				return TruncatedLink
			}
			step := 4 * int(b[size])
			if len(b) < size+step {
				return TruncatedLink
			}
			size += step
			next = b[size-1]
		}
	}
	if len(b) <= size {
		return TruncatedLink
	}
	switch b[size] >> 4 {
	case 4:
		return p.network(frame, EtherTypeIPv4, off+size)
	case 6:
		return p.network(frame, EtherTypeIPv6, off+size)
	}
	return NotIP
}

func (p *Packet) capwap(frame []byte, off int) Reason {
	b := frame[off:]
	if len(b) < 8 || b[0] != 0 {
		return NotIP // another version, or DTLS behind the preamble
	}
	size := int(b[1]>>3) * 4
	binding := b[2] >> 1 & 0x1F
	native := b[2]&1 != 0
	if size < 8 || len(b) < size || b[3]&0x80 != 0 { // the last is a fragment
		return NotIP
	}
	off += size
	if !native {
		return p.ethernet(frame, off)
	}
	if binding != 1 {
		return NotIP
	}
	return p.wlan(frame, off)
}

// wlan decodes an IEEE 802.11 data frame in clear that carries LLC with SNAP (RFC 1042).
func (p *Packet) wlan(frame []byte, off int) Reason {
	b := frame[off:]
	if len(b) < 24 {
		return TruncatedLink
	}
	control, flags := b[0], b[1]
	if control&0x0F != 0x08 && flags&0x0F == 0x08 {
		control, flags = flags, control // some access points send the field's bytes in the other order
	}
	if control&0x0F != 0x08 || control&0x40 != 0 || flags&0x40 != 0 { // not data, or null, or protected
		return NotIP
	}
	size := 24
	if flags&3 == 3 {
		size += 6
	}
	if control&0x80 != 0 {
		size += 2 // quality of service
		if flags&0x80 != 0 {
			size += 4
		}
	}
	if len(b) < size+8 {
		return TruncatedLink
	}
	if llc := b[size:]; llc[0] != 0xAA || llc[1] != 0xAA || llc[2] != 3 || llc[3]|llc[4]|llc[5] != 0 {
		return NotIP
	}
	return p.network(frame, binary.BigEndian.Uint16(b[size+6:]), off+size+8)
}
