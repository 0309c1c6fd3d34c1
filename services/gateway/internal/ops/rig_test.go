package ops

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
	enforcev1 "github.com/tidegate-mesh/tidegate/proto/enforce/v1"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	ingestv1 "github.com/tidegate-mesh/tidegate/proto/ingest/v1"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
	queryv1 "github.com/tidegate-mesh/tidegate/proto/query/v1"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/live"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/mesh"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/page"
)

// nats.go 1.49 sometimes leaves the goroutine behind that watches the publishing of an object of one message.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/nats-io/nats.go/jetstream.(*jetStream).resetPendingAcksOnReconnect"))
}

var (
	_ page.Operations = (*Operations)(nil)
	_ live.Source     = (*Operations)(nil)
	_ Bus             = (*bus.Bus)(nil)
)

// journal is what happened, in order, across the fakes.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) add(line string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line)
}

func (j *journal) list() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.lines)
}

func (j *journal) count(line string) int {
	n := 0
	for _, l := range j.list() {
		if l == line {
			n++
		}
	}
	return n
}

// fakeBus keeps audit entries; it hangs until the deadline while away.
type fakeBus struct {
	*journal
	mu      sync.Mutex
	away    bool
	fail2   bool // revision 2 cannot be stored
	entries []*eventv1.Audit
	beats   []*eventv1.NodeHeartbeat
}

func (b *fakeBus) PublishAudit(ctx context.Context, a *eventv1.Audit) error {
	b.mu.Lock()
	silent := b.away || b.fail2 && a.GetRevision() == 2
	b.mu.Unlock()
	if silent {
		<-ctx.Done()
		return ctx.Err()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	c := &eventv1.Audit{
		Id: a.GetId(), Revision: a.GetRevision(), Actor: a.GetActor(), Role: a.GetRole(), Remote: a.GetRemote(), Action: a.GetAction(), Target: a.GetTarget(),
		Outcome: a.GetOutcome(), Before: a.GetBefore(), After: a.GetAfter(), Detail: a.GetDetail(), RequestId: a.GetRequestId(), Gateway: a.GetGateway(), TimeNs: a.GetTimeNs(),
	}
	b.entries = append(b.entries, c)
	b.add("audit " + strings.TrimPrefix(a.GetOutcome().String(), "AUDIT_OUTCOME_"))
	return nil
}

func (b *fakeBus) GetRequest(context.Context, string) (bus.RequestEntry, bool, error) {
	return bus.RequestEntry{}, false, bus.ErrUnavailable
}

func (b *fakeBus) PutRequest(context.Context, string, []byte, uint64) (uint64, error) {
	return 0, bus.ErrUnavailable
}

func (b *fakeBus) Nodes(context.Context) ([]*eventv1.NodeHeartbeat, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.away {
		return nil, bus.ErrUnavailable
	}
	return b.beats, nil
}

func (b *fakeBus) Lists(context.Context) (map[string]bus.ListEntry, error) {
	return nil, bus.ErrUnavailable
}

func (b *fakeBus) UpdateList(context.Context, *policyv1.AddressList, uint64) (uint64, error) {
	return 0, bus.ErrUnavailable
}

func (b *fakeBus) DeleteList(context.Context, string, uint64) error { return bus.ErrUnavailable }

func (b *fakeBus) PutListEntries(context.Context, string, []byte) (string, error) {
	return "", bus.ErrUnavailable
}

func (b *fakeBus) DeleteListEntries(context.Context, string) error { return bus.ErrUnavailable }

func (b *fakeBus) setAway(away bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.away = away
}

func (b *fakeBus) audits() []*eventv1.Audit {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.entries)
}

type fakeIngest struct {
	ingestv1.UnimplementedIngestServiceServer
	*journal
	status *ingestv1.StatusResponse
	err    error
	hold   chan struct{} // Status waits for it
}

func (f *fakeIngest) Status(context.Context, *ingestv1.StatusRequest) (*ingestv1.StatusResponse, error) {
	f.add("ingest.Status")
	if f.hold != nil {
		<-f.hold
	}
	return f.status, f.err
}

type fakeClassify struct {
	classifyv1.UnimplementedClassifyServiceServer
	*journal
	status *classifyv1.StatusResponse
	groups *classifyv1.ListGroupsResponse
	err    error
}

func (f *fakeClassify) Status(context.Context, *classifyv1.StatusRequest) (*classifyv1.StatusResponse, error) {
	return f.status, f.err
}

func (f *fakeClassify) ListGroups(context.Context, *classifyv1.ListGroupsRequest) (*classifyv1.ListGroupsResponse, error) {
	return f.groups, f.err
}

