package enforce

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	enforcev1 "github.com/tidegate-mesh/tidegate/proto/enforce/v1"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
	statusv1 "github.com/tidegate-mesh/tidegate/proto/status/v1"
)

// decideWait is how long AddRule waits for this node's decision.
const decideWait = 2 * time.Second

// Status implements the gRPC method. The ledger has the XDP program's terms, summed over the interfaces.
func (s *Service) Status(context.Context, *enforcev1.StatusRequest) (*enforcev1.StatusResponse, error) {
	problems := s.t.Problems("enforce", "certificate")
	version, _ := telemetry.Build()
	s.mu.Lock()
	defer s.mu.Unlock()
	terms := map[string]uint64{"xdp_seen": 0, "dropped": 0, "passed": 0, "forwarded": 0, "no_reader": 0, "redirected": 0, "events_lost": s.lost.Load()}
	for _, p := range s.gates() {
		c, err := p.gate.Counters()
		if err != nil {
			problems = append(problems, fmt.Sprintf("the packet counters of %s cannot be read: %v", p.name, err))
			continue
		}
		terms["xdp_seen"] += c.Seen
		terms["dropped"] += c.Drop + c.RateLimited
		terms["passed"] += c.Pass
		terms["forwarded"] += c.Forward
		terms["no_reader"] += c.NoReader
		terms["redirected"] += c.Redirect
	}
	out := &enforcev1.StatusResponse{
		Status: &statusv1.ServiceStatus{
			Service: "enforce", Instance: s.cfg.Node, Version: version, StartedNs: s.started.UnixNano(),
			Ready: len(problems) == 0, Problems: problems, Ledger: &statusv1.Ledger{Terms: terms},
			CertificateExpiresNs: s.t.ExpiryNs(),
		},
		Enforcing: s.cfg.anyDrops(), Panic: s.guard.panic.proto(),
	}
	if s.guard.panic.on {
		out.Status.Problems = append(out.Status.Problems, s.guard.panic.String()+": automatic drops are held; end it with `tidegate panic off`")
	}
	if s.upstream != nil {
		if _, wanted, problem := s.upstream.state(); problem != nil && wanted > 0 {
			out.Status.Problems = append(out.Status.Problems, fmt.Sprintf("%d routes do not go upstream: %v", wanted, problem))
		}
	}
	if s.kept > 0 {
		out.Status.Problems = append(out.Status.Problems,
			fmt.Sprintf("%d entries of an earlier run have no rule in an empty tg_rules; they stay until they expire", s.kept))
	}
	for _, p := range s.ports {
		out.Interfaces = append(out.Interfaces, p.name)
	}
	for _, p := range s.guard.safe() {
		out.NeverBlock = append(out.NeverBlock, p.String())
	}
	return out, nil
}

// ListRules implements the gRPC method: all rules of the desired state, and those that expired lately, by id.
func (s *Service) ListRules(context.Context, *enforcev1.ListRulesRequest) (*enforcev1.ListRulesResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := &enforcev1.ListRulesResponse{}
	for _, r := range s.rules {
		out.Rules = append(out.Rules, r.proto())
	}
	listed := make(map[string]bool)
	for _, r := range slices.Backward(s.ended) {
		if s.rules[r.rule.ID] == nil && !listed[r.rule.ID] {
			listed[r.rule.ID] = true
			out.Rules = append(out.Rules, r.proto())
		}
	}
	slices.SortFunc(out.Rules, func(a, b *enforcev1.RuleState) int { return strings.Compare(a.GetRule().GetId(), b.GetRule().GetId()) })
	return out, nil
}

func (r *ruleState) proto() *enforcev1.RuleState {
	out := &enforcev1.RuleState{
		Rule: policy.ToProto(&r.rule), State: r.stateName(), Packets: r.stat.Packets, Bytes: r.stat.Bytes,
		Revision: r.revision,
	}
	if r.state == refused {
		out.Reason, out.Detail = string(r.refusal.reason), r.refusal.detail
	}
	if !r.stat.FirstDrop.IsZero() {
		out.FirstDropNs = r.stat.FirstDrop.UnixNano()
	}
	if !r.applied.IsZero() {
		out.AppliedNs = r.applied.UnixNano()
	}
	return out
}

