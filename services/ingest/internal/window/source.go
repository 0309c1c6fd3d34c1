package window

import (
	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	"github.com/tidegate-mesh/tidegate/libs/sketch"
	"github.com/tidegate-mesh/tidegate/services/ingest/internal/flowtable"
)

// sources are those who begin flows: the index is set-associative like light, source i is of index place i.
type sources struct {
	index    []sourceSlot
	list     []source
	used     int
	turnover int
}

type sourceSlot struct {
	addr  [16]byte
	guard uint32
}

type source struct {
	firstNs                                              int64
	attempts, failed, invalid, arp                       uint64
	attemptHosts, attemptPorts, failedHosts, failedPorts sketch.HLL
	hosts                                                [ways]triedHost
	ports                                                [sourceSamples]portSlot
	seen, kept                                           uint32
	samples                                              [sourceSamples]sample
}

// triedHost is a destination that the source tried often.
type triedHost struct {
	addr     [16]byte
	guard    uint32
	attempts uint64
	failures uint64
	ports    sketch.HLL
	failed   sketch.HLL
}

func (s *sources) init() {
	s.index = make([]sourceSlot, maxSources)
	s.list = make([]source, maxSources)
}

func (s *sources) reset() {
	clear(s.index)
	s.used, s.turnover = 0, 0
}

// get returns addr's source, made if need be, or nil when it did not get a place. The number of sources that
// take another's place in one window is bounded: under a flood from random addresses every packet asks for one.
func (s *sources) get(addr *[16]byte, hash uint64, weight uint32, nowNs int64) *source {
	at := int(hash%(maxSources/ways)) * ways //nolint:gosec // below len(index)
	set := s.index[at : at+ways : at+ways]
	weakest := 0
	for i := range set {
		e := &set[i]
		if e.guard == 0 {
			s.used++
			return s.claim(e, at+i, addr, weight, nowNs)
		}
		if e.addr == *addr {
			e.guard += weight
			x := &s.list[at+i]
			x.firstNs = min(x.firstNs, nowNs)
			return x
		}
		if e.guard < set[weakest].guard {
			weakest = i
		}
	}
	e := &set[weakest]
	if e.guard > weight {
		e.guard -= weight
		return nil
	}
	if s.turnover == sourceTurnover {
		return nil
	}
	s.turnover++
	return s.claim(e, at+weakest, addr, weight, nowNs)
}

func (s *sources) claim(e *sourceSlot, i int, addr *[16]byte, weight uint32, nowNs int64) *source {
	e.addr, e.guard = *addr, weight
	x := &s.list[i]
	x.firstNs = nowNs
	x.attempts, x.failed, x.invalid, x.arp = 0, 0, 0, 0
	x.attemptHosts.Reset()
	x.attemptPorts.Reset()
	x.failedHosts.Reset()
	x.failedPorts.Reset()
	for h := range x.hosts {
		x.hosts[h].guard = 0
	}
	x.ports = [sourceSamples]portSlot{}
	x.seen, x.kept = 0, 0
	return x
}

// host returns the place of a tried host, made if need be, or nil.
func (x *source) host(addr *[16]byte, weight uint32) *triedHost {
	weakest := 0
	for i := range x.hosts {
		h := &x.hosts[i]
		if h.guard == 0 {
			return h.claim(addr, weight)
		}
		if h.addr == *addr {
			h.guard += weight
			return h
		}
		if h.guard < x.hosts[weakest].guard {
			weakest = i
		}
	}
	h := &x.hosts[weakest]
	if h.guard > weight {
		h.guard -= weight
		return nil
	}
	return h.claim(addr, weight)
}

func (h *triedHost) claim(addr *[16]byte, weight uint32) *triedHost {
	h.addr, h.guard, h.attempts, h.failures = *addr, weight, 0, 0
	h.ports.Reset()
	h.failed.Reset()
	return h
}

// top is the host tried most, or nil.
func (x *source) top() *triedHost {
	var best *triedHost
	for i := range x.hosts {
		h := &x.hosts[i]
		if h.guard == 0 {
			continue
		}
		if best == nil || h.attempts > best.attempts || h.attempts == best.attempts && h.failures > best.failures {
			best = h
		}
	}
	return best
}

func (s *sources) attempt(p *packet.Packet, ip []byte, nowNs int64, o *flowtable.Observation, b *Builder) {
	x := s.get(&p.Src, b.hash(&p.Src), 1, nowNs)
	if x == nil {
		return
	}
	x.attempts++
	if o.Invalid {
		x.invalid++
	}
	host := addrHash(&p.Dst)
	port := portHash(host, p.Proto, p.DstPort)
	x.attemptHosts.Add(host)
	x.attemptPorts.Add(port)
	if h := x.host(&p.Dst, 1); h != nil {
		h.attempts++
		h.ports.Add(port)
	}
	addPort(x.ports[:], p.DstPort, p.Proto, 1)
	x.seen++
	if x.kept < sourceSamples {
		x.samples[x.kept].set(nowNs, p, ip)
		x.kept++
	} else if i := b.next() >> 32 * uint64(x.seen) >> 32; i < sourceSamples {
		x.samples[i].set(nowNs, p, ip)
	}
}

func (s *sources) fail(f *flowtable.Failure, b *Builder) {
	x := s.get(&f.Key.Src, b.hash(&f.Key.Src), 1, f.FirstNs)
	if x == nil {
		return
	}
	x.failed++
	host := addrHash(&f.Key.Dst)
	port := portHash(host, f.Key.Protocol, f.Key.DstPort)
	x.failedHosts.Add(host)
	x.failedPorts.Add(port)
	if h := x.host(&f.Key.Dst, 1); h != nil {
		h.failures++
		h.failed.Add(port)
	}
}

// arp counts a request (RFC 826). Probes, which have no sender address, and announcements of the sender's own
// address (RFC 5227) ask for nobody else.
func (s *sources) arp(p *packet.Packet, nowNs int64, b *Builder) {
	if p.ARPOp != 1 || p.Src == p.Dst || flow.Addr(p.Src).IsUnspecified() {
		return
	}
	x := s.get(&p.Src, b.hash(&p.Src), 1, nowNs)
	if x == nil {
		return
	}
	x.arp++
	x.attemptHosts.Add(addrHash(&p.Dst))
}

// addPort counts in a table of one set.
func addPort(set []portSlot, port uint16, protocol uint8, n uint32) {
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

// merge adds source o, found at addr, to x.
func (x *source) merge(o *source) {
	x.firstNs = min(x.firstNs, o.firstNs)
	x.attempts += o.attempts
	x.failed += o.failed
	x.invalid += o.invalid
	x.arp += o.arp
	x.attemptHosts.Merge(o.attemptHosts[:])
	x.attemptPorts.Merge(o.attemptPorts[:])
	x.failedHosts.Merge(o.failedHosts[:])
	x.failedPorts.Merge(o.failedPorts[:])
	for i := range o.hosts {
		g := &o.hosts[i]
		if g.guard == 0 {
			continue
		}
		if h := x.host(&g.addr, g.guard); h != nil {
			h.attempts += g.attempts
			h.failures += g.failures
			h.ports.Merge(g.ports[:])
			h.failed.Merge(g.failed[:])
		}
	}
	for i := range o.ports {
		if p := &o.ports[i]; p.guard != 0 {
			addPort(x.ports[:], p.port, p.protocol, p.packets)
		}
	}
	n := min(o.kept, sourceSamples-x.kept)
	copy(x.samples[x.kept:], o.samples[:n])
	x.kept += n
	x.seen += o.seen
}
