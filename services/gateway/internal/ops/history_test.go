package ops

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/pcapfile"
	enforcev1 "github.com/tidegate-mesh/tidegate/proto/enforce/v1"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
	queryv1 "github.com/tidegate-mesh/tidegate/proto/query/v1"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/mesh"
)

func TestFlows(t *testing.T) {
	r := newRig(t)
	src, dst := netip.MustParseAddr("::ffff:192.0.2.1").As16(), netip.MustParseAddr("2001:db8::1").As16()
	r.persist.flows = func(q *queryv1.ListFlowsRequest) (*queryv1.ListFlowsResponse, error) {
		if q.GetPrefix() != "192.0.2.0/24" || q.GetPort() != 443 || q.GetLimit() != 2 || q.GetPageToken() != "t1" || q.GetRange().GetFromNs() != 1e9 ||
			q.GetRange().GetToNs() != 0 || q.GetApp() != "tls" || q.GetHost() != "h" ||
			q.GetJa3() != "a" || q.GetJa4() != "b" || q.GetHassh() != "c" || q.GetConfidence() != "payload" || q.GetRisk() != "malformed" {
			t.Errorf("asked %v", q)
		}
		return &queryv1.ListFlowsResponse{NextPageToken: "t2", Flows: []*eventv1.FlowRecord{{
			Id: "sensor-1/7/8/0", SrcIp: src[:], DstIp: dst[:], SrcPort: 1, DstPort: 443, Protocol: 6, PacketsFwd: 3, PacketsRev: 2, BytesFwd: 30, BytesRev: 20,
			EndReason: 3, FirstNs: 1, LastNs: 2, HostSource: "dns", Confidence: "negotiated", Ja3: "j3", Ja4: "j4", Hassh: "h", TlsVersion: "1.0", UserAgent: "u",
			HttpMethod: "GET", DnsType: "A", DnsRcode: "NOERROR", DnsAnswers: []string{"192.0.2.9"}, Risks: []string{"obsolete_tls", "later"},
			Tcp: &eventv1.TcpFacts{RttClientUs: 7, RttServerUs: 20_000, RetransmitsRev: 3},
		}}}, nil
	}
	page, err := r.Flows(context.Background(), FlowQuery{
		FlowFilter{Range: Range{From: time.Unix(1, 0)}, Prefix: netip.MustParsePrefix("192.0.2.0/24"), Port: 443, App: "tls", Host: "h",
			JA3: "a", JA4: "b", HASSH: "c", Confidence: "payload", Risk: "malformed"}, Paging{Limit: 2, Cursor: "t1"},
	})
	want := api.Flow{
		ID: "sensor-1/7/8/0", Sensor: "sensor-1", SrcIP: "192.0.2.1", SrcPort: 1, DstIP: "2001:db8::1", DstPort: 443, Transport: "tcp", App: "unknown",
		Packets: 5, Bytes: 50, PacketsRev: 2, BytesRev: 20, EndReason: "fin", FirstNs: 1, LastNs: 2, HostSource: "dns", Confidence: "negotiated",
		JA3: "j3", JA4: "j4", HASSH: "h", TLSVersion: "1.0", UserAgent: "u", HTTPMethod: "GET", DNSType: "A", DNSRcode: "NOERROR", DNSAnswers: []string{"192.0.2.9"},
		Risks: []api.Risk{{Name: "obsolete_tls", Reason: "the session uses SSL, TLS 1.0 or TLS 1.1, which RFC 8996 forbids"}, {Name: "later"}},
		TCP:   &api.TCPFacts{RTTUs: 20_007, RTTClientUs: 7, RTTServerUs: 20_000, RetransmitsRev: 3},
	}
	if err != nil || page.Next != "t2" || len(page.Items) != 1 || !reflect.DeepEqual(page.Items[0], want) {
		t.Errorf("page %+v, %v", page, err)
	}
	_, err = r.Flows(context.Background(), FlowQuery{Paging: Paging{Limit: 1001}})
	if p := wantProblem(t, err, 422); p.Errors[0].Location != "query.limit" {
		t.Errorf("problem %+v", p)
	}
	r.persist.flows = func(*queryv1.ListFlowsRequest) (*queryv1.ListFlowsResponse, error) {
		return nil, status.Error(codes.InvalidArgument, "page_token is damaged: use next_page_token of the page before as it is")
	}
	_, err = r.Flows(context.Background(), FlowQuery{})
	if p := wantProblem(t, err, 400); p.Errors[0].Location != "query.cursor" || strings.Contains(p.Detail, "token") {
		t.Errorf("problem %+v", p)
	}
}

