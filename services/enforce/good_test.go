package enforce

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tidegate-mesh/tidegate/libs/bus/bustest"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	enforcev1 "github.com/tidegate-mesh/tidegate/proto/enforce/v1"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
)

// goodRecord is a flow of a client to 203.0.113.1:443 that both sides took part in.
func goodRecord(client int, at time.Time) *eventv1.FlowRecord {
	src, dst := netip.AddrFrom4([4]byte{192, 0, byte(2 + client>>8), byte(client)}).As16(), netip.MustParseAddr("203.0.113.1").As16()
	return &eventv1.FlowRecord{
		SrcIp: src[:], DstIp: dst[:], SrcPort: 40_000, DstPort: 443, Protocol: 6, FirstNs: at.Add(-time.Second).UnixNano(), LastNs: at.UnixNano(),
		PacketsFwd: 5, PacketsRev: 5, TcpFlagsFwd: uint32(policy.SYN | policy.ACK | policy.FIN), TcpFlagsRev: uint32(policy.SYN | policy.ACK | policy.FIN),
	}
}

// publishGood stores flows of as many clients as classify does, and waits until the node knows them.
func (r *rig) publishGood(clients int, at time.Time) {
	r.t.Helper()
	f := &eventv1.FlowRecords{Sensor: "s", Epoch: 1, Batch: uint64(at.UnixNano())} //nolint:gosec // positive
	for i := range clients {
		f.Records = append(f.Records, goodRecord(i, at))
	}
	bustest.Wait(r.t, "the node knows the good flows", func() bool {
		if _, err := r.bus.PublishFlows(context.Background(), f); err != nil {
			r.t.Fatal(err)
		}
		f.Batch++
		r.svc.mu.Lock()
		_, told := r.svc.guard.good.share(&policy.Match{}, 0, time.Now())
		r.svc.mu.Unlock()
		if told < goodEnough {
			time.Sleep(100 * time.Millisecond) // it may not listen yet
		}
		return told >= goodEnough
	})
}

func TestGoodTraffic(t *testing.T) {
	var g goodTraffic
	now := time.Date(2026, 1, 2, 3, 4, 30, 0, time.UTC)
	for minute := range 90 { // of which the last hour counts
		for i := range 1000 {
			g.add(goodRecord(i, now.Add(-time.Duration(89-minute)*time.Minute)), 3, now)
		}
	}
	share := func(m policy.Match, before int64) float64 {
		s, _ := g.share(&m, before, now)
		return s
	}
	if _, told := g.share(&policy.Match{}, 0, now); told != goodMinutes*goodPerMinute {
		t.Errorf("%d flows are remembered, want %d", told, goodMinutes*goodPerMinute)
	}
	quarter := policy.Match{Src: netip.MustParsePrefix("192.0.2.0/24")}
	if s := share(quarter, 0); s < 0.22 || s > 0.29 {
		t.Errorf("256 of 1000 clients are %.3f of the good traffic", s)
	}
	back := policy.Match{Src: netip.MustParsePrefix("203.0.113.1/32"), Protocol: 6, HasProtocol: true, SrcPort: 443, HasSrcPort: true}
	for want, list := range map[float64][]policy.Match{
		1: {{}, back, {Protocol: 6, HasProtocol: true, TCPFlags: policy.SYN, TCPFlagsMask: policy.SYN | policy.ACK}, {LengthMin: 1000}},
		0: {
			{Dst: netip.MustParsePrefix("203.0.113.2/32")}, {Protocol: 17, HasProtocol: true}, {Fragment: policy.FragmentsOnly},
			{Protocol: 6, HasProtocol: true, TCPFlags: policy.URG, TCPFlagsMask: policy.URG}, {Protocol: 6, HasProtocol: true, SrcPort: 443, HasSrcPort: true, Src: netip.MustParsePrefix("192.0.2.0/24")},
			{Dst: netip.MustParsePrefix("203.0.113.1/32"), Protocol: 6, HasProtocol: true, OutOfState: true},
		},
	} {
		for i := range list {
			if s := share(list[i], 0); s != want {
				t.Errorf("%s: share %v, want %v", list[i].String(), s, want)
			}
		}
	}
	if _, told := g.share(&policy.Match{}, now.Add(-30*time.Minute).UnixNano(), now); told != 30*goodPerMinute {
		t.Errorf("%d flows are from before the attack", told)
	}
	if _, told := g.share(&policy.Match{}, 0, now.Add(2*time.Hour)); told != 0 {
		t.Errorf("%d flows of two hours ago count", told)
	}
	for name, spoil := range map[string]func(*eventv1.FlowRecord){
		"unanswered":  func(r *eventv1.FlowRecord) { r.PacketsRev = 0 },
		"refused":     func(r *eventv1.FlowRecord) { r.PacketsFwd, r.PacketsRev = 1, 1 },
		"only SYNs":   func(r *eventv1.FlowRecord) { r.TcpFlagsFwd = uint32(policy.SYN) },
		"one UDP way": func(r *eventv1.FlowRecord) { r.Protocol, r.PacketsRev = 17, 0 },
	} {
		r := goodRecord(1, now)
		if !isGood(r) {
			t.Fatal("a good flow is not")
		}
		if spoil(r); isGood(r) {
			t.Errorf("%s: a good flow", name)
		}
	}
}

