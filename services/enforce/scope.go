package enforce

import (
	"time"

	"github.com/tidegate-mesh/tidegate/libs/policy"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// covers reports whether an interface of this node is in the rule's scope.
func (s *Service) covers(p *port, r *policy.Rule) bool {
	return r.Scope.Has(s.cfg.Site, s.cfg.Node, p.name)
}

// reaches reports whether any is.
func (s *Service) reaches(r *policy.Rule) bool {
	for _, p := range s.ports {
		if s.covers(p, r) {
			return true
		}
	}
	return false
}

// leave notes a rule that acts elsewhere. Its former version may have acted here.
func (s *Service) leave(c *changes, r, old *ruleState) {
	acted := old != nil && old.inForce()
	if acted || s.pinned(r.number) {
		c.remove(r)
	}
	r.state, r.since, r.silent = elsewhere, time.Now(), false
	if acted {
		s.report(r, eventv1.EnforcementState_ENFORCEMENT_STATE_REVOKED, func(e *eventv1.Enforcement) {
			e.By, e.Before, e.Detail = r.rule.Origin, policy.ToProto(&old.rule), "its scope is "+r.rule.Scope.String()+" now, without this node"
		})
	}
	r.before, r.prolonged = nil, nil
}

// take takes a rule's entry out of one gate.
func (s *Service) take(p *port, r *ruleState) {
	delete(p.there, r.number)
	if err := p.gate.DeleteRules([]uint64{r.number}); err != nil {
		s.t.CountError("delete_rules")
		s.t.Log.Error("an entry could not be removed", "iface", p.name, "error", err)
	}
}

// sameBlock reports whether two versions of a rule keep the same packets back.
func sameBlock(a, b *policy.Rule) bool {
	return a.Match == b.Match && a.InForce() == b.InForce() && a.Shadow == b.Shadow
}
