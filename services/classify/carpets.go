package classify

import (
	"net/netip"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/detect"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/header"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/verdict"
)

const (
	maxNetworks  = 512
	usualWindows = 600 // what is usual for a network is a mean over about so many windows
)

// network is a protected network: /24 and /16, v6 /64 and /48.
type network struct {
	target
	region  bool // /16 or /48
	firstNs int64
	windows float64
	carpets []carpet // of e.carpets' kinds
}

// carpet is what is remembered of one kind of flood over a network.
type carpet struct {
	usual     float64 // the flood's level, smoothed
	kept, out float64 // recent samples of the kind; those left out
}

// networks judges the networks of a window, the widest first: a flood over a /16 is one attack, not one for each /24.
func (e *Engine) networks(w *flowv1.Window, out *WindowResult) {
	list := w.GetTargets()
	for i := len(list) - 1; i >= 0; i-- {
		if t := list[i]; t.GetPrefixLen() < 128 && len(t.GetAddr()) == 16 {
			e.network(w, t, out)
		}
	}
}

// prefixOf is the network of a window's target.
func prefixOf(t *flowv1.Target) netip.Prefix {
	addr, n := flow.AddrBytes(t.GetAddr()), int(t.GetPrefixLen())
	if addr.Is4() {
		n -= 96
	}
	return netip.PrefixFrom(addr, n)
}

// isRegion tells what is wider than a /24 or /64.
func isRegion(p netip.Prefix) bool { return p.Bits() < 24 || !p.Addr().Is4() && p.Bits() < 64 }

// network judges one network by the floods that can be spread over it.
func (e *Engine) network(w *flowv1.Window, wt *flowv1.Target, out *WindowResult) {
	whole := prefixOf(wt)
	g, p := e.groups.network(whole)
	region := isRegion(p)
	if g == nil || isRegion(whole) != region {
		return // not protected, or the window tells of its /24 by itself
	}
	n := e.networkOf(p, w)
	n.windows++
	e.read(wt)
	n.leaveOut(e, p)
	limits := g.thresholds.ForNetworks()
	times := detect.CarpetTimes(region, &limits)
	sums := detect.FromTarget(wt)
	sums.TakeSamples(e.facts, e.standing(w), e.allowedSYN(whole))
	e.leaveAllowed()
	n.series.Add(w.GetStartNs(), &sums, wt.GetSourceRegisters())
	second, slot := n.series.Sum(detect.Slots), n.series.Sum(1)
	a, calm := e.bombed[p], true
	wider := a == nil && len(e.bombing(p)) > 0
	for i := range e.carpets {
		d, c := &e.carpets[i], &n.carpets[i]
		if d.Stray && e.cfg.Now != nil && w.GetSequence() < settleWindows {
			continue
		}
		m := d.Measure(&second, &limits)
		on := a != nil && a.bombs[d.Type]
		if m.Level == 0 && !on && n.rises[d.Type] == nil {
			n.learn(c, 0, region && e.cfg.Now != nil)
			continue
		}
		now := d.Measure(&slot, &limits)
		high := now.Level*detect.Slots*c.share() >= 0.5*detect.CarpetLimit(times, c.usual)
		r := n.rise(d, w, high || on && now.Level > 0, e.facts, e.raw)
		spread := detect.Spread{}
		if r != nil {
			spread = detect.SpreadOf(r.ring.facts, !region)
		}
		level := detect.Carpet(m, &spread, c.share(), times, c.usual, on)
		calm = calm && r == nil && !on
		if !on {
			n.learn(c, m.Level*c.share(), region && e.cfg.Now != nil)
		}
		switch {
		case on:
			own := detect.Carpet(now, &spread, c.share(), times, c.usual, on)
			e.account(a, own.Packets, own.Bytes)
			if d == a.flood {
				e.rate(a, w, &level)
			}
			n.series.Registers(1, &a.sources)
			if level.Level >= 0.5 {
				a.lastOver = w.GetEndNs()
			}
			if d == a.flood {
				e.reconsider(w, a, &n.target, r, &limits, detect.CarpetLimit(times, c.usual), out)
			}
		case level.Level >= 1 && !wider && !e.learning(n):
			a = e.bomb(w, p, n, d, r, &level, &second, a, out)
		}
	}
	if calm {
		n.baseline.Stage(w.GetStartNs()/int64(detect.Slot), &sums, e.facts)
	}
}