// TestGoodTrafficWrongClock: flows of a sensor whose clock is ahead take no minute away from the others.
func TestGoodTrafficWrongClock(t *testing.T) {
	var g goodTraffic
	now := time.Date(2026, 1, 2, 3, 4, 30, 0, time.UTC)
	for minute := range goodMinutes {
		g.add(goodRecord(1, now.Add(24*time.Hour+time.Duration(minute)*time.Minute)), 1, now)
	}
	g.add(goodRecord(1, now.Add(20*time.Second)), 1, now) // clocks are never quite the same
	g.add(goodRecord(1, now.Add(-time.Minute)), 1, now)
	if _, told := g.share(&policy.Match{}, 0, now); told != 2 {
		t.Errorf("%d flows are remembered, want 2", told)
	}
}

// TestGoodLimit: a rule that would drop too much of the good traffic is refused with its reason, whoever asks for it.
func TestGoodLimit(t *testing.T) {
	r := newRig(t, nil)
	r.startReady()
	r.publishGood(200, time.Now().Add(-time.Minute))
	ctx := context.Background()
	ask := func(m *policyv1.Match, action policyv1.Action, pps uint64) error {
		_, err := r.svc.AddRule(ctx, &enforcev1.AddRuleRequest{Rule: &policyv1.Rule{Action: action, Match: m, RatePps: pps}})
		return err
	}
	all := &policyv1.Match{Dst: "203.0.113.0/24"}
	err := ask(all, policyv1.Action_ACTION_DROP, 0)
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "good_traffic: it would hit 100% of the good flows of the last hour, more than 20%") {
		t.Errorf("a rule against all good traffic: %v", err)
	}
	dry, err := r.svc.AddRule(ctx, &enforcev1.AddRuleRequest{DryRun: true, Rule: &policyv1.Rule{Action: policyv1.Action_ACTION_DROP, Match: all}})
	if err != nil || dry.GetReason() != "good_traffic" {
		t.Errorf("its dry run: %v, %v", dry, err)
	}
	for _, fine := range []error{
		ask(all, policyv1.Action_ACTION_COUNT, 0), ask(all, policyv1.Action_ACTION_RATE_LIMIT, 1000),
		ask(&policyv1.Match{Src: "192.0.2.7"}, policyv1.Action_ACTION_DROP, 0), ask(&policyv1.Match{Dst: "203.0.113.9"}, policyv1.Action_ACTION_DROP, 0),
	} {
		if fine != nil {
			t.Error(fine)
		}
	}

	// Another version of a rule that is there is judged before it takes its place, and by a dry run too.
	mine := &policyv1.Rule{Id: "mine", Action: policyv1.Action_ACTION_DROP, Match: &policyv1.Match{Dst: "203.0.113.9"}}
	if _, err := r.svc.AddRule(ctx, &enforcev1.AddRuleRequest{Rule: mine}); err != nil {
		t.Fatal(err)
	}
	wider := &policyv1.Rule{Id: "mine", Action: policyv1.Action_ACTION_DROP, Match: all}
	if dry, err := r.svc.AddRule(ctx, &enforcev1.AddRuleRequest{DryRun: true, Rule: wider}); err != nil || dry.GetReason() != "good_traffic" {
		t.Errorf("a dry run of another version: %v, %v", dry, err)
	}
	if _, err := r.svc.AddRule(ctx, &enforcev1.AddRuleRequest{Rule: wider}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("another version: %v", err)
	}
	if n := r.count("mine", evApplied) + r.count("mine", evRefused); n > 1 {
		t.Errorf("the rule in force was taken out and put again: %d events", n)
	}
	if _, err := r.svc.AddRule(ctx, &enforcev1.AddRuleRequest{Rule: &policyv1.Rule{Id: "mine", Action: mine.GetAction(), Match: mine.GetMatch(), LeaseNs: int64(time.Hour)}}); err != nil {
		t.Errorf("the same with a lease: %v", err)
	}

	// A detector that names sources is held to the same; one that names the victim, to what its own samples say.
	sources := drop("sources", time.Minute)
	sources.Match.Src, sources.AttackFirstNs = netip.MustParsePrefix("192.0.2.0/24"), time.Now().UnixNano()
	r.put(sources)
	if e := r.event("sources", eventv1.EnforcementState_ENFORCEMENT_STATE_REFUSED); e.GetReason() != "good_traffic" || e.GetBy() != byNode || e.GetRule() == nil {
		t.Errorf("refused with %v", e)
	}
	for share, state := range map[float64]eventv1.EnforcementState{0.05: eventv1.EnforcementState_ENFORCEMENT_STATE_APPLIED, 0.6: eventv1.EnforcementState_ENFORCEMENT_STATE_REFUSED} {
		signature := drop(fmt.Sprint("signature", share), time.Minute)
		signature.Match = policy.Match{Dst: netip.MustParsePrefix("203.0.113.1/32"), TTLMin: 60, TTLMax: 64}
		signature.GoodShare, signature.AttackFirstNs = share, time.Now().UnixNano()
		r.put(signature)
		r.event(signature.ID, state)
	}
	early := drop("early", time.Minute) // all good flows that are known began after its attack: they may be its own
	early.Match.Src, early.AttackFirstNs = netip.MustParsePrefix("192.0.2.0/24"), time.Now().Add(-time.Hour).UnixNano()
	r.put(early)
	r.event("early", eventv1.EnforcementState_ENFORCEMENT_STATE_APPLIED)
	r.metric(`# HELP tidegate_enforce_refusals_total Rules, and entries of address lists, that a guardrail or the kernel refused.
# TYPE tidegate_enforce_refusals_total counter
`+refusalsBut("good_traffic", 4), "tidegate_enforce_refusals_total")

	// It outlives a restart of the rule's state, not of the node: what is in force stays.
	r.stop()
	r.cfg.AllowBroadUser = true
	r.startReady()
	r.publishGood(200, time.Now().Add(-time.Minute))
	if err := ask(all, policyv1.Action_ACTION_DROP, 0); err != nil {
		t.Errorf("with --allow-broad-user-rules: %v", err)
	}
}

// refusalsBut are all reasons' counters at zero but one.
func refusalsBut(reason string, n int) string {
	var b strings.Builder
	for _, name := range []string{
		"allow_list", "apply_failed", "blast_radius", "drop_list", "expired", "good_traffic", "infrastructure", "invalid", "list_limit", "management",
		"mask_limit", "never_block", "panic", "rate", "rule_limit", "upstream",
	} {
		v := 0
		if name == reason {
			v = n
		}
		fmt.Fprintf(&b, "tidegate_enforce_refusals_total{reason=%q} %d\n", name, v)
	}
	return b.String()
}

func BenchmarkGoodShare(b *testing.B) {
	var g goodTraffic
	now := time.Now()
	for minute := range goodMinutes {
		for i := range goodPerMinute {
			g.add(goodRecord(i, now.Add(-time.Duration(minute)*time.Minute)), 1, now)
		}
	}
	m := policy.Match{Src: netip.MustParsePrefix("192.0.2.0/24"), Protocol: 6, HasProtocol: true}
	for b.Loop() {
		if s, told := g.share(&m, 0, now); s == 0 || told == 0 {
			b.Fatal(s, told)
		}
	}
}
