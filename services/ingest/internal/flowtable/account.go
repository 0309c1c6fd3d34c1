package flowtable

import (
	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

// Account counts an IP packet in its flow and appends what has to be told of it to out. payload is what follows
// the transport header and is copied. port is the sensor's interface. Times are Unix ns.
func (t *Table) Account(p *packet.Packet, payload []byte, nowNs int64, port uint8, out *Out) Observation {
	return t.AccountHashed(p, t.Hash(p), payload, nowNs, port, out)
}

// AccountHashed is Account for a packet whose Hash is known.
func (t *Table) AccountHashed(p *packet.Packet, tag uint32, payload []byte, nowNs int64, port uint8, out *Out) Observation {
	t.clock(nowNs)
	k := p.Key()
	i, e, reverse, ok := t.find(tag, &k)
	if ok && e.state&(closing|handshake) == closing|handshake && p.Proto == packet.ProtoTCP &&
		p.TCPFlags&(packet.FlagSYN|packet.FlagACK|packet.FlagRST) == packet.FlagSYN {
		// The ports are used again after the connection was closed.
		t.finish(i, e, endReason(e), out)
		ok = false
	}
	var o Observation // Key is set once: copies of one that was just written are slow
	d := 0
	if ok {
		o.ID, o.Key, o.Reverse = t.id(i, e), e.key, reverse
		o.Solicited = reverse || e.state&answered != 0
		if reverse {
			d = 1
		}
		if e.state&opened == 0 {
			t.open(i, e, out)
		}
		if nowNs > e.last {
			e.last = nowNs
		}
	} else {
		o.Key = k
		i, e, ok = t.begin(tag, &k, p, payload, nowNs, port, out, &o)
		if !ok {
			t.stats.Untracked++
			o.Untracked = true
			return o
		}
	}
	e.packets[d]++
	e.bytes[d] += uint64(p.IPLen)
	off, fresh := uint32(e.sentBytes[d]), payload // of datagrams: all before were sent whole
	if p.Proto == packet.ProtoTCP {
		off, fresh = t.tcp(i, e, d, p, payload, nowNs, &o)
	}
	if d == 1 {
		e.state |= answered
	}
	if len(payload) > 0 {
		if p.Proto != packet.ProtoTCP || p.TCPFlags&packet.FlagSYN == 0 {
			e.state |= data
		}
		if e.state&(doneFwd<<d) == 0 && !p.LaterFragment && len(fresh) > 0 {
			t.segment(i, e, d, off, fresh, nowNs, out)
			o.Spent = e.state&(doneFwd<<d) != 0 && e.packets[1-d] == 0
		}
	}
	if p.Proto == packet.ProtoICMP && p.ICMPType == 3 && p.ICMPCode != 4 ||
		p.Proto == packet.ProtoICMPv6 && p.ICMPType == 1 {
		t.unreachable(p, payload, nowNs, &o)
	}
	return o
}

// begin makes the entry of a new flow.
func (t *Table) begin(tag uint32, k *flow.Key, p *packet.Packet, payload []byte, nowNs int64, port uint8, out *Out, o *Observation) (uint32, *entry, bool) {
	i, e, ok := t.take(func(i uint32, e *entry) { t.finish(i, e, flowv1.EndReason_END_REASON_EVICTED, out) })
	if !ok {
		return 0, nil, false
	}
	gen := e.gen + 1
	if gen == 0 {
		gen = 1
	}
	*e = entry{
		key: *k, last: nowNs, tag: tag, state: used, first: nowNs, gen: gen,
		ttl: p.TTL, port: port,
	}
	e.nextUpdate(nowNs + int64(t.cfg.Update))
	t.insert(tag, i)
	t.stats.Created++
	t.stats.Active++
	o.ID, o.New = t.id(i, e), true
	o.Attempt, o.Invalid, o.OutOfState = kind(p, len(payload) > 0)
	deadline := nowNs + int64(t.idle(e))
	if o.Attempt {
		e.state |= attempt
		deadline = min(deadline, nowNs+int64(t.cfg.AnswerTimeout))
	}
	if o.Invalid {
		e.state |= invalid
	}
	if p.Proto == packet.ProtoTCP && !o.OutOfState && !o.Invalid {
		e.state |= syn
	}
	if t.cfg.Update > 0 {
		deadline = min(deadline, e.updateAt())
	}
	t.link(i, e, deadline)
	return i, e, true
}

// tcp follows the handshake, the sequence numbers and the close. It returns what of the payload is new, with its place in
// the stream.
func (t *Table) tcp(i uint32, e *entry, d int, p *packet.Packet, payload []byte, nowNs int64, o *Observation) (off uint32, fresh []byte) {
	f := p.TCPFlags
	switch {
	case d == 0 && e.state&(syn|handshake) == syn && !o.New && f&(packet.FlagRST|packet.FlagSYN) == 0 &&
		(f&packet.FlagACK != 0 || len(payload) > 0):
		e.state |= handshake
		o.Handshake = true
		t.established(i, e, p, nowNs)
	case d == 1 && f&packet.FlagRST != 0 && e.state&(attempt|handshake|failed|data) == attempt && e.flags[1]&packet.FlagSYN == 0:
		t.fail(i, e, Refused, nowNs)
		o.Failed, o.Failure = true, &t.failure
	}
	// By the lengths in the headers: a capture may have cut the payload.
	if n := int(p.IPLen) - (p.Payload - p.L3); (n > 0 || f&(packet.FlagSYN|packet.FlagFIN) != 0) && !p.LaterFragment && !padding(p, payload) {
		n = max(n, 0)
		if f&packet.FlagFIN != 0 && (n > 0 || e.state&(baseFwd<<d) != 0) {
			n++
		}
		if n > 0 || f&packet.FlagSYN != 0 {
			off, fresh = t.sequence(i, e, d, p, payload, uint32(n), nowNs) //nolint:gosec // at most 65,536
		}
	}
	e.flags[d] |= f
	if e.state&closing == 0 && (f&packet.FlagRST != 0 || f&packet.FlagFIN != 0 &&
		(e.flags[1-d]&packet.FlagFIN != 0 || e.packets[1-d] == 0)) {
		e.state |= closing
		t.unlink(e)
		t.link(i, e, t.deadline(e))
	}
	return off, fresh
}

// fail fills in t.failure and marks the attempt as reported.
func (t *Table) fail(i uint32, e *entry, r FailureReason, nowNs int64) {
	e.state |= failed
	t.failure = Failure{
		ID: t.id(i, e), Key: e.key, FirstNs: e.first, AtNs: nowNs, TCPFlags: e.flags[0],
		Invalid: e.state&invalid != 0, Reason: r,
	}
}

// Meter adds what the kernel forwarded of a flow in k's direction. ok is false when the table has no such flow.
func (t *Table) Meter(k flow.Key, packets, bytes uint64, lastNs int64) (Observation, bool) {
	i, e, reverse, ok := t.find(t.hash(&k), &k)
	if !ok {
		return Observation{Key: k}, false
	}
	o := Observation{ID: t.id(i, e), Key: e.key, Reverse: reverse, Solicited: reverse || e.state&answered != 0}
	d := 0
	if reverse {
		d = 1
		e.state |= answered
	}
	// The open, if it was not sent yet, is left out: ends are complete in themselves.
	e.state |= opened
	e.packets[d] += packets
	e.bytes[d] += bytes
	e.state &^= baseFwd << d // nobody saw their sequence numbers
	if lastNs > e.last {
		e.last = lastNs
	}
	return o, true
}
