package window

import (
	"encoding/binary"

	"github.com/tidegate-mesh/tidegate/libs/packet"
	"github.com/tidegate-mesh/tidegate/libs/sketch"
)

// detail is what is known of one destination since it got it.
type detail struct {
	n          counters
	lengths    [16]uint32
	flags      [8]uint32
	ttls       [32]uint32
	dstPorts   portTable
	srcPorts   portTable
	distinct   sketch.HLL
	top        addrTable
	reflectors [8]reflector
	seen       uint32 // packets that could be sampled
	kept       uint32
	samples    [hostSamples]sample
}

type reflector struct {
	port    uint16
	packets uint32
	marked  uint32
	bytes   uint64
}

type sample struct {
	timeNs int64
	length uint16
	size   uint8
	header [sampleBytes]byte
}

func (s *sample) set(nowNs int64, p *packet.Packet, ip []byte) {
	s.timeNs, s.length = nowNs, p.IPLen
	n := len(ip)
	if p.IPLen != 0 {
		n = min(n, int(p.IPLen)) // what follows is Ethernet padding
	}
	s.size = uint8(copy(s.header[:], ip[:n])) //nolint:gosec // at most sampleBytes
}

// reset empties a detail. Samples need none: kept says how many are valid.
func (d *detail) reset() {
	d.n = counters{}
	d.lengths, d.flags, d.ttls = [16]uint32{}, [8]uint32{}, [32]uint32{}
	d.dstPorts, d.srcPorts, d.top = portTable{}, portTable{}, addrTable{}
	d.distinct.Reset()
	d.reflectors = [8]reflector{}
	d.seen, d.kept = 0, 0
}

// add takes a packet in; hot is the reflector's port or 0. The counters were added already if the detail is a
// host's; a prefix's own are in its light entry.
func (d *detail) add(p *packet.Packet, ip []byte, nowNs int64, m uint32, hot uint16, marked bool, b *Builder) {
	d.lengths[LengthClass(p.IPLen)&15]++
	d.ttls[p.TTL>>3]++
	if m&(1<<cTCP) != 0 {
		for i, f := 0, p.TCPFlags; f != 0; i, f = i+1, f>>1 {
			d.flags[i&7] += uint32(f & 1)
		}
	}
	if !p.LaterFragment && (p.SrcPort|p.DstPort) != 0 {
		d.dstPorts.add(p.DstPort, p.Proto, 1)
		d.srcPorts.add(p.SrcPort, p.Proto, 1)
	}
	h := addrHash(&p.Src)
	d.distinct.Add(h)
	d.top.add(&p.Src, h, 1, uint64(p.IPLen))
	if hot != 0 {
		d.reflect(hot, 1, uint64(p.IPLen), marked)
	}
	d.seen++
	if d.kept < hostSamples {
		d.samples[d.kept].set(nowNs, p, ip)
		d.kept++
	} else if i := b.next() >> 32 * uint64(d.seen) >> 32; i < hostSamples {
		// Reservoir sampling (Vitter 1985, algorithm R).
		d.samples[i].set(nowNs, p, ip)
	}
}

func (d *detail) reflect(port uint16, packets uint32, bytes uint64, marked bool) {
	for i := range d.reflectors {
		r := &d.reflectors[i]
		if r.port == 0 {
			r.port = port
		}
		if r.port == port {
			r.packets += packets
			r.bytes += bytes
			if marked {
				r.marked += packets
			}
			return
		}
	}
}

// marks is how many amplification answers the detail saw.
func (d *detail) marks() (n uint32) {
	for i := range d.reflectors {
		n += d.reflectors[i].marked
	}
	return n
}

// amplified tells whether a reflector's packet has content that only amplification makes when nobody asked: an
// NTP mode 7 answer to MON_GETLIST or MON_GETLIST_1 (RFC 9327 has mode 6; mode 7 is ntpd's own: response bit,
// mode, implementation, request code 20 or 42), or a DNS answer (RFC 1035 4.1.1, QR).
func amplified(p *packet.Packet, ip []byte) bool {
	at := p.Payload - p.L3
	if at < 0 || at+4 > len(ip) || p.PayloadLen < 4 {
		return false
	}
	b := ip[at:]
	switch p.SrcPort {
	case 123:
		return b[0]&0x87 == 0x87 && (b[3] == 20 || b[3] == 42)
	case 53:
		return p.PayloadLen >= 12 && b[2]&0x80 != 0
	}
	return false
}