// fakeEnforce is one node. Each of its functions may be replaced.
type fakeEnforce struct {
	enforcev1.UnimplementedEnforceServiceServer
	*journal
	name    string
	panics  *eventv1.Panic
	states  []*enforcev1.RuleState
	err     error // of every call
	add     func(context.Context, *enforcev1.AddRuleRequest) (*enforcev1.AddRuleResponse, error)
	revoke  func(context.Context, *enforcev1.RevokeRuleRequest) error
	onPanic func(context.Context, *enforcev1.PanicRequest) (*enforcev1.PanicResponse, error)
}

func (f *fakeEnforce) Status(context.Context, *enforcev1.StatusRequest) (*enforcev1.StatusResponse, error) {
	return &enforcev1.StatusResponse{Status: service("enforce", f.name, nil), Enforcing: true, Panic: f.panics}, f.err
}

func (f *fakeEnforce) ListRules(context.Context, *enforcev1.ListRulesRequest) (*enforcev1.ListRulesResponse, error) {
	f.journal.add(f.name + ".ListRules")
	return &enforcev1.ListRulesResponse{Rules: f.states}, f.err
}

func (f *fakeEnforce) ExplainRule(_ context.Context, r *enforcev1.ExplainRuleRequest) (*enforcev1.ExplainRuleResponse, error) {
	if f.err != nil {
		return nil, f.err
	}
	for _, s := range f.states {
		if s.GetRule().GetId() == r.GetId() {
			return &enforcev1.ExplainRuleResponse{State: s, Explanation: "as " + f.name + " has it"}, nil
		}
	}
	return nil, notFoundStatus(r.GetId())
}

func (f *fakeEnforce) AddRule(ctx context.Context, r *enforcev1.AddRuleRequest) (*enforcev1.AddRuleResponse, error) {
	if !r.GetDryRun() {
		f.journal.add(f.name + ".AddRule")
	}
	if f.err != nil {
		return nil, f.err
	}
	return f.add(ctx, r)
}

func (f *fakeEnforce) RevokeRule(ctx context.Context, r *enforcev1.RevokeRuleRequest) (*enforcev1.RevokeRuleResponse, error) {
	f.journal.add(f.name + ".RevokeRule")
	return &enforcev1.RevokeRuleResponse{}, f.revoke(ctx, r)
}

func (f *fakeEnforce) Panic(ctx context.Context, r *enforcev1.PanicRequest) (*enforcev1.PanicResponse, error) {
	f.journal.add(f.name + ".Panic")
	return f.onPanic(ctx, r)
}

// fakePersist answers with what it is given, page by page for those that have pages.
type fakePersist struct {
	queryv1.UnimplementedQueryServiceServer
	*journal
	status       *queryv1.StatusResponse
	flows        func(*queryv1.ListFlowsRequest) (*queryv1.ListFlowsResponse, error)
	attacks      func(*queryv1.ListAttacksRequest) (*queryv1.ListAttacksResponse, error)
	verdicts     func(*queryv1.ListVerdictsRequest) (*queryv1.ListVerdictsResponse, error)
	enforcements func(*queryv1.ListEnforcementsRequest) (*queryv1.ListEnforcementsResponse, error)
	audit        func(*queryv1.ListAuditRequest) (*queryv1.ListAuditResponse, error)
	top          func(*queryv1.TopRequest) (*queryv1.TopResponse, error)
	series       func(*queryv1.TimeSeriesRequest) (*queryv1.TimeSeriesResponse, error)
	count        func(*queryv1.CountMatchingRequest) (*queryv1.CountMatchingResponse, error)
}

func (f *fakePersist) Status(context.Context, *queryv1.StatusRequest) (*queryv1.StatusResponse, error) {
	return f.status, nil
}

func (f *fakePersist) ListFlows(_ context.Context, r *queryv1.ListFlowsRequest) (*queryv1.ListFlowsResponse, error) {
	return f.flows(r)
}

func (f *fakePersist) ListAttacks(_ context.Context, r *queryv1.ListAttacksRequest) (*queryv1.ListAttacksResponse, error) {
	f.add("persist.ListAttacks")
	return f.attacks(r)
}

func (f *fakePersist) ListVerdicts(_ context.Context, r *queryv1.ListVerdictsRequest) (*queryv1.ListVerdictsResponse, error) {
	return f.verdicts(r)
}

func (f *fakePersist) ListEnforcements(_ context.Context, r *queryv1.ListEnforcementsRequest) (*queryv1.ListEnforcementsResponse, error) {
	return f.enforcements(r)
}

func (f *fakePersist) ListAudit(_ context.Context, r *queryv1.ListAuditRequest) (*queryv1.ListAuditResponse, error) {
	return f.audit(r)
}

func (f *fakePersist) Top(_ context.Context, r *queryv1.TopRequest) (*queryv1.TopResponse, error) {
	return f.top(r)
}

