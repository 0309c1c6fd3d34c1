package classify

import (
	"maps"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/policy"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/detect"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/header"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/verdict"
)

// maxEvidence bounds the sampled packets in evidence.
const maxEvidence = 32

// fresh collects what comes through an attack's rules after they had time to be applied.
type fresh struct {
	sinceNs int64
	seen    int        // samples of the attack's kind
	ring    sampleRing // those that no rule matches
}

// riseNs is when an attack began: the first window in which the rate rose, or the first sampled packet of the
// flood's kind from a stranger, whichever is later.
func (e *Engine) riseNs(r *rise) int64 {
	first := int64(0)
	for i := range r.ring.facts {
		f := &r.ring.facts[i]
		if e.peers.Trusted(f.Dst, f.Src, f.Protocol, f.SrcPort, r.startNs) {
			continue
		}
		if first == 0 || f.TimeNs < first {
			first = f.TimeNs
		}
	}
	return max(r.startNs, first)
}

// floodVerdict decides on a flood that has just been found.
func (e *Engine) floodVerdict(w *flowv1.Window, a *attack, t *target, r *rise, m *detect.Measure, second *detect.Sums, out *WindowResult) {
	if r == nil || len(r.ring.facts) == 0 {
		return
	}
	fragments := 0.0
	if r.sampled > 0 {
		fragments = float64(r.later) / float64(r.sampled)
	}
	e.chooseFlood(w, a, t, &r.ring, fragments, r.windows, m, second.Sources, out)
}

// chooseFlood picks a signature or sources for samples of a flood.
func (e *Engine) chooseFlood(w *flowv1.Window, a *attack, t *target, ring *sampleRing, fragments float64, windows []uint64,
	m *detect.Measure, sources float64, out *WindowResult) {
	good, goodRate := t.baseline.Good(a.flood.Kind)
	in := verdict.Input{
		Type: a.flood.Type, Target: a.target, FirstNs: a.firstNs, Attack: ring.facts, Good: good, Fragments: fragments,
		GoodFragments: t.baseline.Fragments(), Sources: sources, Peers: e.peers,
	}
	if a.pps > 0 && len(good) > 0 {
		// Good packets of clients that are not known yet are mixed in with the attack's.
		strange := 0
		for i := range good {
			if !e.peers.Trusted(good[i].Dst, good[i].Src, good[i].Protocol, good[i].SrcPort, a.firstNs) {
				strange++
			}
		}
		rate := goodRate * float64(strange) / float64(len(good))
		in.Contamination = min(0.2, rate/(rate+a.pps))
	}
	c, ok := verdict.Choose(&in)
	if !ok {
		return
	}
	a.top = topSources(in.Attack)
	features := maps.Clone(m.Features)
	features["pps"], features["bps"] = a.pps, a.bps
	features["attack_samples"], features["good_samples"] = float64(len(in.Attack)), float64(len(good))
	e.verdict(w, a, &c, features, m.Limits, windows, ring.facts, ring.raw, out)
}

// reconsider looks at what still comes through after the rules of an attack had time to be applied. When it is
// over the threshold and the rules do not match it, the attack has changed: a further verdict follows. times is how many
// times the threshold that is.
func (e *Engine) reconsider(w *flowv1.Window, a *attack, t *target, r *rise, limits *detect.Thresholds, times float64, out *WindowResult) {
	if a.verdicts == 0 {
		second := t.series.Sum(detect.Slots)
		if m := a.flood.Measure(&second, limits); m.Level > 0 {
			e.floodVerdict(w, a, t, r, &m, &second, out)
		}
		return
	}
	if a.verdicts >= maxVerdicts || w.GetStartNs() < a.verdictNs+int64(reviseAfter) {
		return
	}
	if w.GetEndNs()-a.fresh.sinceNs > int64(time.Second) {
		a.fresh = fresh{sinceNs: w.GetStartNs()}
	}
	for i := range e.facts {
		f := &e.facts[i]
		if !a.flood.Kind(f) || e.peers.Trusted(f.Dst, f.Src, f.Protocol, f.SrcPort, a.firstNs) {
			continue
		}
		a.fresh.seen++
		if !a.covers(f) {
			a.fresh.ring.add(*f, e.raw[i])
		}
	}
	const slots = 3
	left := len(a.fresh.ring.facts)
	if left < 8 || left*5 < a.fresh.seen {
		return
	}
	if a.flood.Type == detect.SYNFlood && detect.LoneScan(a.fresh.ring.facts) {
		return // it has not changed: somebody scans beside it
	}
	sums := t.series.Sum(slots)
	m := a.flood.Measure(&sums, limits)
	if m.Level*detect.Slots/slots*float64(left)/float64(a.fresh.seen) < times {
		return
	}
	ring := a.fresh.ring
	a.fresh = fresh{sinceNs: w.GetEndNs()}
	e.chooseFlood(w, a, t, &ring, 0, []uint64{w.GetSequence()}, &m, sums.Sources, out)
}

