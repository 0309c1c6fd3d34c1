package window

import (
	"math/bits"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"github.com/tidegate-mesh/tidegate/services/ingest/internal/flowtable"
)

// Places in counters.n.
const (
	cPackets = iota
	cTCP
	cUDP
	cICMP
	cOther
	cFragments
	cSYN
	cSYNACK
	cRST
	cFIN
	cACKOnly
	cHandshakes
	cOpens
	cOutOfState
	numCounters
)

type counters struct {
	bytes uint64
	n     [numCounters]uint64
}

// add counts packets in the places that the bits of m name.
func (c *counters) add(m uint32, packets, bytes uint64) {
	c.bytes += bytes
	for ; m != 0; m &= m - 1 {
		c.n[bits.TrailingZeros32(m)&15%numCounters] += packets
	}
}

func (c *counters) merge(o *counters) {
	c.bytes += o.bytes
	for i := range c.n {
		c.n[i] += o.n[i]
	}
}

func protocolBit(p uint8) uint32 {
	switch p {
	case packet.ProtoTCP:
		return 1 << cTCP
	case packet.ProtoUDP:
		return 1 << cUDP
	case packet.ProtoICMP, packet.ProtoICMPv6:
		return 1 << cICMP
	}
	return 1 << cOther
}

// counted is the set of counters that a packet adds to.
func counted(p *packet.Packet, o *flowtable.Observation) uint32 {
	m := uint32(1) << cPackets
	if !p.IsIP {
		return m | protocolBit(flow.ProtocolARP)
	}
	m |= protocolBit(p.Proto)
	if p.Fragment {
		m |= 1 << cFragments
	}
	if p.Proto == packet.ProtoTCP && !p.LaterFragment {
		f := p.TCPFlags
		switch f & (packet.FlagSYN | packet.FlagACK) {
		case packet.FlagSYN:
			m |= 1 << cSYN
		case packet.FlagSYN | packet.FlagACK:
			m |= 1 << cSYNACK
		}
		if f&packet.FlagRST != 0 {
			m |= 1 << cRST
		}
		if f&packet.FlagFIN != 0 {
			m |= 1 << cFIN
		}
		if f&(packet.FlagSYN|packet.FlagACK|packet.FlagRST|packet.FlagFIN) == packet.FlagACK && p.PayloadLen == 0 {
			m |= 1 << cACKOnly
		}
	}
	if o.New {
		m |= 1 << cOpens
		if o.OutOfState {
			m |= 1 << cOutOfState
		}
	}
	if o.Handshake {
		m |= 1 << cHandshakes
	}
	return m
}

func (c *counters) encode(m *flowv1.Counters) *flowv1.Counters {
	if m == nil {
		m = &flowv1.Counters{}
	}
	m.Packets, m.Bytes = c.n[cPackets], c.bytes
	m.Tcp, m.Udp, m.Icmp, m.Other, m.Fragments = c.n[cTCP], c.n[cUDP], c.n[cICMP], c.n[cOther], c.n[cFragments]
	m.Syn, m.SynAck, m.Rst, m.Fin, m.AckOnly = c.n[cSYN], c.n[cSYNACK], c.n[cRST], c.n[cFIN], c.n[cACKOnly]
	m.Handshakes, m.Opens, m.OutOfState = c.n[cHandshakes], c.n[cOpens], c.n[cOutOfState]
	return m
}

// LengthClass is the place of an IP length in a Target's length histogram: class i holds lengths from 2^i to
// below 2^(i+1); lengths 0 and 1 are in class 0.
func LengthClass(length uint16) int { return max(bits.Len16(length)-1, 0) }
