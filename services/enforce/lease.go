package enforce

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

const (
	fastTick     = 10 * time.Millisecond  // while young rules wait for their first drop
	slowTick     = 50 * time.Millisecond  // else: deadlines
	hitsEvery    = time.Second            // counters of all rules
	youngFor     = 10 * time.Second       // a rule that has not dropped by then is looked at once a second
	firstDropMax = 256                    // rules of one fast look
	retryMax     = 128                    // refused rules tried again a second
	jobTimeout   = 10 * time.Second       // one renewal or deletion
	unrenewed    = 250 * time.Millisecond // until a failed renewal is tried again
	clockStep    = time.Second            // a wall clock that moves so far against the kernel's was set
)

// clocks are the times of the periodic works; only the loop uses it.
type clocks struct {
	leases, hits time.Time
	ahead        int64 // ns that the wall clock is before the kernel's, as the deadlines in the maps have it; 0: not known
}

// tick does what is due and returns the time until the next call.
func (s *Service) tick(c *clocks, now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	young := s.firstDrops(now)
	if now.Sub(c.leases) >= slowTick {
		c.leases = now
		s.leases(now)
		s.steer(now)
	}
	if now.Sub(c.hits) >= hitsEvery {
		c.hits = now
		s.followClock(c, now)
		s.hits(now)
		s.policies(now)
		s.escort(now)
		s.modes(now)
		s.retry(now)
		s.forget(now)
		if s.guard.panic.on && !s.cleared {
			s.clear()
			s.notify()
		}
	}
	if young {
		return fastTick
	}
	return slowTick
}

// followClock writes the deadlines in the maps anew when the wall clock was set: they are of the kernel's clock.
func (s *Service) followClock(c *clocks, now time.Time) {
	ahead := time.Now().UnixNano() - int64(xdp.MonotonicNow()) //nolint:gosec // below 2^63 until 2262
	moved := time.Duration(ahead - c.ahead)
	switch {
	case c.ahead == 0:
	case moved.Abs() < clockStep:
		return
	default:
		s.t.Log.Warn("the clock was set: deadlines of rules follow it", "by", moved)
		for _, p := range s.gates() {
			s.reconcileGate(p, now)
		}
	}
	c.ahead = ahead
}

// firstDrops looks for rules that have begun to drop. The time itself is the kernel's.
func (s *Service) firstDrops(now time.Time) (young bool) {
	var ids []uint64
	var rules []*ruleState
	for _, r := range s.rules {
		if !r.inForce() || r.dropTold || !r.rule.Action.Blocks() || now.Sub(r.applied) > youngFor {
			continue
		}
		if ids, rules = append(ids, r.number), append(rules, r); len(ids) == firstDropMax {
			break // the map's order is random: all get their turn
		}
	}
	if len(ids) == 0 {
		return false
	}
	stats := s.stats(ids)
	for _, r := range rules {
		if st, ok := stats[r.number]; ok && !st.FirstDrop.IsZero() {
			r.stat = st
			s.reportFirstDrop(r)
		}
	}
	return true
}

// leases renews rules that are hit or held and removes those whose deadline has passed. The kernel stops applying them
// by itself; this only tidies up.
func (s *Service) leases(now time.Time) {
	var near, held, over []*ruleState
	var ids []uint64
	for _, r := range s.rules {
		if r.rule.Expires.IsZero() {
			continue
		}
		left := r.rule.Expires.Sub(now)
		switch {
		case left <= 0:
			over = append(over, r)
		case r.rule.Lease <= 0 || r.renewing || !now.After(r.renewFrom) || r.revision == 0:
		case left > r.rule.Lease+clockStep && r.rule.Origin == policy.OriginDetector && r.inForce():
			s.renew(r, r.leaseHits, now) // the clock was set back: a detector's rule has no more than its lease
		case left >= r.rule.Lease/2:
		case r.inForce():
			near, ids = append(near, r), append(ids, r.number)
		case r.held() && !r.revoked && s.panicShared: // else the others' hits decide, as they apply it
			held = append(held, r)
		}
	}
	if len(near) > 0 {
		stats := s.stats(ids)
		for _, r := range near {
			st, ok := stats[r.number]
			earned := r.earned(&st)
			if !ok || !r.renews(earned, now) {
				continue
			}
			r.stat = st
			s.renew(r, earned, now)
		}
	}
	if len(held) > 0 {
		s.renewHeld(held, now)
	}
	if len(over) > 0 {
		s.expire(over, now)
	}
}

