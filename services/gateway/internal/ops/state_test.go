package ops

import (
	"context"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tidegate-mesh/tidegate/libs/api"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	ingestv1 "github.com/tidegate-mesh/tidegate/proto/ingest/v1"
	statusv1 "github.com/tidegate-mesh/tidegate/proto/status/v1"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/mesh"
)

func service(name, instance string, terms map[string]uint64) *statusv1.ServiceStatus {
	return &statusv1.ServiceStatus{Service: name, Instance: instance, Version: "1.2.3", StartedNs: 5, Ready: true, Ledger: &statusv1.Ledger{Terms: terms}}
}

func ingestTerms() map[string]uint64 {
	return map[string]uint64{"received": 10, "accounted": 8, "undecodable": 1} // decode: 1 in flight
}
func classifyTerms() map[string]uint64 {
	return map[string]uint64{"records_received": 6, "published": 6, "already_published": 0, "unpublished": 0}
}
func persistTerms() map[string]uint64 {
	return map[string]uint64{"records_committed": 5, "records_duplicate": 1, "records_rejected": 0}
}

func notFoundStatus(id string) error {
	return status.Errorf(codes.NotFound, "there is no rule %q", id)
}

func TestStatus(t *testing.T) {
	r := newRig(t, "n1", "n2")
	r.nodes["n1"].panics = &eventv1.Panic{On: true, SinceNs: 1, By: "old"}
	r.nodes["n2"].panics = &eventv1.Panic{On: false, SinceNs: 2, By: "ada", Reason: "over"}
	r.ingest.status.Interfaces = []*ingestv1.Interface{{Name: "eth0", Mode: "inline", XdpPackets: map[string]uint64{"drop": 3}, XdpBytes: map[string]uint64{"drop": 192}}}
	r.ingest.status.Classifiers = []*ingestv1.Classifier{{Address: "c1", Connected: true, Share: 1, BatchesPending: 4}, {Address: "c2", Problem: "is away"}}
	r.ingest.status.TopSources = []*ingestv1.TopTalker{{Addr: "192.0.2.1", Pps: 5}}
	s := r.Status(context.Background())
	if len(s.Services) != 5 || len(s.Missing) != 0 || !s.Enforcing || s.Database != "sqlite" || s.Rows["flows"] != 7 {
		t.Errorf("status %+v", s)
	}
	if !slices.Equal(s.Streams, []api.ClassifyStream{
		{Sensor: "sensor-1", Address: "c1", Connected: true, Share: 1, BatchesPending: 4}, {Sensor: "sensor-1", Address: "c2", Problem: "is away"},
	}) {
		t.Errorf("streams %+v", s.Streams)
	}
	if s.Panic != (api.Panic{SinceNs: 2, By: "ada", Reason: "over"}) {
		t.Errorf("panic %+v, want that of the last change", s.Panic)
	}
	sensors, missing := r.Sensors(context.Background())
	if len(missing) != 0 || len(sensors) != 1 || sensors[0].Name != "sensor-1" || sensors[0].Interfaces[0].XDPBytes["drop"] != 192 || sensors[0].TopSrc[0].PPS != 5 {
		t.Errorf("sensors %+v, missing %+v", sensors, missing)
	}
	l, err := r.Ledger(context.Background())
	if err != nil || l.Difference != 1 || len(l.Stages) != 3 {
		t.Fatalf("ledger %+v, %v", l, err)
	}
	if d := l.Stages[0]; d.Stage != "decode" || d.In != 10 || d.InName != "received" || d.Out["accounted"] != 8 || d.Difference != 1 {
		t.Errorf("stage %+v", d)
	}
	if p, err := r.PanicState(context.Background()); err != nil || p.By != "ada" {
		t.Errorf("panic state %+v, %v", p, err)
	}
	if n := r.count("ingest.Status"); n != 1 {
		t.Errorf("ingest was asked %d times for four reads", n)
	}
}

func TestStatusNamesWhoIsMissing(t *testing.T) {
	r := newRig(t, dead)
	r.ingest.err = status.Error(codes.Internal, "open /var/lib/secret: denied")
	s := r.Status(context.Background())
	if len(s.Missing) != 2 || len(s.Services) != 2 || s.Enforcing {
		t.Fatalf("status %+v", s)
	}
	want := []api.Missing{
		{Service: "ingest", Address: "i:1", Problem: "ingest at i:1 failed: its log and the gateway's tell more"},
		{Service: "enforce", Address: "dead:1", Problem: "enforce at dead:1 does not answer"},
	}
	for i := range want {
		if s.Missing[i] != want[i] {
			t.Errorf("missing %+v, want %+v", s.Missing[i], want[i])
		}
	}
	for _, st := range s.Ledger.Stages {
		if st.Stage == "decode" {
			t.Error("the ledger has an equation of a service that did not answer")
		}
	}
	if _, missing := r.Sensors(context.Background()); len(missing) != 1 || missing[0].Service != "ingest" {
		t.Errorf("missing sensors %+v", missing)
	}
	_, err := r.Ledger(context.Background())
	if p := wantProblem(t, err, 503); p.Service != "ingest" {
		t.Errorf("the ledger blames %q", p.Service)
	}
	_, err = r.PanicState(context.Background())
	if p := wantProblem(t, err, 503); p.Service != "enforce" || p.Detail != "enforce at dead:1 does not answer" {
		t.Errorf("panic state: %+v", p)
	}
}

