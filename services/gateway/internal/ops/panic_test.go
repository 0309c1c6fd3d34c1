package ops

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	enforcev1 "github.com/tidegate-mesh/tidegate/proto/enforce/v1"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
)

// panicsAt makes a node take the panic state as asked, with since as the time of the change.
func (f *fakeEnforce) panicsAt(since int64, held uint32, revoked ...*policyv1.Rule) {
	f.onPanic = func(_ context.Context, q *enforcev1.PanicRequest) (*enforcev1.PanicResponse, error) {
		f.panics = &eventv1.Panic{On: q.GetOn(), SinceNs: since, By: q.GetBy(), Reason: q.GetReason()}
		return &enforcev1.PanicResponse{Panic: f.panics, Held: held, Revoked: revoked}, nil
	}
}

func TestPanicWithADeadNode(t *testing.T) {
	r := newRig(t, "n1", dead, "n2")
	r.nodes["n1"].panicsAt(5, 1, ruleProto("r1", ""), ruleProto("r2", ""))
	r.nodes["n2"].panicsAt(6, 3, ruleProto("r2", ""), ruleProto("r3", ""))
	if p, err := r.PanicState(asOperator(t)); err != nil || p.On {
		t.Fatalf("before: %+v, %v", p, err)
	}
	begin := time.Now()
	p, err := r.Panic(asOperator(t), true, "broken")
	if err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begin); d > time.Second {
		t.Errorf("panic took %v", d)
	}
	if !p.On || p.SinceNs != 6 || p.By != "ada" || p.Reason != "broken" || p.Held != 3 || len(p.Revoked) != 3 {
		t.Errorf("result %+v", p)
	}
	if len(p.Nodes) != 3 || !p.Nodes[0].Done || p.Nodes[0].Node != "n1" || p.Nodes[1].Done || p.Nodes[1].Node != "dead:1" ||
		!strings.HasPrefix(p.Nodes[1].Problem, "enforce at dead:1 does not answer") || !p.Nodes[2].Done {
		t.Errorf("nodes %+v", p.Nodes)
	}
	if s, err := r.PanicState(asOperator(t)); err != nil || !s.On {
		t.Errorf("who has panicked does not see it: %+v, %v", s, err)
	}
	e := r.bus.audits()
	if len(e) != 2 || e[0].GetAction() != "panic.on" || e[0].GetBefore() != `{"on":false}` || e[1].GetOutcome() != eventv1.AuditOutcome_AUDIT_OUTCOME_DONE ||
		!strings.Contains(e[1].GetAfter(), `"revoked_ids":["r1","r2","r3"]`) {
		t.Errorf("entries %v", e)
	}
	if _, err := r.Panic(asOperator(t), false, "over"); err != nil || r.bus.audits()[2].GetAction() != "panic.off" {
		t.Errorf("off: %v", err)
	}
}

func TestPanicDoesNotNeedTheLog(t *testing.T) {
	t.Parallel() // it waits
	r := newRig(t, "n1")
	r.nodes["n1"].panicsAt(5, 0)
	r.bus.setAway(true)
	begin := time.Now()
	p, err := r.Panic(asOperator(t), true, "broken")
	if err != nil || !p.On || !p.Nodes[0].Done {
		t.Errorf("result %+v, %v", p, err)
	}
	if d := time.Since(begin); d < 2*auditTimePanic || d > 4*auditTimePanic {
		t.Errorf("panic took %v", d)
	}
	r.errorsCounted("audit", 2)
	if log := r.log.String(); strings.Count(log, "panic.on") != 2 || !strings.Contains(log, "actor=ada") {
		t.Errorf("the log has %s", log)
	}
	_, err = r.Panic(asOperator(t), false, "")
	wantProblem(t, err, 503) // switching it off can wait
	if r.count("n1.Panic") != 1 {
		t.Error("panic was switched off without a record")
	}
}

func TestPanicWithNobody(t *testing.T) {
	r := newRig(t, "n1", dead)
	r.nodes["n1"].onPanic = func(context.Context, *enforcev1.PanicRequest) (*enforcev1.PanicResponse, error) {
		return nil, status.Error(codes.DeadlineExceeded, "late")
	}
	_, err := r.Panic(asOperator(t), true, "")
	if p := wantProblem(t, err, 503); p.Service != "enforce" || !strings.Contains(p.Detail, "n1:1") {
		t.Errorf("problem %+v", p)
	}
	if e := r.bus.audits()[1]; e.GetOutcome() != eventv1.AuditOutcome_AUDIT_OUTCOME_FAILED {
		t.Errorf("entry %v", e)
	}
}

func TestANodePanicsAlone(t *testing.T) {
	r := newRig(t, "n1", "n2")
	r.nodes["n1"].onPanic = func(context.Context, *enforcev1.PanicRequest) (*enforcev1.PanicResponse, error) {
		return nil, status.Error(codes.Unavailable, "drops are removed on this node; other nodes were not told (nats://secret)")
	}
	r.nodes["n2"].panicsAt(6, 0)
	p, err := r.Panic(asOperator(t), true, "")
	if err != nil || p.Nodes[0].Done || p.Nodes[0].Problem != "enforce at n1:1: drops are removed on this node; other nodes were not told" || !p.Nodes[1].Done {
		t.Errorf("result %+v, %v", p, err)
	}
}
