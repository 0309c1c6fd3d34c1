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
	ctx     context.Context // holds the publish span
	stored  chan struct{}   // closed when all rules are stored or given up
	end     func()          // ends the spans
}

// putters is how many rules of a verdict are stored at once.
const putters = 8

// decide gives a verdict its trace, which is always sampled (window close → classify → decide → publish), and
// starts storing its rules. The rules do not depend on the sensor's connection: they are stored even if it ends.
func (s *Service) decide(w *flowv1.Window, v *eventv1.Verdict, received time.Time) *decision {
	decided := time.Now()
	ctx := telemetry.AlwaysSample(telemetry.Extract(s.base, w.GetTraceparent()))
	var spans []trace.Span
	begin := func(name string, at time.Time, attrs ...attribute.KeyValue) {
		var span trace.Span
		ctx, span = s.t.Tracer.Start(ctx, name, trace.WithTimestamp(at), trace.WithAttributes(attrs...))
		spans = append(spans, span)
	}
	if w.GetTraceparent() == "" {
		begin("window close", time.Unix(0, w.GetEndNs()), attribute.String("sensor", w.GetSensor()))
		spans[0].End(trace.WithTimestamp(received))
	}
	begin("classify", received)
	spans[len(spans)-1].End(trace.WithTimestamp(decided))
	begin("decide", decided, attribute.String("type", v.GetType()), attribute.String("target", v.GetTarget()),
		attribute.String("verdict", v.GetId()), attribute.String("attack", v.GetAttackId()))
	spans[len(spans)-1].End()
	begin("publish", time.Now(), attribute.Int("rules", len(v.GetRules())))
	publish := spans[len(spans)-1]

	v.Traceparent, v.TraceId = telemetry.Inject(ctx), telemetry.TraceID(ctx)
	rules := make([]policy.Rule, 0, len(v.GetRules()))
	for _, p := range v.GetRules() {
		p.Traceparent = v.GetTraceparent()
		r, err := policy.FromProto(p)
		if err != nil {
			s.t.CountError("rule")
			s.t.Log.Error("a rule cannot be used", "verdict", v.GetId(), "error", err)
			continue
		}
		rules = append(rules, r)
	}
	action := "none"
	if len(rules) > 0 {
		action = rules[0].Action.String()
	}
	s.metrics.verdicts.WithLabelValues(v.GetType(), action).Inc()
	d := &decision{verdict: v, ctx: ctx, stored: make(chan struct{}), end: func() { publish.End() }}
	go func() {
		defer close(d.stored)
		fresh, cancel := context.WithTimeout(ctx, s.cfg.Engine.Lease) // later the rules would be stale
		defer cancel()
		s.put(fresh, rules)
		s.metrics.rules.Observe(time.Since(received).Seconds())
	}()
	return d
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

// batchContext is the context for publishing a batch: it continues the batch's trace.
func (s *Service) batchContext(ctx context.Context, b *flowv1.FlowBatch) context.Context {
	return telemetry.Extract(ctx, b.GetTraceparent())
}

// traceAttack puts the trace of the attack's newest verdict into its event.
func (s *Service) traceAttack(a *eventv1.Attack) {
	if id, ok := s.traces.Load(a.GetId()); ok {
		a.TraceId, _ = id.(string)
	}
	if a.GetState() == eventv1.AttackState_ATTACK_STATE_ENDED {
		s.traces.Delete(a.GetId())
	}
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
