package ops

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tidegate-mesh/tidegate/libs/api"
	enforcev1 "github.com/tidegate-mesh/tidegate/proto/enforce/v1"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	queryv1 "github.com/tidegate-mesh/tidegate/proto/query/v1"
)

var drop = api.RuleInput{Action: "drop", Match: api.Match{Src: "192.0.2.7"}, For: "10m", Comment: "noise"}

// store makes a node that accepts changes of its rules, as those of a bucket.
func (f *fakeEnforce) store() {
	revision := uint64(40)
	f.add = func(_ context.Context, r *enforcev1.AddRuleRequest) (*enforcev1.AddRuleResponse, error) {
		if r.GetRule().GetId() == "" {
			r.Rule.Id = "derived"
		}
		i := slices.IndexFunc(f.states, func(s *enforcev1.RuleState) bool { return s.GetRule().GetId() == r.GetRule().GetId() })
		has := uint64(0)
		if i >= 0 {
			has = f.states[i].GetRevision()
		}
		if r.GetDryRun() {
			return &enforcev1.AddRuleResponse{Rule: r.GetRule(), Revision: has}, nil
		}
		if r.IfRevision != nil && r.GetIfRevision() != has {
			return nil, status.Error(codes.Aborted, "tg_rules: wrong last sequence")
		}
		revision++
		s := &enforcev1.RuleState{Rule: r.GetRule(), State: "active", Revision: revision, Packets: 5}
		if i >= 0 {
			f.states[i] = s
		} else {
			f.states = append(f.states, s)
		}
		return &enforcev1.AddRuleResponse{Rule: r.GetRule(), Revision: revision}, nil
	}
	f.revoke = func(_ context.Context, r *enforcev1.RevokeRuleRequest) error {
		if r.IfRevision != nil && r.GetIfRevision() != f.states[0].GetRevision() {
			return status.Error(codes.Aborted, "tg_rules: wrong last sequence")
		}
		f.states = nil
		return nil
	}
}

func TestAddRuleIsOnRecordBefore(t *testing.T) {
	r := newRig(t, dead, "n1", "n2")
	r.nodes["n1"].store()
	if rules, err := r.Rules(asOperator(t)); err != nil || len(rules) != 0 {
		t.Fatalf("rules %v, %v", rules, err)
	}
	rule, err := r.AddRule(asOperator(t), drop)
	if err != nil {
		t.Fatal(err)
	}
	if rule.ID != "derived" || rule.Revision != "41" || rule.State != "active" || rule.Nodes[0].Node != "n1" || rule.Origin != "user" {
		t.Errorf("rule %+v", rule)
	}
	if rules, err := r.Rules(asOperator(t)); err != nil || len(rules) != 1 {
		t.Errorf("who has added a rule does not see it: %v, %v", rules, err)
	}
	changes := slices.DeleteFunc(r.list(), func(s string) bool { return strings.HasSuffix(s, "ListRules") })
	if want := "audit REQUESTED, n1.AddRule, audit DONE"; strings.Join(changes, ", ") != want {
		t.Errorf("order %q, want %q", changes, want)
	}
	a := r.bus.audits()
	if a[0].GetId() != a[1].GetId() || a[0].GetRevision() != 1 || a[1].GetRevision() != 2 {
		t.Errorf("entries %v", a)
	}
	for _, e := range a {
		if e.GetActor() != "ada" || e.GetRole() != "operator" || e.GetRemote() != "192.0.2.9" || e.GetRequestId() != "req-1" || e.GetGateway() != "test" ||
			e.GetAction() != "rule.add" || e.GetTarget() != "derived" || e.GetBefore() != "" || e.GetTimeNs() == 0 {
			t.Errorf("entry %v", e)
		}
	}
	var after api.Rule
	if err := json.Unmarshal([]byte(a[1].GetAfter()), &after); err != nil || after.Revision != "41" || !strings.Contains(a[0].GetAfter(), `"noise"`) {
		t.Errorf("after %s, %v", a[1].GetAfter(), err)
	}
	// The same once more renews it.
	if rule, err = r.AddRule(asOperator(t), drop); err != nil || rule.Revision != "42" {
		t.Errorf("renewed %+v, %v", rule, err)
	}
	if before := r.bus.audits()[2].GetBefore(); !strings.Contains(before, `"revision":"41"`) {
		t.Errorf("before the renewal it was %s", before)
	}
}

