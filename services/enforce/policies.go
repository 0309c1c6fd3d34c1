package enforce

import (
	"fmt"
	"strings"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/policy"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// What enforce changes about rules by itself: it asks the bucket for another version, as a lease's renewal does, and
// whoever watches the bucket sees it, this node too. Of several nodes one wins.

// promoteMax bounds the rules in shadow that are looked at a second, each against the good flows of an hour. The table's order is
// random, so that all get their turn.
const promoteMax = 128

// policies looks once a second whether rules have earned a change.
func (s *Service) policies(now time.Time) {
	ripe := 0
	for _, r := range s.rules {
		if !r.inForce() || r.rule.Host != "" || r.renewing || r.revision == 0 || !now.After(r.renewFrom) {
			continue
		}
		next, why := r.rule, ""
		switch {
		case r.rule.Shadow && s.ripe(r, now) && ripe < promoteMax:
			ripe++
			why = s.promote(r, &next, now)
		case r.rule.EscalateAfter > 0 && r.state == active:
			why = s.escalate(r, &next, now)
		}
		if why == "" {
			why = s.prolong(r, &next, now)
		}
		r.seen = r.stat
		if why != "" {
			next.Changed = s.cfg.Node + ": " + why
			r.renewing = s.later(job{kind: jobChange, rule: next, revision: r.revision})
		}
	}
}

// mayDrop asks the guardrails about a version that drops.
func (s *Service) mayDrop(r *ruleState, next *policy.Rule, now time.Time) bool {
	no := s.guard.check(next, now)
	if no == nil {
		no = s.guard.sparesGood(next, now)
	}
	if no == nil {
		r.kept = ""
		return true
	}
	s.stays(r, *no)
	return false
}

// stays tells once that a rule stays as it is, though it had earned a change, and why.
func (s *Service) stays(r *ruleState, no refusal) {
	if r.kept == no.reason {
		return
	}
	r.kept = no.reason
	s.m.refusals.WithLabelValues(string(no.reason)).Inc()
	s.report(r, eventv1.EnforcementState_ENFORCEMENT_STATE_UNCHANGED, func(e *eventv1.Enforcement) {
		e.Reason, e.Detail = string(no.reason), no.detail
	})
}

// ripe reports whether a detector's rule in shadow has counted for long enough.
func (s *Service) ripe(r *ruleState, now time.Time) bool {
	return s.cfg.PromoteAfter > 0 && r.rule.Origin == policy.OriginDetector && now.Sub(r.applied) >= s.cfg.PromoteAfter && r.stat.Packets > 0
}

// promote lets a ripe rule act that hits little of what is good.
func (s *Service) promote(r *ruleState, next *policy.Rule, now time.Time) string {
	share, known := s.guard.goodShare(&r.rule, now)
	switch {
	case !known:
		return "" // not decided yet
	case share >= s.cfg.PromoteBelow:
		s.stays(r, refusal{GoodTraffic, fmt.Sprintf("it stays in shadow: it hits %.2g%% of the good flows of the last hour, and may act below %.2g%%",
			100*share, 100*s.cfg.PromoteBelow)})
		return ""
	}
	next.Shadow = false
	if !s.mayDrop(r, next, now) {
		return ""
	}
	return fmt.Sprintf("it acts now, after %s in which it counted %d packets: it hits %.2g%% of the good flows of the last hour",
		now.Sub(r.applied).Round(time.Second), r.stat.Packets, 100*share)
}

// abandoned is after how long another node gives an escalated rule its rate back. The one that escalated it may be gone; else it
// escalates again.
const abandoned = time.Hour

// escalate lets a rate limit drop everything after it was exceeded without a pause, and gives it back its rate when less
// than that comes. The limit is each interface's and node's own, so the node that escalated watches how it goes on.
func (s *Service) escalate(r *ruleState, next *policy.Rule, now time.Time) string {
	packets, bytes := r.stat.Packets-min(r.stat.Packets, r.seen.Packets), r.stat.Bytes-min(r.stat.Bytes, r.seen.Bytes)
	turns, after := r.stat.Dropped > r.seen.Dropped, r.rule.EscalateAfter
	if r.rule.Escalated {
		turns = packets <= r.rule.RatePPS || r.rule.RateBPS > 0 && 8*bytes <= r.rule.RateBPS
		if !strings.HasPrefix(r.rule.Changed, s.cfg.Node+": ") {
			after = max(after, abandoned)
		}
	}
	switch {
	case !turns:
		r.turning = time.Time{}
		return ""
	case r.turning.IsZero():
		r.turning = now
		return ""
	case now.Sub(r.turning) < after:
		return ""
	}
	next.Escalated = !r.rule.Escalated
	if !next.Escalated {
		return fmt.Sprintf("it limits the rate again: less than that came for %s", after)
	}
	if !s.mayDrop(r, next, now) {
		return ""
	}
	return fmt.Sprintf("it drops all: its limit was exceeded for %s", r.rule.EscalateAfter)
}

// prolong gives sources that are blocked again within a day a longer lease. What is blocked by its headers alone is not
// anybody's: it ends with the attack.
func (s *Service) prolong(r *ruleState, next *policy.Rule, now time.Time) string {
	if r.rule.Repeat > 0 || r.rule.Lease <= 0 || r.rule.Lease >= s.cfg.LeaseMax || r.rule.Origin != policy.OriginDetector || !r.rule.Action.Blocks() || !r.rule.Match.Src.IsValid() {
		return ""
	}
	times := s.offenders.times(r.rule.Match, now)
	if times == 0 {
		return ""
	}
	next.Repeat, next.Lease = times, min(s.cfg.LeaseMax, r.rule.Lease<<min(times, 16))
	next.Expires = now.Add(next.Lease).UTC()
	return fmt.Sprintf("its lease is %s instead of %s: the same was blocked %d times within a day", next.Lease, r.rule.Lease, times)
}

const (
	offenceKept  = 24 * time.Hour
	offendersMax = 4096 // what was blocked longest ago makes room
)

// offenders is what detectors blocked within the last day, and how often. A restart forgets it.
type offenders map[policy.Match]offence

type offence struct {
	times uint32
	last  time.Time
}

func (o offenders) times(m policy.Match, now time.Time) uint32 {
	if e := o[m]; now.Sub(e.last) < offenceKept {
		return e.times
	}
	return 0
}

// note takes down that a rule has ended which kept packets back.
func (o offenders) note(r *ruleState, now time.Time) {
	if r.rule.Origin != policy.OriginDetector || r.rule.Lease <= 0 || r.rule.Host != "" || !r.rule.Match.Src.IsValid() || r.stat.FirstDrop.IsZero() {
		return
	}
	m := r.rule.Match
	if _, known := o[m]; !known && len(o) >= offendersMax {
		var oldest policy.Match
		at := now
		for k, e := range o {
			if !e.last.After(at) {
				oldest, at = k, e.last
			}
		}
		delete(o, oldest)
	}
	o[m] = offence{o.times(m, now) + 1, now}
}
