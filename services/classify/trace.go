package classify

import (
	"context"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/tidegate-mesh/tidegate/libs/lifecycle"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

// decision is a verdict on its way: its rules are being stored.
type decision struct {
	verdict *eventv1.Verdict
	root    string          // traceparent of its window's close
	ctx     context.Context // holds the publish span
	stored  chan struct{}   // closed when all rules are stored or given up
	end     func()          // ends the publish span
}

// putters is how many rules of a verdict are stored at once.
const putters = 8

// decide gives a verdict a trace of its own, which is always sampled (window close → classify → decide → publish), and
// starts storing its rules. The root is the sensor's: it makes the span when the window's acknowledgement names it. The
// rules do not depend on the sensor's connection: they are stored even if it ends.
func (s *Service) decide(w *flowv1.Window, v *eventv1.Verdict, received, judged time.Time) *decision {
	root := telemetry.NewRoot()
	ctx := telemetry.AlwaysSample(telemetry.Extract(s.base, root))
	facts := trace.WithAttributes(attribute.String("tidegate.attack.type", v.GetType()),
		attribute.String("tidegate.attack.target", v.GetTarget()), attribute.String("tidegate.attack.id", v.GetAttackId()),
		attribute.String("tidegate.verdict", v.GetId()))
	ctx, span := s.t.Tracer.Start(ctx, "classify", trace.WithTimestamp(received), facts,
		trace.WithAttributes(attribute.String("tidegate.sensor", w.GetSensor())))
	span.End(trace.WithTimestamp(judged))

	ctx, span = s.t.Tracer.Start(ctx, "decide", trace.WithTimestamp(judged), facts,
		trace.WithAttributes(attribute.String("tidegate.key", v.GetKey())))
	rules := make([]policy.Rule, 0, len(v.GetRules()))
	for _, p := range v.GetRules() {
		r, err := policy.FromProto(p)
		if err != nil {
			s.t.CountError("rule")
			s.t.Log.Error("a rule cannot be used", "verdict", v.GetId(), "error", err)
			continue
		}
		rules = append(rules, r)
	}
	decided := time.Now()
	span.End(trace.WithTimestamp(decided))

	ctx, publish := s.t.Tracer.Start(ctx, "publish", trace.WithTimestamp(decided), facts,
		trace.WithAttributes(attribute.StringSlice("tidegate.rules", ruleIDs(rules))))
	v.Traceparent, v.TraceId = telemetry.Inject(ctx), telemetry.TraceID(ctx)
	for _, p := range v.GetRules() {
		p.Traceparent = v.GetTraceparent()
	}
	for i := range rules {
		rules[i].Traceparent = v.GetTraceparent()
	}
	action := noRules
	if len(rules) > 0 {
		action = rules[0].Action.String()
	}
	s.metrics.verdicts.WithLabelValues(v.GetType(), action).Inc()
	d := &decision{verdict: v, root: root, ctx: ctx, stored: make(chan struct{}), end: func() { publish.End() }}
	go func() {
		defer close(d.stored)
		fresh, cancel := context.WithTimeout(ctx, s.cfg.Engine.Lease) // later the rules would be stale
		defer cancel()
		s.put(fresh, rules)
		s.metrics.rules.Observe(time.Since(received).Seconds())
	}()
	return d
}

// ruleIDs names at most 16 of a verdict's rules: a span is no place for thousands.
func ruleIDs(rules []policy.Rule) []string {
	ids := make([]string, 0, 16)
	for i := range rules[:min(len(rules), cap(ids))] {
		ids = append(ids, rules[i].ID)
	}
	return ids
}

// put stores rules, several at once, each until it is acknowledged or ctx ends.
func (s *Service) put(ctx context.Context, rules []policy.Rule) {
	next := make(chan policy.Rule)
	var wg sync.WaitGroup
	for range min(putters, len(rules)) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for r := range next {
				err := lifecycle.Retry(ctx, retryMin, retryMax, func(ctx context.Context) error { return s.bus.PutRule(ctx, r) },
					func(err error, _ time.Duration) {
						s.t.CountError("put_rule")
						s.trouble(err)
					})
				if err != nil {
					s.t.Log.Error("a rule is not stored", "rule", r.ID, "error", err)
					continue
				}
				s.well()
			}
		}()
	}
	for _, r := range rules {
		next <- r
	}
	close(next)
	wg.Wait()
}

// batchSpan continues the trace of a sampled batch; the others have none.
func (s *Service) batchSpan(ctx context.Context, b *flowv1.FlowBatch) (context.Context, trace.Span) {
	if b.GetTraceparent() == "" {
		return ctx, trace.SpanFromContext(ctx)
	}
	return s.t.Tracer.Start(telemetry.Extract(ctx, b.GetTraceparent()), "classify.batch")
}

// traceAttack puts the trace of the attack's newest verdict into its event. The returned context publishes the
// attack's beginning in that trace; its updates, one a second for as long as it is on, stay out of it.
func (s *Service) traceAttack(a *eventv1.Attack) context.Context {
	ctx := s.base
	if d, ok := s.traces.Load(a.GetId()); ok {
		newest, _ := d.(*eventv1.Verdict)
		a.TraceId = newest.GetTraceId()
		if a.GetState() == eventv1.AttackState_ATTACK_STATE_STARTED {
			ctx = telemetry.Extract(ctx, newest.GetTraceparent())
		}
	}
	if a.GetState() == eventv1.AttackState_ATTACK_STATE_ENDED {
		s.traces.Delete(a.GetId())
	}
	return ctx
}

// log tells people of an attack's beginning and end.
func (s *Service) log(a *eventv1.Attack) {
	switch a.GetState() {
	case eventv1.AttackState_ATTACK_STATE_STARTED:
		s.t.Log.Warn("attack started", "type", a.GetType(), "target", a.GetTarget(), "attack", a.GetId(), "pps", a.GetPps(),
			"sources", a.GetSources(), "trace_id", a.GetTraceId())
	case eventv1.AttackState_ATTACK_STATE_ENDED:
		s.t.Log.Info("attack ended", "type", a.GetType(), "target", a.GetTarget(), "attack", a.GetId(), "packets", a.GetPackets())
	}
}
