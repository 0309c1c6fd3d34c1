package flowtable

import (
	"encoding/binary"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
)

// ImpossibleFlags tells whether no TCP stack sends this combination: neither SYN, RST nor ACK (null, FIN alone,
// xmas), SYN with FIN or RST, FIN with RST (RFC 9293 3.10.7 gives no case that produces them).
func ImpossibleFlags(f uint8) bool {
	const syn, fin, rst = packet.FlagSYN, packet.FlagFIN, packet.FlagRST
	return f&(syn|rst|packet.FlagACK) == 0 || f&syn != 0 && f&(fin|rst) != 0 || f&fin != 0 && f&rst != 0
}

// kind tells what a flow's first packet means; see Observation.
func kind(p *packet.Packet, payload bool) (attempt, invalid, outOfState bool) {
	if p.Proto == packet.ProtoTCP && !p.LaterFragment {
		f := p.TCPFlags
		invalid = ImpossibleFlags(f)
		outOfState = f&(packet.FlagSYN|packet.FlagACK) != packet.FlagSYN
		switch {
		case invalid:
			attempt = true
		case !outOfState:
			attempt = true
		case f&(packet.FlagSYN|packet.FlagRST|packet.FlagFIN) == 0:
			attempt = !payload // an ACK out of nowhere; with payload it is a connection in mid-stream
		}
		return attempt && !multicast(&p.Dst), invalid, outOfState
	}
	if p.LaterFragment || multicast(&p.Dst) || p.Src == p.Dst {
		return false, false, false
	}
	switch p.Proto {
	case packet.ProtoUDP:
		attempt = p.DstPort < 1024 || !ReflectorPort(p.SrcPort)
	case packet.ProtoICMP:
		switch p.ICMPType {
		case 8, 13, 15, 17: // echo, timestamp, information, address mask (RFC 792, RFC 950)
			attempt = true
		}
	case packet.ProtoICMPv6:
		attempt = p.ICMPType == 128 || p.ICMPType == 139 // echo (RFC 4443), node information (RFC 4620)
	default:
		attempt = true
	}
	return attempt, false, false
}

// multicast tells whether an address is multicast or the limited broadcast.
func multicast(a *[16]byte) bool {
	if a[0] == 0xFF {
		return true
	}
	v4 := a[10] == 0xFF && a[11] == 0xFF && binary.LittleEndian.Uint64(a[:8]) == 0
	return v4 && (a[12]>>4 == 0xE || a[12] == 0xFF && a[13] == 0xFF && a[14] == 0xFF && a[15] == 0xFF)
}

// reflectorPorts are UDP services that answer a small question with much.
var reflectorPorts = func() (set [65536 / 64]uint64) {
	for _, p := range []uint16{
		17, 19, 53, 69, 111, 123, 137, 161, 177, 389, 427, 500, 520, 1434, 1900, 3283, 3478, 3702, 4500, 5093, 5353,
		5683, 10001, 10074, 11211, 17185, 27015, 27960, 30718, 32414, 37810, 41794, 47808,
	} {
		set[p/64] |= 1 << (p % 64)
	}
	return set
}()

// ReflectorPort tells whether a UDP port is a well-known reflector's: quotd 17, chargen 19, DNS 53, TFTP 69,
// portmap 111, NTP 123, NetBIOS 137, SNMP 161, XDMCP 177, CLDAP 389, SLP 427, IKE 500 and 4500, RIP 520,
// MS SQL 1434, SSDP 1900, ARMS 3283, STUN 3478, WS-Discovery 3702, Sentinel 5093, mDNS 5353, CoAP 5683, Ubiquiti
// 10001, TP-240 10074, memcached 11211, VxWorks 17185, game servers 27015 and 27960, Lantronix 30718, Plex 32414,
// DHDiscover 37810, Crestron 41794, BACnet 47808.
func ReflectorPort(port uint16) bool { return reflectorPorts[port/64]>>(port%64)&1 != 0 }

// unreachable finds the attempt that an ICMP destination-unreachable message quotes (RFC 792, RFC 4443 3.1).
func (t *Table) unreachable(p *packet.Packet, quote []byte, nowNs int64, o *Observation) {
	k, ok := quoted(p, quote)
	if !ok {
		return
	}
	if k.Src == p.Dst {
		if i, e, reverse, ok := t.find(t.hash(&k), &k); ok {
			if !reverse && e.state&(attempt|failed|answered|handshake) == attempt {
				t.fail(i, e, Unreachable, nowNs)
				o.Failed, o.Failure = true, &t.failure
			}
			return
		}
	}
	if p.Proto == packet.ProtoICMP && p.ICMPCode == 2 && p.Src != p.Dst && !multicast(&p.Dst) {
		// Only the destination itself says that it lacks a protocol (RFC 1122 3.2.2.1), so the outer addresses
		// tell who asked whom, also behind address translation and when the question took another path.
		t.failure = Failure{
			Key:     flow.Key{Src: p.Dst, Dst: p.Src, VLAN: p.VLAN, Protocol: k.Protocol, Tunnel: p.Tunnel},
			FirstNs: nowNs, AtNs: nowNs, Reason: Unreachable,
		}
		o.Failed, o.Failure = true, &t.failure
	}
}

// quoted reads the flow key from the packet that an ICMP error carries.
func quoted(p *packet.Packet, b []byte) (k flow.Key, ok bool) {
	k.VLAN, k.Tunnel = p.VLAN, p.Tunnel
	if p.IsV6 {
		if len(b) < 40 || b[0]>>4 != 6 {
			return k, false
		}
		k.Src, k.Dst, k.Protocol = [16]byte(b[8:24]), [16]byte(b[24:40]), b[6]
		b = b[40:]
	} else {
		if len(b) < 20 || b[0]>>4 != 4 {
			return k, false
		}
		header := int(b[0]&0xF) * 4
		if header < 20 || len(b) < header || binary.BigEndian.Uint16(b[6:])&0x1FFF != 0 {
			return k, false
		}
		k.Src[10], k.Src[11], k.Dst[10], k.Dst[11] = 0xFF, 0xFF, 0xFF, 0xFF
		copy(k.Src[12:], b[12:16])
		copy(k.Dst[12:], b[16:20])
		k.Protocol = b[9]
		b = b[header:]
	}
	switch k.Protocol {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoSCTP:
		if len(b) < 4 {
			return k, false
		}
		k.SrcPort, k.DstPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	}
	return k, true
}
