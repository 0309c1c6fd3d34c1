package window

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/tidegate-mesh/tidegate/libs/sketch"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

// candidate is a destination that may be encoded.
type candidate struct {
	addr    [16]byte
	n       counters
	detail  *detail // nil = counters only
	marks   uint32
	entries []*candidate // of a prefix: what it is made of
}

func (c *candidate) packets() uint64 { return c.n.n[cPackets] }

func heaviest(a, b *candidate) int {
	return cmp.Or(cmp.Compare(b.packets(), a.packets()), bytes.Compare(a.addr[:], b.addr[:]))
}

// Encode writes the window into w: bounds, totals, targets, sources, ARP bindings and flow counts. Sensor, epoch, sequence and
// traceparent are the caller's. What w points to is used again, so a pooled Window costs little. Targets are
// hosts, then /24 (/64), then /16 (/48), each heaviest first; hosts that got amplification answers nobody asked
// for are among them however few their packets. The encoded size stays below 1 MiB.
func (b *Builder) Encode(w *flowv1.Window) {
	w.StartNs, w.EndNs = b.StartNs, b.EndNs
	w.FlowsOpened, w.FlowsActive, w.FlowsSummarised = b.Flows.Opened, b.Flows.Active, b.Flows.Summarised
	w.Total = b.total.encode(w.Total)
	w.Targets = w.Targets[:0]

	hosts := b.candidates()
	nets := b.prefixes(hosts, &b.nets, netLevel)
	regions := b.prefixes(nets, &b.regions, regionLevel)

	chosen := choose(hosts)
	for i, c := range chosen {
		samples := someSamples
		if i < fullSamples {
			samples = hostSamples
		}
		encodeTarget(next(&w.Targets), c, hostLevel, samples)
	}
	if b.scratch == nil {
		b.scratch = make([]detail, 1)
	}
	for _, c := range nets[:min(len(nets), MaxNets)] {
		b.scratch[0].reset()
		c.gather(&b.scratch[0], b)
		c.detail = &b.scratch[0]
		encodeTarget(next(&w.Targets), c, netLevel, netSamples)
	}
	for _, c := range nets {
		if c.detail == &b.scratch[0] {
			c.detail = nil
		}
	}
	b.encodeRegions(w, regions)
	b.encodeSources(w)
	b.bindings.encode(w)
}

// encodeRegions adds the heaviest /16 and /48.
func (b *Builder) encodeRegions(w *flowv1.Window, regions []*candidate) {
	for _, c := range regions[:min(len(regions), MaxRegions)] {
		b.scratch[0].reset()
		c.gather(&b.scratch[0], b)
		c.detail = &b.scratch[0]
		encodeTarget(next(&w.Targets), c, regionLevel, netSamples)
	}
}

// candidates lists the hosts, heaviest first.
func (b *Builder) candidates() []*candidate {
	var list []*candidate
	for i := range b.hosts.entries {
		e := &b.hosts.entries[i]
		if e.guard == 0 {
			continue
		}
		c := &candidate{addr: e.addr, n: e.n}
		if e.detail != 0 {
			c.detail = &b.details[e.detail-1]
			c.n.merge(&c.detail.n)
			c.marks = c.detail.marks()
		}
		list = append(list, c)
	}
	slices.SortFunc(list, heaviest)
	return list
}

// choose takes the heaviest hosts and puts marked ones in the place of the last of them.
func choose(hosts []*candidate) []*candidate {
	if len(hosts) <= MaxHosts {
		return hosts
	}
	const reserved = MaxHosts / 4
	chosen := slices.Clone(hosts[:MaxHosts])
	var late []*candidate
	for _, c := range hosts[MaxHosts:] {
		if c.marks > 0 {
			late = append(late, c)
		}
	}
	slices.SortStableFunc(late, func(a, b *candidate) int { return cmp.Compare(b.marks, a.marks) })
	late = late[:min(len(late), reserved)]
	at := MaxHosts
	for _, c := range late {
		for at--; at > MaxHosts-1-reserved && chosen[at].marks > 0; at-- {
			continue
		}
		if at < MaxHosts-reserved {
			break
		}
		chosen[at] = c
	}
	slices.SortFunc(chosen, heaviest)
	return chosen
}

