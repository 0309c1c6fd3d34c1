package flowtable

import (
	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
)

// stream follows the sequence numbers of one direction, which wrap (RFC 9293 3.4), so that segments carry their place
// and what was sent again is told from what is new. One gap is remembered; a further one beside it makes it longer, so
// what lies between the two may be sent to classify twice, never lost.
type stream struct {
	base       uint32 // sequence number of offset 0
	next       uint32 // sequence number behind the highest one seen
	gapLo, gap uint32 // first sequence number of the gap and how many it has, 0 = none
	gapUs      uint32 // when it was made
}

// farther is more than a window can be (RFC 7323 2.3): what is so far off belongs to another connection or comes after
// what was not seen.
const farther = 1 << 30

// place takes note of n sequence numbers from seq on, n > 0. What is new of them is [lo, hi), counted from seq, as far
// as it is in one piece. again: the first was there before, and not just overtaken; what fills a gap after lateUs
// or more microseconds was sent again. While the gap is wanted it is kept whatever its age; else a late one gives way to a
// newer one.
func (s *stream) place(seq, n, nowUs, lateUs uint32, wanted bool) (lo, hi uint32, again bool) {
	at := int32(seq - s.next)                                    //nolint:gosec // sequence numbers wrap
	late := nowUs-s.gapUs >= lateUs && int32(nowUs-s.gapUs) >= 0 //nolint:gosec // times wrap
	switch {
	case at == 0:
		s.next += n
		return 0, n, false
	case at > farther || at < -farther:
		*s = stream{base: s.base, next: seq + n}
		return 0, n, false
	case at > 0:
		if s.gap == 0 || late && !wanted {
			s.gapLo, s.gapUs = s.next, nowUs
		}
		s.gap = seq - s.gapLo
		s.next = seq + n
		return 0, n, false
	}
	// Places in the gap: where the segment begins and ends, of which the first may be before it.
	from, to := int64(int32(seq-s.gapLo)), int64(int32(seq-s.gapLo))+int64(n) //nolint:gosec // sequence numbers wrap
	if ahead := uint32(-at); n > ahead {
		s.next = seq + n
		if s.gap != 0 && from < int64(s.gap) {
			// It fills the gap and goes on behind it; what lies between is sent again.
			s.gap = 0
			return uint32(max(0, -from)), n, late || from < 0 //nolint:gosec // below n
		}
		// One byte of it was there before: what asked for room (RFC 9293 3.8.6.1).
		return ahead, n, ahead > 1
	}
	first, last := max(from, 0), min(to, int64(s.gap))
	if s.gap == 0 || first >= last {
		return 0, 0, true
	}
	if first == 0 {
		s.gapLo += uint32(last) //nolint:gosec // in the gap
		s.gap -= uint32(last)   //nolint:gosec // in the gap
	} else {
		s.gap = uint32(first) //nolint:gosec // in the gap
	}
	return uint32(first - from), uint32(last - from), late || from < 0 //nolint:gosec // at most n
}

// padding tells whether what looks like payload is an acknowledgement's filling up to the least length of an Ethernet
// frame, which some devices count as the packet's own: zeros, no more than 6, and no push. The stream's bytes come
// at the same place.
func padding(p *packet.Packet, payload []byte) bool {
	if len(payload) == 0 || len(payload) > 6 || p.TCPFlags != packet.FlagACK {
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

// segment appends payload of direction d, which begins at off, to the batch, as far as the limits allow. It sends the
// open first.
func (t *Table) segment(i uint32, e *entry, d int, off uint32, payload []byte, nowNs int64, out *Out) {
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
