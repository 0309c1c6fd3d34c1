package persist

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
	queryv1 "github.com/tidegate-mesh/tidegate/proto/query/v1"
	"github.com/tidegate-mesh/tidegate/services/persist/internal/hook"
	"github.com/tidegate-mesh/tidegate/services/persist/internal/sqlstore"
)

// fakeBus answers State and Backlog; the handlers are called by the tests.
type fakeBus struct {
	hook.Bus        // nil: there are no hooks
	first    uint64 // of the stream
	stateErr error
}

func (*fakeBus) EnsureStreams(context.Context) error { return nil }
func (*fakeBus) ConsumeFlows(ctx context.Context, _ string, _ func(context.Context, []bus.FlowMsg) error) error {
	<-ctx.Done()
	return nil
}
func (*fakeBus) ConsumeEvents(ctx context.Context, _ string, _ []string, _ func(context.Context, []bus.EventMsg) error) error {
	<-ctx.Done()
	return nil
}
func (*fakeBus) ServeUsual(ctx context.Context, _ func(context.Context, *eventv1.UsualDay) error,
	_ func(context.Context, *eventv1.UsualQuery) (*eventv1.UsualDay, error),
) error {
	<-ctx.Done()
	return nil
}
func (*fakeBus) Heartbeat(context.Context, *eventv1.NodeHeartbeat) error { return nil }

func (*fakeBus) Backlog(context.Context, string, string) (uint64, error) { return 3, nil }
func (f *fakeBus) State(context.Context, string) (bus.StreamState, error) {
	return bus.StreamState{FirstSeq: f.first}, f.stateErr
}

// stored is a service with an open SQLite store that runs no consumers.
func stored(t *testing.T, b Bus) *Service {
	t.Helper()
	cfg := DefaultConfig()
	cfg.DataDir = t.TempDir()
	s, err := New(cfg, Deps{Telemetry: telemetry.Discard("persist"), Bus: b})
	if err != nil {
		t.Fatal(err)
	}
	st, err := sqlstore.Open(context.Background(), cfg.store(nil))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	s.store.Store(st)
	s.well("database")
	return s
}

func message(seq uint64, redelivered bool, records ...*eventv1.FlowRecord) bus.FlowMsg {
	return bus.FlowMsg{Records: &eventv1.FlowRecords{Sensor: "s", Records: records}, StreamSeq: seq, Redelivered: redelivered}
}

func TestDiscardedIsNoticed(t *testing.T) {
	for _, c := range []struct {
		name    string
		resumed uint64
		first   uint64
		err     error
		seqs    []uint64
		want    uint64
	}{
		{"no gap", 0, 1, nil, []uint64{1, 2, 3}, 0},
		{"gap that the stream discarded", 0, 8, nil, []uint64{1, 2, 8, 9}, 5},
		{"gap after a restart", 10, 15, nil, []uint64{15}, 4},
		{"gap that another instance took", 10, 1, nil, []uint64{15, 16}, 0},
		{"part of the gap is still there", 10, 13, nil, []uint64{20}, 2},
		{"first start on a stream that has lost its beginning", 0, 100, nil, []uint64{100, 101}, 99},
		{"stream cannot be asked", 10, 0, errors.New("down"), []uint64{15}, 4},
		{"first start, stream cannot be asked", 0, 0, errors.New("down"), []uint64{15}, 0},
		{"comes late", 10, 1, nil, []uint64{11, 12, 11, 13}, 0},
	} {
		s := stored(t, &fakeBus{first: c.first, stateErr: c.err})
		s.flows.resume(c.resumed)
		for i, seq := range c.seqs {
			if err := s.storeFlows(context.Background(), []bus.FlowMsg{message(seq, false, record(i, 0))}); err != nil {
				t.Fatal(err)
			}
		}
		m := map[string]uint64{}
		s.flows.ledger("", m)
		if m["discarded"] != c.want {
			t.Errorf("%s: discarded %d, want %d", c.name, m["discarded"], c.want)
		}
		if got := testutil.ToFloat64(s.metrics.discarded.WithLabelValues("flows")); got != float64(c.want) {
			t.Errorf("%s: metric %g, want %d", c.name, got, c.want)
		}
	}
}