// prefixes adds up what is known one level below with the level's own light entries, heaviest first. Of hosts
// only what their details counted is new to the prefix: packets before that are in its light entry.
func (b *Builder) prefixes(below []*candidate, own *light, l level) []*candidate {
	found := map[[16]byte]*candidate{}
	var list []*candidate
	get := func(addr [16]byte) *candidate {
		c := found[addr]
		if c == nil {
			c = &candidate{addr: addr}
			found[addr] = c
			list = append(list, c)
		}
		return c
	}
	for i := range own.entries {
		e := &own.entries[i]
		if e.guard == 0 {
			continue
		}
		c := get(e.addr)
		c.n.merge(&e.n)
		if e.detail != 0 {
			c.entries = append(c.entries, &candidate{detail: &b.details[e.detail-1]})
		}
	}
	for _, s := range below {
		if l == netLevel && s.detail == nil {
			continue
		}
		c := get(prefix(&s.addr, l))
		if l == netLevel {
			c.n.merge(&s.detail.n)
		} else {
			c.n.merge(&s.n)
		}
		c.entries = append(c.entries, s)
	}
	slices.SortFunc(list, heaviest)
	return list
}

// gather merges the details a prefix is made of.
func (c *candidate) gather(d *detail, b *Builder) {
	for _, e := range c.entries {
		if e.detail != nil {
			d.merge(e.detail, b)
		} else {
			e.gather(d, b)
		}
	}
}

// next lengthens a slice of messages by one, using again what lies behind its end.
func next[T any](s *[]*T) *T {
	n := len(*s)
	if n < cap(*s) {
		*s = (*s)[:n+1]
	} else {
		*s = append(*s, nil)
	}
	if (*s)[n] == nil {
		(*s)[n] = new(T)
	}
	return (*s)[n]
}

func encodeTarget(t *flowv1.Target, c *candidate, l level, samples int) {
	t.Addr = append(t.Addr[:0], c.addr[:]...)
	t.PrefixLen = length(&c.addr, l)
	t.Counters = c.n.encode(t.Counters)
	t.Reflectors, t.DstPorts, t.SrcPorts = t.Reflectors[:0], t.DstPorts[:0], t.SrcPorts[:0]
	t.TopSources, t.Samples = t.TopSources[:0], t.Samples[:0]
	t.LengthHistogram, t.FlagHistogram, t.TtlHistogram = t.LengthHistogram[:0], t.FlagHistogram[:0], t.TtlHistogram[:0]
	t.SourceRegisters = t.SourceRegisters[:0]
	d := c.detail
	if d == nil {
		return
	}
	t.LengthHistogram = histogram(t.LengthHistogram, d.lengths[:])
	t.FlagHistogram = histogram(t.FlagHistogram, d.flags[:])
	t.TtlHistogram = histogram(t.TtlHistogram, d.ttls[:])
	t.SourceRegisters = append(t.SourceRegisters, d.distinct[:]...)
	for i := range d.reflectors {
		if r := &d.reflectors[i]; r.port != 0 {
			m := next(&t.Reflectors)
			m.Port, m.Packets, m.Bytes, m.Marked = uint32(r.port), uint64(r.packets), r.bytes, uint64(r.marked)
		}
	}
	slices.SortFunc(t.Reflectors, func(a, b *flowv1.Reflector) int {
		return cmp.Or(cmp.Compare(b.Packets, a.Packets), cmp.Compare(a.Port, b.Port))
	})
	encodePorts(&t.DstPorts, d.dstPorts[:], maxPorts)
	encodePorts(&t.SrcPorts, d.srcPorts[:], maxPorts)
	top := d.top
	slices.SortFunc(top[:], func(a, b addrSlot) int {
		return cmp.Or(cmp.Compare(b.packets, a.packets), bytes.Compare(a.addr[:], b.addr[:]))
	})
	for i := range top[:maxTop] {
		if s := &top[i]; s.packets != 0 {
			m := next(&t.TopSources)
			m.Addr = append(m.Addr[:0], s.addr[:]...)
			m.Packets, m.Bytes = uint64(s.packets), s.bytes
		}
	}
	encodeSamples(&t.Samples, d.samples[:d.kept], samples)
}

func histogram(dst []byte, h []uint32) []byte {
	for _, v := range h {
		dst = binary.LittleEndian.AppendUint32(dst, v)
	}
	return dst
}