// renewHeld renews rules near their end that panic holds: nothing can hit them, and their detector counts on them for
// as long as its attack goes on. Panic has no limit in time, so it renews no more than may act afterwards, by the rule
// limit; the others run out. All nodes choose the same.
func (s *Service) renewHeld(near []*ruleState, now time.Time) {
	room := s.guard.limit + len(near)
	for _, r := range s.rules {
		if r.held() || r.state != refused {
			room--
		}
	}
	if room < len(near) {
		slices.SortFunc(near, func(a, b *ruleState) int { return cmp.Compare(a.number, b.number) })
		near = near[:max(0, room)]
	}
	for _, r := range near {
		if len(s.jobs) >= cap(s.jobs)/2 {
			return // the next tick goes on; deletions, which are not tried again, find room
		}
		s.renew(r, 0, now)
	}
}

// renew asks the bus for another lease from now on.
func (s *Service) renew(r *ruleState, hits uint64, now time.Time) {
	next := r.rule
	next.Expires = now.Add(r.rule.Lease).UTC()
	r.renewing = s.later(job{kind: jobRenew, rule: next, revision: r.revision, hits: hits, expires: r.rule.Expires})
}

// expire takes rules out whose deadline has passed, unless a renewal is on its way that another node may have won.
func (s *Service) expire(over []*ruleState, now time.Time) {
	ids := make([]uint64, 0, len(over))
	for _, r := range over {
		ids = append(ids, r.number)
	}
	stats := s.stats(ids) // the last figures, before the entries go
	for _, p := range s.gates() {
		if err := p.gate.DeleteRules(ids); err != nil {
			s.t.CountError("delete_rules")
			s.t.Log.Error("expired entries could not be removed; the kernel ignores them", "iface", p.name, "error", err)
		}
	}
	for _, r := range over {
		if st, ok := stats[r.number]; ok {
			r.stat = st
		}
		if r.inForce() && !r.stat.FirstDrop.IsZero() && !r.dropTold {
			s.reportFirstDrop(r)
		}
		s.end(r, now)
	}
	s.notify()
}

// end moves a rule whose deadline has passed from the table to the ended ones; its entry is gone.
func (s *Service) end(r *ruleState, now time.Time) {
	delete(s.rules, r.rule.ID)
	if r.revision > 0 { // 0: the bucket was lost, whatever is under the key now is not this rule
		s.later(job{kind: jobDelete, rule: r.rule, revision: r.revision})
	}
	if r.inForce() {
		s.offenders.note(r, now)
	}
	if r.state != refused && r.state != elsewhere {
		s.report(r, eventv1.EnforcementState_ENFORCEMENT_STATE_EXPIRED, func(e *eventv1.Enforcement) { e.Detail = "its deadline passed" })
	}
	r.state, r.since = expired, now
	s.ended = append(s.ended, r)
}

// hits reads all counters and reports those that advanced.
func (s *Service) hits(now time.Time) {
	ids := make([]uint64, 0, len(s.rules))
	for _, r := range s.rules {
		if r.inForce() {
			ids = append(ids, r.number)
		}
	}
	if len(ids) == 0 {
		return
	}
	stats := s.stats(ids)
	for _, r := range s.rules {
		st, ok := stats[r.number]
		if !ok || !r.inForce() {
			continue
		}
		r.stat = st
		if !r.dropTold && !st.FirstDrop.IsZero() {
			s.reportFirstDrop(r)
		}
		if st.Packets != r.told {
			r.told = st.Packets
			s.report(r, eventv1.EnforcementState_ENFORCEMENT_STATE_HITS, func(e *eventv1.Enforcement) { e.TimeNs = now.UnixNano() })
		}
	}
}