func TestNothingIsConfigured(t *testing.T) {
	r := newRig(t)
	r.mesh.Persist, r.mesh.Classify = nil, nil
	_, err := r.Rules(context.Background())
	wantProblem(t, err, 503)
	_, err = r.PanicState(context.Background())
	wantProblem(t, err, 503)
	_, err = r.Groups(context.Background())
	wantProblem(t, err, 503)
	_, err = r.Flows(context.Background(), FlowQuery{})
	wantProblem(t, err, 503)
	_, err = r.Rule(context.Background(), "x")
	wantProblem(t, err, 503)
}

func TestSharedReads(t *testing.T) {
	r := newRig(t, "n1")
	r.ingest.hold = make(chan struct{})
	// The first gives up: the answer must come to the others nevertheless.
	gone, cancel := context.WithCancel(context.Background())
	first := make(chan api.Status, 1)
	go func() { first <- r.Status(gone) }()
	for r.count("ingest.Status") == 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if s := <-first; len(s.Missing) != 4 || s.Services == nil {
		t.Errorf("who goes away gets %+v", s)
	}
	var wg sync.WaitGroup
	for range 100 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if s := r.Status(context.Background()); len(s.Services) != 4 {
				t.Errorf("status %+v", s)
			}
			if _, err := r.Rules(context.Background()); err != nil {
				t.Error(err)
			}
		}()
	}
	time.Sleep(20 * time.Millisecond)
	close(r.ingest.hold)
	wg.Wait()
	if a, b := r.count("ingest.Status"), r.count("n1.ListRules"); a != 1 || b != 1 {
		t.Errorf("ingest was asked %d times, enforce %d times; want once", a, b)
	}
	time.Sleep(keep)
	r.Status(context.Background())
	if n := r.count("ingest.Status"); n != 2 {
		t.Errorf("after %v ingest was asked %d times, want 2", keep, n)
	}
}

func TestAKeptAnswerIsCheap(t *testing.T) {
	r := newRig(t, "n1")
	ctx := context.Background()
	if allocs := testing.AllocsPerRun(100, func() { // within keep
		r.Status(ctx)
		if _, err := r.Rules(ctx); err != nil {
			t.Error(err)
		}
	}); allocs > 2 {
		t.Errorf("two reads allocate %v times", allocs)
	}
}

func TestDropForgetsAQuestionUnderWay(t *testing.T) {
	var c cell[int]
	hold := make(chan struct{})
	old := make(chan int, 1)
	started := make(chan struct{})
	go func() {
		v, _ := c.get(context.Background(), func(context.Context) int { close(started); <-hold; return 1 })
		old <- v
	}()
	<-started
	c.drop()
	v, err := c.get(context.Background(), func(context.Context) int { return 2 })
	close(hold)
	if v != 2 || err != nil || <-old != 1 {
		t.Errorf("got %d, %v", v, err)
	}
	if v, _ := c.get(context.Background(), func(context.Context) int { return 3 }); v != 2 {
		t.Errorf("the answer of before the change, or a new one, is kept: %d", v)
	}
}

func TestGroupsAndNodes(t *testing.T) {
	r := newRig(t)
	r.classify.groups = &classifyv1.ListGroupsResponse{Groups: []*classifyv1.Group{
		{Name: "web", Prefixes: []string{"198.51.100.0/24"}, Thresholds: map[string]float64{"pps": 5},
			Learned: []*classifyv1.LearnedHost{{Host: "198.51.100.7", Thresholds: map[string]float64{"pps": 9}}}}, {Name: "all"},
	}}
	g, err := r.Groups(context.Background())
	if err != nil || len(g) != 2 || g[0].Name != "all" || g[0].Prefixes == nil || g[1].Thresholds["pps"] != 5 ||
		g[0].Learned == nil || len(g[1].Learned) != 1 || g[1].Learned[0].Host != "198.51.100.7" || g[1].Learned[0].Thresholds["pps"] != 9 {
		t.Errorf("groups %+v, %v", g, err)
	}
	r.bus.beats = []*eventv1.NodeHeartbeat{{Service: "enforce", Instance: "n1", TimeNs: 9}}
	n, err := r.Nodes(context.Background())
	if err != nil || len(n) != 1 || n[0].SeenNs != 9 {
		t.Errorf("nodes %+v, %v", n, err)
	}
	r.bus.setAway(true)
	time.Sleep(keep)
	_, err = r.Nodes(context.Background())
	if p := wantProblem(t, err, 503); p.Service != "nats" {
		t.Errorf("problem %+v", p)
	}
	r.errorsCounted("nodes", 1)
}

