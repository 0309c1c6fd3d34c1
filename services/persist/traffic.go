package persist

import (
	"context"
	"strings"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
	queryv1 "github.com/tidegate-mesh/tidegate/proto/query/v1"
	"github.com/tidegate-mesh/tidegate/services/persist/internal/sqlstore"
)

const (
	autoBuckets = 300    // of a step that is chosen
	maxBuckets  = 10_000 // of a step that is asked for
	maxSeries   = 100
	// maxPoints bounds an answer: a point takes up to 45 bytes and a message may have 4 MiB.
	maxPoints    = 50_000
	matchingApps = 5
)

// steps are the lengths of buckets to choose from; above the last it is doubled.
var steps = []time.Duration{
	time.Second, 5 * time.Second, 10 * time.Second, 30 * time.Second, time.Minute, 5 * time.Minute, 15 * time.Minute,
	time.Hour, 6 * time.Hour, 24 * time.Hour,
}

// flowFilters is what the requests about flows share.
type flowFilters interface {
	GetRange() *queryv1.TimeRange
	GetPrefix() string
	GetApp() string
	GetHost() string
	GetPort() uint32
	GetJa3() string
	GetJa4() string
	GetHassh() string
	GetConfidence() string
	GetRisk() string
}

func filterOf(r flowFilters) (f sqlstore.FlowFilter, err error) {
	if f.Range, err = rangeOf(r.GetRange()); err != nil {
		return f, err
	}
	if f.Prefix, err = prefixOf(r.GetPrefix()); err != nil {
		return f, err
	}
	if err := checkText(map[string]string{
		"app": r.GetApp(), "host": r.GetHost(), "ja3": r.GetJa3(), "ja4": r.GetJa4(), "hassh": r.GetHassh(), "confidence": r.GetConfidence(),
	}); err != nil {
		return f, err
	}
	if r.GetPort() > 65535 {
		return f, invalid("port %d: use 1 to 65535, or 0 for every port", r.GetPort())
	}
	f.App, f.Host, f.Port = r.GetApp(), r.GetHost(), uint16(r.GetPort())
	f.JA3, f.JA4, f.HASSH, f.Confidence = r.GetJa3(), r.GetJa4(), r.GetHassh(), r.GetConfidence()
	if name := r.GetRisk(); name != "" {
		if f.Risks = sqlstore.Bits(flow.RiskNamed(name)); f.Risks == 0 {
			return f, invalid("risk %q: use one of %s", name, strings.Join(flow.RiskNames(), ", "))
		}
	}
	return f, nil
}

func topRow(t *sqlstore.TopRow) *queryv1.TopRow {
	return &queryv1.TopRow{Key: t.Key, Flows: unsigned(t.Flows), Packets: unsigned(t.Packets), Bytes: unsigned(t.Bytes)}
}

// Top lists the keys with the most bytes.
func (s *Service) Top(ctx context.Context, r *queryv1.TopRequest) (*queryv1.TopResponse, error) {
	limit, err := limitOf(r.GetLimit(), defaultTop)
	if err != nil {
		return nil, err
	}
	filter, err := filterOf(r)
	if err != nil {
		return nil, err
	}
	if !sqlstore.TopBy(r.GetBy()) {
		return nil, invalid("by %q: use src, dst, app, host or port", r.GetBy())
	}
	ctx, cancel, st, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	rows, err := st.Top(ctx, filter, r.GetBy(), limit)
	if err != nil {
		return nil, s.failed(ctx, err)
	}
	out := &queryv1.TopResponse{}
	for i := range rows {
		out.Rows = append(out.Rows, topRow(&rows[i]))
	}
	return out, nil
}

