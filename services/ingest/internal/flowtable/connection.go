package flowtable

import (
	"time"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
)

// connection is what is kept of a TCP flow beside its entry, in half a cache line that only a SYN, a FIN, payload and the
// end of the handshake touch. It is valid once the entry's state has tracked.
type connection struct {
	stream      [2]stream
	retransmits [2]uint32 // segments of this part
	// Of the handshake, in microseconds that wrap after 71 minutes. server is when its newest SYN passed until the state has
	// synAnswered, then the server's part of the round trip; client is when the newest SYN-ACK passed until the state has
	// handshake, then the client's part. Parts are as in flow.TCP, 0 = not known.
	server, client uint32
}

// reordering is how long after a gap what fills it counts as late by another way, while the round trip is not known.
// Later it was sent again: a sender learns of a loss no earlier than a round trip after it (RFC 8985 6.2).
const reordering = 3 * time.Millisecond

// roundTrip is the two parts of the handshake's round trip, 0 = not known.
func (c *connection) roundTrip(e *entry) (client, server uint32) {
	if e.state&synAnswered == 0 {
		return 0, 0
	}
	if e.state&handshake != 0 {
		client = c.client
	}
	return client, c.server
}

// late is the time between a gap and what fills it, in microseconds, from which on that was sent again.
func (c *connection) late(e *entry) uint32 {
	if client, server := c.roundTrip(e); client != 0 && server != 0 {
		return client + server
	}
	return uint32(reordering / time.Microsecond)
}

// micros is a time for connection and stream.
func micros(ns int64) uint32 { return uint32(ns / 1000) } //nolint:gosec // it wraps

// since is the time between two packets, at least 1, so that it is told from 0, which is no time: a capture's clock may go
// backwards.
func since(fromUs, toUs uint32) uint32 {
	d := int32(toUs - fromUs) //nolint:gosec // times wrap
	if d < 0 {
		return 0
	}
	return max(uint32(d), 1)
}

// connection returns a flow's, empty when it is the first time.
func (t *Table) connection(i uint32, e *entry) *connection {
	c := &t.connections[i]
	if e.state&tracked == 0 {
		e.state |= tracked
		*c = connection{}
	}
	return c
}

// synchronise takes a SYN of direction d, with or without ACK, and tells whether it was there before: the same sequence
// number again (RFC 9293 3.8.1: a SYN is sent again like data). Another sequence number before anything else was
// sent begins another attempt between the same ports.
func (t *Table) synchronise(i uint32, e *entry, d int, p *packet.Packet, nowNs int64) (again bool) {
	c, first := &t.connections[i], p.Seq+1
	switch s := &c.stream[d]; {
	case e.state&(baseFwd<<d) != 0 && s.base == first:
		again = true
	case e.state&(baseFwd<<d) == 0 || e.state&(handshake|data) == 0:
		t.start(i, e, d, first)
	default:
		return false // none of this connection (RFC 5961 4)
	}
	if e.state&(syn|handshake) != syn {
		return again
	}
	switch now := micros(nowNs); {
	case d == 0:
		c.server = now
		e.state &^= synAnswered
	case p.TCPFlags&packet.FlagACK != 0 && within(p.Ack, &c.stream[0]):
		c.client = now
		if e.state&synAnswered == 0 {
			if part := since(c.server, now); part != 0 {
				c.server = part
				e.state |= synAnswered
			}
		}
	}
	return again
}

// within tells whether ack acknowledges a stream's SYN, and nothing that was not sent.
func within(ack uint32, s *stream) bool {
	return ack-s.base <= s.next-s.base
}

// established takes the packet that completes the handshake.
func (t *Table) established(i uint32, e *entry, p *packet.Packet, nowNs int64) {
	if e.state&synAnswered == 0 {
		return
	}
	c := &t.connections[i]
	if e.state&baseRev == 0 || p.TCPFlags&packet.FlagACK == 0 || !within(p.Ack, &c.stream[1]) {
		c.client = 0
		return
	}
	c.client = since(c.client, micros(nowNs))
}

// sequence follows the sequence numbers of a packet with SYN, FIN or payload, counts it if it was sent again, and returns
// the part of its payload that was not seen before, with its place in the stream.
//
// Sent again is a segment that begins with what was there before, one a packet, SYN and FIN included. Not counted are
// what fills a gap sooner than it can have been sent again; a byte or none before the next one, which asks whether the
// other side is still there (keep-alive, RFC 9293 3.8.4) or has room (zero-window probe, 3.8.6.1), and data that goes
// on from such a byte; and acknowledgements.
func (t *Table) sequence(i uint32, e *entry, d int, p *packet.Packet, payload []byte, n uint32, nowNs int64) (off uint32, fresh []byte) {
	c := t.connection(i, e)
	s, seq, again := &c.stream[d], p.Seq, false
	if p.TCPFlags&packet.FlagSYN != 0 {
		again = t.synchronise(i, e, d, p, nowNs)
		seq++
	}
	if n > 0 {
		if e.state&(baseFwd<<d) == 0 {
			t.start(i, e, d, seq)
		}
		lo, hi, old := t.place(i, e, d, seq, n, micros(nowNs))
		asks := n == 1 && seq+1 == s.next && p.TCPFlags&(packet.FlagSYN|packet.FlagFIN) == 0
		again = again || old && !asks
		if hi = min(hi, uint32(len(payload))); lo < hi { //nolint:gosec // at most 65,535; cut captures have less than n
			off, fresh = seq+lo-s.base, payload[lo:hi]
		}
	}
	if again {
		c.retransmits[d]++
	}
	return off, fresh
}

// facts is what a flow's end tells of its connection.
func (t *Table) facts(i uint32, e *entry) flow.TCP {
	if e.state&tracked == 0 || e.part == 0 && e.packets[0]+e.packets[1] <= 1 {
		return flow.TCP{} // of a single packet there is nothing to tell, and a flood's need not be read
	}
	c := &t.connections[i]
	x := flow.TCP{RetransmitsFwd: c.retransmits[0], RetransmitsRev: c.retransmits[1]}
	x.RTTClientUs, x.RTTServerUs = c.roundTrip(e)
	return x
}
