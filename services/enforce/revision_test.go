package enforce

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/tidegate-mesh/tidegate/libs/policy"
	enforcev1 "github.com/tidegate-mesh/tidegate/proto/enforce/v1"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
)

func dropOf(src string) *policyv1.Rule {
	return &policyv1.Rule{Action: policyv1.Action_ACTION_DROP, Match: &policyv1.Match{Src: src}}
}

func TestDryRunChangesNothing(t *testing.T) {
	r := newRig(t, func(c *Config) { c.NeverBlock, c.RuleLimit = []string{"203.0.113.0/24"}, 1 })
	r.startReady()
	ctx := context.Background()
	dry := func(rule *policyv1.Rule) *enforcev1.AddRuleResponse {
		t.Helper()
		out, err := r.svc.AddRule(ctx, &enforcev1.AddRuleRequest{Rule: rule, DryRun: true})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if d := dry(dropOf("198.18.0.1")); d.GetRule().GetId() == "" || d.GetRevision() != 0 || d.GetReason() != "" {
		t.Errorf("a new rule: %v", d)
	}
	if d := dry(dropOf("203.0.113.9")); d.GetReason() != string(NeverBlock) || !strings.Contains(d.GetDetail(), "203.0.113.0/24") {
		t.Errorf("a rule against never-block: %v", d)
	}
	if d := dry(dropOf("::ffff:0.0.0.0/96")); d.GetReason() != string(BlastRadius) {
		t.Errorf("all of IPv4 in IPv6's notation: %v", d)
	}
	for _, c := range []struct {
		rule *policyv1.Rule
		say  string
	}{{dropOf("nowhere"), "neither an address nor a prefix"}, {&policyv1.Rule{Id: "a b", Action: policyv1.Action_ACTION_DROP, Match: &policyv1.Match{Src: "198.18.0.1"}}, "not usable as a key"}} {
		_, err := r.svc.AddRule(ctx, &enforcev1.AddRuleRequest{Rule: c.rule, DryRun: true})
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), c.say) {
			t.Errorf("a malformed rule: %v, want %q", err, c.say)
		}
	}
	if m, err := r.bus.Rules(ctx); err != nil || len(m) != 0 {
		t.Errorf("dry runs wrote %v (%v)", m, err)
	}

	a, err := r.svc.AddRule(ctx, &enforcev1.AddRuleRequest{Rule: dropOf("198.18.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	if d := dry(dropOf("198.18.0.1")); d.GetRevision() != a.GetRevision() || d.GetReason() != "" {
		t.Errorf("a rule that is there with revision %d: %v", a.GetRevision(), d)
	}
	if d := dry(dropOf("198.18.0.2")); d.GetReason() != string(RuleLimit) {
		t.Errorf("above the rule limit: %v", d)
	}
	_, err = r.svc.AddRule(ctx, &enforcev1.AddRuleRequest{Rule: dropOf("198.18.0.1"), DryRun: true, IfRevision: proto.Uint64(a.GetRevision() + 1)})
	if status.Code(err) != codes.Aborted {
		t.Errorf("a dry run with another revision: %v", err)
	}
	m, err := r.bus.Rules(ctx)
	if err != nil || len(m) != 1 || m[a.GetRule().GetId()].Revision != a.GetRevision() {
		t.Errorf("dry runs changed the bucket: %v (%v)", m, err)
	}
	if n := len(mustRules(t, r.gate)); n != 1 || r.gate.written() != 1 {
		t.Errorf("%d entries, %d written", n, r.gate.written())
	}
	for _, reason := range []Reason{NeverBlock, RuleLimit} {
		if n := testutil.ToFloat64(r.svc.m.refusals.WithLabelValues(string(reason))); n != 0 {
			t.Errorf("a dry run counted as %v refusals for %s", n, reason)
		}
	}
}

func TestIfRevision(t *testing.T) {
	r := newRig(t, nil)
	r.startReady()
	ctx := context.Background()
	add := func(priority int32, revision *uint64) (*enforcev1.AddRuleResponse, error) {
		p := dropOf("198.18.0.1")
		p.Id, p.Priority = "r1", priority
		return r.svc.AddRule(ctx, &enforcev1.AddRuleRequest{Rule: p, IfRevision: revision})
	}
	if _, err := add(1, proto.Uint64(7)); status.Code(err) != codes.Aborted {
		t.Errorf("a revision of a rule that is not there: %v", err)
	}
	first, err := add(1, proto.Uint64(0))
	if err != nil || first.GetRevision() == 0 {
		t.Fatalf("a rule that must not exist: %v (%v)", first, err)
	}
	if _, err := add(2, proto.Uint64(0)); status.Code(err) != codes.Aborted {
		t.Errorf("a rule that must not exist, but does: %v", err)
	}
	list, err := r.svc.ListRules(ctx, nil)
	if err != nil || len(list.GetRules()) != 1 || list.GetRules()[0].GetRevision() != first.GetRevision() {
		t.Fatalf("list %v (%v), want revision %d", list, err, first.GetRevision())
	}

	const writers = 16
	var wg sync.WaitGroup
	won := make(chan int32, writers)
	for i := range int32(writers) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			_, err := add(10+i, proto.Uint64(first.GetRevision()))
			switch status.Code(err) {
			case codes.OK:
				won <- 10 + i
			case codes.Aborted:
			default:
				t.Errorf("writer %d: %v", i, err)
			}
		}()
	}
	wg.Wait()
	if len(won) != 1 {
		t.Fatalf("%d of %d writers with the same revision won", len(won), writers)
	}
	winner := <-won
	m, err := r.bus.Rules(ctx)
	if err != nil || m["r1"].Rule.Priority != winner {
		t.Errorf("the bucket has priority %d (%v), the winner wrote %d", m["r1"].Rule.Priority, err, winner)
	}
	if e, _ := r.gate.get(policy.NumericID("r1")); e.Priority != winner {
		t.Errorf("the entry has priority %d, the winner wrote %d", e.Priority, winner)
	}

	revoke := func(revision *uint64) error {
		_, err := r.svc.RevokeRule(ctx, &enforcev1.RevokeRuleRequest{Id: "r1", IfRevision: revision})
		return err
	}
	for _, wrong := range []uint64{0, first.GetRevision(), m["r1"].Revision + 1} {
		if err := revoke(&wrong); status.Code(err) != codes.Aborted {
			t.Errorf("revoke of revision %d: %v", wrong, err)
		}
	}
	if _, ok := r.gate.get(policy.NumericID("r1")); !ok {
		t.Fatal("a refused revocation removed the entry")
	}
	if err := revoke(proto.Uint64(m["r1"].Revision)); err != nil {
		t.Error(err)
	}
	if _, ok := r.gate.get(policy.NumericID("r1")); ok {
		t.Error("RevokeRule returned before the entry was gone")
	}
	if err := revoke(proto.Uint64(1)); status.Code(err) != codes.NotFound {
		t.Errorf("revoke of a rule that is gone: %v", err)
	}
}

func TestRefusedChangeKeepsTheRule(t *testing.T) {
	r := newRig(t, nil)
	r.startReady()
	ctx := context.Background()
	p := dropOf("198.18.0.1")
	p.Id, p.Priority = "r1", 1
	if _, err := r.svc.AddRule(ctx, &enforcev1.AddRuleRequest{Rule: p}); err != nil {
		t.Fatal(err)
	}
	r.refusePriority(2)
	p.Priority = 2
	if _, err := r.svc.AddRule(ctx, &enforcev1.AddRuleRequest{Rule: p}); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), string(MaskLimit)) {
		t.Fatalf("a change that the kernel refuses: %v", err)
	}
	m, err := r.bus.Rules(ctx)
	if err != nil || m["r1"].Rule.Priority != 1 {
		t.Errorf("the bucket has %v (%v), want the rule as it was", m["r1"], err)
	}
	r.waitEntry("r1")
}
