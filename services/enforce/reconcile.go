package enforce

import (
	"cmp"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// clockSkew is how far apart two nodes may see a deadline pass.
const clockSkew = 250 * time.Millisecond

// apply takes one batch of updates into the table and then into the maps.
func (s *Service) apply(batch []delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := newChanges()
	now := time.Now()
	s.countLive()
	for i := range batch {
		u := &batch[i]
		switch {
		case u.Restarted:
			s.beginSync()
		case u.Synced:
			s.flush(c)
			c = newChanges()
			s.finishSync(c)
		case u.Err != nil:
			s.told = true
			s.refuseUnreadable(c, u, now)
		case u.Rule == nil:
			s.told = true
			s.remove(c, u.ID, "")
		default:
			s.told = true
			if s.syncing {
				s.seen[u.ID] = true
			}
			s.want(c, u, now)
		}
	}
	s.flush(c)
	s.steer(now)
	s.notify()
}

// notify wakes who waits for a decision.
func (s *Service) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// want takes a rule of the desired state.
func (s *Service) want(c *changes, u *delivery, now time.Time) {
	old := s.rules[u.ID]
	if old != nil && s.stale(u.Revision, old.revision) {
		return // the echo of an own renewal, or a repetition
	}
	delete(c.put, u.ID) // a version of the same batch
	r := &ruleState{rule: *u.Rule, number: policy.NumericID(u.ID), revision: u.Revision, received: u.at, since: now}
	if old != nil {
		r.keep(old)
	} else if !r.rule.Expires.IsZero() && !r.rule.Expires.After(now) && s.endedHere(u.ID) {
		s.later(job{kind: jobDelete, rule: r.rule, revision: r.revision}) // its key outlived an interruption of the bus
		return
	}
	s.rules[u.ID] = r
	s.decide(c, r, old, now)
}

// stale says whether a version is known. In a repetition a lower revision is a new one: the bucket was made again.
func (s *Service) stale(revision, known uint64) bool {
	return revision == known || revision < known && !s.syncing
}

// decide asks the guardrails; old is the version in the maps, if any.
func (s *Service) decide(c *changes, r, old *ruleState, now time.Time) {
	no := s.guard.check(&r.rule, now)
	if (no == nil || no.reason == Panic) && !s.reaches(&r.rule) {
		s.leave(c, r, old)
		return
	}
	fresh := old == nil || old.state == refused || old.state == elsewhere
	if no == nil && fresh {
		if no = s.guard.full(s.live); no == nil && !s.syncing && (old != r || r.refusal.reason == RateOfRules) {
			// A repetition brings what was decided before: counting it would refuse rules after a restart.
			no = s.guard.take(now)
		}
	}
	if no == nil && !s.syncing && r.rule.Changed == "" && (old == nil || !old.inForce() || !sameBlock(&old.rule, &r.rule)) {
		// What a node has changed it has judged, and a repetition brings what was decided before. Last, as it costs most.
		no = s.guard.sparesGood(&r.rule, now)
	}
	if no == nil {
		if fresh {
			s.live++
		}
		c.add(r)
		return
	}
	if s.pinned(r.number) {
		c.remove(r)
		if no.reason == Expired { // while this node was away
			s.end(r, now)
			return
		}
	}
	if no.reason == Panic {
		s.hold(r, *no)
		return
	}
	s.refuse(r, *no)
	if no.reason == Expired {
		s.later(job{kind: jobDelete, rule: r.rule, revision: r.revision})
	}
}

// countLive counts the rules that are or will be in the maps; decide goes on counting within a batch.
func (s *Service) countLive() {
	s.live = 0
	for _, r := range s.rules {
		if r.state != refused && r.state != expired && r.state != elsewhere {
			s.live++
		}
	}
}

// refuse notes and reports a refusal, once for each reason.
func (s *Service) refuse(r *ruleState, no refusal) {
	again := r.state == refused && r.refusal.reason == no.reason
	r.state, r.refusal, r.silent = refused, no, false
	if again {
		return
	}
	r.since = time.Now()
	s.m.refusals.WithLabelValues(string(no.reason)).Inc()
	s.report(r, eventv1.EnforcementState_ENFORCEMENT_STATE_REFUSED, func(e *eventv1.Enforcement) {
		e.Reason, e.Detail = string(no.reason), no.detail
		if no.reason == Panic {
			e.By = byPanic
		}
		if r.before != nil {
			e.Before, r.before = policy.ToProto(r.before), nil
		}
	})
}

func (s *Service) refuseUnreadable(c *changes, u *delivery, now time.Time) {
	if s.syncing {
		s.seen[u.ID] = true
	}
	old := s.rules[u.ID]
	if old != nil && s.stale(u.Revision, old.revision) {
		return
	}
	delete(c.put, u.ID) // a version of the same batch
	r := &ruleState{rule: policy.Rule{ID: u.ID}, number: policy.NumericID(u.ID), revision: u.Revision, received: u.at, since: now}
	if old != nil && (old.inForce() || s.pinned(r.number)) {
		c.remove(r)
	}
	if old != nil {
		r.before = &old.rule
	}
	s.rules[u.ID] = r
	s.refuse(r, refusal{Invalid, u.Err.Error()})
}

// remove takes a revoked rule out of the table and the maps.
func (s *Service) remove(c *changes, id, detail string) {
	r := s.rules[id]
	if r == nil {
		// An entry of an earlier run whose rule was revoked while this node was away.
		if number := policy.NumericID(id); s.syncing && s.pinned(number) {
			c.deletes = append(c.deletes, number)
			s.report(&ruleState{rule: policy.Rule{ID: id}, number: number}, eventv1.EnforcementState_ENFORCEMENT_STATE_REVOKED,
				func(e *eventv1.Enforcement) {
					e.By, e.Detail = policy.OriginUser, "the rule was revoked while this node was away"
				})
		}
		return
	}
	delete(s.rules, id)
	if r.inForce() || s.pinned(r.number) {
		c.remove(r)
	} else {
		delete(c.put, id)
	}
	if now := time.Now(); !r.rule.Expires.IsZero() && r.rule.Expires.Before(now.Add(clockSkew)) {
		r.revision = 0 // another node was first to see the deadline pass and has deleted the key
		s.end(r, now)
		return
	}
	if detail == "" && r.held() {
		detail = r.refusal.detail
	}
	s.report(r, eventv1.EnforcementState_ENFORCEMENT_STATE_REVOKED, func(e *eventv1.Enforcement) {
		e.Detail = cmp.Or(detail, "its key was deleted")
		e.By = policy.OriginUser // nobody else deletes the key of a rule whose deadline has not passed
		if r.held() && r.rule.Origin == policy.OriginUser {
			e.By = byPanic
		}
	})
}

// beginSync starts taking a repetition of the whole desired state; entries that are right already are not written.
func (s *Service) beginSync() {
	s.syncing, s.seen, s.told = true, make(map[string]bool), false
	for _, p := range s.gates() {
		s.readEntries(p)
	}
}

// readEntries notes what a gate holds.
func (s *Service) readEntries(p *port) {
	list, err := p.gate.Rules()
	if err != nil {
		s.t.CountError("read_rules")
		s.t.Log.Error("the entries in force could not be read", "iface", p.name, "error", err)
	}
	p.there = make(map[uint64]xdp.Rule, len(list))
	for _, e := range list {
		p.there[e.ID] = e
	}
}

// finishSync compares table and maps with the repetition that is complete now. When it told of nothing at all, the
// bucket was lost or never filled: then nothing is removed, the leases run out.
func (s *Service) finishSync(c *changes) {
	if s.told {
		for id := range s.rules {
			if !s.seen[id] {
				s.remove(c, id, "the rule was gone when the desired state was read again")
			}
		}
	} else if len(s.rules) > 0 {
		for _, r := range s.rules {
			r.revision = 0 // a bucket made again counts from 1
		}
		s.t.Log.Warn("the bucket of rules is unexpectedly empty: nothing is removed, leases run out", "rules", len(s.rules))
	}
	s.syncing, s.seen, s.synced = false, nil, true
	s.flush(c)
	s.kept = 0
	for _, p := range s.gates() {
		p.there = nil
		s.sweepGate(p)
	}
}

// sweepGate removes entries that no rule asks for, unless the bucket is empty.
func (s *Service) sweepGate(p *port) {
	there, err := p.gate.Rules()
	if err != nil {
		s.t.CountError("read_rules")
		return
	}
	numbers := make(map[uint64]bool, len(s.rules))
	for _, r := range s.rules {
		numbers[r.number] = r.inForce() && s.covers(p, &r.rule)
	}
	var orphans []uint64
	for i := range there {
		if !numbers[there[i].ID] {
			orphans = append(orphans, there[i].ID)
		}
	}
	if len(orphans) == 0 {
		return
	}
	if !s.told {
		s.kept += len(orphans)
		s.t.Log.Warn("entries of an earlier run have no rule, the bucket is empty: they stay until they expire",
			"iface", p.name, "entries", len(orphans))
		return
	}
	if err := p.gate.DeleteRules(orphans); err != nil {
		s.t.CountError("delete_rules")
		s.t.Log.Error("stale entries could not be removed", "iface", p.name, "error", err)
		return
	}
	s.t.Log.Info("removed entries that no rule asks for", "iface", p.name, "entries", len(orphans))
}

// pinned reports whether any gate holds an entry of this number.
func (s *Service) pinned(number uint64) bool {
	for _, p := range s.gates() {
		m, err := p.gate.RuleStats([]uint64{number})
		if err == nil && len(m) > 0 {
			return true
		}
	}
	return false
}

// entry is the rule as the maps have it.
func (s *Service) entry(p *port, r *ruleState) xdp.Rule {
	e := xdp.Rule{
		ID: r.number, Match: r.rule.Match, Action: r.rule.Action, RatePPS: r.rule.RatePPS, RateBPS: r.rule.RateBPS,
		PerSource: r.rule.PerSource, SYNRetry: r.rule.SYNRetry, Priority: r.rule.Priority, Expires: r.rule.Expires,
		WouldDrop: r.rule.Action.Blocks() && (p.shadow || r.rule.Shadow),
	}
	if r.rule.Escalated {
		e.Action, e.RatePPS, e.RateBPS = policy.Drop, 0, 0
	}
	return e
}