// TimeSeries sums flows in buckets of time.
func (s *Service) TimeSeries(ctx context.Context, r *queryv1.TimeSeriesRequest) (*queryv1.TimeSeriesResponse, error) {
	filter, err := filterOf(r)
	if err != nil {
		return nil, err
	}
	series := int64(1)
	switch r.GetBy() {
	case "":
	case "app":
		series = int64(r.GetLimit())
		if series == 0 {
			series = defaultTop
		}
		if series > maxSeries {
			return nil, invalid("limit %d: at most %d series", series, maxSeries)
		}
	default:
		return nil, invalid("by %q: use app, or leave it empty for one series", r.GetBy())
	}
	if filter.Range, err = boundedRange(filter.Range); err != nil {
		return nil, err
	}
	step, err := stepOf(r.GetStepNs(), filter.Range, series)
	if err != nil {
		return nil, err
	}
	ctx, cancel, st, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	var found []sqlstore.AppSeries
	if r.GetBy() == "app" {
		found, err = st.SeriesByApp(ctx, filter, step, int(series))
	} else {
		found = make([]sqlstore.AppSeries, 1)
		found[0].Points, err = st.Series(ctx, filter, step)
	}
	if err != nil {
		return nil, s.failed(ctx, err)
	}
	out := &queryv1.TimeSeriesResponse{StepNs: step}
	for _, a := range found {
		one := &queryv1.Series{Key: a.App, Points: make([]*queryv1.Point, len(a.Points))}
		for i, p := range a.Points {
			one.Points[i] = &queryv1.Point{StartNs: p.Start, Flows: unsigned(p.Flows), Packets: unsigned(p.Packets), Bytes: unsigned(p.Bytes)}
		}
		out.Series = append(out.Series, one)
	}
	return out, nil
}

// boundedRange closes a range at now.
func boundedRange(r sqlstore.Range) (sqlstore.Range, error) {
	if r.From == 0 {
		return r, invalid("range: from_ns is required")
	}
	if r.To == 0 {
		r.To = time.Now().UnixNano()
		if r.From >= r.To {
			return r, invalid("range: from_ns %d is in the future", r.From)
		}
	}
	return r, nil
}

// buckets is how many buckets of step ns a range touches.
func buckets(r sqlstore.Range, step int64) int64 { return (r.To-1)/step - r.From/step + 1 }

// stepOf checks the length of a bucket, or chooses one when it is 0.
func stepOf(step int64, r sqlstore.Range, series int64) (int64, error) {
	if step == 0 {
		for _, d := range steps {
			if step = int64(d); buckets(r, step) <= autoBuckets {
				return step, nil
			}
		}
		for buckets(r, step) > autoBuckets {
			step *= 2
		}
		return step, nil
	}
	if step < int64(time.Second) {
		return 0, invalid("step_ns %d: a bucket is at least one second (1000000000) long", step)
	}
	n := buckets(r, step)
	if n > maxBuckets {
		return 0, invalid("step_ns %d gives %d buckets in this range, at most %d are possible: choose a longer step or a shorter range", step, n, maxBuckets)
	}
	if n*series > maxPoints {
		return 0, invalid("%d buckets for %d series are more than %d points: choose a longer step, a shorter range or fewer series", n, series, maxPoints)
	}
	return step, nil
}

// CountMatching tells what a rule would have met among the stored flows; sqlstore.Matching says how directions count.
func (s *Service) CountMatching(ctx context.Context, r *queryv1.CountMatchingRequest) (*queryv1.CountMatchingResponse, error) {
	span, err := rangeOf(r.GetRange())
	if err != nil {
		return nil, err
	}
	if span, err = boundedRange(span); err != nil {
		return nil, err
	}
	if r.GetMatch() == nil {
		return nil, invalid("match is missing: an empty one matches every flow")
	}
	rule, err := policy.FromProto(&policyv1.Rule{Id: "match", Action: policyv1.Action_ACTION_COUNT, Match: r.GetMatch()})
	if err != nil {
		return nil, invalid("%v", err)
	}
	m := rule.Match
	ctx, cancel, st, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	total, apps, err := st.Matching(ctx, span, &m, matchingApps)
	if err != nil {
		return nil, s.failed(ctx, err)
	}
	out := &queryv1.CountMatchingResponse{
		Flows: unsigned(total.Flows), Packets: unsigned(total.Packets), Bytes: unsigned(total.Bytes),
		Approximate: m.TCPFlagsMask != 0 || m.LengthMin != 0 || m.LengthMax != 0 || m.TTLMin != 0 || m.TTLMax != 0 ||
			m.Fragment != policy.AnyFragment || m.OutOfState,
	}
	for i := range apps {
		out.Apps = append(out.Apps, topRow(&apps[i]))
	}
	return out, nil
}