func TestNothingIsChangedWithoutARecord(t *testing.T) {
	t.Parallel() // it waits
	r := newRig(t, "n1")
	r.nodes["n1"].store()
	r.nodes["n1"].states = []*enforcev1.RuleState{{Rule: ruleProto("r1", ""), State: "active", Revision: 3}}
	r.bus.setAway(true)
	begin := time.Now()
	done := make(chan error, 3)
	go func() { _, err := r.AddRule(asOperator(t), drop); done <- err }()
	go func() { _, err := r.ReplaceRule(asOperator(t), "r1", "3", drop); done <- err }()
	go func() { done <- r.Revoke(asOperator(t), "r1") }()
	for range 3 {
		if p := wantProblem(t, <-done, 503); p.Detail != "the audit log cannot be written; nothing was changed" || p.Service != "nats" {
			t.Errorf("problem %+v", p)
		}
	}
	if d := time.Since(begin); d < auditTime || d > 2*auditTime {
		t.Errorf("the log was waited for %v", d)
	}
	if l := r.list(); slices.Contains(l, "n1.AddRule") || slices.Contains(l, "n1.RevokeRule") {
		t.Errorf("changed without a record: %v", l)
	}
	r.errorsCounted("audit", 3)
}

func TestTheOutcomeMayBeUnrecorded(t *testing.T) {
	t.Parallel() // it waits
	r := newRig(t, "n1")
	r.nodes["n1"].store()
	r.bus.fail2 = true
	if _, err := r.AddRule(asOperator(t), drop); err != nil {
		t.Errorf("the rule is added, but: %v", err)
	}
	r.errorsCounted("audit", 1)
	if !strings.Contains(r.log.String(), "AUDIT_OUTCOME_DONE") {
		t.Errorf("the log does not have the entry: %s", r.log)
	}
}

func TestRefusal(t *testing.T) {
	r := newRig(t, "n1", "n2")
	r.nodes["n1"].store()
	accept := r.nodes["n1"].add
	r.nodes["n1"].add = func(ctx context.Context, q *enforcev1.AddRuleRequest) (*enforcev1.AddRuleResponse, error) {
		if !q.GetDryRun() {
			return nil, status.Error(codes.FailedPrecondition, "never_block: 192.0.2.7 is a resolver")
		}
		return accept(ctx, q)
	}
	_, err := r.AddRule(asOperator(t), drop)
	if p := wantProblem(t, err, 422); p.Reason != "never_block" || p.Detail != "192.0.2.7 is a resolver" {
		t.Errorf("problem %+v", p)
	}
	if e := r.bus.audits()[1]; e.GetOutcome() != eventv1.AuditOutcome_AUDIT_OUTCOME_REFUSED || e.GetAfter() != "" || !strings.Contains(e.GetDetail(), "resolver") {
		t.Errorf("entry %v", e)
	}
	_, err = r.AddRule(asOperator(t), api.RuleInput{Action: "burn"})
	if p := wantProblem(t, err, 422); p.Errors[0].Location != "body.action" {
		t.Errorf("problem %+v", p)
	}
}

func TestALostAnswerIsNotTriedElsewhere(t *testing.T) {
	r := newRig(t, "n1", "n2")
	r.nodes["n1"].store()
	r.nodes["n2"].store()
	accept := r.nodes["n1"].add
	r.nodes["n1"].add = func(ctx context.Context, q *enforcev1.AddRuleRequest) (*enforcev1.AddRuleResponse, error) {
		if !q.GetDryRun() {
			return nil, status.Error(codes.Unavailable, "NATS is unavailable")
		}
		return accept(ctx, q)
	}
	_, err := r.AddRule(asOperator(t), drop)
	p := wantProblem(t, err, 503)
	if want := "enforce at n1:1 does not answer: it is not known whether the change was made; see /api/v1/rules/derived"; p.Detail != want || p.Service != "enforce" {
		t.Errorf("problem %+v", p)
	}
	if r.count("n2.AddRule") != 0 || r.count("n1.AddRule") != 1 {
		t.Errorf("calls %v", r.list())
	}
	if e := r.bus.audits()[1]; e.GetOutcome() != eventv1.AuditOutcome_AUDIT_OUTCOME_FAILED {
		t.Errorf("entry %v", e)
	}
}

func TestNoNodeIsReachable(t *testing.T) {
	r := newRig(t, dead, dead)
	_, err := r.AddRule(asOperator(t), drop)
	if p := wantProblem(t, err, 503); p.Detail != "enforce at dead:1 does not answer" {
		t.Errorf("problem %+v", p)
	}
	if e := r.bus.audits(); len(e) != 2 || e[1].GetOutcome() != eventv1.AuditOutcome_AUDIT_OUTCOME_REFUSED {
		t.Errorf("entries %v", e)
	}
	wantProblem(t, r.Revoke(asOperator(t), "r1"), 503)
	_, err = r.Rules(asOperator(t))
	wantProblem(t, err, 503)
	_, err = r.Explain(asOperator(t), "r1")
	wantProblem(t, err, 503)
}

