package ops

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tidegate-mesh/tidegate/libs/api"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	queryv1 "github.com/tidegate-mesh/tidegate/proto/query/v1"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/mesh"
)

const maxPage = 1000 // items of a page, rows of a ranking

// ask sends a question to the first persist instance that is reachable. One that was silent is asked last from then on: it may
// hang, or its machine be without power, which would cost each question its whole time.
func ask[T any](ctx context.Context, o *Operations, call func(context.Context, queryv1.QueryServiceClient) (T, error)) (T, error) {
	peers := o.mesh.Persist
	from := o.askFrom.Load()
	if n := len(peers); n > 1 {
		at := int(from % uint64(n)) //nolint:gosec // a few instances
		peers = slices.Concat(peers[at:], peers[:at])
	}
	v, err := first(ctx, peers, mesh.CallTime, func(ctx context.Context, c grpc.ClientConnInterface) (T, error) {
		return call(ctx, queryv1.NewQueryServiceClient(c))
	})
	if err != nil {
		var late *mesh.Error
		if errors.As(err, &late) && status.Code(late.Err) == codes.DeadlineExceeded {
			i := slices.IndexFunc(peers, func(p mesh.Peer) bool { return p == late.Peer })
			o.askFrom.CompareAndSwap(from, from+uint64(i)+1) //nolint:gosec // it is one of them; another question may have moved on
		}
		return v, o.problem(ctx, err)
	}
	return v, nil
}

// first is mesh.First of peers that may be none.
func first[T any](ctx context.Context, peers []mesh.Peer, limit time.Duration, call func(context.Context, grpc.ClientConnInterface) (T, error)) (v T, err error) {
	if len(peers) == 0 {
		return v, errNoPeer
	}
	return mesh.First(ctx, peers, limit, call)
}

func (r Range) proto() *queryv1.TimeRange {
	out := &queryv1.TimeRange{}
	if !r.From.IsZero() {
		out.FromNs = r.From.UnixNano()
	}
	if !r.To.IsZero() {
		out.ToNs = r.To.UnixNano()
	}
	return out
}

func prefixText(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}

// limit checks how many items are asked for; 0 is left to persist.
func limit(n, most int) (uint32, error) {
	if n < 0 || n > most {
		return 0, invalid("query.limit", "limit %d: give 1 to %d", n, most)
	}
	return uint32(n), nil //nolint:gosec // bounded above
}

// Flows lists stored flows.
func (o *Operations) Flows(ctx context.Context, q FlowQuery) (api.Page[api.Flow], error) {
	n, err := limit(q.Limit, maxPage)
	if err != nil {
		return api.Page[api.Flow]{}, err
	}
	resp, err := ask(ctx, o, func(ctx context.Context, c queryv1.QueryServiceClient) (*queryv1.ListFlowsResponse, error) {
		return c.ListFlows(ctx, &queryv1.ListFlowsRequest{
			Range: q.Range.proto(), Prefix: prefixText(q.Prefix), App: q.App, Host: q.Host, Port: uint32(q.Port), Limit: n, PageToken: q.Cursor,
			Ja3: q.JA3, Ja4: q.JA4, Hassh: q.HASSH, Confidence: q.Confidence, Risk: q.Risk,
		})
	})
	if err != nil {
		return api.Page[api.Flow]{}, err
	}
	return api.Page[api.Flow]{Items: each(resp.GetFlows(), newFlow), Next: resp.GetNextPageToken()}, nil
}

// Top ranks stored traffic.
func (o *Operations) Top(ctx context.Context, q TopQuery) (api.Top, error) {
	n, err := limit(q.Limit, maxPage)
	if err != nil {
		return api.Top{}, err
	}
	resp, err := ask(ctx, o, func(ctx context.Context, c queryv1.QueryServiceClient) (*queryv1.TopResponse, error) {
		return c.Top(ctx, &queryv1.TopRequest{
			Range: q.Range.proto(), By: q.By, Limit: n, Prefix: prefixText(q.Prefix), App: q.App, Host: q.Host, Port: uint32(q.Port),
			Ja3: q.JA3, Ja4: q.JA4, Hassh: q.HASSH, Confidence: q.Confidence, Risk: q.Risk,
		})
	})
	if err != nil {
		return api.Top{}, err
	}
	return api.Top{By: q.By, Rows: each(resp.GetRows(), newTopRow)}, nil
}

// TimeSeries is stored traffic over time.
func (o *Operations) TimeSeries(ctx context.Context, q SeriesQuery) (api.TimeSeries, error) {
	if q.Range.From.IsZero() {
		return api.TimeSeries{}, invalid("query.from", "from is missing: say when the series begins")
	}
	n, err := limit(q.Limit, 100)
	if err != nil {
		return api.TimeSeries{}, err
	}
	resp, err := ask(ctx, o, func(ctx context.Context, c queryv1.QueryServiceClient) (*queryv1.TimeSeriesResponse, error) {
		return c.TimeSeries(ctx, &queryv1.TimeSeriesRequest{
			Range: q.Range.proto(), StepNs: int64(q.Step), By: q.By, Limit: n, Prefix: prefixText(q.Prefix), App: q.App, Host: q.Host, Port: uint32(q.Port),
			Ja3: q.JA3, Ja4: q.JA4, Hassh: q.HASSH, Confidence: q.Confidence, Risk: q.Risk,
		})
	})
	if err != nil {
		return api.TimeSeries{}, err
	}
	return api.TimeSeries{StepNs: api.Nanos(resp.GetStepNs()), Series: each(resp.GetSeries(), newSeries)}, nil
}