func TestNothingLeaks(t *testing.T) {
	r := newRig(t)
	const text = "pq: relation flows_2026 does not exist at /srv/db"
	r.persist.top = func(*queryv1.TopRequest) (*queryv1.TopResponse, error) {
		return nil, status.Error(codes.Internal, text)
	}
	_, err := r.Top(asOperator(t), TopQuery{By: "src"})
	p := wantProblem(t, err, 502)
	if strings.Contains(p.Error(), "relation") || p.Service != "persist" {
		t.Errorf("problem %+v", p)
	}
	if log := r.log.String(); !strings.Contains(log, "flows_2026") || !strings.Contains(log, "req-1") {
		t.Errorf("the log does not tell what failed for whom: %s", log)
	}
	r.errorsCounted("mesh_failed", 1)
}

func TestTopAndTimeSeries(t *testing.T) {
	r := newRig(t)
	r.persist.top = func(q *queryv1.TopRequest) (*queryv1.TopResponse, error) {
		return &queryv1.TopResponse{Rows: []*queryv1.TopRow{{Key: q.GetBy(), Flows: 1, Packets: 2, Bytes: uint64(q.GetLimit())}}}, nil
	}
	top, err := r.Top(context.Background(), TopQuery{By: "app", Limit: 5})
	if err != nil || top.By != "app" || len(top.Rows) != 1 || top.Rows[0] != (api.TopRow{Key: "app", Flows: 1, Packets: 2, Bytes: 5}) {
		t.Errorf("top %+v, %v", top, err)
	}
	r.persist.series = func(q *queryv1.TimeSeriesRequest) (*queryv1.TimeSeriesResponse, error) {
		return &queryv1.TimeSeriesResponse{StepNs: q.GetStepNs(), Series: []*queryv1.Series{{Key: "tls", Points: []*queryv1.Point{{StartNs: 60e9, Packets: 4}}}}}, nil
	}
	s, err := r.TimeSeries(context.Background(), SeriesQuery{FlowFilter: FlowFilter{Range: Range{From: time.Unix(1, 0)}}, Step: time.Minute, By: "app"})
	if err != nil || s.StepNs != 60e9 || s.Series[0].Points[0].Packets != 4 {
		t.Errorf("series %+v, %v", s, err)
	}
	_, err = r.TimeSeries(context.Background(), SeriesQuery{})
	if p := wantProblem(t, err, 422); p.Errors[0].Location != "query.from" {
		t.Errorf("problem %+v", p)
	}
}

func TestAttacksKnowTheirFirstDrop(t *testing.T) {
	r := newRig(t, "n1", "n2")
	state := func(id string, drop int64, state string) *enforcev1.RuleState {
		return &enforcev1.RuleState{Rule: ruleProto(id, "a1"), State: state, FirstDropNs: drop}
	}
	r.nodes["n1"].states = []*enforcev1.RuleState{state("r1", 50, "active"), state("r2", 10, "shadow")}
	r.nodes["n2"].states = []*enforcev1.RuleState{state("r1", 40, "active")}
	r.persist.attacks = func(q *queryv1.ListAttacksRequest) (*queryv1.ListAttacksResponse, error) {
		if q.GetActiveOnly() && q.GetLimit() != 1000 {
			t.Errorf("asked %v", q)
		}
		return &queryv1.ListAttacksResponse{Attacks: []*eventv1.Attack{{Id: "a1", State: eventv1.AttackState_ATTACK_STATE_UPDATED}, {Id: "a2"}}}, nil
	}
	page, err := r.Attacks(context.Background(), AttackQuery{Type: "syn_flood"})
	if err != nil || page.Items[0].FirstDropNs != 40 || page.Items[0].State != "updated" || page.Items[1].FirstDropNs != 0 {
		t.Errorf("attacks %+v, %v", page, err)
	}
	for range 3 {
		if active, err := r.ActiveAttacks(context.Background()); err != nil || len(active) != 2 {
			t.Errorf("active %+v, %v", active, err)
		}
	}
	if n := r.count("persist.ListAttacks"); n != 2 {
		t.Errorf("persist was asked %d times, want one listing and one of all reads of active attacks", n)
	}
}

func ruleProto(id, attack string) *policyv1.Rule {
	return &policyv1.Rule{
		Id: id, Action: policyv1.Action_ACTION_DROP, Match: &policyv1.Match{Src: "192.0.2.0/24"}, Origin: "detector", AttackId: attack, VerdictId: "v1", CreatedNs: 7,
	}
}

