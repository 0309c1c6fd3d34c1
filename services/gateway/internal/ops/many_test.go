package ops

import (
	"context"
	"fmt"
	"testing"
	"time"

	enforcev1 "github.com/tidegate-mesh/tidegate/proto/enforce/v1"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
)

// A node that may have more rules than by default tells of all, and of the panic that revoked them.
func TestTwentyThousandRules(t *testing.T) {
	r := newRig(t, "n1")
	const n = 20_000
	now := time.Now().UnixNano()
	var rules []*policyv1.Rule
	for i := range n {
		rule := &policyv1.Rule{
			Id: fmt.Sprintf("host_sweep-%016x-%08x", i, i), Action: policyv1.Action_ACTION_DROP,
			Match: &policyv1.Match{Src: fmt.Sprintf("198.18.%d.%d/32", i>>8, i&255), Dst: "192.0.2.0/24"}, CreatedNs: now, ExpiresNs: now, LeaseNs: 120e9,
			Origin: "detector", AttackId: "host_sweep-192.0.2.0_24-1764064800", VerdictId: fmt.Sprintf("host_sweep-192.0.2.0_24-1764064800-%d", i),
			Comment: "host_sweep source", Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", AttackFirstNs: now,
		}
		rules = append(rules, rule)
		r.nodes["n1"].states = append(r.nodes["n1"].states, &enforcev1.RuleState{
			Rule: rule, State: "active", Packets: 123_456_789, Bytes: 123_456_789_000, Revision: uint64(i), FirstDropNs: now, AppliedNs: now,
		})
	}
	if got, err := r.Rules(context.Background()); err != nil || len(got) != n {
		t.Errorf("%d rules, %v", len(got), err)
	}
	r.nodes["n1"].onPanic = func(context.Context, *enforcev1.PanicRequest) (*enforcev1.PanicResponse, error) {
		return &enforcev1.PanicResponse{Panic: &eventv1.Panic{On: true}, Revoked: rules}, nil
	}
	if got, err := r.Panic(asOperator(t), true, ""); err != nil || len(got.Revoked) != n {
		t.Errorf("%d revoked, %v", len(got.Revoked), err)
	}
}
