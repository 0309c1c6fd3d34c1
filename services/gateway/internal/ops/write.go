package ops

import (
	"cmp"
	"context"
	"net/http"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	enforcev1 "github.com/tidegate-mesh/tidegate/proto/enforce/v1"
	queryv1 "github.com/tidegate-mesh/tidegate/proto/query/v1"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/mesh"
)

// Actions of the audit log.
const (
	actionAdd      = "rule.add"
	actionUpdate   = "rule.update"
	actionRevoke   = "rule.revoke"
	actionPanicOn  = "panic.on"
	actionPanicOff = "panic.off"
	actionCapture  = "capture"
)

// reachTime is how long one node may take for the question that finds out who will make a change.
const reachTime = time.Second

// The rules lie in a bucket that all nodes share: one node makes a change for the mesh. Which one is found out by a
// question that changes nothing, since a change whose answer is lost may not be tried at another node.

// reach asks the nodes in turn and gives the first answer and who gave it. A node that is silent or does not know the
// rule is passed over; NOT_FOUND is the error only when all nodes say so.
func reach[T any](ctx context.Context, o *Operations, call func(context.Context, grpc.ClientConnInterface) (T, error)) (v T, peer mesh.Peer, err error) {
	err = errNoPeer
	for i, p := range o.mesh.Enforce {
		attempt, cancel := context.WithTimeout(ctx, reachTime)
		answer, failed := call(attempt, p.Conn)
		cancel()
		if failed == nil {
			return answer, p, nil
		}
		wrapped := &mesh.Error{Peer: p, Err: failed}
		switch status.Code(failed) {
		case codes.NotFound:
			if i == 0 {
				err = wrapped
			}
		case codes.Unavailable, codes.DeadlineExceeded, codes.Unimplemented:
			if i == 0 || notFound(err) {
				err = wrapped
			}
		default:
			return v, p, wrapped
		}
	}
	return v, peer, err
}

// send makes a change at one node. When the answer is lost the problem says so, and where to look.
func send[T any](ctx context.Context, o *Operations, p mesh.Peer, id string, call func(context.Context, enforcev1.EnforceServiceClient) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, mesh.CallTime)
	defer cancel()
	v, err := call(ctx, enforcev1.NewEnforceServiceClient(p.Conn))
	o.rules.drop()
	if err == nil {
		return v, nil
	}
	wrapped := &mesh.Error{Peer: p, Err: err}
	shown := o.problem(ctx, wrapped)
	if silent(wrapped) {
		shown.Detail += ": it is not known whether the change was made; see /api/v1/rules/" + id
	}
	return v, shown
}

// DryRun says what a rule would do: whether the guardrails take it, and what it would have met in the last hour.
func (o *Operations) DryRun(ctx context.Context, in api.RuleInput) (api.DryRun, error) {
	now := o.now()
	r, err := in.Rule(now)
	if err != nil {
		return api.DryRun{}, err
	}
	p := policy.ToProto(&r)
	counted := make(chan *api.Matched, 1)
	go func() {
		counted <- o.countMatching(ctx, &queryv1.CountMatchingRequest{Range: lastHour(now), Match: p.GetMatch()})
	}()
	resp, _, err := reach(ctx, o, dryCall(&enforcev1.AddRuleRequest{Rule: p, DryRun: true}))
	matched := <-counted
	if err != nil {
		return api.DryRun{}, o.problem(ctx, err)
	}
	return api.DryRun{
		Rule: api.RuleSpecOf(resp.GetRule()), Accepted: resp.GetReason() == "", Reason: resp.GetReason(), Detail: resp.GetDetail(),
		Replaces: resp.GetRevision() != 0, Matched: matched,
	}, nil
}

func dryCall(r *enforcev1.AddRuleRequest) func(context.Context, grpc.ClientConnInterface) (*enforcev1.AddRuleResponse, error) {
	return func(ctx context.Context, c grpc.ClientConnInterface) (*enforcev1.AddRuleResponse, error) {
		return enforcev1.NewEnforceServiceClient(c).AddRule(ctx, r)
	}
}

// AddRule adds a user's rule, or renews the one that does the same. The answer is the rule as the nodes have it now.
func (o *Operations) AddRule(ctx context.Context, in api.RuleInput) (api.Rule, error) {
	r, err := in.Rule(o.now())
	if err != nil {
		return api.Rule{}, err
	}
	c := change{action: actionAdd, intended: api.NewRuleSpec(&r)}
	// The dry run finds the node, and the id that the rule will have.
	dry, peer, err := reach(ctx, o, dryCall(&enforcev1.AddRuleRequest{Rule: policy.ToProto(&r), DryRun: true}))
	if err != nil {
		c.blocked = o.problem(ctx, err)
	} else {
		r.ID = dry.GetRule().GetId()
		c.target, c.intended = r.ID, api.RuleSpecOf(dry.GetRule())
		if dry.GetRevision() != 0 {
			if old, err := o.explain(ctx, r.ID); err == nil {
				c.before = old.rule
			}
		}
	}
	return o.put(ctx, c, peer, &enforcev1.AddRuleRequest{Rule: policy.ToProto(&r)})
}