// attackRig has one attack of 200 ns with two verdicts and the events of two nodes.
func attackRig(t *testing.T) *rig {
	r := newRig(t)
	r.persist.attacks = func(q *queryv1.ListAttacksRequest) (*queryv1.ListAttacksResponse, error) {
		if q.GetId() != "a1" {
			return &queryv1.ListAttacksResponse{}, nil
		}
		if !q.GetAllRevisions() {
			t.Error("not all revisions are asked for")
		}
		attack := func(s eventv1.AttackState, rev uint32, at int64) *eventv1.Attack {
			return &eventv1.Attack{Id: "a1", Type: "syn_flood", Target: "198.51.100.1", State: s, Revision: rev, FirstNs: 100, DetectedNs: 130, UpdatedNs: at, Packets: uint64(rev)}
		}
		if q.GetPageToken() == "" {
			ended := attack(eventv1.AttackState_ATTACK_STATE_ENDED, 3, 300)
			ended.EndedNs = 290
			return &queryv1.ListAttacksResponse{Attacks: []*eventv1.Attack{ended, attack(eventv1.AttackState_ATTACK_STATE_UPDATED, 2, 200)}, NextPageToken: "2"}, nil
		}
		return &queryv1.ListAttacksResponse{Attacks: []*eventv1.Attack{attack(eventv1.AttackState_ATTACK_STATE_STARTED, 1, 131)}}, nil
	}
	v4 := append([]byte{0x45, 0, 5, 0xdc}, make([]byte, 36)...) // 1,500 bytes long
	v6 := append([]byte{0x60, 0, 0, 0, 0, 100}, make([]byte, 34)...)
	r.persist.verdicts = func(q *queryv1.ListVerdictsRequest) (*queryv1.ListVerdictsResponse, error) {
		if q.GetAttackId() != "a1" && q.GetId() != "v1" {
			return &queryv1.ListVerdictsResponse{}, nil
		}
		return &queryv1.ListVerdictsResponse{Verdicts: []*eventv1.Verdict{
			{Id: "v2", AttackId: "a1", DecidedNs: 180, Key: "prefix", Evidence: &eventv1.Evidence{
				Samples: [][]byte{v4, v4[:20]}, SampleTimesNs: []int64{105},
			}},
			{Id: "v1", AttackId: "a1", DecidedNs: 131, Key: "sources", Explanation: "Many sources.", Rules: []*policyv1.Rule{ruleProto("r1", "a1")},
				Evidence: &eventv1.Evidence{Samples: [][]byte{v4, v6}, SampleTimesNs: []int64{105, 101}, Windows: []uint64{9}, Features: map[string]float64{"pps": 3}}},
		}}, nil
	}
	r.persist.enforcements = func(q *queryv1.ListEnforcementsRequest) (*queryv1.ListEnforcementsResponse, error) {
		event := func(id, node string, s eventv1.EnforcementState, at int64) *eventv1.Enforcement {
			return &eventv1.Enforcement{Id: id, Node: node, RuleId: "r1", AttackId: "a1", State: s, TimeNs: at, Packets: uint64(at)} //nolint:gosec // a test
		}
		drop := event("e3", "n1", eventv1.EnforcementState_ENFORCEMENT_STATE_FIRST_DROP, 170)
		drop.FirstDropNs, drop.TimeToFirstDropNs = 150, 50e6
		shadow := event("e4", "n2", eventv1.EnforcementState_ENFORCEMENT_STATE_FIRST_DROP, 145)
		shadow.FirstDropNs, shadow.Shadow = 141, true
		return &queryv1.ListEnforcementsResponse{Enforcements: []*eventv1.Enforcement{
			event("e7", "n1", eventv1.EnforcementState_ENFORCEMENT_STATE_EXPIRED, 400),
			event("e6", "n1", eventv1.EnforcementState_ENFORCEMENT_STATE_HITS, 250), event("e5", "n1", eventv1.EnforcementState_ENFORCEMENT_STATE_HITS, 190),
			drop, shadow, event("e2", "n2", eventv1.EnforcementState_ENFORCEMENT_STATE_REFUSED, 140), event("e1", "n1", eventv1.EnforcementState_ENFORCEMENT_STATE_APPLIED, 135),
		}}, nil
	}
	return r
}