func (f *fakePersist) TimeSeries(_ context.Context, r *queryv1.TimeSeriesRequest) (*queryv1.TimeSeriesResponse, error) {
	return f.series(r)
}

func (f *fakePersist) CountMatching(_ context.Context, r *queryv1.CountMatchingRequest) (*queryv1.CountMatchingResponse, error) {
	return f.count(r)
}

// serve runs a gRPC server in memory; register nil gives an address at which nobody is.
func serve(t *testing.T, register func(*grpc.Server)) *grpc.ClientConn {
	t.Helper()
	ln := bufconn.Listen(1 << 16)
	dial := func(ctx context.Context, _ string) (net.Conn, error) { return ln.DialContext(ctx) }
	if register == nil {
		dial = func(context.Context, string) (net.Conn, error) { return nil, errors.New("secret-host refused") }
	}
	conn, err := grpc.NewClient("passthrough:///test", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(dial))
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	if register != nil {
		register(srv)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = conn.Close(); srv.Stop(); <-done })
	return conn
}

// rig is Operations over fakes: one instance of each service, and as many enforce nodes as names.
type rig struct {
	*Operations
	*journal
	t        *testing.T
	tel      *telemetry.Telemetry
	log      *bytes.Buffer
	bus      *fakeBus
	ingest   *fakeIngest
	classify *fakeClassify
	persist  *fakePersist
	nodes    map[string]*fakeEnforce
	mesh     *mesh.Mesh
}

// dead is the name of a node that cannot be reached.
const dead = "dead"

func newRig(t *testing.T, nodes ...string) *rig {
	t.Helper()
	j := &journal{}
	r := &rig{
		journal: j, t: t, tel: telemetry.Discard("gateway"), log: &bytes.Buffer{}, bus: &fakeBus{journal: j}, nodes: map[string]*fakeEnforce{},
		ingest:   &fakeIngest{journal: j, status: &ingestv1.StatusResponse{Status: service("ingest", "sensor-1", ingestTerms())}},
		classify: &fakeClassify{journal: j, status: &classifyv1.StatusResponse{Status: service("classify", "c1", classifyTerms())}},
		persist: &fakePersist{journal: j, status: &queryv1.StatusResponse{
			Status: service("persist", "p1", persistTerms()), Database: "sqlite", Rows: map[string]uint64{"flows": 7},
		}},
	}
	r.tel.Log = slog.New(slog.NewTextHandler(r.log, nil))
	r.mesh = &mesh.Mesh{
		Ingest: []mesh.Peer{{Service: "ingest", Address: "i:1", Conn: serve(t, func(s *grpc.Server) {
			ingestv1.RegisterIngestServiceServer(s, r.ingest)
		})}},
		Classify: []mesh.Peer{{Service: "classify", Address: "c:1", Conn: serve(t, func(s *grpc.Server) {
			classifyv1.RegisterClassifyServiceServer(s, r.classify)
		})}},
		Persist: []mesh.Peer{{Service: "persist", Address: "p:1", Conn: serve(t, func(s *grpc.Server) {
			queryv1.RegisterQueryServiceServer(s, r.persist)
		})}},
	}
	for _, name := range nodes {
		if name == dead {
			r.mesh.Enforce = append(r.mesh.Enforce, mesh.Peer{Service: "enforce", Address: dead + ":1", Conn: serve(t, nil)})
			continue
		}
		n := &fakeEnforce{journal: j, name: name}
		r.nodes[name] = n
		r.mesh.Enforce = append(r.mesh.Enforce, mesh.Peer{Service: "enforce", Address: name + ":1", Conn: serve(t, func(s *grpc.Server) {
			enforcev1.RegisterEnforceServiceServer(s, n)
		})})
	}
	o, err := New(Deps{Telemetry: r.tel, Mesh: r.mesh, Bus: r.bus})
	if err != nil {
		t.Fatal(err)
	}
	r.Operations = o
	return r
}

func (r *rig) errorsCounted(op string, want float64) {
	r.t.Helper()
	if got := testutil.ToFloat64(r.tel.ErrorCounter(op)); got != want {
		r.t.Errorf("tidegate_errors_total{op=%q} is %v, want %v", op, got, want)
	}
}

// asOperator is the context of a request of somebody.
func asOperator(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return caller.With(ctx, caller.Caller{Subject: "ada", Role: caller.Operator, Remote: netip.MustParseAddr("192.0.2.9"), RequestID: "req-1"})
}

// wantProblem asserts the status of an error and gives the problem.
func wantProblem(t *testing.T, err error, code int) *api.Problem {
	t.Helper()
	var p *api.Problem
	if !errors.As(err, &p) {
		t.Fatalf("error %v is not a problem of status %d", err, code)
	}
	if p.Status != code || p.Title == "" || p.Detail == "" {
		t.Fatalf("problem %+v, want status %d with words", p, code)
	}
	return p
}