// ReplaceRule makes the rule id do something else, if it still has the revision; an empty revision is any. The rule
// keeps its id, when it was created and which attack it is about, and becomes a user's.
func (o *Operations) ReplaceRule(ctx context.Context, id, revision string, in api.RuleInput) (api.Rule, error) {
	r, err := in.Rule(o.now())
	if err != nil {
		return api.Rule{}, err
	}
	r.ID = id
	old, peer, blocked := o.find(ctx, id)
	c := change{action: actionUpdate, target: id, blocked: blocked}
	if blocked == nil {
		r.Created, r.AttackID, r.VerdictID = old.CreatedNs.Time(), old.AttackID, old.VerdictID
		c.before = old
	}
	c.intended = api.NewRuleSpec(&r)
	req := &enforcev1.AddRuleRequest{Rule: policy.ToProto(&r)}
	if revision != "" {
		n, ok := parseRevision(revision)
		if !ok && c.blocked == nil {
			c.blocked = otherRevision(&old)
		}
		req.IfRevision = &n
	}
	return o.put(ctx, c, peer, req)
}

// put carries a change of a rule out at peer and gives the rule as it is then.
func (o *Operations) put(ctx context.Context, c change, peer mesh.Peer, req *enforcev1.AddRuleRequest) (api.Rule, error) {
	var rule api.Rule
	err := o.carryOut(ctx, c, func(ctx context.Context) (any, error) {
		resp, err := send(ctx, o, peer, req.GetRule().GetId(), func(ctx context.Context, e enforcev1.EnforceServiceClient) (*enforcev1.AddRuleResponse, error) {
			return e.AddRule(ctx, req)
		})
		if err != nil {
			return nil, err
		}
		rule = o.written(ctx, peer, resp)
		return rule, nil
	})
	return rule, err
}

// written is a rule after a change. Nodes that have not seen the change yet do not count for what the rule is.
func (o *Operations) written(ctx context.Context, peer mesh.Peer, resp *enforcev1.AddRuleResponse) api.Rule {
	e, err := o.explain(ctx, resp.GetRule().GetId())
	if err != nil { // it is stored; how the nodes have it is seen later
		e.rule = newRule(o.node(ctx, peer), &enforcev1.RuleState{Rule: resp.GetRule(), State: "pending"})
	}
	if n := resp.GetRevision(); n > revision(e.rule.Revision) {
		e.rule.RuleSpec, e.rule.Revision = api.RuleSpecOf(resp.GetRule()), strconv.FormatUint(n, 10)
	}
	return e.rule
}

// Revoke takes a rule away, whatever its revision.
func (o *Operations) Revoke(ctx context.Context, id string) error { return o.RevokeRule(ctx, id, "") }

// RevokeRule takes a rule away if it still has the revision; an empty revision is any.
func (o *Operations) RevokeRule(ctx context.Context, id, revision string) error {
	old, peer, blocked := o.find(ctx, id)
	c := change{action: actionRevoke, target: id, blocked: blocked}
	if blocked == nil {
		c.before = old
	}
	req := &enforcev1.RevokeRuleRequest{Id: id}
	if revision != "" {
		n, ok := parseRevision(revision)
		if !ok && c.blocked == nil {
			c.blocked = otherRevision(&old)
		}
		req.IfRevision = &n
	}
	return o.carryOut(ctx, c, func(ctx context.Context) (any, error) {
		_, err := send(ctx, o, peer, id, func(ctx context.Context, e enforcev1.EnforceServiceClient) (*enforcev1.RevokeRuleResponse, error) {
			return e.RevokeRule(ctx, req)
		})
		return nil, err
	})
}

// find is a rule that can be changed, and the node that will do it. One that has expired is gone.
func (o *Operations) find(ctx context.Context, id string) (api.Rule, mesh.Peer, error) {
	resp, peer, err := reach(ctx, o, explainCall(id))
	switch {
	case err != nil && notFound(err):
		return api.Rule{}, peer, noRule(id)
	case err != nil:
		return api.Rule{}, peer, o.problem(ctx, err)
	case resp.GetState().GetState() == "expired":
		return api.Rule{}, peer, noRule(id)
	}
	return newRule(o.node(ctx, peer), resp.GetState()), peer, nil
}

// parseRevision reads a revision; 0 is none that a rule can have.
func parseRevision(s string) (n uint64, ok bool) {
	n, err := strconv.ParseUint(s, 10, 64)
	return n, err == nil && n > 0
}

func otherRevision(r *api.Rule) *api.Problem {
	return problem(http.StatusPreconditionFailed, "the rule has revision %s: read it again", cmp.Or(r.Revision, "0"))
}