// AddRule implements the gRPC method. It answers after this node has the rule in force, or 2 s, whichever is first.
// Of two callers that saw the same revision one wins, whichever nodes they ask: the bucket decides. A dry run knows
// this node's guardrails but not what the kernel itself would refuse.
func (s *Service) AddRule(ctx context.Context, req *enforcev1.AddRuleRequest) (*enforcev1.AddRuleResponse, error) {
	r, err := userRule(ctx, req.GetRule())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	old, no := s.precheck(&r)
	if req.GetDryRun() {
		return dryRun(req, &r, old, no)
	}
	if no != nil {
		s.m.refusals.WithLabelValues(string(no.reason)).Inc()
		return nil, status.Error(codes.FailedPrecondition, no.Error())
	}
	replaced := old.Revision
	if req.IfRevision != nil {
		replaced = req.GetIfRevision()
	}
	revision, err := s.bus.UpdateRule(ctx, r, replaced)
	if err != nil {
		return nil, busError(err)
	}
	if no := s.await(ctx, r.ID, revision); no != nil {
		// It was refused after all, for example for its mask: do not leave it as desired.
		if replaced > 0 && replaced == old.Revision {
			_, err = s.bus.UpdateRule(ctx, old.Rule, revision)
		} else {
			err = s.bus.DeleteRuleRevision(ctx, r.ID, revision)
		}
		if err != nil && !errors.Is(err, bus.ErrConflict) {
			s.t.CountError("undo_rule")
		}
		return nil, status.Error(codes.FailedPrecondition, no.Error())
	}
	return &enforcev1.AddRuleResponse{Rule: policy.ToProto(&r), Revision: revision}, nil
}

// dryRun says what AddRule would.
func dryRun(req *enforcev1.AddRuleRequest, r *policy.Rule, old bus.RuleEntry, no *refusal) (*enforcev1.AddRuleResponse, error) {
	if err := bus.ValidKey(r.ID); err != nil {
		return nil, busError(err)
	}
	if req.IfRevision != nil && req.GetIfRevision() != old.Revision {
		return nil, busError(bus.ErrConflict)
	}
	out := &enforcev1.AddRuleResponse{Rule: policy.ToProto(r), Revision: old.Revision}
	if no != nil {
		out.Reason, out.Detail = string(no.reason), no.detail
	}
	return out, nil
}

// userRule completes what a user may leave out.
func userRule(ctx context.Context, p *policyv1.Rule) (policy.Rule, error) {
	if p == nil {
		return policy.Rule{}, errors.New("the request has no rule")
	}
	named := p.GetId() != ""
	if !named {
		p = proto.CloneOf(p)
		p.Id = "new"
	}
	r, err := policy.FromProto(p)
	if err != nil {
		return r, err
	}
	if !named {
		what := []string{"user", r.Match.String(), r.Action.String(), strconv.FormatUint(r.RatePPS, 10), strconv.FormatUint(r.RateBPS, 10)}
		if r.PerSource {
			what = append(what, "per source")
		}
		if r.Scope != (policy.Scope{}) {
			what = append(what, r.Scope.String())
		}
		r.ID = policy.DerivedID(what...)
	}
	if r.Lease < 0 {
		return r, fmt.Errorf("rule %s: a lease is not negative", r.ID)
	}
	if r.Origin == "" {
		r.Origin = policy.OriginUser
	}
	if r.Created.IsZero() {
		r.Created = time.Now().UTC()
	}
	if r.Expires.IsZero() && r.Lease > 0 {
		r.Expires = time.Now().Add(r.Lease).UTC()
	}
	if r.Traceparent == "" {
		r.Traceparent = telemetry.Inject(ctx)
	}
	r.Escalated, r.Repeat, r.GoodShare, r.Changed = false, 0, 0, ""
	r.Host, r.List, r.HostRule = "", "", "" // also when it takes the place of a rule that classify made for a flow
	return r, nil
}