// bomb begins an attack on a network, or adds a kind of flood to the one that is on.
func (e *Engine) bomb(w *flowv1.Window, p netip.Prefix, n *network, d *detect.Flood, r *rise, level *detect.Measure, second *detect.Sums,
	a *attack, out *WindowResult) *attack {
	n.baseline.Drop()
	fresh := a == nil
	if fresh {
		start := w.GetStartNs()
		if r != nil {
			start = e.riseNs(r)
		}
		a = e.begin(w, detect.CarpetBombing, verdict.TargetName(p), start, out)
		a.target, a.bombs = p, make(map[string]bool)
		e.bombed[p] = a
		n.series.Registers(detect.Slots, &a.sources)
	}
	a.flood, a.bombs[d.Type] = d, true
	e.account(a, level.Packets, level.Bytes)
	e.rate(a, w, level)
	e.floodVerdict(w, a, &n.target, r, level, second, out)
	if fresh {
		e.publish(a, eventv1.AttackState_ATTACK_STATE_STARTED, e.now(w), out)
	}
	return a
}

// networkOf returns a network's state; the one idle longest among a few makes room.
func (e *Engine) networkOf(p netip.Prefix, w *flowv1.Window) *network {
	n := e.nets[p]
	if n == nil {
		if len(e.nets) >= maxNetworks {
			var oldest netip.Prefix
			var found *network
			tried := 0
			for q, x := range e.nets {
				if e.bombed[q] == nil && (found == nil || x.lastNs < found.lastNs) {
					oldest, found = q, x
				}
				if tried++; tried == evictTries {
					break
				}
			}
			delete(e.nets, oldest)
		}
		n = &network{target: target{rises: make(map[string]*rise)}, region: isRegion(p), firstNs: w.GetStartNs(), carpets: make([]carpet, len(e.carpets))}
		e.nets[p] = n
	}
	n.lastNs = max(n.lastNs, w.GetEndNs())
	return n
}

// leaveOut takes the samples out of e.facts that are not the network's own: of hosts that it does not protect or that are
// under flood themselves, and of sources that are blocked as scanners.
func (n *network) leaveOut(e *Engine, p netip.Prefix) {
	for i := range n.carpets {
		n.carpets[i].kept *= 1 - 1.0/detect.Slots
		n.carpets[i].out *= 1 - 1.0/detect.Slots
	}
	k := 0
	for i := range e.facts {
		f := e.facts[i]
		own := p.Contains(flow.Addr(f.Dst)) && e.flooded[f.Dst] == 0 && e.blocked[flow.Addr(f.Src)] == nil
		for j := range e.carpets {
			switch {
			case !e.carpets[j].Kind(&f):
			case own:
				n.carpets[j].kept++
			default:
				n.carpets[j].out++
			}
		}
		if own {
			e.facts[k], e.raw[k] = f, e.raw[i]
			k++
		}
	}
	e.facts, e.raw = e.facts[:k], e.raw[:k]
}

// share is the part of the kind's samples that is the network's own.
func (c *carpet) share() float64 {
	if c.out == 0 {
		return 1
	}
	return c.kept / (c.kept + c.out)
}

// learn takes the level of a window without attack into what is usual. With even weights at the beginning whatever is there is usual;
// without, the usual is nothing at first.
func (n *network) learn(c *carpet, level float64, even bool) {
	weight := 1.0 / usualWindows
	if even {
		weight = max(weight, 1/n.windows)
	}
	c.usual += weight * (level - c.usual)
}

// learning: a live engine that is young cannot know what is usual for a /16, where the scanners of the Internet are
// thousands of packets a second. A /24 gets too few of them to matter.
func (e *Engine) learning(n *network) bool {
	return n.region && e.cfg.Now != nil && n.lastNs-n.firstNs < settledNs
}

// bombing lists the attacks on networks that contain p.
func (e *Engine) bombing(p netip.Prefix) []*attack {
	var list []*attack
	for q, a := range e.bombed {
		if q.Bits() < p.Bits() && q.Contains(p.Addr()) {
			list = append(list, a)
		}
	}
	return list
}

// underCarpet: most of the samples of the kind to a host are dropped already by the rules of attacks on its networks.
func (e *Engine) underCarpet(host netip.Addr, kind func(f *header.Facts) bool) bool {
	list := e.bombing(netip.PrefixFrom(host, host.BitLen()))
	if len(list) == 0 {
		return false
	}
	all, covered := 0, 0
	for i := range e.facts {
		if f := &e.facts[i]; kind(f) {
			all++
			if covers(list, f) {
				covered++
			}
		}
	}
	return 2*covered > all
}