func TestAttackTimeline(t *testing.T) {
	r := attackRig(t)
	d, err := r.Attack(context.Background(), "a1")
	if err != nil {
		t.Fatal(err)
	}
	if d.State != "ended" || d.FirstDropNs != 150 || len(d.Verdicts) != 2 || d.PcapURL != "/api/v1/attacks/a1/pcap" {
		t.Errorf("attack %+v", d)
	}
	var got []string
	for _, e := range d.Timeline {
		got = append(got, e.Kind+" "+e.State)
		if e.Text == "" || !strings.HasSuffix(e.Text, ".") {
			t.Errorf("no sentence: %+v", e)
		}
	}
	want := []string{
		"first_packet seen", "attack started", "verdict sources", "enforcement applied", "enforcement refused", "enforcement first_drop", "enforcement first_drop",
		"verdict prefix", "attack updated", "enforcement hits", "attack ended", "enforcement expired",
	}
	if strings.Join(got, ", ") != strings.Join(want, ", ") {
		t.Errorf("timeline\n%s, want\n%s", strings.Join(got, ", "), strings.Join(want, ", "))
	}
	for i := 1; i < len(d.Timeline); i++ {
		if d.Timeline[i].TimeNs < d.Timeline[i-1].TimeNs {
			t.Errorf("entry %d is earlier than the one before", i)
		}
	}
	if e := d.Timeline[6]; e.TimeNs != 150 || e.Text != "Rule r1 dropped its first packet, 50ms after the attack's first." {
		t.Errorf("first drop %+v", e)
	}
	if e := d.Verdicts[1].Evidence; e.Samples != 2 || e.Windows[0] != "9" || e.Thresholds == nil {
		t.Errorf("evidence %+v", e)
	}
	_, err = r.Attack(context.Background(), "other")
	wantProblem(t, err, 404)
	_, err = r.Attack(context.Background(), "")
	wantProblem(t, err, 404)
}

func TestLongAttackHasItsBeginning(t *testing.T) {
	r := attackRig(t)
	short, calls := r.persist.enforcements, 0
	r.persist.enforcements = func(q *queryv1.ListEnforcementsRequest) (*queryv1.ListEnforcementsResponse, error) {
		if q.GetRange() != nil {
			if q.GetRange().GetFromNs() != 100 {
				t.Errorf("the beginning is asked for as %v", q.GetRange())
			}
			return short(q)
		}
		calls++
		page := &queryv1.ListEnforcementsResponse{NextPageToken: "more"}
		for i := range int(q.GetLimit()) {
			page.Enforcements = append(page.Enforcements, &eventv1.Enforcement{
				Id: strings.Repeat("x", i%7) + time.Duration(calls*10000+i).String(), Node: "n1", RuleId: "r1", State: eventv1.EnforcementState_ENFORCEMENT_STATE_HITS, TimeNs: 1000,
			})
		}
		return page, nil
	}
	d, err := r.Attack(context.Background(), "a1")
	if err != nil || calls != detailPages || d.FirstDropNs != 150 || len(d.Timeline) != 12 {
		t.Errorf("%d pages, first drop %d, %d entries, %v", calls, d.FirstDropNs, len(d.Timeline), err)
	}
}

// An attack is updated once a second: after an hour and a half the newest pages do not reach back to its start.
func TestAttackOfHoursHasItsStart(t *testing.T) {
	r := attackRig(t)
	const last = 3 * detailPage * detailPages
	r.persist.attacks = func(q *queryv1.ListAttacksRequest) (*queryv1.ListAttacksResponse, error) {
		revision, end := uint32(last), int64(0)
		if token := q.GetPageToken(); token != "" {
			n, err := strconv.ParseUint(token, 10, 32)
			if err != nil {
				t.Fatal(err)
			}
			revision = uint32(n)
		}
		if end = q.GetRange().GetToNs(); end != 0 { // revision n is made at n seconds
			revision = min(revision, uint32(end/1e9))
		}
		out := &queryv1.ListAttacksResponse{}
		for range q.GetLimit() {
			if revision == 0 {
				return out, nil
			}
			a := &eventv1.Attack{Id: "a1", Type: "syn_flood", Revision: revision, State: eventv1.AttackState_ATTACK_STATE_UPDATED, FirstNs: 5e8, DetectedNs: 1e9, UpdatedNs: int64(revision) * 1e9}
			if revision == 1 {
				a.State = eventv1.AttackState_ATTACK_STATE_STARTED
			}
			out.Attacks = append(out.Attacks, a)
			revision--
		}
		out.NextPageToken = strconv.FormatUint(uint64(revision), 10)
		return out, nil
	}
	d, err := r.Attack(context.Background(), "a1")
	if err != nil {
		t.Fatal(err)
	}
	started, updated := 0, map[api.Nanos]bool{}
	for _, e := range d.Timeline {
		switch {
		case e.Kind == kindAttack && e.State == "started":
			started++
		case e.Kind == kindAttack && updated[e.TimeNs]:
			t.Errorf("twice: %+v", e)
		case e.Kind == kindAttack:
			updated[e.TimeNs] = true
		}
	}
	if started != 1 || !updated[last*1e9] || d.UpdatedNs != last*1e9 {
		t.Errorf("started %d times, updated %d", started, d.UpdatedNs)
	}
}

