package flowtable

import (
	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
)

// stream follows one direction's TCP payload, so that segments carry their place and retransmits are not sent
// twice. One hole is remembered for segments that arrive out of order; with more holes a segment between them
// may be sent twice, never lost.
type stream struct {
	base           uint32 // sequence number of offset 0
	next           uint32 // offset behind the highest byte sent
	holeLo, holeHi uint32 // offsets skipped below next
}

// place trims payload at sequence number seq to what was not sent yet and returns its offset.
func (s *stream) place(seq uint32, payload []byte) (uint32, []byte) {
	off := seq - s.base
	if int32(off) < 0 { //nolint:gosec // sequence numbers wrap (RFC 9293 3.4)
		before := -off
		if before >= uint32(len(payload)) { //nolint:gosec // at most 65,535
			return 0, nil
		}
		payload, off = payload[before:], 0
	}
	end := off + uint32(len(payload)) //nolint:gosec // at most 65,535
	if end <= s.next {
		lo, hi := max(off, s.holeLo), min(end, s.holeHi)
		if lo >= hi {
			return 0, nil
		}
		if lo == s.holeLo {
			s.holeLo = hi
		} else {
			s.holeHi = lo
		}
		return lo, payload[lo-off : hi-off]
	}
	switch {
	case off < s.next && s.holeHi > s.holeLo && off < s.holeHi:
		// It fills the hole and goes on behind it; what lies between is sent again.
		s.holeLo, s.holeHi = 0, 0
	case off < s.next:
		payload, off = payload[s.next-off:], s.next
	case off > s.next:
		if s.holeHi == s.holeLo {
			s.holeLo = s.next
		}
		s.holeHi = off
	}
	s.next = end
	return off, payload
}

// padding tells whether what looks like payload is an acknowledgement's filling up to the least length of an Ethernet
// frame, which some devices count as the packet's own: zeros, no more than 6, and no push. The stream's bytes come
// at the same place.
func padding(p *packet.Packet, payload []byte) bool {
	if len(payload) > 6 || p.TCPFlags != packet.FlagACK {
		return false
	}
	for _, c := range payload {
		if c != 0 {
			return false
		}
	}
	return true
}

// cost is what sending so much payload of e takes of the budget: a flow that is told of is also told of when it ends.
func cost(e *entry, payload int) int {
	n := flow.SegmentBytes + payload
	if e.state&opened == 0 {
		n += flow.OpenBytes + flow.EndBytes
	}
	return n
}

// segment appends payload of direction d to the batch, as far as the limits allow. It sends the open first.
func (t *Table) segment(i uint32, e *entry, d int, p *packet.Packet, payload []byte, nowNs int64, out *Out) {
	if t.cfg.SegmentBudget > 0 {
		budget := t.cfg.SegmentBudget
		if e.state&answered != 0 {
			budget *= 2
		}
		if t.sent+cost(e, min(len(payload), MaxSegmentBytes)) > budget {
			t.stats.Withheld++
			return
		}
	}
	off := uint32(e.sentBytes[d]) // of datagrams: all before were sent whole
	if p.Proto == packet.ProtoTCP {
		if padding(p, payload) {
			return
		}
		s := &t.streams[i][d]
		seq := p.Seq
		if p.TCPFlags&packet.FlagSYN != 0 {
			seq++
		}
		if e.state&(baseFwd<<d) == 0 {
			e.state |= baseFwd << d
			*s = stream{base: seq}
		}
		off, payload = s.place(seq, payload)
		if len(payload) == 0 {
			return
		}
	}
	if left := MaxSegmentBytes - int(e.sentBytes[d]); len(payload) > left {
		payload = payload[:left]
	}
	t.sent += cost(e, len(payload))
	t.open(i, e, out)
	flow.AppendSegment(out.of(&e.key), t.id(i, e), uint8(d), off, nowNs, payload) //nolint:gosec // 0 or 1
	e.sentPackets[d]++
	e.sentBytes[d] += uint16(len(payload)) //nolint:gosec // at most MaxSegmentBytes
	if e.sentPackets[d] >= MaxSegments || e.sentBytes[d] >= MaxSegmentBytes {
		e.state |= doneFwd << d
	}
}

// open sends the open record unless it was sent. It must be called before a second packet is counted: the first
// packet's length and flags are read from the counters.
func (t *Table) open(i uint32, e *entry, out *Out) {
	if e.state&opened != 0 {
		return
	}
	e.state |= opened
	flow.AppendOpen(out.of(&e.key), &flow.Open{
		ID: t.id(i, e), Key: e.key, FirstNs: e.first, TCPFlags: e.flags[0],
		IPLength: uint16(min(e.bytes[0], 0xFFFF)), TTL: e.ttl, PortIndex: e.port, //nolint:gosec // bounded on the left
	})
}
