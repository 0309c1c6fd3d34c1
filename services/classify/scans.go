package classify

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"sort"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/detect"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/header"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/verdict"
)

// crowd is how many sources may scan one host under flood in one window before they count as the flood.
const crowd = 4

// settledNs is how long a peer is known before it may begin many flows and send many requests.
const settledNs = int64(60e9)

// settled: the source exchanged payload with the host a minute ago already. A live engine that is younger itself cannot
// know, and takes everyone who did so at all for settled; so does one of several that knows the host for less, because it may
// have got it from another.
func (e *Engine) settled(host, src [16]byte, nowNs int64) bool {
	p := e.peers.Known(host, src)
	if p == nil || e.cfg.Now == nil {
		return p != nil && nowNs-p.FirstNs > settledNs
	}
	began := e.firstNs
	if e.parts {
		began = max(began, e.peers.Since(host))
	}
	return nowNs-p.FirstNs > settledNs || nowNs-began < settledNs
}

// finding is a scan that a source was caught at.
type finding struct {
	scan    detect.Scan
	source  netip.Addr
	firstNs int64
	toward  bool   // only what goes to the host is blocked: the source is innocent, or does other things too
	text    string // what an alert says, when scan.What does not
	facts   []header.Facts
	raw     [][]byte
}

// sources judges a window's sources by the scan detectors.
func (e *Engine) sources(w *flowv1.Window, out *WindowResult) {
	var found []finding
	perHost := make(map[netip.Addr]int)
	for _, ws := range w.GetSources() {
		if len(ws.GetAddr()) != 16 {
			continue
		}
		addr := flow.AddrBytes(ws.GetAddr())
		if e.allows(addr) {
			continue
		}
		s := e.scanner(addr, w)
		s.Add(ws, w.GetStartNs(), w.GetEndNs())
		g := e.scanned(s)
		if g == nil {
			continue
		}
		flows := func(t *detect.Thresholds) (detect.Scan, bool) {
			return s.FlowFlood(t, e.settled(s.Host().As16(), addr.As16(), w.GetStartNs()))
		}
		for _, judge := range []func(*detect.Thresholds) (detect.Scan, bool){s.PortScan, s.HostSweep, flows} {
			scan, ok := judge(&g.thresholds)
			if !ok || e.partOfFlood(s, scan.Host) {
				continue
			}
			perHost[scan.Host]++
			found = append(found, finding{scan: scan, source: addr, firstNs: s.FirstNs, facts: s.Samples, raw: s.Raw})
		}
	}
	kept := found[:0]
	for _, f := range found {
		if e.flooded[f.scan.Host.As16()] > 0 && perHost[f.scan.Host] > crowd {
			continue
		}
		kept = append(kept, f)
	}
	e.report(w, kept, out)
}

// scanned is the group of what a source scans: of the host it tried most, of a sampled one, or of a network it
// sweeps; nil when nothing of it is protected.
func (e *Engine) scanned(s *detect.Scanner) *group {
	if g := e.groups.of(s.Host()); g != nil {
		return g
	}
	for i := range s.Samples {
		if g := e.groups.of(flow.Addr(s.Samples[i].Dst)); g != nil {
			return g
		}
	}
	return e.groups.overlapping(s.Swept())
}

// partOfFlood: most of the source's samples are what a flood's rules drop already.
func (e *Engine) partOfFlood(s *detect.Scanner, host netip.Addr) bool {
	list := e.bombing(netip.PrefixFrom(host, host.BitLen()))
	if e.flooded[host.As16()] > 0 {
		for i := range e.floods {
			if a := e.attacks[attackKey{e.floods[i].Type, host.String()}]; a != nil {
				list = append(list, a)
			}
		}
	}
	if len(list) == 0 || len(s.Samples) == 0 {
		return false
	}
	n := 0
	for i := range s.Samples {
		if covers(list, &s.Samples[i]) {
			n++
		}
	}
	return 2*n >= len(s.Samples)
}

// scanner returns what is remembered of a source; the least telling of a few makes room.
func (e *Engine) scanner(addr netip.Addr, w *flowv1.Window) *detect.Scanner {
	if s := e.scanners[addr]; s != nil {
		return s
	}
	if len(e.scanners) >= e.cfg.MaxSources {
		var least netip.Addr
		var found *detect.Scanner
		n := 0
		for a, s := range e.scanners {
			if found == nil || s.Weight() < found.Weight() {
				least, found = a, s
			}
			if n++; n == evictTries {
				break
			}
		}
		delete(e.scanners, least)
	}
	s := detect.NewScanner(addr, w.GetStartNs())
	e.scanners[addr] = s
	return s
}