func TestReplaceRule(t *testing.T) {
	r := newRig(t, "n1")
	n := r.nodes["n1"]
	n.store()
	n.states = []*enforcev1.RuleState{{Rule: ruleProto("r1", "a1"), State: "active", Revision: 3}}
	for _, other := range []string{"2", "0", "x", "-1"} {
		_, err := r.ReplaceRule(asOperator(t), "r1", other, drop)
		wantProblem(t, err, 412)
	}
	if e := r.bus.audits(); len(e) != 8 || e[7].GetOutcome() != eventv1.AuditOutcome_AUDIT_OUTCOME_REFUSED || e[7].GetAfter() != e[7].GetBefore() {
		t.Errorf("entries %v", e)
	}
	rule, err := r.ReplaceRule(asOperator(t), "r1", "3", drop)
	if err != nil || rule.ID != "r1" || rule.Revision != "41" || rule.Origin != "user" || rule.AttackID != "a1" || rule.CreatedNs != 7 || rule.MatchText != "src 192.0.2.7/32" {
		t.Errorf("rule %+v, %v", rule, err)
	}
	if rule, err = r.ReplaceRule(asOperator(t), "r1", "", drop); err != nil || rule.Revision != "42" {
		t.Errorf("rule %+v, %v", rule, err)
	}
	_, err = r.ReplaceRule(asOperator(t), "gone", "", drop)
	wantProblem(t, err, 404)
	n.states[0].State = "expired"
	_, err = r.ReplaceRule(asOperator(t), "r1", "", drop)
	wantProblem(t, err, 404)
	if got := r.count("n1.AddRule"); got != 3 { // revisions 2 and 3, any, and none that no rule can have
		t.Errorf("%d changes were sent", got)
	}
}

func TestRevokeRule(t *testing.T) {
	r := newRig(t, "n1")
	n := r.nodes["n1"]
	n.store()
	n.states = []*enforcev1.RuleState{{Rule: ruleProto("r1", ""), State: "active", Revision: 3}}
	wantProblem(t, r.RevokeRule(asOperator(t), "r1", "4"), 412)
	wantProblem(t, r.RevokeRule(asOperator(t), "r2", ""), 404)
	if err := r.RevokeRule(asOperator(t), "r1", "3"); err != nil {
		t.Fatal(err)
	}
	e := r.bus.audits()[5]
	if e.GetOutcome() != eventv1.AuditOutcome_AUDIT_OUTCOME_DONE || e.GetAfter() != "" || !strings.Contains(e.GetBefore(), `"id":"r1"`) || e.GetAction() != "rule.revoke" {
		t.Errorf("entry %v", e)
	}
	wantProblem(t, r.Revoke(asOperator(t), "r1"), 404)
}

func TestAChangeSurvivesItsCaller(t *testing.T) {
	r := newRig(t, "n1")
	r.nodes["n1"].store()
	accept := r.nodes["n1"].add
	ctx, cancel := context.WithCancel(asOperator(t))
	r.nodes["n1"].add = func(c context.Context, q *enforcev1.AddRuleRequest) (*enforcev1.AddRuleResponse, error) {
		if !q.GetDryRun() {
			cancel()
		}
		return accept(c, q)
	}
	if _, err := r.AddRule(ctx, drop); err != nil {
		t.Errorf("the caller went away: %v", err)
	}
	if e := r.bus.audits(); len(e) != 2 || e[1].GetOutcome() != eventv1.AuditOutcome_AUDIT_OUTCOME_DONE {
		t.Errorf("entries %v", e)
	}
}

func TestDryRun(t *testing.T) {
	r := newRig(t, "n1")
	n := r.nodes["n1"]
	n.store()
	r.persist.count = func(q *queryv1.CountMatchingRequest) (*queryv1.CountMatchingResponse, error) {
		if q.GetMatch().GetSrc() != "192.0.2.7/32" || q.GetRange().GetToNs()-q.GetRange().GetFromNs() != int64(time.Hour) {
			t.Errorf("asked %v", q)
		}
		return &queryv1.CountMatchingResponse{Flows: 3, Apps: []*queryv1.TopRow{{Key: "dns"}}, Approximate: true}, nil
	}
	d, err := r.DryRun(asOperator(t), drop)
	if err != nil || !d.Accepted || d.Replaces || d.Rule.ID != "derived" || d.Matched == nil || d.Matched.Flows != 3 || d.Matched.Apps[0].Key != "dns" || !d.Matched.Approximate {
		t.Errorf("dry run %+v, %v", d, err)
	}
	r.persist.count = func(*queryv1.CountMatchingRequest) (*queryv1.CountMatchingResponse, error) {
		return nil, status.Error(codes.Unavailable, "database")
	}
	n.add = func(_ context.Context, q *enforcev1.AddRuleRequest) (*enforcev1.AddRuleResponse, error) {
		return &enforcev1.AddRuleResponse{Rule: q.GetRule(), Revision: 3, Reason: "too_broad", Detail: "It covers half the net."}, nil
	}
	d, err = r.DryRun(asOperator(t), drop)
	if err != nil || d.Accepted || !d.Replaces || d.Reason != "too_broad" || d.Matched != nil {
		t.Errorf("dry run without a database %+v, %v", d, err)
	}
	r.errorsCounted("count_matching", 1)
	if len(r.bus.audits()) != 0 || r.count("n1.AddRule") != 0 {
		t.Errorf("a dry run changed something: %v", r.list())
	}
	_, err = r.DryRun(asOperator(t), api.RuleInput{Action: "burn"})
	wantProblem(t, err, 422)
}