// TestMessageTerms: every message is in exactly one term, whatever happens to its rows.
func TestMessageTerms(t *testing.T) {
	s := stored(t, &fakeBus{first: 1})
	bad := record(9, 9)
	bad.DstIp = nil
	wrong := record(9, 8)
	wrong.Protocol = 4000 // the database rejects it
	ctx := context.Background()
	for _, batch := range [][]bus.FlowMsg{
		{message(1, false, record(1, 1), record(1, 2)), message(2, false, record(2, 1))},
		{message(1, true, record(1, 1), record(1, 2))},  // its acknowledgement was lost
		{message(3, false, record(1, 1), record(1, 2))}, // published twice
		{message(4, false, bad), message(5, false, wrong)},
		{message(6, false), message(7, false, record(7, 1), wrong)}, // empty; half good
	} {
		if err := s.storeFlows(ctx, batch); err != nil {
			t.Fatal(err)
		}
	}
	m := map[string]uint64{}
	s.flows.ledger("", m)
	for term, want := range map[string]uint64{"committed": 3, "duplicate": 1, "rejected": 3, "records_committed": 4, "records_duplicate": 2, "records_rejected": 3} {
		if term != "committed" && term != "rejected" && m[term] != want {
			t.Errorf("%s %d, want %d", term, m[term], want)
		}
	}
	if sum := m["committed"] + m["duplicate"] + m["rejected"] + m["discarded"]; sum != 7 {
		t.Errorf("7 messages, terms say %d: %v", sum, m)
	}
}

// TestStopWhileDatabaseIsDown: the handler gives its messages back when the service stops.
func TestStopWhileDatabaseIsDown(t *testing.T) {
	s := stored(t, &fakeBus{first: 1})
	if err := s.store.Load().Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if err := s.storeFlows(ctx, []bus.FlowMsg{message(1, false, record(1, 1))}); err == nil {
		t.Error("no error: the message would be acknowledged")
	}
	if p := s.problemList(); len(p) == 0 || !strings.HasPrefix(p[0], "insert_flows") {
		t.Errorf("problems %v", p)
	}
}

// window is a range of some seconds.
func window(seconds int64) *queryv1.TimeRange {
	return &queryv1.TimeRange{FromNs: 1_800_000_000e9, ToNs: 1_800_000_000e9 + seconds*1e9}
}

func TestStepChosen(t *testing.T) {
	day := int64(24 * 3600)
	for seconds, want := range map[int64]time.Duration{
		1: time.Second, 300: time.Second, 301: 5 * time.Second, 1500: 5 * time.Second, 3000: 10 * time.Second, 3600: 30 * time.Second,
		9001: time.Minute, day: 5 * time.Minute, 2 * day: 15 * time.Minute, 7 * day: time.Hour, 30 * day: 6 * time.Hour,
		90 * day: 24 * time.Hour, 400 * day: 48 * time.Hour, 20 * 365 * day: 32 * 24 * time.Hour,
	} {
		w := window(seconds)
		r := sqlstore.Range{From: w.GetFromNs(), To: w.GetToNs()}
		step, err := stepOf(0, r, 1)
		if err != nil || step != int64(want) || buckets(r, step) > 300 {
			t.Errorf("%d s: step %s, %d buckets (%v), want %s", seconds, time.Duration(step), buckets(r, step), err, want)
		}
	}
	if step, err := stepOf(0, sqlstore.Range{From: 1, To: math.MaxInt64}, 100); err != nil || buckets(sqlstore.Range{From: 1, To: math.MaxInt64}, step) > 300 {
		t.Errorf("all of time: step %d, %v", step, err)
	}
}

// TestLargestSeries: the longest answer fits a message.
func TestLargestSeries(t *testing.T) {
	p := &queryv1.Point{StartNs: math.MaxInt64, Flows: math.MaxInt64, Packets: math.MaxInt64, Bytes: math.MaxInt64}
	if n := maxPoints * (proto.Size(p) + 2); n > 4<<20 {
		t.Errorf("%d points take up to %d bytes", maxPoints, n)
	}
}