// maxProbes bounds the pairs of hosts watched for protocol scans.
const maxProbes = 256

// protocolProbes looks for protocol scans in the unreachables among e.facts.
func (e *Engine) protocolProbes(w *flowv1.Window, out *WindowResult) {
	for i := range e.facts {
		f := &e.facts[i]
		if !detect.ProtocolUnreachable(f) {
			continue
		}
		src, dst, protocol, ok := header.Inner(e.raw[i])
		if !ok {
			continue
		}
		scanner, host := flow.Addr(src), flow.Addr(dst)
		g := e.groups.of(host)
		if g == nil {
			continue
		}
		k := [2]netip.Addr{scanner, host}
		p := e.probes[k]
		if p == nil {
			if len(e.probes) >= maxProbes {
				clear(e.probes)
			}
			p = &detect.ProtocolProbe{}
			e.probes[k] = p
		}
		n := float64(p.Add(protocol, *f, e.raw[i]))
		if n < g.thresholds.Protocols {
			continue
		}
		scan := detect.Scan{
			Type: detect.PortScan, Target: netip.PrefixFrom(host, host.BitLen()), Host: host, Packets: uint64(n), Sources: 1,
			Measure: detect.Measure{Level: n / g.thresholds.Protocols, Packets: uint64(n), Features: map[string]float64{"unreachable_protocols": n},
				Limits: map[string]float64{"unreachable_protocols": g.thresholds.Protocols}},
		}
		e.report(w, []finding{{scan: scan, source: scanner, firstNs: p.FirstNs, facts: p.Samples, raw: p.Raw}}, out)
	}
}

const (
	maxScanners = 4_096                            // sources of one attack that are remembered
	maxNamed    = maxVerdicts * verdict.MaxSources // sources of one attack that are blocked within a minute; the others are found again
)

// report begins or continues the attacks that findings belong to, and blocks sources that are new to them, or that come back
// when their rule is over: an attack in which sources take turns may last for days. Nothing is found of allowed sources.
func (e *Engine) report(w *flowv1.Window, found []finding, out *WindowResult) {
	fresh := make(map[*attack][]finding)
	begun := make(map[*attack]bool)
	var order []*attack
	for _, f := range found {
		if e.allows(f.source) {
			continue
		}
		a := e.scanOf(&f)
		if a == nil {
			start := min(f.firstNs, w.GetStartNs())
			if f.scan.Fast && w.GetStartNs()-start > int64(2*time.Second) {
				start = w.GetStartNs() // the source was there long before it began to scan
			}
			a = e.begin(w, f.scan.Type, verdict.TargetName(f.scan.Target), start, out)
			begun[a] = true
			order = append(order, a)
		}
		last, known := a.scanners[f.source]
		if known && !f.scan.Alert && w.GetEndNs()-last > e.ruleLife(a) {
			e.forgetSource(a, f.source)
			if !f.scan.Fast {
				continue
			}
			known = false
		}
		a.lastOver, a.holdNs = w.GetEndNs(), f.scan.HoldNs
		if known {
			a.scanners[f.source] = max(last, w.GetEndNs())
			a.packets = max(a.packets, f.scan.Packets)
			continue
		}
		if !e.mayName(a, w.GetEndNs()) {
			continue
		}
		a.scanners[f.source] = w.GetEndNs()
		a.packets += f.scan.Packets
		a.sourceCount++
		if name := f.source.String(); len(a.top) < verdict.MaxSources && f.source.IsValid() && !slices.Contains(a.top, name) {
			a.top = append(a.top, name)
		}
		if fresh[a] == nil && !begun[a] {
			order = append(order, a)
		}
		fresh[a] = append(fresh[a], f)
	}
	for _, a := range order {
		if e.attacks[a.key] != a {
			continue // it made room for another one
		}
		for list := range slices.Chunk(fresh[a], verdict.MaxSources) {
			e.scanVerdict(w, a, list, out)
		}
		if begun[a] {
			e.publish(a, eventv1.AttackState_ATTACK_STATE_STARTED, e.now(w), out)
		}
	}
}

// ruleLife is how long a rule of the attack lives that is not hit.
func (e *Engine) ruleLife(a *attack) int64 { return max(a.leaseNs, int64(e.cfg.Lease)) }

// mayName makes room for one more source of the attack, unless there were too many within the minute.
func (e *Engine) mayName(a *attack, nowNs int64) bool {
	if d := nowNs - a.namedNs; d < 0 || d >= int64(time.Minute) {
		a.named, a.namedNs = 0, nowNs
	}
	if a.named == maxNamed {
		return false
	}
	a.named++
	for life := e.ruleLife(a); len(a.scanners) >= maxScanners; life = math.MinInt64 { // first those whose rules are over
		for s, last := range a.scanners {
			if nowNs-last > life {
				e.forgetSource(a, s)
			}
		}
	}
	return true
}