// covers reports whether the attack's rules match a packet.
func (a *attack) covers(f *header.Facts) bool {
	for i := range a.matches {
		if f.Matched(&a.matches[i]) {
			return true
		}
	}
	return false
}

// covers reports whether a rule of one of the attacks matches a packet.
func covers(list []*attack, f *header.Facts) bool {
	for _, a := range list {
		if a.covers(f) {
			return true
		}
	}
	return false
}

// verdict writes a choice down: rules with ids and leases, and the evidence.
func (e *Engine) verdict(w *flowv1.Window, a *attack, c *verdict.Choice, features, limits map[string]float64, windows []uint64,
	facts []header.Facts, raw [][]byte, out *WindowResult) {
	now := e.now(w)
	limits, learned := e.inForce(a, limits)
	v := &eventv1.Verdict{
		AttackId: a.id, Type: a.key.typ, Target: a.key.target, Sensor: w.GetSensor(), DecidedNs: now, Key: c.Key, Explanation: c.Explanation + learned,
		Evidence: &eventv1.Evidence{Features: features, Thresholds: limits, ConfigVersion: e.version,
			Windows: append([]uint64(nil), windows...), AttackShare: c.AttackShare, GoodShare: c.GoodShare},
	}
	matches := make([]policy.Match, len(c.Rules))
	for i := range c.Rules {
		matches[i] = c.Rules[i].Match
	}
	v.Id = policy.DerivedID(a.id, "verdict", matchIDs(matches))
	v.Rules = make([]*policyv1.Rule, len(c.Rules))
	for i := range c.Rules {
		owner, first := a.id, a.firstNs
		if c.Rules[i].AttackID != "" {
			owner = c.Rules[i].AttackID
			if b := e.byID(owner); b != nil {
				first = b.firstNs // an id is of the minute in which its attack began
			}
		}
		r := policy.Rule{
			ID: policy.DerivedID(owner, c.Rules[i].Action.String(), c.Rules[i].Match.String()), Action: c.Rules[i].Action,
			RatePPS: c.Rules[i].RatePPS, SYNRetry: c.Rules[i].SYNRetry, Match: c.Rules[i].Match, Priority: c.Rules[i].Priority, Origin: policy.OriginDetector, AttackID: owner, VerdictID: v.Id,
			Comment: c.Rules[i].Comment, Created: time.Unix(0, now), Expires: time.Unix(0, now+int64(e.cfg.Lease)), Lease: e.cfg.Lease,
			AttackFirstNs: first, Shadow: c.Rules[i].Action.Blocks() && e.cfg.shadows(a.key.typ),
		}
		if r.Action.Blocks() {
			r.GoodShare = c.GoodHit
		}
		put := e.asChanged(&r)
		v.Rules[i] = policy.ToProto(&put)
		drops := r.Action.Blocks()
		if drops {
			a.matches = append(a.matches, r.Match)
		}
		if e.rules[r.ID] == nil {
			e.rules[r.ID] = &ruleState{attack: a, drops: drops, retry: r.SYNRetry, seen: make(map[string]counters)}
		}
	}
	for i := range facts {
		if len(v.Evidence.Samples) == maxEvidence {
			break
		}
		v.Evidence.Samples = append(v.Evidence.Samples, append([]byte(nil), raw[i]...))
		v.Evidence.SampleTimesNs = append(v.Evidence.SampleTimesNs, facts[i].TimeNs)
	}
	a.verdicts++
	a.verdictNs = w.GetEndNs()
	out.Verdicts = append(out.Verdicts, v)
}
