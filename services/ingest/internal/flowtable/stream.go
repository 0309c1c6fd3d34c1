package flowtable

import (
	"math/bits"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
)

// stream follows the sequence numbers of one direction, which wrap (RFC 9293 3.4), so that segments carry their place
// and what was sent again is told from what is new. One gap is remembered; a further one beside it makes it longer, so
// what lies between the two may be sent to classify twice.
type stream struct {
	base uint32 // sequence number of offset 0
	next uint32 // sequence number behind the highest one seen
}

// gap is what a stream passed over and has not seen since. Few streams have one at a time, so the table has places for a
// part of them only, and a stream that needs a taken one takes it: what fills the other's gap then counts as sent again.
type gap struct {
	flow   uint64 // whose it is, the direction by the place; 0 = nobody's
	lo, n  uint32 // first sequence number and how many
	madeUs uint32
}

// gapSlots is the number of places, a power of two.
func gapSlots(flows int) int { return max(1024, 1<<bits.Len(uint(flows/32))) } //nolint:gosec // positive

// gap returns the place of a stream's gap, which may be another's.
func (t *Table) gap(i uint32, d int) *gap {
	return &t.gaps[(uint64(i)<<1|uint64(d))&uint64(len(t.gaps)-1)] //nolint:gosec // 0 or 1
}

// start begins a stream of direction d at a sequence number.
func (t *Table) start(i uint32, e *entry, d int, seq uint32) {
	e.state |= baseFwd << d
	t.connections[i].stream[d] = stream{base: seq, next: seq}
	if g := t.gap(i, d); g.flow == t.id(i, e) {
		*g = gap{}
	}
}

// farther is more than a window can be (RFC 7323 2.3): what is so far off belongs to another connection or comes after
// what was not seen.
const farther = 1 << 30

// place takes note of n sequence numbers of direction d from seq on, n > 0. What is new of them is [lo, hi), counted from
// seq, as far as it is in one piece. again: the first was there before, and not just overtaken; what fills a gap a round
// trip after it or later was sent again.
func (t *Table) place(i uint32, e *entry, d int, seq, n, nowUs uint32) (lo, hi uint32, again bool) {
	c := &t.connections[i]
	s := &c.stream[d]
	if seq == s.next {
		s.next += n
		return 0, n, false
	}
	slot, id := t.gap(i, d), t.id(i, e)
	var g gap
	if slot.flow == id {
		g = *slot
	}
	// While payload is wanted a gap is kept whatever its age; else a late one gives way to a newer one.
	lo, hi, again = s.jump(&g, seq, n, nowUs, c.late(e), e.state&(doneFwd<<d) == 0)
	switch {
	case g.n > 0:
		g.flow = id
		*slot = g
	case slot.flow == id:
		*slot = gap{}
	}
	return lo, hi, again
}

// jump is place for what does not follow the highest sequence number seen. g is the stream's gap, none if n is 0.
func (s *stream) jump(g *gap, seq, n, nowUs, lateUs uint32, wanted bool) (lo, hi uint32, again bool) {
	at := int32(seq - s.next)                                      //nolint:gosec // sequence numbers wrap
	late := nowUs-g.madeUs >= lateUs && int32(nowUs-g.madeUs) >= 0 //nolint:gosec // times wrap
	switch {
	case at > farther || at < -farther:
		s.next, g.n = seq+n, 0
		return 0, n, false
	case at > 0:
		if g.n == 0 || late && !wanted {
			g.lo, g.madeUs = s.next, nowUs
		}
		g.n = seq - g.lo
		s.next = seq + n
		return 0, n, false
	}
	// Places in the gap: where the segment begins and ends, of which the first may be before it.
	from, to := int64(int32(seq-g.lo)), int64(int32(seq-g.lo))+int64(n) //nolint:gosec // sequence numbers wrap
	if ahead := uint32(-at); n > ahead {
		s.next = seq + n
		if g.n != 0 && from < int64(g.n) {
			// It fills the gap and goes on behind it; what lies between is sent again.
			g.n = 0
			return uint32(max(0, -from)), n, late || from < 0 //nolint:gosec // below n
		}
		// One byte of it was there before: what asked for room (RFC 9293 3.8.6.1).
		return ahead, n, ahead > 1
	}
	first, last := max(from, 0), min(to, int64(g.n))
	if g.n == 0 || first >= last {
		return 0, 0, true
	}
	if first == 0 {
		g.lo += uint32(last) //nolint:gosec // in the gap
		g.n -= uint32(last)  //nolint:gosec // in the gap
	} else {
		g.n = uint32(first) //nolint:gosec // in the gap
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