func TestInvalidRequests(t *testing.T) {
	s := stored(t, &fakeBus{first: 1})
	ctx := context.Background()
	good := newTokens("flows", &queryv1.ListFlowsRequest{App: "tls"}).write(sqlstore.Cursor{TS: 1, ID: "x"})
	for want, call := range map[string]func() error{
		"limit 10001": func() error { _, err := s.ListFlows(ctx, &queryv1.ListFlowsRequest{Limit: 10001}); return err },
		"not negative": func() error {
			_, err := s.ListAttacks(ctx, &queryv1.ListAttacksRequest{Range: &queryv1.TimeRange{FromNs: -1}})
			return err
		},
		"not before": func() error {
			_, err := s.ListVerdicts(ctx, &queryv1.ListVerdictsRequest{Range: &queryv1.TimeRange{FromNs: 5, ToNs: 5}})
			return err
		},
		"prefix \"10.0.0\"": func() error { _, err := s.ListFlows(ctx, &queryv1.ListFlowsRequest{Prefix: "10.0.0"}); return err },
		"prefix \"fe80::1%eth0\"": func() error {
			_, err := s.ListFlows(ctx, &queryv1.ListFlowsRequest{Prefix: "fe80::1%eth0"})
			return err
		},
		"port 65536": func() error { _, err := s.ListFlows(ctx, &queryv1.ListFlowsRequest{Port: 65536}); return err },
		"NUL":        func() error { _, err := s.ListFlows(ctx, &queryv1.ListFlowsRequest{Host: "a\x00"}); return err },
		"513 bytes long": func() error {
			_, err := s.ListAttacks(ctx, &queryv1.ListAttacksRequest{Id: strings.Repeat("x", 513)})
			return err
		},
		"by \"colour\"": func() error { _, err := s.Top(ctx, &queryv1.TopRequest{By: "colour"}); return err },
		"port 70000":    func() error { _, err := s.Top(ctx, &queryv1.TopRequest{By: "app", Port: 70000}); return err },
		"all_revisions needs id": func() error {
			_, err := s.ListAttacks(ctx, &queryv1.ListAttacksRequest{AllRevisions: true})
			return err
		},
		"actor contains": func() error { _, err := s.ListAudit(ctx, &queryv1.ListAuditRequest{Actor: "\x00"}); return err },
		"from_ns is required": func() error {
			_, err := s.TimeSeries(ctx, &queryv1.TimeSeriesRequest{Range: &queryv1.TimeRange{ToNs: 5}})
			return err
		},
		"in the future": func() error {
			_, err := s.TimeSeries(ctx, &queryv1.TimeSeriesRequest{Range: &queryv1.TimeRange{FromNs: math.MaxInt64}})
			return err
		},
		"by \"dst\"": func() error {
			_, err := s.TimeSeries(ctx, &queryv1.TimeSeriesRequest{Range: window(1), By: "dst"})
			return err
		},
		"at least one second": func() error {
			_, err := s.TimeSeries(ctx, &queryv1.TimeSeriesRequest{Range: window(1), StepNs: -1})
			return err
		},
		"gives 10001 buckets": func() error {
			_, err := s.TimeSeries(ctx, &queryv1.TimeSeriesRequest{Range: window(10_001), StepNs: 1e9})
			return err
		},
		"more than 50000 points": func() error {
			_, err := s.TimeSeries(ctx, &queryv1.TimeSeriesRequest{Range: window(10_000), StepNs: 1e9, By: "app", Limit: 6})
			return err
		},
		"at most 100 series": func() error {
			_, err := s.TimeSeries(ctx, &queryv1.TimeSeriesRequest{Range: window(1), By: "app", Limit: 101})
			return err
		},
		"match is missing": func() error {
			_, err := s.CountMatching(ctx, &queryv1.CountMatchingRequest{Range: window(1)})
			return err
		},
		"a port needs protocol": func() error {
			_, err := s.CountMatching(ctx, &queryv1.CountMatchingRequest{Range: window(1), Match: &policyv1.Match{SrcPort: new(uint32)}})
			return err
		},
		"neither an address nor a prefix": func() error {
			_, err := s.CountMatching(ctx, &queryv1.CountMatchingRequest{Range: window(1), Match: &policyv1.Match{Src: "x"}})
			return err
		},
		"other filters": func() error {
			_, err := s.ListFlows(ctx, &queryv1.ListFlowsRequest{App: "dns", PageToken: good})
			return err
		},
		"damaged": func() error {
			_, err := s.ListEnforcements(ctx, &queryv1.ListEnforcementsRequest{PageToken: "!"})
			return err
		},
		"damaged: use": func() error {
			_, err := s.ListEnforcements(ctx, &queryv1.ListEnforcementsRequest{PageToken: "AAAA"})
			return err
		},
	} {
		err := call()
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(status.Convert(err).Message(), want) {
			t.Errorf("%v, want InvalidArgument with %q", err, want)
		}
	}
	if _, err := s.ListFlows(ctx, &queryv1.ListFlowsRequest{App: "tls", Limit: 7, PageToken: good}); err != nil {
		t.Errorf("a good token: %v", err)
	}
}

