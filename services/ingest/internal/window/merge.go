package window

// Merge adds another queue's window to b and leaves o as it is.
func (b *Builder) Merge(o *Builder) {
	if b.Empty() && b.StartNs == 0 && b.EndNs == 0 {
		b.StartNs, b.EndNs = o.StartNs, o.EndNs
	}
	b.StartNs, b.EndNs = min(b.StartNs, o.StartNs), max(b.EndNs, o.EndNs)
	b.Flows.Opened += o.Flows.Opened
	b.Flows.Active += o.Flows.Active
	b.Flows.Summarised += o.Flows.Summarised
	b.total.merge(&o.total)
	for _, l := range []struct {
		mine, other *light
		level       level
	}{{&b.hosts, &o.hosts, hostLevel}, {&b.nets, &o.nets, netLevel}, {&b.regions, &o.regions, regionLevel}} {
		for i := range l.other.entries {
			if e := &l.other.entries[i]; e.guard != 0 {
				b.mergeEntry(l.mine, e, o, l.level)
			}
		}
	}
	for i := range o.sources.index {
		e := &o.sources.index[i]
		if e.guard == 0 {
			continue
		}
		x := &o.sources.list[i]
		// What is merged is bounded by o's size, so it does not count as turnover.
		b.sources.turnover = min(b.sources.turnover, sourceTurnover-1)
		if mine := b.sources.get(&e.addr, b.hash(&e.addr), e.guard, x.firstNs); mine != nil {
			mine.merge(x)
		}
	}
	b.bindings.merge(&o.bindings, b)
}

func (b *Builder) mergeEntry(mine *light, e *lightEntry, o *Builder, l level) {
	var theirs *detail
	if e.detail != 0 {
		theirs = &o.details[e.detail-1]
	}
	x := mine.touch(&e.addr, b.hash(&e.addr), e.guard)
	if x == nil {
		// No place for it: its packets stay in the prefix above.
		b.lift(e, theirs, l)
		return
	}
	x.n.merge(&e.n)
	if theirs == nil {
		return
	}
	if x.detail == 0 {
		switch {
		case b.used < maxDetails:
			x.detail = b.take()
		case l == hostLevel:
			x.detail = b.rob(theirs)
		}
		if x.detail == 0 {
			x.n.merge(&theirs.n)
			b.lift(&lightEntry{addr: e.addr, guard: e.guard}, theirs, l)
			return
		}
		if l != hostLevel {
			b.prefixUsed++
		}
	}
	b.details[x.detail-1].merge(theirs, b)
}

// lift adds the packets of a host that only its detail had to the /24 above, so that prefixes stay complete.
func (b *Builder) lift(e *lightEntry, d *detail, l level) {
	if l != hostLevel || d == nil {
		return
	}
	net := prefix(&e.addr, netLevel)
	if n := b.nets.touch(&net, b.hash(&net), e.guard); n != nil {
		n.n.merge(&d.n)
	}
}

// rob takes the detail of the lightest host that has less than d, and returns its number + 1 or 0.
func (b *Builder) rob(d *detail) uint16 {
	var poorest *lightEntry
	for i := range b.hosts.entries {
		e := &b.hosts.entries[i]
		if e.detail == 0 {
			continue
		}
		have := &b.details[e.detail-1]
		if have.marks() == 0 && (poorest == nil || have.n.n[cPackets] < b.details[poorest.detail-1].n.n[cPackets]) {
			poorest = e
		}
	}
	if poorest == nil || d.marks() == 0 && b.details[poorest.detail-1].n.n[cPackets] >= d.n.n[cPackets] {
		return 0
	}
	loser := &b.details[poorest.detail-1]
	b.lift(poorest, loser, hostLevel)
	poorest.n.merge(&loser.n)
	n := poorest.detail
	poorest.detail = 0
	loser.reset()
	return n
}
