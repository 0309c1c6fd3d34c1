package enforce

import (
	"errors"
	"math"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// flush writes a batch's changes into all gates and reports the rules that are in force now.
func (s *Service) flush(c *changes) {
	gates := s.gates()
	for _, p := range gates {
		if len(c.deletes) == 0 {
			break
		}
		for _, number := range c.deletes {
			delete(p.there, number)
		}
		if err := p.gate.DeleteRules(c.deletes); err != nil {
			s.t.CountError("delete_rules")
			s.t.Log.Error("entries could not be removed", "iface", p.name, "error", err)
		}
	}
	var batch []*ruleState
	for _, id := range c.order {
		if r, ok := c.put[id]; ok {
			batch = append(batch, r)
			delete(c.put, id)
		}
	}
	if len(batch) == 0 {
		return
	}
	if len(gates) == 0 {
		for _, r := range batch {
			r.state, r.since, r.silent = pending, time.Now(), false
		}
		return
	}
	failed := make(map[*ruleState]refusal)
	for _, p := range gates {
		s.put(p, batch, failed)
	}
	now := time.Now()
	for _, r := range batch {
		if no, ok := failed[r]; ok {
			for _, p := range gates {
				if err := p.gate.DeleteRules([]uint64{r.number}); err != nil {
					s.t.CountError("delete_rules")
				}
			}
			s.refuse(r, no)
			continue
		}
		s.inForceNow(r, gates, now)
	}
}

// put writes rules into one gate and notes those it did not take.
func (s *Service) put(p *port, batch []*ruleState, failed map[*ruleState]refusal) {
	entries, asked := make([]xdp.Rule, 0, len(batch)), make([]*ruleState, 0, len(batch))
	for _, r := range batch {
		if !s.covers(p, &r.rule) {
			if r.before != nil { // it may have been wider
				s.take(p, r)
			}
			continue
		}
		if _, ok := failed[r]; ok || r.rule.Match.Host != "" {
			continue // a rule by host is classify's, which makes rules of single flows of it
		}
		e := s.entry(p, r)
		if had, ok := p.there[r.number]; ok {
			r.weighed = math.MaxUint64 // what its counters have is not of the last second
			if sameEntry(had, e) {
				r.silent = r.state != refused // of an earlier run
				continue
			}
		}
		entries, asked = append(entries, e), append(asked, r)
	}
	if len(entries) == 0 {
		return
	}
	err := p.gate.PutRules(entries)
	if err == nil {
		return
	}
	s.t.CountError("put_rules")
	s.t.Log.Error("rules could not be applied", "iface", p.name, "error", err)
	each := make(map[uint64]error)
	whole := ruleErrors(err, each)
	for _, r := range asked {
		why := each[r.number]
		if why == nil {
			why = whole
		}
		if why == nil {
			continue
		}
		switch {
		case errors.Is(why, xdp.ErrMaskLimit):
			failed[r] = refusal{MaskLimit, why.Error()}
		case errors.Is(why, xdp.ErrRuleLimit):
			failed[r] = refusal{RuleLimit, why.Error()}
		default:
			failed[r] = refusal{ApplyFailed, why.Error()}
		}
	}
}

// ruleErrors sorts a joined error by rule; what concerns no single rule is returned.
func ruleErrors(err error, each map[uint64]error) (whole error) {
	var one *xdp.RuleError
	if joined, ok := err.(interface{ Unwrap() []error }); ok { // not errors.As: every branch of the tree counts
		for _, e := range joined.Unwrap() {
			whole = errors.Join(whole, ruleErrors(e, each))
		}
		return whole
	}
	if errors.As(err, &one) {
		each[one.ID] = one.Err
		return nil
	}
	return err
}

// inForceNow notes and reports that the rule is in the maps.
func (s *Service) inForceNow(r *ruleState, gates []*port, now time.Time) {
	by := r.rule.Origin
	switch {
	case r.held():
		by = byPanic
	case r.rule.Changed != "" && (r.before != nil && r.rule.Changed != r.before.Changed || r.prolonged != nil && r.rule.Changed != r.prolonged.Changed):
		by = byNode
	}
	r.state, r.since = active, now
	if r.rule.Action.Blocks() {
		r.state = shadow
		for _, p := range gates {
			if !p.shadow && !r.rule.Shadow && s.covers(p, &r.rule) {
				r.state = active
			}
		}
	}
	if r.applied.IsZero() {
		r.applied = now
	}
	switch {
	case !r.silent:
		s.reportApplied(r, by, now)
	case r.prolonged != nil:
		before := r.prolonged
		s.report(r, eventv1.EnforcementState_ENFORCEMENT_STATE_RENEWED, func(e *eventv1.Enforcement) {
			e.By, e.Before, e.Detail = by, policy.ToProto(before), "it was asked for again with another deadline"
			if by == byNode {
				e.Detail = r.rule.Changed
			}
		})
	}
	r.before, r.prolonged = nil, nil
}

// reconcileGate brings one gate in line with the table: entries that are right already are left alone.
func (s *Service) reconcileGate(p *port, now time.Time) {
	s.readEntries(p)
	c := newChanges()
	for _, r := range s.rules {
		if r.state == refused || r.state == expired || !s.covers(p, &r.rule) {
			if _, ok := p.there[r.number]; ok {
				s.take(p, r)
			}
			continue
		}
		if no := s.guard.check(&r.rule, now); no != nil {
			continue // its deadline passes at the next tick
		}
		r.silent = r.inForce() // on other interfaces, or here before the program was attached anew
		c.add(r)
	}
	s.flush(c)
	if s.synced {
		s.sweepGate(p)
	}
	if s.guard.panic.on {
		s.clearGate(p)
	}
	if !s.syncing {
		p.there = nil
	}
}

// sameEntry compares but for the clock's resolution in the deadline.
func sameEntry(a, b xdp.Rule) bool {
	d := a.Expires.Sub(b.Expires)
	if a.Expires.IsZero() != b.Expires.IsZero() || d > 50*time.Millisecond || d < -50*time.Millisecond {
		return false
	}
	a.Expires = b.Expires
	return a == b
}