// scanOf is the attack that a finding continues: of the same target, or of the same source, whose swept prefix
// may have widened since.
func (e *Engine) scanOf(f *finding) *attack {
	if a := e.attacks[attackKey{f.scan.Type, verdict.TargetName(f.scan.Target)}]; a != nil {
		return a
	}
	if f.scan.Type != detect.HostSweep {
		return nil
	}
	for _, a := range e.attacks {
		if _, ok := a.scanners[f.source]; ok && a.key.typ == f.scan.Type {
			return a
		}
	}
	return nil
}

// scanVerdict blocks up to 16 sources of a scan. A source that is itself protected is only counted: its own good
// traffic would go with it.
func (e *Engine) scanVerdict(w *flowv1.Window, a *attack, list []finding, out *WindowResult) {
	c := verdict.Choice{Key: verdict.KeySources, AttackShare: 1}
	if list[0].scan.Alert {
		if a.verdicts < maxVerdicts {
			e.alert(w, a, list, out)
		}
		return
	}
	for i := range list {
		src := list[i].source
		r := verdict.Rule{Action: policy.Drop, Match: policy.Match{Src: netip.PrefixFrom(src, src.BitLen())}, Priority: verdict.PriorityDrop,
			Comment: list[i].scan.Type + " source"}
		switch {
		case e.groups.all == nil && e.groups.of(src) != nil:
			r.Action = policy.Count
		case list[i].toward:
			host := list[i].scan.Host
			r.Match.Dst = netip.PrefixFrom(host, host.BitLen())
			if a.key.typ == detect.SYNACKReflection {
				r.Match.HasProtocol, r.Match.Protocol = true, 6
				r.Match.TCPFlags, r.Match.TCPFlagsMask = policy.SYN|policy.ACK, policy.SYN|policy.ACK
			}
		case e.peers.Known(list[i].scan.Host.As16(), src.As16()) != nil && tcp(list[i].facts):
			// A known peer keeps what it has: only what begins connections goes.
			r.Match.HasProtocol, r.Match.Protocol = true, 6
			r.Match.TCPFlags, r.Match.TCPFlagsMask = policy.SYN, policy.SYN|policy.ACK
		}
		// A source that is blocked already gets its rule again, not a second one with the same match.
		if list[i].toward {
			c.Rules = append(c.Rules, r)
			continue
		}
		if b := e.blocked[src]; b != nil {
			r.AttackID = b.id
		} else if r.Action == policy.Drop {
			e.blocked[src] = a
		}
		c.Rules = append(c.Rules, r)
	}
	what := "ports of one host"
	if a.key.typ == detect.HostSweep {
		what = "many hosts"
	}
	c.Explanation = fmt.Sprintf("%s tried %s (%s), so the source is blocked.", list[0].source, what, a.key.target)
	if n := len(list); n > 1 {
		c.Explanation = fmt.Sprintf("%d sources tried %s (%s), so these sources are blocked.", n, what, a.key.target)
	} else if c.Rules[0].Action == policy.Count {
		c.Explanation = fmt.Sprintf("%s, itself protected, tried %s (%s); its packets are counted, not dropped.", list[0].source, what, a.key.target)
	}
	if what := list[0].scan.What; what != "" && c.Rules[0].Action != policy.Count {
		c.Explanation = fmt.Sprintf(what, list[0].source, list[0].scan.Host) + ", so it is blocked."
	}
	m := list[0].scan.Measure
	e.verdict(w, a, &c, m.Features, m.Limits, []uint64{w.GetSequence()}, list[0].facts, list[0].raw, out)
}

func tcp(facts []header.Facts) bool {
	for i := range facts {
		if facts[i].Protocol != 6 {
			return false
		}
	}
	return len(facts) > 0
}

// topSources are the sources seen most among samples, at most 16.
func topSources(facts []header.Facts) []string {
	counts := make(map[[16]byte]int)
	for i := range facts {
		counts[facts[i].Src]++
	}
	list := make([][16]byte, 0, len(counts))
	for a := range counts {
		list = append(list, a)
	}
	sort.Slice(list, func(i, j int) bool {
		if counts[list[i]] != counts[list[j]] {
			return counts[list[i]] > counts[list[j]]
		}
		return string(list[i][:]) < string(list[j][:])
	})
	out := make([]string, 0, verdict.MaxSources)
	for _, a := range list[:min(len(list), verdict.MaxSources)] {
		out = append(out, flow.Addr(a).String())
	}
	return out
}