func TestEveryCode(t *testing.T) {
	const secret = "SELECT * FROM flows /var/lib/tidegate"
	for code, want := range map[codes.Code]int{
		codes.InvalidArgument: 422, codes.OutOfRange: 422, codes.NotFound: 404, codes.FailedPrecondition: 422, codes.Aborted: 412,
		codes.AlreadyExists: 409, codes.ResourceExhausted: 503, codes.Unavailable: 503, codes.DeadlineExceeded: 503, codes.Canceled: 503,
		codes.Internal: 502, codes.Unknown: 502, codes.DataLoss: 502, codes.PermissionDenied: 502, codes.Unauthenticated: 502, codes.Unimplemented: 502,
	} {
		for _, from := range []string{"persist", "enforce"} {
			text := secret
			if code == codes.FailedPrecondition {
				text = "never_block: 192.0.2.1 is a resolver"
			}
			p := translate(&mesh.Error{Peer: mesh.Peer{Service: from, Address: "127.0.0.1:5"}, Err: status.Error(code, text)})
			expect := want
			if code == codes.ResourceExhausted && from == "enforce" {
				expect = 429
			}
			if p.Status != expect || p.Title == "" || p.Detail == "" {
				t.Errorf("%s of %s gives %+v, want status %d", code, from, p, expect)
			}
			if expect >= 500 && (p.Service != from || strings.Contains(p.Detail, "SELECT") || strings.Contains(p.Detail, "/var")) {
				t.Errorf("%s of %s leaks or blames nobody: %+v", code, from, p)
			}
			if code == codes.FailedPrecondition && (p.Reason != "never_block" || p.Detail != "192.0.2.1 is a resolver") {
				t.Errorf("refusal %+v", p)
			}
			if code == codes.Unavailable && !strings.HasPrefix(p.Detail, from+" at 127.0.0.1:5 does not answer") {
				t.Errorf("silence: %q", p.Detail)
			}
		}
	}
	// The transport's own words: the gateway's certificate is at fault, and the operator must know which.
	refused := status.Error(codes.Unavailable, `connection error: desc = "transport: authentication handshake failed: persist at 10.0.0.8:50061 refuses the certificate /etc/tidegate/certs/gateway.pem, which has expired: renew it (see /var/log/x)"`)
	if p := translate(&mesh.Error{Peer: mesh.Peer{Service: "persist", Address: "10.0.0.8:50061"}, Err: refused}); p.Detail !=
		"persist at 10.0.0.8:50061 does not answer: persist at 10.0.0.8:50061 refuses the certificate gateway.pem, which has expired: renew it (see x)" {
		t.Errorf("a certificate's problem: %q", p.Detail)
	}
	if p := translate(&mesh.Error{Peer: mesh.Over(nil).Persist[0], Err: status.Error(codes.DeadlineExceeded, "")}); !strings.HasPrefix(p.Detail, "persist does not answer") {
		t.Errorf("a service of this process: %q", p.Detail)
	}
	long := translate(&mesh.Error{Err: status.Error(codes.InvalidArgument, strings.Repeat("é\n", 2*maxDetail))})
	if len(long.Detail) > maxDetail+4 || strings.Contains(long.Detail, "\n") {
		t.Errorf("a long text is shown in %d bytes", len(long.Detail))
	}
	if reason, detail := splitReason("The rule: no"); reason != "" || detail != "The rule: no" {
		t.Errorf("%q, %q", reason, detail)
	}
}

func TestMergeGroups(t *testing.T) {
	group := func(name string, learned ...api.LearnedHost) api.Group {
		return api.Group{Name: name, Learned: learned}
	}
	host := func(name string, v float64) api.LearnedHost {
		return api.LearnedHost{Host: name, Thresholds: map[string]float64{"icmp": v}}
	}
	got := mergeGroups(mergeGroups(nil, []api.Group{group("web", host("a", 1), host("b", 5)), group("all")}),
		[]api.Group{group("web", host("b", 4), host("c", 3), host("a", 2)), group("game", host("d", 1))})
	want := []api.Group{group("web", host("a", 2), host("b", 5), host("c", 3)), group("all"), group("game", host("d", 1))}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}