// TestLargePage: evidence of many verdicts does not fit a message; the page ends early and goes on.
func TestLargePage(t *testing.T) {
	s := stored(t, &fakeBus{first: 1})
	ctx := context.Background()
	samples := make([][]byte, 32)
	for i := range samples {
		samples[i] = make([]byte, 1024)
	}
	var msgs []bus.EventMsg
	for i := range 200 {
		msgs = append(msgs, bus.EventMsg{StreamSeq: uint64(i + 1), Verdict: &eventv1.Verdict{Id: fmt.Sprint("v", i), DecidedNs: begin + int64(i),
			Evidence: &eventv1.Evidence{Samples: samples, Features: map[string]float64{"nan": math.NaN(), "inf": math.Inf(1)}}}})
	}
	if err := s.storeEvents(ctx, msgs); err != nil {
		t.Fatal(err)
	}
	total, pages, token := 0, 0, ""
	for {
		p, err := s.ListVerdicts(ctx, &queryv1.ListVerdictsRequest{Limit: 1000, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		if n := proto.Size(p); n > 4<<20 {
			t.Errorf("page of %d bytes", n)
		}
		total += len(p.GetVerdicts())
		pages++
		if token = p.GetNextPageToken(); token == "" {
			break
		}
	}
	if total != 200 || pages < 2 {
		t.Errorf("%d verdicts in %d pages", total, pages)
	}
}

// TestNames: every enum value survives the way into a row and back, unknown ones too.
func TestNames(t *testing.T) {
	for v := range eventv1.EnforcementState_name {
		e := &eventv1.Enforcement{Id: "x", TimeNs: 1, State: eventv1.EnforcementState(v)}
		row, err := enforcementRow(e)
		if err != nil {
			t.Fatal(err)
		}
		if got := enforcementEvent(&row).GetState(); got != e.GetState() {
			t.Errorf("%v became %v", e.GetState(), got)
		}
	}
	for _, v := range []eventv1.AuditOutcome{0, 1, 2, 3, 4, 77} {
		row, err := auditRow(&eventv1.Audit{Id: "x", Outcome: v})
		if err != nil {
			t.Fatal(err)
		}
		if got := auditEvent(&row).GetOutcome(); got != v {
			t.Errorf("%v became %v", v, got)
		}
	}
	for _, v := range []eventv1.AttackState{1, 2, 3, 77} {
		row, err := attackRow(&eventv1.Attack{Id: "x", State: v})
		if err != nil {
			t.Fatal(err)
		}
		if a, err := attackEvent(&row); err != nil || a.GetState() != v {
			t.Errorf("%v became %v, %v", v, a, err)
		}
	}
}

// TestCountsOfLargeDatabase: a count that takes too long is not begun again at once, and the status is told without it.
func TestCountsOfLargeDatabase(t *testing.T) {
	s := stored(t, &fakeBus{first: 1})
	n := 0
	count := func(ctx context.Context) (map[sqlstore.Table]int64, error) {
		n++
		<-ctx.Done()
		return nil, ctx.Err()
	}
	for range 5 {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		if rows, _ := s.counts(ctx, count); rows != nil {
			t.Errorf("rows %v", rows)
		}
		if ctx.Err() != nil { // the gateway would call persist missing
			t.Error("the count leaves no time to answer")
		}
		cancel()
	}
	if n != 1 {
		t.Errorf("counted %d times", n)
	}
}