func TestAttackPcap(t *testing.T) {
	r := attackRig(t)
	name, capture, err := r.AttackPcap(context.Background(), "a1")
	if err != nil || name != "attack-a1.pcap" {
		t.Fatalf("%q, %v", name, err)
	}
	in, err := pcapfile.NewReader(bytes.NewReader(capture))
	if err != nil {
		t.Fatal(err)
	}
	type record struct {
		at          int64
		wire, bytes int
	}
	var got []record
	for {
		rec, err := in.Next(nil)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if rec.LinkType != linkTypeRaw {
			t.Errorf("link type %d", rec.LinkType)
		}
		got = append(got, record{rec.TimeNs, rec.WireLen, len(rec.Data)})
	}
	want := []record{{101, 140, 40}, {105, 1500, 40}, {180, 1500, 20}} // one sample is in both verdicts; one has no time
	if len(got) != 3 || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
		t.Errorf("records %v, want %v", got, want)
	}
	_, _, err = r.AttackPcap(context.Background(), "none")
	wantProblem(t, err, 404)
	if fileName("../a b\"") != ".._a_b_" {
		t.Errorf("file name %q", fileName("../a b\""))
	}
}

func TestVerdicts(t *testing.T) {
	r := attackRig(t)
	v, err := r.Verdict(context.Background(), "v1")
	if err != nil || v.ID != "v2" { // the fake's first
		t.Errorf("verdict %+v, %v", v, err)
	}
	_, err = r.Verdict(context.Background(), "gone")
	wantProblem(t, err, 404)
	page, err := r.Verdicts(context.Background(), VerdictQuery{AttackID: "a1"})
	if err != nil || len(page.Items) != 2 || page.Items[1].Rules[0].MatchText != "src 192.0.2.0/24" {
		t.Errorf("verdicts %+v, %v", page, err)
	}
}

func TestAudit(t *testing.T) {
	r := newRig(t)
	r.persist.audit = func(q *queryv1.ListAuditRequest) (*queryv1.ListAuditResponse, error) {
		if q.GetActor() != "ada" || q.GetAction() != "rule.add" || q.GetTarget() != "r1" {
			t.Errorf("asked %v", q)
		}
		return &queryv1.ListAuditResponse{Entries: []*eventv1.Audit{{
			Id: "x", Outcome: eventv1.AuditOutcome_AUDIT_OUTCOME_DONE, Before: `{"id":"r1"}`, After: `{damaged`,
		}}}, nil
	}
	page, err := r.Audit(context.Background(), AuditQuery{Actor: "ada", Action: "rule.add", Target: "r1"})
	if err != nil || len(page.Items) != 1 || page.Items[0].Outcome != "done" || page.Items[0].After != "{damaged" {
		t.Fatalf("audit %+v, %v", page, err)
	}
	if got := r.document(context.Background(), page.Items[0].Before); got != `{"id":"r1"}` {
		t.Errorf("before is %s in JSON", got)
	}
}

// An instance that hangs, or whose machine has lost power, costs one question its time, not each.
func TestASilentPersistIsAskedLast(t *testing.T) {
	r := newRig(t)
	silent := func(c context.Context) error { <-c.Done(); return status.FromContextError(c.Err()).Err() }
	other := &fakePersist{journal: r.journal, top: func(*queryv1.TopRequest) (*queryv1.TopResponse, error) { return &queryv1.TopResponse{}, nil }}
	r.mesh.Persist = append(r.mesh.Persist, mesh.Peer{Service: "persist", Address: "p:2", Conn: serve(t, func(s *grpc.Server) {
		queryv1.RegisterQueryServiceServer(s, other)
	})})
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	r.persist.top = func(*queryv1.TopRequest) (*queryv1.TopResponse, error) { return nil, silent(ctx) }
	_, err := r.Top(ctx, TopQuery{By: "app"})
	wantProblem(t, err, 503)
	for range 3 {
		if _, err := r.Top(context.Background(), TopQuery{By: "app"}); err != nil {
			t.Errorf("with one of two instances silent: %v", err)
		}
	}
	gone, leave := context.WithCancel(context.Background())
	leave()
	_, err = r.Top(gone, TopQuery{By: "app"})
	wantProblem(t, err, 503)
	if _, err := r.Top(context.Background(), TopQuery{By: "app"}); err != nil {
		t.Errorf("after a caller who did not wait: %v", err)
	}
}
