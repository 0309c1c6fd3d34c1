package ops

import (
	"cmp"
	"context"
	"net/http"

	"google.golang.org/grpc"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/rpc"
	enforcev1 "github.com/tidegate-mesh/tidegate/proto/enforce/v1"
	queryv1 "github.com/tidegate-mesh/tidegate/proto/query/v1"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/mesh"
)

// rulebook is every rule of the mesh, as the nodes that answer have it.
type rulebook struct {
	rules   []api.Rule
	byID    map[string]int
	drops   map[string]api.Nanos // first drop by attack
	answers int
	problem *api.Problem // of the first node that did not answer
}

func (o *Operations) book(ctx context.Context) (rulebook, error) {
	b, err := o.rules.get(ctx, o.readRules)
	if err != nil {
		return b, o.problem(ctx, err)
	}
	return b, nil
}

func (o *Operations) readRules(ctx context.Context) rulebook {
	answers := mesh.All(ctx, o.mesh.Enforce, askTime, func(ctx context.Context, c grpc.ClientConnInterface) (*enforcev1.ListRulesResponse, error) {
		return enforcev1.NewEnforceServiceClient(c).ListRules(ctx, &enforcev1.ListRulesRequest{}, rpc.AcceptListing())
	})
	b := rulebook{rules: []api.Rule{}, byID: map[string]int{}, drops: map[string]api.Nanos{}}
	if len(answers) == 0 {
		b.problem = o.problem(ctx, errNoPeer)
	}
	for _, a := range answers {
		if a.Err != nil {
			p := o.problem(ctx, a.Err)
			b.problem = cmp.Or(b.problem, p)
			continue
		}
		b.answers++
		node := o.node(ctx, a.Peer)
		for _, s := range a.Value.GetRules() {
			r := newRule(node, s)
			if i, ok := b.byID[r.ID]; ok {
				merge(&b.rules[i], &r)
				continue
			}
			b.byID[r.ID] = len(b.rules)
			b.rules = append(b.rules, r)
		}
	}
	newestRuleFirst(b.rules)
	for i := range b.rules {
		r := &b.rules[i]
		b.byID[r.ID] = i
		if r.AttackID != "" && r.State != "shadow" {
			b.drops[r.AttackID] = earlier(b.drops[r.AttackID], r.FirstDropNs)
		}
	}
	return b
}

// Rules lists the rules of the mesh, the newest first. Nodes that do not answer are left out; when none does it is a 503.
func (o *Operations) Rules(ctx context.Context) ([]api.Rule, error) {
	b, err := o.book(ctx)
	if err != nil {
		return nil, err
	}
	if b.answers == 0 {
		return nil, own(b.problem)
	}
	return b.rules, nil
}

// Rule is one rule. It is a 404 only when every node has answered and none knows it.
func (o *Operations) Rule(ctx context.Context, id string) (api.Rule, error) {
	b, err := o.book(ctx)
	if err != nil {
		return api.Rule{}, err
	}
	if i, ok := b.byID[id]; ok {
		return b.rules[i], nil
	}
	if b.problem != nil {
		return api.Rule{}, own(b.problem)
	}
	return api.Rule{}, noRule(id)
}

func noRule(id string) *api.Problem { return problem(http.StatusNotFound, "there is no rule %q", id) }

// explained is a rule as the nodes tell it when they are asked for it by its id.
type explained struct {
	rule api.Rule
	text string
	peer mesh.Peer // that has the rule in its strongest state
}

// explain asks every node about one rule, now. It is a 404 only when every node has answered and none knows the rule.
func (o *Operations) explain(ctx context.Context, id string) (explained, error) {
	var out explained
	var problem *api.Problem
	known := false
	for _, a := range mesh.All(ctx, o.mesh.Enforce, askTime, explainCall(id)) {
		if a.Err != nil {
			if !notFound(a.Err) {
				problem = cmp.Or(problem, o.problem(ctx, a.Err))
			}
			continue
		}
		r := newRule(o.node(ctx, a.Peer), a.Value.GetState())
		if !known || strength[r.State] > strength[out.rule.State] {
			out.text, out.peer = a.Value.GetExplanation(), a.Peer
		}
		if known {
			merge(&out.rule, &r)
		} else {
			out.rule, known = r, true
		}
	}
	switch {
	case known:
		return out, nil
	case len(o.mesh.Enforce) == 0:
		return out, o.problem(ctx, errNoPeer)
	case problem != nil:
		return out, problem
	}
	return out, noRule(id)
}

func explainCall(id string) func(context.Context, grpc.ClientConnInterface) (*enforcev1.ExplainRuleResponse, error) {
	return func(ctx context.Context, c grpc.ClientConnInterface) (*enforcev1.ExplainRuleResponse, error) {
		return enforcev1.NewEnforceServiceClient(c).ExplainRule(ctx, &enforcev1.ExplainRuleRequest{Id: id})
	}
}

// Explain says why a rule is there and what it does. The verdict is left out when the database does not answer.
func (o *Operations) Explain(ctx context.Context, id string) (api.Explanation, error) {
	e, err := o.explain(ctx, id)
	if err != nil {
		return api.Explanation{}, err
	}
	out := api.Explanation{Rule: e.rule, Text: e.text}
	if e.rule.VerdictID != "" {
		resp, err := o.listVerdicts(ctx, &queryv1.ListVerdictsRequest{Id: e.rule.VerdictID, Limit: 1})
		switch {
		case err != nil:
			o.t.CountError("explain_verdict")
		case len(resp.GetVerdicts()) > 0:
			v := api.NewVerdict(resp.GetVerdicts()[0])
			out.Verdict = &v
		}
	}
	return out, nil
}
