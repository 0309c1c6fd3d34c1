package classify

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/hostlist"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/verdict"
)

// Types of verdicts about a flow's host.
const (
	typeDomainList = "domain_list"
	typeHostRule   = "host_rule"
	keyFlow        = "flow"
)

// Why no rule is made for a flow whose host asks for one; label reason of tidegate_classify_host_suppressed_total.
const (
	suppressedRate  = "rate"  // too many such flows a second
	suppressedLimit = "limit" // too many such rules in force
	suppressedQueue = "queue" // NATS does not take rules fast enough
)

const (
	hostBurst   = 5                      // seconds of the rate that may come at once
	hostQueue   = 256                    // flows that wait for NATS
	hostPutters = 4                      // flows whose rules are stored at once
	hostPutTime = 5 * time.Second        // for one flow; then it is given up
	flowRules   = 2                      // of each flow, one a direction
	withdrawn   = 500 * time.Millisecond // what a rule lives on whose reason is gone
)

// named is a flow on its way to its rules.
type named struct {
	NamedFlow
	sensor string
	rules  [flowRules]policy.Rule
	counts *hostCounts
}

// judgeNamed judges flows that name a listed host. It never waits: what is too much is counted and left alone.
func (s *Service) judgeNamed(sensor string, flows []NamedFlow) {
	for i := range flows {
		n := &named{NamedFlow: flows[i], sensor: sensor}
		s.metrics.hostFlows.WithLabelValues(n.Found.Action.String()).Inc()
		if n.Found.List != "" {
			if n.counts = s.hosts.countsOf(n.Found.List); n.counts != nil {
				n.counts.flows.Add(1)
			}
		}
		if n.Found.Action == policy.Allow { // it is exempt, which takes no rule
			continue
		}
		now := time.Unix(0, s.cfg.Engine.Now())
		n.rules = n.flowRules(now, s.cfg.HostLease)
		if reason := s.admit(n, now); reason != "" {
			s.metrics.hostSuppressed.WithLabelValues(reason).Inc()
		}
	}
}

// admit queues a flow whose rules are not in force yet, or says why not.
func (s *Service) admit(n *named, now time.Time) (reason string) {
	h := s.hosts
	h.mu.Lock()
	defer h.mu.Unlock()
	if m, ok := h.made[n.rules[0].ID]; ok && m.rule.Expires.Sub(now) > s.cfg.HostLease/2 {
		return "" // also when another classifier has made them
	}
	if len(h.made)+flowRules > flowRules*s.cfg.HostFlows {
		h.forgetExpired(now)
	}
	switch {
	case len(h.made)+flowRules > flowRules*s.cfg.HostFlows:
		return suppressedLimit
	case !s.hostRate.AllowN(now, 1):
		return suppressedRate
	}
	select {
	case s.hostQueue <- n:
	default:
		return suppressedQueue
	}
	for _, r := range n.rules {
		if _, ok := h.made[r.ID]; !ok {
			h.made[r.ID] = madeRule{rule: r}
		}
	}
	return ""
}

// forgetExpired drops rules whose lease has run out and that nobody has deleted.
func (h *hostState) forgetExpired(now time.Time) {
	for id, m := range h.made {
		if !m.rule.Expires.After(now) {
			delete(h.made, id)
		}
	}
}

// flowRules are the rules for both directions of a flow. Their ids follow from what they do, so that two classifiers that
// see one flow make one rule.
func (n *NamedFlow) flowRules(now time.Time, lease time.Duration) (rules [flowRules]policy.Rule) {
	for i, k := range [flowRules]flow.Key{n.Key, n.Key.Reverse()} {
		src, dst := flow.Addr(k.Src), flow.Addr(k.Dst)
		m := policy.Match{
			Src: netip.PrefixFrom(src, src.BitLen()), Dst: netip.PrefixFrom(dst, dst.BitLen()), Protocol: k.Protocol, HasProtocol: true,
			SrcPort: k.SrcPort, HasSrcPort: true, DstPort: k.DstPort, HasDstPort: true,
		}
		rules[i] = policy.Rule{
			ID:     policy.DerivedID("host", n.Found.Action.String(), strconv.FormatUint(n.Found.RatePPS, 10), strconv.FormatUint(n.Found.RateBPS, 10), m.String()),
			Action: n.Found.Action, RatePPS: n.Found.RatePPS, RateBPS: n.Found.RateBPS, Match: m, Priority: verdict.PriorityDrop,
			Origin: policy.OriginDetector, Comment: n.why(), Created: now.UTC(), Expires: now.Add(lease).UTC(), Lease: lease,
			Host: n.Host, List: n.Found.List, HostRule: n.Found.RuleID,
		}
	}
	return rules
}

// why says what decided.
func (n *NamedFlow) why() string {
	if n.Found.List != "" {
		return fmt.Sprintf("the flow names %s, and list %s has %s", n.Host, n.Found.List, n.Found.Entry)
	}
	return fmt.Sprintf("the flow names %s, and rule %s is about %s", n.Host, n.Found.RuleID, n.Found.Entry)
}

// storeNamed stores rules and verdicts of flows until ctx ends.
func (s *Service) storeNamed(ctx context.Context) {
	var wg sync.WaitGroup
	for range hostPutters {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				select {
				case <-ctx.Done():
					return
				case n := <-s.hostQueue:
					s.storeFlow(ctx, n)
				}
			}
		}()
	}
	wg.Wait()
}

