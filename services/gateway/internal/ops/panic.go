package ops

import (
	"context"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/rpc"
	enforcev1 "github.com/tidegate-mesh/tidegate/proto/enforce/v1"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/mesh"
)

const (
	beforePanic = 100 * time.Millisecond // the state before is worth no more waiting
	recordRules = 1000                   // ids of revoked rules in the audit log
)

// panicRecord is what the audit log keeps of a PanicResult: the rules are in the log of their own changes.
type panicRecord struct {
	api.Panic
	Revoked int             `json:"revoked"`
	RuleIDs []string        `json:"revoked_ids,omitempty"`
	Held    uint32          `json:"held"`
	Nodes   []api.PanicNode `json:"nodes"`
}

// Panic sets the mesh's panic state at every node at once, each within mesh.StatusTime; who has not answered is in the
// result. Switching it on does not depend on the audit log: whoever panics is losing traffic that he wants, and NATS
// may be the reason. It then waits a second for the log and goes on, and the process's log has the entry.
func (o *Operations) Panic(ctx context.Context, on bool, reason string) (api.PanicResult, error) {
	by := caller.From(ctx).Subject
	c := change{action: actionPanicOff, intended: api.Panic{On: on, By: by, Reason: reason}, urgent: on}
	if on {
		c.action = actionPanicOn
	}
	look, cancel := context.WithTimeout(ctx, beforePanic)
	if p, err := o.PanicState(look); err == nil {
		c.before = p
	}
	cancel()
	var out api.PanicResult
	err := o.carryOut(ctx, c, func(ctx context.Context) (any, error) {
		var err error
		if out, err = o.panicEverywhere(ctx, &enforcev1.PanicRequest{On: on, By: by, Reason: reason}); err != nil {
			return nil, err
		}
		return newPanicRecord(&out), nil
	})
	return out, err
}

func (o *Operations) panicEverywhere(ctx context.Context, req *enforcev1.PanicRequest) (api.PanicResult, error) {
	type said struct {
		*enforcev1.PanicResponse
		heard bool // the node itself has answered, if only with an error
	}
	answers := mesh.All(ctx, o.mesh.Enforce, mesh.StatusTime, func(ctx context.Context, c grpc.ClientConnInterface) (said, error) {
		var trailer metadata.MD // a server sends one, a broken connection does not
		resp, err := enforcev1.NewEnforceServiceClient(c).Panic(ctx, req, grpc.Trailer(&trailer), rpc.AcceptListing())
		return said{resp, len(trailer) > 0}, err
	})
	o.rules.drop()
	o.state.drop()
	out := api.PanicResult{Revoked: []api.RuleSpec{}, Nodes: make([]api.PanicNode, 0, len(answers))}
	known := map[string]bool{}
	first, done := error(errNoPeer), 0
	for _, a := range answers {
		if a.Err != nil {
			shown := o.problem(ctx, a.Err)
			switch {
			case a.Value.heard && status.Code(a.Err.Err) == codes.Unavailable: // without NATS a node panics alone, and says so
				shown.Detail = a.Peer.Who() + ": " + aside(status.Convert(a.Err.Err).Message())
			case silent(a.Err):
				shown.Detail += ": it is not known whether the node has done it"
			}
			if first == errNoPeer { //nolint:errorlint // its initial value
				first = shown
			}
			out.Nodes = append(out.Nodes, api.PanicNode{Node: o.knownNode(a.Peer), Problem: shown.Detail})
			continue
		}
		done++
		out.Nodes = append(out.Nodes, api.PanicNode{Node: o.node(ctx, a.Peer), Done: true})
		if p := newPanic(a.Value.GetPanic()); done == 1 || p.SinceNs > out.SinceNs {
			out.Panic = p
		}
		out.Held = max(out.Held, a.Value.GetHeld())
		out.Revoked = append(out.Revoked, each(unknown(known, a.Value.GetRevoked()), api.RuleSpecOf)...)
	}
	if done == 0 {
		return api.PanicResult{}, o.problem(ctx, first)
	}
	return out, nil
}

// aside is a node's sentence without the cause in brackets at its end, which is for the log.
func aside(s string) string {
	s, _, _ = strings.Cut(sentence(s), " (")
	return s
}

// unknown are the rules whose ids are not known yet; they are then.
func unknown(known map[string]bool, rules []*policyv1.Rule) []*policyv1.Rule {
	var out []*policyv1.Rule
	for _, r := range rules {
		if !known[r.GetId()] {
			known[r.GetId()] = true
			out = append(out, r)
		}
	}
	return out
}

func newPanicRecord(r *api.PanicResult) panicRecord {
	out := panicRecord{Panic: r.Panic, Revoked: len(r.Revoked), Held: r.Held, Nodes: r.Nodes}
	for _, s := range r.Revoked[:min(len(r.Revoked), recordRules)] {
		out.RuleIDs = append(out.RuleIDs, s.ID)
	}
	return out
}
