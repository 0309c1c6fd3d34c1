package enforce

import (
	"context"
	"fmt"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
)

// Who made a change, beside the origins of rules.
const (
	byNode  = "enforce" // this node by itself
	byPanic = "panic"
)

// event waits to be published.
type event struct {
	ctx context.Context // of the verdict's trace, if the event is a step of it
	e   *eventv1.Enforcement
}

// report queues an event about a rule; set, if any, completes it. Packets and bytes are totals of this node since the
// entry was made, so a lost event loses nothing.
func (s *Service) report(r *ruleState, state eventv1.EnforcementState, set func(*eventv1.Enforcement)) {
	s.reportIn(telemetry.Extract(context.Background(), r.rule.Traceparent), r, state, set)
}

func (s *Service) reportIn(ctx context.Context, r *ruleState, state eventv1.EnforcementState, set func(*eventv1.Enforcement)) {
	e := &eventv1.Enforcement{
		Node: s.cfg.Node, RuleId: r.rule.ID, AttackId: r.rule.AttackID, State: state, TimeNs: time.Now().UnixNano(),
		Packets: r.stat.Packets, Bytes: r.stat.Bytes, Dropped: r.stat.Dropped, Shadow: r.state == shadow || r.state != active && !s.cfg.anyDrops(),
		Action: policyv1.Action(r.rule.InForce()), TraceId: telemetry.TraceID(ctx),
	}
	if !r.stat.FirstDrop.IsZero() {
		e.FirstDropNs = r.stat.FirstDrop.UnixNano()
	}
	if state != eventv1.EnforcementState_ENFORCEMENT_STATE_HITS { // every change says what, from what, and by whom
		e.Rule, e.By = policy.ToProto(&r.rule), byNode
	}
	if set != nil {
		set(e)
	}
	if e.Id == "" {
		name := strings.ToLower(strings.TrimPrefix(state.String(), "ENFORCEMENT_STATE_"))
		e.Id = fmt.Sprintf("%s/%s/%s/%d", s.cfg.Node, e.RuleId, name, e.TimeNs)
	}
	if state == eventv1.EnforcementState_ENFORCEMENT_STATE_HITS || state == eventv1.EnforcementState_ENFORCEMENT_STATE_RENEWED {
		ctx = context.Background() // an attack of hours would make a trace of thousands of spans
	}
	queue := s.events[r.number%publishers]
	if state == eventv1.EnforcementState_ENFORCEMENT_STATE_HITS && len(queue) > eventQueue/2 {
		s.lost.Add(1) // the next one has the total; leave the room for what happens once
		s.t.CountError("event_queue_full")
		return
	}
	select {
	case queue <- event{ctx, e}:
	default:
		s.lost.Add(1)
		s.t.CountError("event_queue_full")
	}
}

// span is a finished span below parent, a traceparent; without one there is no trace and no span. It returns its context.
func (s *Service) span(r *ruleState, parent, name string, begin, end time.Time, facts ...attribute.KeyValue) context.Context {
	ctx := telemetry.Extract(context.Background(), parent)
	if parent == "" {
		return ctx
	}
	ctx, span := s.t.Tracer.Start(telemetry.AlwaysSample(ctx), name, trace.WithTimestamp(begin), trace.WithAttributes(facts...),
		trace.WithAttributes(attribute.String("tidegate.rule", r.rule.ID), attribute.String("tidegate.attack.id", r.rule.AttackID),
			attribute.String("tidegate.node", s.cfg.Node), attribute.String("tidegate.action", r.rule.Action.String())))
	span.End(trace.WithTimestamp(end))
	return ctx
}

// reportApplied ends the way from the watch to the map.
func (s *Service) reportApplied(r *ruleState, by string, now time.Time) {
	s.m.apply.Observe(now.Sub(r.received).Seconds())
	ctx := s.span(r, r.rule.Traceparent, "enforce apply", r.received, now, attribute.Bool("tidegate.shadow", r.state == shadow))
	r.appliedSpan = telemetry.Inject(ctx)
	s.reportIn(ctx, r, eventv1.EnforcementState_ENFORCEMENT_STATE_APPLIED, func(e *eventv1.Enforcement) {
		e.TimeNs, e.ApplyNs = now.UnixNano(), now.Sub(r.received).Nanoseconds()
		e.By = by
		if r.before != nil {
			e.Before = policy.ToProto(r.before)
		}
		if by == byNode {
			e.Detail = r.rule.Changed
		}
	})
}

// reportFirstDrop tells when the program first dropped by the rule, by the entry's own time.
func (s *Service) reportFirstDrop(r *ruleState) {
	r.dropTold = true
	at := r.stat.FirstDrop
	var since time.Duration
	if r.rule.AttackFirstNs > 0 {
		since = at.Sub(time.Unix(0, r.rule.AttackFirstNs))
	}
	// An entry of an earlier run was observed then; in shadow mode nothing is dropped.
	if since > 0 && at.After(s.started) && r.state == active {
		s.m.firstDrop.Observe(since.Seconds())
	}
	// From the entry in the map on; the program may use it before this process is told so.
	begin, parent := r.applied, r.appliedSpan
	if begin.After(at) || begin.IsZero() {
		begin = at
	}
	if parent == "" { // applied by an earlier run
		parent = r.rule.Traceparent
	}
	ctx := s.span(r, parent, "first drop", begin, at, attribute.Int64("tidegate.time_to_first_drop_ns", int64(since)))
	s.reportIn(ctx, r, eventv1.EnforcementState_ENFORCEMENT_STATE_FIRST_DROP, func(e *eventv1.Enforcement) {
		// The entry's own time makes the id: told again after a restart, it is stored once.
		e.Id = fmt.Sprintf("%s/%s/first_drop/%d", s.cfg.Node, r.rule.ID, r.stat.FirstDropNs)
		e.TimeNs, e.FirstDropNs, e.TimeToFirstDropNs = at.UnixNano(), at.UnixNano(), max(0, since.Nanoseconds())
	})
}

// publish sends one queue's events in order until the queue is closed and empty, or ctx ends.
func (s *Service) publish(ctx context.Context, queue <-chan event) {
	for ev := range queue {
		if ctx.Err() == nil {
			send, cancel := context.WithCancel(ev.ctx)
			stop := context.AfterFunc(ctx, cancel)
			err := s.bus.PublishEnforcement(send, ev.e)
			stop()
			cancel()
			if err == nil {
				continue
			}
		}
		s.lost.Add(1)
		s.t.CountError("publish_enforcement")
	}
}
