// Package header reads the header samples of windows: what detectors and verdicts need of a packet.
package header

import (
	"encoding/binary"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

// linkRaw is the pcap link type of packets that begin with their IP header.
const linkRaw = 101

// Facts are the fields of one sampled packet that a rule can match on, and its time. Facts is comparable
// and has no pointers, so rings of it cost no garbage.
type Facts struct {
	Src, Dst         [16]byte // IPv4 is IPv4-mapped
	TimeNs           int64    // Unix ns
	SrcPort, DstPort uint16
	Length           uint16 // IP length on the wire
	TTL              uint8
	Protocol         uint8
	Flags            uint8 // TCP
	ICMPType         uint8
	ICMPCode         uint8
	Fragment         bool // first or later
	Later            bool // later fragment: ports and flags unknown
	V6               bool

	Asks Request // what the payload begins with
	Name uint32  // hash of the resource or name asked for
	Zone uint32  // hash of the last two labels of a name asked for
}

// Parse reads a sample. ok is false when not even its IP header is whole.
func Parse(s *flowv1.HeaderSample) (Facts, bool) {
	var p packet.Packet
	if r := p.DecodeLink(linkRaw, s.GetHeader()); r.Undecodable() && p.L4 == 0 || !p.IsIP {
		return Facts{}, false
	}
	f := Facts{
		Src: p.Src, Dst: p.Dst, TimeNs: s.GetTimeNs(), SrcPort: p.SrcPort, DstPort: p.DstPort, Length: p.IPLen,
		TTL: p.TTL, Protocol: p.Proto, Flags: p.TCPFlags, ICMPType: p.ICMPType, ICMPCode: p.ICMPCode,
		Fragment: p.Fragment, Later: p.LaterFragment, V6: p.IsV6,
	}
	if n := s.GetLength(); n > 0 && n <= 65535 {
		f.Length = uint16(n)
	}
	f.request(&p, s.GetHeader())
	return f, true
}

// Matched reports whether a rule with this match would select the packet.
func (f *Facts) Matched(m *policy.Match) bool {
	if m.Src.IsValid() && !m.Src.Contains(flow.Addr(f.Src)) || m.Dst.IsValid() && !m.Dst.Contains(flow.Addr(f.Dst)) {
		return false
	}
	if m.HasProtocol && m.Protocol != f.Protocol {
		return false
	}
	if f.Later && (m.HasSrcPort || m.HasDstPort || m.TCPFlagsMask != 0) {
		return false
	}
	if m.HasSrcPort && m.SrcPort != f.SrcPort || m.HasDstPort && m.DstPort != f.DstPort {
		return false
	}
	if f.Flags&m.TCPFlagsMask != m.TCPFlags {
		return false
	}
	if f.Length < m.LengthMin || m.LengthMax != 0 && f.Length > m.LengthMax {
		return false
	}
	if f.TTL < m.TTLMin || m.TTLMax != 0 && f.TTL > m.TTLMax {
		return false
	}
	switch m.Fragment {
	case policy.FragmentsOnly:
		return f.Fragment
	case policy.WholeOnly:
		return !f.Fragment
	}
	return true
}

// Inner reads the packet that an ICMP error quotes (RFC 792, RFC 4443 2.4): its addresses and protocol.
func Inner(sample []byte) (src, dst [16]byte, protocol uint8, ok bool) {
	var p packet.Packet
	p.DecodeLink(linkRaw, sample)
	if p.L4 == 0 || (p.Proto != packet.ProtoICMP && p.Proto != packet.ProtoICMPv6) || len(sample) < p.L4+8 {
		return src, dst, 0, false
	}
	q := sample[p.L4+8:]
	switch {
	case len(q) >= 20 && q[0]>>4 == 4:
		src[10], src[11], dst[10], dst[11] = 0xFF, 0xFF, 0xFF, 0xFF
		copy(src[12:], q[12:16])
		copy(dst[12:], q[16:20])
		return src, dst, q[9], true
	case len(q) >= 40 && q[0]>>4 == 6:
		copy(src[:], q[8:24])
		copy(dst[:], q[24:40])
		return src, dst, q[6], true
	}
	return src, dst, 0, false
}

// Answer reports whether a sampled UDP packet is by its content or ports the answer of a server: such
// packets begin no scan, whoever sent them.
func Answer(sample []byte) bool {
	var p packet.Packet
	p.DecodeLink(linkRaw, sample)
	if p.Proto != packet.ProtoUDP || p.L4 == 0 || p.LaterFragment || len(sample) < p.L4+8 {
		return false
	}
	body := sample[p.L4+8:]
	switch p.SrcPort {
	case 53: // RFC 1035 4.1.1: QR
		return len(body) >= 3 && body[2]&0x80 != 0
	case 123: // RFC 5905 7.3: modes 2, 4, 5; mode 6 and 7 carry a response bit of their own
		if len(body) < 1 {
			return false
		}
		switch body[0] & 7 {
		case 2, 4, 5:
			return true
		case 6:
			return len(body) >= 2 && body[1]&0x80 != 0
		case 7:
			return body[0]&0x80 != 0
		}
		return false
	}
	return Reflector(p.SrcPort) && !Reflector(p.DstPort) && binary.BigEndian.Uint16(sample[p.L4+4:]) > 16
}

// Reflector tells ports of services that amplification attacks misuse (US-CERT TA14-017A and later lists).
func Reflector(port uint16) bool {
	switch port {
	case 17, 19, 53, 69, 111, 123, 137, 161, 177, 389, 427, 500, 520, 1434, 1900, 3283, 3478, 3702, 4500, 5060, 5093, 5353, 5683,
		10001, 10074, 11211, 17185, 27015, 27960, 30120, 30718, 32414, 37810, 41794, 47808:
		return true
	}
	return false
}