func TestRulesOfSeveralNodes(t *testing.T) {
	r := newRig(t, "n1", dead, "n2")
	newer := ruleProto("r1", "")
	newer.Comment = "new"
	later := ruleProto("r0", "")
	later.CreatedNs = 9
	unreadable := ruleProto("r9", "")
	unreadable.Match.Src = "not a prefix"
	r.nodes["n1"].states = []*enforcev1.RuleState{
		{Rule: ruleProto("r1", ""), State: "refused", Reason: "rule_limit", Detail: "Full.", Revision: 3, Packets: 1, Bytes: 10, FirstDropNs: 50},
		{Rule: unreadable, State: "pending", Revision: 1},
	}
	r.nodes["n2"].states = []*enforcev1.RuleState{
		{Rule: newer, State: "active", Revision: 4, Packets: 2, Bytes: 20, FirstDropNs: 40, AppliedNs: 30}, {Rule: later, State: "shadow", Revision: 5},
	}
	rules, err := r.Rules(asOperator(t))
	if err != nil || len(rules) != 3 || rules[0].ID != "r0" || rules[1].ID != "r1" || rules[2].ID != "r9" {
		t.Fatalf("rules %+v, %v", rules, err)
	}
	m := rules[1]
	if m.State != "active" || m.Reason != "" || m.Detail != "" || m.Revision != "4" || m.Comment != "new" || m.Packets != 3 || m.Bytes != 30 || m.FirstDropNs != 40 || m.AppliedNs != 30 {
		t.Errorf("merged %+v", m)
	}
	if len(m.Nodes) != 2 || m.Nodes[0] != (api.RuleNode{Node: "n1", State: "refused", Reason: "rule_limit", Packets: 1, Bytes: 10}) || m.Nodes[1].Node != "n2" {
		t.Errorf("nodes %+v", m.Nodes)
	}
	if rules[2].MatchText != "not readable by this version" || rules[2].Action != "drop" {
		t.Errorf("a rule of a later version is %+v", rules[2])
	}
	if one, err := r.Rule(asOperator(t), "r0"); err != nil || one.State != "shadow" {
		t.Errorf("rule %+v, %v", one, err)
	}
	_, err = r.Rule(asOperator(t), "gone") // the dead node may know it
	wantProblem(t, err, 503)
	r.mesh.Enforce = slices.Delete(r.mesh.Enforce, 1, 2)
	r.rules.drop()
	_, err = r.Rule(asOperator(t), "gone")
	wantProblem(t, err, 404)
}

func TestExplain(t *testing.T) {
	r := attackRig(t)
	two := newRig(t, "n1", "n2")
	r.mesh.Enforce, r.nodes = two.mesh.Enforce, two.nodes
	r.nodes["n1"].states = []*enforcev1.RuleState{{Rule: ruleProto("r1", "a1"), State: "pending"}}
	r.nodes["n2"].states = []*enforcev1.RuleState{{Rule: ruleProto("r1", "a1"), State: "active"}}
	e, err := r.Explain(asOperator(t), "r1")
	if err != nil || e.Text != "as n2 has it" || e.Rule.State != "active" || len(e.Rule.Nodes) != 2 || e.Verdict == nil {
		t.Errorf("explanation %+v, %v", e, err)
	}
	r.persist.verdicts = func(*queryv1.ListVerdictsRequest) (*queryv1.ListVerdictsResponse, error) {
		return nil, status.Error(codes.Unavailable, "database")
	}
	if e, err = r.Explain(asOperator(t), "r1"); err != nil || e.Verdict != nil {
		t.Errorf("without a database %+v, %v", e, err)
	}
	_, err = r.Explain(asOperator(t), "gone")
	wantProblem(t, err, 404)
}