// storeFlow stores the rules of a flow, then the verdict that tells why.
func (s *Service) storeFlow(ctx context.Context, n *named) {
	if !asked(s.engine.hosts.Load(), &n.rules[0], time.Unix(0, s.cfg.Engine.Now())) {
		s.hosts.giveUp(n.rules[:]) // the host has gone from the list while the flow waited
		return
	}
	v := n.verdict(s.engine.version, s.cfg.Engine.Now())
	ctx, span := s.t.Tracer.Start(telemetry.AlwaysSample(ctx), "classify host", trace.WithAttributes(
		attribute.String("tidegate.host", n.Host), attribute.String("tidegate.list", n.Found.List), attribute.String("tidegate.rule", n.Found.RuleID),
		attribute.String("tidegate.sensor", n.sensor), attribute.String("tidegate.verdict", v.GetId())))
	defer span.End()
	v.Traceparent, v.TraceId = telemetry.Inject(ctx), telemetry.TraceID(ctx)
	limited, cancel := context.WithTimeout(ctx, hostPutTime)
	defer cancel()
	rules := n.rules[:]
	for i := range rules {
		rules[i].VerdictID, rules[i].Traceparent = v.GetId(), v.GetTraceparent()
		v.Rules = append(v.Rules, policy.ToProto(&rules[i]))
	}
	s.put(limited, rules)
	if limited.Err() != nil {
		s.hosts.giveUp(rules)
		return
	}
	if n.counts != nil {
		n.counts.ruled.Add(1)
	}
	s.metrics.verdicts.WithLabelValues(v.GetType(), n.Found.Action.String()).Inc()
	if err := s.bus.PublishVerdict(ctx, v); err != nil && ctx.Err() == nil {
		s.t.CountError("publish_verdict")
		s.t.Log.Error("a verdict is not recorded", "verdict", v.GetId(), "error", err)
	}
}

// giveUp forgets rules that were not stored, so that the flow's next one is not taken for having them.
func (h *hostState) giveUp(rules []policy.Rule) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range rules {
		if h.made[rules[i].ID].revision == 0 {
			delete(h.made, rules[i].ID)
		}
	}
}

// verdict is the decision about a flow, without its rules.
func (n *named) verdict(version string, now int64) *eventv1.Verdict {
	typ := typeDomainList
	if n.Found.List == "" {
		typ = typeHostRule
	}
	client, server := flow.Addr(n.Key.Src), flow.Addr(n.Key.Dst)
	return &eventv1.Verdict{
		Id: policy.DerivedID(n.rules[0].ID, "verdict", strconv.FormatInt(now, 10)), Type: typ, Target: server.String(), Sensor: n.sensor, DecidedNs: now, Key: keyFlow,
		Explanation: fmt.Sprintf("%s %s and %s: %s.", doing(n.Found), netip.AddrPortFrom(client, n.Key.SrcPort), netip.AddrPortFrom(server, n.Key.DstPort), n.why()),
		Evidence: &eventv1.Evidence{
			ConfigVersion: version, AttackShare: 1, Host: n.Host, List: n.Found.List, HostRule: n.Found.RuleID, Entry: n.Found.Entry,
			SampleTimesNs: []int64{n.TimeNs},
		},
	}
}

func doing(f hostlist.Found) string {
	switch f.Action {
	case policy.Drop:
		return "Stops the flow between"
	case policy.RateLimit:
		return "Limits the flow between"
	}
	return "Counts the flow between"
}

// withdraw ends rules that lists and users' rules do not ask for any more: their lease is cut short. One that somebody changes at
// the same time, as a node does that renews it, is looked at again soon.
func (s *Service) withdraw(ctx context.Context, table *hostlist.Table) error {
	h := s.hosts
	now := time.Unix(0, s.cfg.Engine.Now())
	var over []madeRule
	h.mu.Lock()
	h.forgetExpired(now)
	for _, m := range h.made {
		if m.revision > 0 && m.rule.Lease > 0 && !asked(table, &m.rule, now) {
			over = append(over, m)
		}
	}
	h.mu.Unlock()
	var errs error
	again := false
	for _, m := range over {
		m.rule.Lease, m.rule.Expires = 0, now.Add(withdrawn).UTC()
		switch _, err := s.bus.UpdateRule(ctx, m.rule, m.revision); {
		case errors.Is(err, bus.ErrConflict):
			again = true
		case err != nil:
			errs = errors.Join(errs, err)
		}
	}
	if again {
		time.AfterFunc(listRetryMin, h.poke)
	}
	return errs
}

// asked reports whether a flow's rule would be made now.
func asked(table *hostlist.Table, r *policy.Rule, now time.Time) bool {
	k := flow.Key{Src: r.Match.Src.Addr().As16(), Dst: r.Match.Dst.Addr().As16(), SrcPort: r.Match.SrcPort, DstPort: r.Match.DstPort, Protocol: r.Match.Protocol}
	for _, k := range []flow.Key{k, k.Reverse()} { // which of them is the client's the rule does not say
		f, ok := table.Find(r.Host, &k, now.UnixNano())
		if ok && f.Action == r.Action && f.RatePPS == r.RatePPS && f.RateBPS == r.RateBPS {
			return true
		}
	}
	return false
}