// precheck asks the guardrails without consuming anything, and returns the rule there is (revision 0: none).
func (s *Service) precheck(r *policy.Rule) (old bus.RuleEntry, no *refusal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, there := time.Now(), s.rules[r.ID]
	if there != nil {
		old = bus.RuleEntry{Rule: there.rule, Revision: there.revision}
	}
	if no = s.guard.check(r, now); no == nil && (there == nil || !there.inForce() || !sameBlock(&there.rule, r)) {
		no = s.guard.sparesGood(r, now)
	}
	if no != nil || there != nil && there.state != refused && there.state != elsewhere { // as decide has it
		return old, no
	}
	s.countLive()
	if no = s.guard.full(s.live); no == nil {
		no = s.guard.peek(now)
	}
	return old, no
}

// await waits for the decision about a version of a rule; nil also when there is none in time.
func (s *Service) await(ctx context.Context, id string, revision uint64) *refusal {
	timer := time.NewTimer(decideWait)
	defer timer.Stop()
	for {
		s.mu.Lock()
		r, changed := s.rules[id], s.changed
		var decided bool
		var no *refusal
		if r != nil && r.revision >= revision {
			decided = r.state != pending
			if r.state == refused && r.revision == revision {
				c := r.refusal
				no = &c
			}
		}
		s.mu.Unlock()
		if decided {
			return no
		}
		select {
		case <-changed:
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// RevokeRule implements the gRPC method: NOT_FOUND when there is no such rule, ABORTED when it has another revision
// than asked for. It answers after this node has removed the entry, or 2 s.
func (s *Service) RevokeRule(ctx context.Context, req *enforcev1.RevokeRuleRequest) (*enforcev1.RevokeRuleResponse, error) {
	id := req.GetId()
	if s.find(id) == nil {
		return nil, status.Errorf(codes.NotFound, "there is no rule %q", id)
	}
	var err error
	switch {
	case req.IfRevision == nil:
		err = s.bus.DeleteRule(ctx, id)
	case req.GetIfRevision() == 0: // it must not exist, but it does
		err = bus.ErrConflict
	default:
		err = s.bus.DeleteRuleRevision(ctx, id, req.GetIfRevision())
	}
	if err != nil {
		return nil, busError(err)
	}
	timer := time.NewTimer(decideWait)
	defer timer.Stop()
	for {
		s.mu.Lock()
		gone, changed := s.rules[id] == nil, s.changed
		s.mu.Unlock()
		if gone {
			return &enforcev1.RevokeRuleResponse{}, nil
		}
		select {
		case <-changed:
		case <-timer.C:
			return &enforcev1.RevokeRuleResponse{}, nil
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
}

// find returns a copy of a live rule, nil without one.
func (s *Service) find(id string) *ruleState {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.rules[id]; r != nil {
		c := *r
		return &c
	}
	return nil
}

// ExplainRule implements the gRPC method.
func (s *Service) ExplainRule(_ context.Context, req *enforcev1.ExplainRuleRequest) (*enforcev1.ExplainRuleResponse, error) {
	r := s.find(req.GetId())
	if r == nil {
		s.mu.Lock()
		for _, e := range slices.Backward(s.ended) {
			if e.rule.ID == req.GetId() {
				c := *e
				r = &c
				break
			}
		}
		s.mu.Unlock()
	}
	if r == nil {
		return nil, status.Errorf(codes.NotFound, "there is no rule %q", req.GetId())
	}
	now := time.Now()
	s.mu.Lock()
	upstream := s.upstreamText(r.number, now)
	s.mu.Unlock()
	return &enforcev1.ExplainRuleResponse{State: r.proto(), Explanation: r.explain(s.cfg.anyDrops(), now) + upstream}, nil
}

// explain says in sentences what the rule does, why it is there, until when, and what it has done.
func (r *ruleState) explain(enforcing bool, now time.Time) string {
	var b strings.Builder
	what := map[policy.Action]string{
		policy.Allow: "Passes", policy.Drop: "Drops", policy.RateLimit: "Limits the rate of", policy.Count: "Counts",
	}[r.rule.Action]
	if r.rule.Match.Host != "" {
		fmt.Fprintf(&b, "%s flows that name the host or one below it: %s. Classify makes a rule for each such flow.", what, r.rule.Match.String())
	} else {
		fmt.Fprintf(&b, "%s packets that match: %s.", what, r.rule.Match.String())
	}
	of := ""
	if r.rule.PerSource {
		of = " for each source"
	}
	switch {
	case r.rule.SYNRetry:
		fmt.Fprintf(&b, " A source's are dropped until it sends one again, as hosts do; then the limit is %d a second for each source.", r.rule.RatePPS)
	case r.rule.RatePPS != 0:
		fmt.Fprintf(&b, " The limit is %d packets a second%s.", r.rule.RatePPS, of)
	case r.rule.RateBPS != 0:
		fmt.Fprintf(&b, " The limit is %d bits a second%s.", r.rule.RateBPS, of)
	}
	if r.rule.EscalateAfter > 0 {
		fmt.Fprintf(&b, " When it is exceeded for %s, all is dropped until less comes.", r.rule.EscalateAfter)
	}
	if r.rule.Scope != (policy.Scope{}) {
		fmt.Fprintf(&b, " It acts on %s only.", r.rule.Scope)
	}
	switch {
	case r.rule.Origin == policy.OriginDetector && r.rule.AttackID != "":
		fmt.Fprintf(&b, " A detector made it against attack %s.", r.rule.AttackID)
	case r.rule.Origin == policy.OriginUser:
		b.WriteString(" A user made it.")
	case r.rule.Host != "" && r.rule.List != "":
		fmt.Fprintf(&b, " Classify made it for one flow, which names %s, because of the list %s.", r.rule.Host, r.rule.List)
	case r.rule.Host != "":
		fmt.Fprintf(&b, " Classify made it for one flow, which names %s, because of the rule %s.", r.rule.Host, r.rule.HostRule)
	}
	if r.rule.Comment != "" {
		fmt.Fprintf(&b, " Comment: %s.", strings.TrimSuffix(r.rule.Comment, "."))
	}
	switch r.state {
	case pending:
		b.WriteString(" It waits for an interface.")
	case active:
		b.WriteString(" It is in force.")
	case shadow:
		switch {
		case r.rule.Shadow:
			b.WriteString(" It is in shadow: it only counts what it would keep back.")
		case enforcing:
			b.WriteString(" It is in force on a mirror port, where nothing can be stopped: it only counts what it would keep back.")
		default:
			b.WriteString(" This node is in shadow mode: it only counts what it would keep back.")
		}
	case refused:
		if r.held() {
			fmt.Fprintf(&b, " It is held: %s.", r.refusal.detail)
			break
		}
		fmt.Fprintf(&b, " It was refused (%s): %s.", r.refusal.reason, r.refusal.detail)
	case elsewhere:
		b.WriteString(" That is not this node.")
	case expired:
		fmt.Fprintf(&b, " It expired %s ago.", now.Sub(r.since).Round(time.Second))
	}
	if r.inForce() {
		switch {
		case r.rule.Expires.IsZero():
			b.WriteString(" It stays until it is revoked.")
		case r.rule.Lease > 0:
			fmt.Fprintf(&b, " It ends in %s unless it is hit; each renewal lasts %s.", r.rule.Expires.Sub(now).Round(time.Second), r.rule.Lease)
		default:
			fmt.Fprintf(&b, " It ends in %s.", r.rule.Expires.Sub(now).Round(time.Second))
		}
	}
	if r.rule.Changed != "" {
		fmt.Fprintf(&b, " Enforce has changed it, %s.", r.rule.Changed)
	}
	if r.stat.Packets > 0 {
		fmt.Fprintf(&b, " It matched %d packets (%d bytes).", r.stat.Packets, r.stat.Bytes)
	} else if r.inForce() && r.rule.Match.Host == "" {
		b.WriteString(" It has matched nothing yet.")
	}
	if !r.stat.FirstDrop.IsZero() && r.rule.AttackFirstNs > 0 {
		fmt.Fprintf(&b, " Its first drop came %s after the attack's first frame.",
			r.stat.FirstDrop.Sub(time.Unix(0, r.rule.AttackFirstNs)).Round(time.Millisecond))
	}
	return b.String()
}

// busError gives errors of the bus their gRPC codes.
func busError(err error) error {
	switch {
	case errors.Is(err, bus.ErrInvalidKey):
		return status.Error(codes.InvalidArgument, err.Error())
	case errors.Is(err, bus.ErrConflict):
		return status.Error(codes.Aborted, err.Error()+": try again")
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, err.Error())
	}
	return status.Error(codes.Unavailable, err.Error())
}