// retry asks again for rules whose refusal may have passed.
func (s *Service) retry(now time.Time) {
	c, n := newChanges(), 0
	s.countLive()
	for _, r := range s.rules {
		revoke := r.held() && r.revoked && now.Sub(r.since) >= hitsEvery
		if !revoke && (r.state != refused || !r.refusal.reason.passing()) {
			continue
		}
		if n++; n > retryMax {
			break
		}
		if revoke { // its key is still there: the deletion failed
			s.revokeHeld(r)
			continue
		}
		r.received = now
		s.decide(c, r, r, now)
	}
	s.flush(c)
}

// forget drops ended rules nobody will ask for any more.
func (s *Service) forget(now time.Time) {
	n := max(0, len(s.ended)-keepEndedMax)
	for n < len(s.ended) && now.Sub(s.ended[n].since) > keepEnded {
		n++
	}
	s.ended = append(s.ended[:0:0], s.ended[n:]...)
}

// endedHere reports whether a rule of this id expired here lately.
func (s *Service) endedHere(id string) bool {
	for _, r := range s.ended {
		if r.rule.ID == id {
			return true
		}
	}
	return false
}

type jobKind uint8

const (
	jobRenew jobKind = iota + 1
	jobChange
	jobDelete
)

// job is a write to the bucket, done beside the loop.
type job struct {
	kind     jobKind
	rule     policy.Rule
	revision uint64
	hits     uint64    // jobRenew: what earned it
	expires  time.Time // jobRenew: the deadline that was
}

type jobResult struct {
	job
	revision uint64
	err      error
}

// later queues a job; when the queue is full the next tick tries again.
func (s *Service) later(j job) bool {
	select {
	case s.jobs <- j:
		return true
	default:
		s.t.CountError("job_queue_full")
		return false
	}
}

func (s *Service) work(ctx context.Context) {
	for {
		var j job
		select {
		case <-ctx.Done():
			return
		case j = <-s.jobs:
		}
		limit, cancel := context.WithTimeout(ctx, jobTimeout)
		r := jobResult{job: j}
		switch j.kind {
		case jobRenew, jobChange:
			if s.outdated(&j) {
				r.err = bus.ErrConflict // the bucket would say so too; nodes share the work of a long queue
				break
			}
			r.revision, r.err = s.bus.UpdateRule(limit, j.rule, j.revision)
		case jobDelete:
			// A conflict means that someone wants the rule again: the watch tells.
			if err := s.bus.DeleteRuleRevision(limit, j.rule.ID, j.revision); err != nil && !errors.Is(err, bus.ErrConflict) {
				s.t.CountError("delete_rule")
			}
		}
		cancel()
		if j.kind == jobDelete {
			continue
		}
		select {
		case s.done <- r:
		case <-ctx.Done():
			return
		}
	}
}

// outdated reports whether the rule has changed or ended since the job was queued.
func (s *Service) outdated(j *job) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.rules[j.rule.ID]
	return r == nil || r.revision != j.revision
}

// settle takes the result of a renewal or a change.
func (s *Service) settle(d jobResult) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.rules[d.rule.ID]
	if r == nil {
		return // revoked or expired meanwhile; after an expiry the watch brings the renewed rule back
	}
	r.renewing = false
	if d.err != nil {
		if !errors.Is(d.err, bus.ErrConflict) { // with a conflict the watch brings the version that won
			s.t.CountError("renew")
		}
		r.renewFrom = time.Now().Add(max(unrenewed, r.rule.Lease/16))
		return
	}
	if d.kind == jobChange {
		return // the watch brings it, as it does to the other nodes
	}
	r.leaseHits, r.leaseAt = d.hits, time.Now()
	if r.revision > d.revision {
		return // a later version is in force
	}
	if r.revision < d.revision {
		r.revision, r.rule.Expires = d.revision, d.rule.Expires
		if r.inForce() {
			r.silent = true
			c := newChanges()
			c.add(r)
			s.flush(c)
		}
	}
	if r.held() {
		return // what a held rule does is not news, and it was not hit
	}
	s.report(r, eventv1.EnforcementState_ENFORCEMENT_STATE_RENEWED, func(e *eventv1.Enforcement) {
		before := r.rule
		before.Expires = d.expires
		e.Before, e.Detail = policy.ToProto(&before), "it was hit since its last renewal"
		if d.expires.After(d.rule.Expires) {
			e.Detail = "the clock was set back"
		}
	})
}