func (o *Operations) listAttacks(ctx context.Context, r *queryv1.ListAttacksRequest) (*queryv1.ListAttacksResponse, error) {
	return ask(ctx, o, func(ctx context.Context, c queryv1.QueryServiceClient) (*queryv1.ListAttacksResponse, error) {
		return c.ListAttacks(ctx, r)
	})
}

func (o *Operations) listVerdicts(ctx context.Context, r *queryv1.ListVerdictsRequest) (*queryv1.ListVerdictsResponse, error) {
	return ask(ctx, o, func(ctx context.Context, c queryv1.QueryServiceClient) (*queryv1.ListVerdictsResponse, error) {
		return c.ListVerdicts(ctx, r)
	})
}

// Attacks lists attacks. The first drop is known of those that have a rule at the enforce nodes.
func (o *Operations) Attacks(ctx context.Context, q AttackQuery) (api.Page[api.Attack], error) {
	n, err := limit(q.Limit, maxPage)
	if err != nil {
		return api.Page[api.Attack]{}, err
	}
	resp, err := o.listAttacks(ctx, &queryv1.ListAttacksRequest{
		Range: q.Range.proto(), Type: q.Type, ActiveOnly: q.Active, Limit: n, PageToken: q.Cursor,
	})
	if err != nil {
		return api.Page[api.Attack]{}, err
	}
	return api.Page[api.Attack]{Items: o.attacks(ctx, resp.GetAttacks()), Next: resp.GetNextPageToken()}, nil
}

// attacks adds to the stored attacks what the enforce nodes know; nothing when they do not answer.
func (o *Operations) attacks(ctx context.Context, stored []*eventv1.Attack) []api.Attack {
	out := each(stored, api.NewAttack)
	if len(out) == 0 {
		return out
	}
	b, err := o.book(ctx)
	if err != nil {
		return out
	}
	for i := range out {
		out[i].FirstDropNs = b.drops[out[i].ID]
	}
	return out
}

// ActiveAttacks lists the attacks that go on, the newest first, at most 1,000.
func (o *Operations) ActiveAttacks(ctx context.Context) ([]api.Attack, error) {
	r, err := o.active.get(ctx, func(ctx context.Context) result[[]api.Attack] {
		resp, err := o.listAttacks(ctx, &queryv1.ListAttacksRequest{ActiveOnly: true, Limit: maxPage})
		if err != nil {
			return result[[]api.Attack]{problem: o.problem(ctx, err)}
		}
		return result[[]api.Attack]{value: o.attacks(ctx, resp.GetAttacks())}
	})
	if err != nil {
		return nil, o.problem(ctx, err)
	}
	return r.get()
}

// Verdicts lists verdicts.
func (o *Operations) Verdicts(ctx context.Context, q VerdictQuery) (api.Page[api.Verdict], error) {
	n, err := limit(q.Limit, maxPage)
	if err != nil {
		return api.Page[api.Verdict]{}, err
	}
	resp, err := o.listVerdicts(ctx, &queryv1.ListVerdictsRequest{Range: q.Range.proto(), AttackId: q.AttackID, Limit: n, PageToken: q.Cursor})
	if err != nil {
		return api.Page[api.Verdict]{}, err
	}
	return api.Page[api.Verdict]{Items: each(resp.GetVerdicts(), api.NewVerdict), Next: resp.GetNextPageToken()}, nil
}

// Verdict is one verdict.
func (o *Operations) Verdict(ctx context.Context, id string) (api.Verdict, error) {
	if id == "" {
		return api.Verdict{}, problem(http.StatusNotFound, "there is no verdict without an id")
	}
	resp, err := o.listVerdicts(ctx, &queryv1.ListVerdictsRequest{Id: id, Limit: 1})
	if err != nil {
		return api.Verdict{}, err
	}
	if len(resp.GetVerdicts()) == 0 {
		return api.Verdict{}, problem(http.StatusNotFound, "there is no verdict %q", id)
	}
	return api.NewVerdict(resp.GetVerdicts()[0]), nil
}

// Audit lists the changes that users asked for.
func (o *Operations) Audit(ctx context.Context, q AuditQuery) (api.Page[api.AuditEntry], error) {
	n, err := limit(q.Limit, maxPage)
	if err != nil {
		return api.Page[api.AuditEntry]{}, err
	}
	resp, err := ask(ctx, o, func(ctx context.Context, c queryv1.QueryServiceClient) (*queryv1.ListAuditResponse, error) {
		return c.ListAudit(ctx, &queryv1.ListAuditRequest{
			Range: q.Range.proto(), Actor: q.Actor, Action: q.Action, Target: q.Target, Limit: n, PageToken: q.Cursor,
		})
	})
	if err != nil {
		return api.Page[api.AuditEntry]{}, err
	}
	return api.Page[api.AuditEntry]{Items: each(resp.GetEntries(), api.NewAuditEntry), Next: resp.GetNextPageToken()}, nil
}

// countMatching tells what a match would have met in the last hour; nil when the database does not say so in time.
func (o *Operations) countMatching(ctx context.Context, r *queryv1.CountMatchingRequest) *api.Matched {
	ctx, cancel := context.WithTimeout(ctx, mesh.StatusTime)
	defer cancel()
	resp, err := ask(ctx, o, func(ctx context.Context, c queryv1.QueryServiceClient) (*queryv1.CountMatchingResponse, error) {
		return c.CountMatching(ctx, r)
	})
	if err != nil {
		o.t.CountError("count_matching")
		return nil
	}
	return &api.Matched{
		Flows: resp.GetFlows(), Packets: resp.GetPackets(), Bytes: resp.GetBytes(), Apps: each(resp.GetApps(), newTopRow), Approximate: resp.GetApproximate(),
	}
}

// lastHour is what a dry run looks at.
func lastHour(now time.Time) *queryv1.TimeRange {
	return Range{From: now.Add(-time.Hour), To: now}.proto()
}
