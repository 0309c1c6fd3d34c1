// Package flow holds what the services agree on about flows: the key, and the columns in which records
// cross from ingest to classify.
package flow

import (
	"encoding/binary"
	"net/netip"
	"strconv"
)

// ProtocolARP is the protocol number that flow keys use for ARP, which has no IP protocol. IANA leaves
// 0xFE for experiments (RFC 3692).
const ProtocolARP = 0xFE

// Key identifies a flow in one direction. Addresses are 16 bytes; IPv4 is IPv4-mapped (RFC 4291 2.5.5.2).
// Ports are 0 for protocols without ports. A Key is comparable and has no pointers.
type Key struct {
	Src, Dst         [16]byte
	SrcPort, DstPort uint16
	VLAN             uint16 // outermost VLAN id, 0 = untagged
	Protocol         uint8
	Tunnel           uint32 // id of the network that the tunnel carries, see packet.Packet.Inner; 0 = none
}

// Reverse returns the key of the other direction.
func (k Key) Reverse() Key {
	k.Src, k.Dst = k.Dst, k.Src
	k.SrcPort, k.DstPort = k.DstPort, k.SrcPort
	return k
}

// Addr turns a 16-byte address into a netip.Addr, IPv4 unmapped.
func Addr(b [16]byte) netip.Addr { return netip.AddrFrom16(b).Unmap() }

// AddrBytes is Addr for a slice of 16 bytes; any other length gives the zero Addr.
func AddrBytes(b []byte) netip.Addr {
	if len(b) != 16 {
		return netip.Addr{}
	}
	return Addr([16]byte(b))
}

// ProtocolName is the lower-case name of an IANA protocol number, or the number itself.
func ProtocolName(p uint8) string {
	switch p {
	case 1:
		return "icmp"
	case 2:
		return "igmp"
	case 4:
		return "ipip"
	case 6:
		return "tcp"
	case 17:
		return "udp"
	case 41:
		return "ipv6"
	case 47:
		return "gre"
	case 50:
		return "esp"
	case 51:
		return "ah"
	case 58:
		return "icmpv6"
	case 89:
		return "ospf"
	case 103:
		return "pim"
	case 112:
		return "vrrp"
	case 132:
		return "sctp"
	case ProtocolARP:
		return "arp"
	}
	return strconv.Itoa(int(p))
}

// Column reads column values of fixed size; see tidegate.flow.v1.FlowBatch.
type Column []byte

// U8 returns value i.
func (c Column) U8(i int) uint8 { return c[i] }

// U16 returns value i.
func (c Column) U16(i int) uint16 { return binary.LittleEndian.Uint16(c[2*i:]) }

// U32 returns value i.
func (c Column) U32(i int) uint32 { return binary.LittleEndian.Uint32(c[4*i:]) }

// U32OrZero returns value i of a column that ends with its last value other than 0.
func (c Column) U32OrZero(i int) uint32 {
	if 4*i >= len(c) {
		return 0
	}
	return c.U32(i)
}

// U64 returns value i.
func (c Column) U64(i int) uint64 { return binary.LittleEndian.Uint64(c[8*i:]) }

// IP returns the 16-byte address i.
func (c Column) IP(i int) [16]byte { return [16]byte(c[16*i : 16*i+16]) }