// merge adds o to d; chance is b's.
func (d *detail) merge(o *detail, b *Builder) {
	d.n.merge(&o.n)
	for i := range d.lengths {
		d.lengths[i] += o.lengths[i]
	}
	for i := range d.flags {
		d.flags[i] += o.flags[i]
	}
	for i := range d.ttls {
		d.ttls[i] += o.ttls[i]
	}
	for i := range o.dstPorts {
		if s := &o.dstPorts[i]; s.packets != 0 {
			d.dstPorts.add(s.port, s.protocol, s.packets)
		}
	}
	for i := range o.srcPorts {
		if s := &o.srcPorts[i]; s.packets != 0 {
			d.srcPorts.add(s.port, s.protocol, s.packets)
		}
	}
	d.distinct.Merge(o.distinct[:])
	for i := range o.top {
		if s := &o.top[i]; s.packets != 0 {
			d.top.add(&s.addr, addrHash(&s.addr), s.packets, s.bytes)
		}
	}
	for i := range o.reflectors {
		if r := &o.reflectors[i]; r.port != 0 {
			d.reflect(r.port, r.packets-r.marked, r.bytes, false)
			d.reflect(r.port, r.marked, 0, true)
		}
	}
	d.mergeSamples(o, b)
}

// mergeSamples keeps samples of both in proportion to the packets they stand for. A network is merged from hundreds of
// hosts with few packets each, so what is below one sample is rounded at random, and any sample may make room.
func (d *detail) mergeSamples(o *detail, b *Builder) {
	take := o.kept
	if all := uint64(d.seen) + uint64(o.seen); d.kept+o.kept > hostSamples {
		share := uint32((uint64(o.seen)*hostSamples + b.next()%all) / all) //nolint:gosec // at most 64
		take = min(o.kept, max(share, hostSamples-d.kept))
		for d.kept+take > hostSamples {
			at := b.next() % uint64(d.kept)
			d.kept--
			d.samples[at] = d.samples[d.kept]
		}
	}
	for i := range take {
		d.samples[d.kept+i] = o.samples[i*o.kept/take]
	}
	d.kept += take
	d.seen += o.seen
}

// portTable and addrTable keep heavy hitters in sets of four places, worn down like light's. A count is exact
// since the entry got its place, so it is never above the truth.
type (
	portTable [32]portSlot
	addrTable [64]addrSlot
)

type portSlot struct {
	guard    uint32
	packets  uint32
	port     uint16
	protocol uint8
}

type addrSlot struct {
	addr    [16]byte
	guard   uint32
	packets uint32
	bytes   uint64
}

func (t *portTable) add(port uint16, protocol uint8, n uint32) {
	h := (uint32(port)<<8 | uint32(protocol)) * 0x9E3779B1
	set := t[h>>29<<2:][:ways]
	weakest := 0
	for i := range set {
		s := &set[i]
		if s.guard == 0 {
			*s = portSlot{guard: n, packets: n, port: port, protocol: protocol}
			return
		}
		if s.port == port && s.protocol == protocol {
			s.guard += n
			s.packets += n
			return
		}
		if s.guard < set[weakest].guard {
			weakest = i
		}
	}
	if s := &set[weakest]; s.guard > n {
		s.guard -= n
	} else {
		*s = portSlot{guard: n, packets: n, port: port, protocol: protocol}
	}
}

func (t *addrTable) add(addr *[16]byte, hash uint64, n uint32, bytes uint64) {
	set := t[hash&15<<2:][:ways]
	weakest := 0
	for i := range set {
		s := &set[i]
		if s.guard == 0 {
			*s = addrSlot{addr: *addr, guard: n, packets: n, bytes: bytes}
			return
		}
		if binary.LittleEndian.Uint64(s.addr[8:]) == binary.LittleEndian.Uint64(addr[8:]) && s.addr == *addr {
			s.guard += n
			s.packets += n
			s.bytes += bytes
			return
		}
		if s.guard < set[weakest].guard {
			weakest = i
		}
	}
	if s := &set[weakest]; s.guard > n {
		s.guard -= n
	} else {
		*s = addrSlot{addr: *addr, guard: n, packets: n, bytes: bytes}
	}
}