func encodePorts(dst *[]*flowv1.PortCount, table []portSlot, limit int) {
	var sorted [len(portTable{})]portSlot
	list := sorted[:copy(sorted[:], table)]
	slices.SortFunc(list, func(a, b portSlot) int {
		return cmp.Or(cmp.Compare(b.packets, a.packets), cmp.Compare(a.port, b.port), cmp.Compare(a.protocol, b.protocol))
	})
	for i := range list[:min(len(list), limit)] {
		if s := &list[i]; s.packets != 0 {
			m := next(dst)
			m.Port, m.Protocol, m.Packets = uint32(s.port), uint32(s.protocol), uint64(s.packets)
		}
	}
}

// encodeSamples writes at most limit of the samples, evenly chosen: those of a network lie host by host.
func encodeSamples(dst *[]*flowv1.HeaderSample, list []sample, limit int) {
	n := min(len(list), limit)
	for i := range n {
		s := &list[i*len(list)/n]
		m := next(dst)
		m.TimeNs, m.Length = s.timeNs, uint32(s.length)
		m.Header = append(m.Header[:0], s.header[:s.size]...)
	}
}

// encodeSources adds the sources: half of the room is for those with most failures, the rest for those with most
// attempts, so that a flood from addresses that each fail once does not crowd out a scan that is answered.
func (b *Builder) encodeSources(w *flowv1.Window) {
	w.Sources = w.Sources[:0]
	var list []int
	for i := range b.sources.index {
		if b.sources.index[i].guard != 0 {
			list = append(list, i)
		}
	}
	tried := func(i int) uint64 { return b.sources.list[i].attempts + b.sources.list[i].arp }
	failed := func(i int) uint64 { return b.sources.list[i].failed }
	addr := func(i, j int) int { return bytes.Compare(b.sources.index[i].addr[:], b.sources.index[j].addr[:]) }
	slices.SortFunc(list, func(i, j int) int {
		return cmp.Or(cmp.Compare(failed(j), failed(i)), cmp.Compare(tried(j), tried(i)), addr(i, j))
	})
	if len(list) > MaxSources {
		rest := list[MaxSources/2:]
		slices.SortFunc(rest, func(i, j int) int {
			return cmp.Or(cmp.Compare(tried(j), tried(i)), cmp.Compare(failed(j), failed(i)), addr(i, j))
		})
		list = list[:MaxSources]
	}
	for _, i := range list {
		encodeSource(next(&w.Sources), &b.sources.index[i].addr, &b.sources.list[i])
	}
}

func encodeSource(m *flowv1.Source, addr *[16]byte, x *source) {
	m.Addr = append(m.Addr[:0], addr[:]...)
	m.Attempts, m.Failed, m.InvalidFlags, m.ArpRequests, m.FirstNs = x.attempts, x.failed, x.invalid, x.arp, x.firstNs
	m.AttemptHosts = registers(m.AttemptHosts, &x.attemptHosts)
	m.AttemptPorts = registers(m.AttemptPorts, &x.attemptPorts)
	m.FailedHosts = registers(m.FailedHosts, &x.failedHosts)
	m.FailedPorts = registers(m.FailedPorts, &x.failedPorts)
	m.TopHost, m.TopHostAttempts = m.TopHost[:0], 0
	m.TopHostPorts, m.TopHostFailedPorts = m.TopHostPorts[:0], m.TopHostFailedPorts[:0]
	if h := x.top(); h != nil {
		m.TopHost = append(m.TopHost, h.addr[:]...)
		m.TopHostAttempts = h.attempts
		m.TopHostPorts = registers(m.TopHostPorts, &h.ports)
		m.TopHostFailedPorts = registers(m.TopHostFailedPorts, &h.failed)
	}
	m.DstPorts, m.Samples = m.DstPorts[:0], m.Samples[:0]
	encodePorts(&m.DstPorts, x.ports[:], len(x.ports))
	encodeSamples(&m.Samples, x.samples[:x.kept], sourceSamples)
}

// registers encodes h; empty registers are left out.
func registers(dst []byte, h *sketch.HLL) []byte {
	if *h == (sketch.HLL{}) {
		return dst[:0]
	}
	return append(dst[:0], h[:]...)
}
