package ops

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/flow"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
	enforcev1 "github.com/tidegate-mesh/tidegate/proto/enforce/v1"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	ingestv1 "github.com/tidegate-mesh/tidegate/proto/ingest/v1"
	queryv1 "github.com/tidegate-mesh/tidegate/proto/query/v1"
	statusv1 "github.com/tidegate-mesh/tidegate/proto/status/v1"
)

// each converts a list; the result is never nil, so that it is [] in JSON.
func each[P, A any](in []P, convert func(P) A) []A {
	out := make([]A, 0, len(in))
	for _, p := range in {
		out = append(out, convert(p))
	}
	return out
}

func newFlow(r *eventv1.FlowRecord) api.Flow {
	sensor, _, _ := strings.Cut(r.GetId(), "/")
	return api.Flow{
		ID: r.GetId(), Sensor: sensor,
		SrcIP: flow.AddrBytes(r.GetSrcIp()).String(), SrcPort: uint16(r.GetSrcPort()), //nolint:gosec // a port
		DstIP: flow.AddrBytes(r.GetDstIp()).String(), DstPort: uint16(r.GetDstPort()), //nolint:gosec // a port
		Transport: flow.ProtocolName(uint8(r.GetProtocol())), VLAN: uint16(r.GetVlan()), Tunnel: r.GetTunnel(), //nolint:gosec // 8 and 12 bits
		App: cmp.Or(r.GetApp(), "unknown"), Host: r.GetHost(), HostSource: r.GetHostSource(), ALPN: r.GetAlpn(),
		Confidence: r.GetConfidence(), JA3: r.GetJa3(), JA4: r.GetJa4(), HASSH: r.GetHassh(), TLSVersion: r.GetTlsVersion(),
		UserAgent: r.GetUserAgent(), HTTPMethod: r.GetHttpMethod(),
		DNSType: r.GetDnsType(), DNSRcode: r.GetDnsRcode(), DNSAnswers: r.GetDnsAnswers(), Risks: newRisks(r.GetRisks()),
		Packets: r.GetPacketsFwd() + r.GetPacketsRev(), Bytes: r.GetBytesFwd() + r.GetBytesRev(),
		PacketsRev: r.GetPacketsRev(), BytesRev: r.GetBytesRev(),
		EndReason: api.EnumName(flowv1.EndReason(r.GetEndReason()).String(), "END_REASON_"), //nolint:gosec // six values
		FirstNs:   api.Nanos(r.GetFirstNs()), LastNs: api.Nanos(r.GetLastNs()),
		TCP: api.NewTCPFacts(r.GetTcp()),
	}
}

// newRisks is nil without risks, so that the field is left out.
func newRisks(names []string) (out []api.Risk) {
	for _, n := range names {
		out = append(out, api.Risk{Name: n, Reason: flow.RiskReason(n)})
	}
	return out
}

func newTopRow(r *queryv1.TopRow) api.TopRow {
	return api.TopRow{Key: r.GetKey(), Flows: r.GetFlows(), Packets: r.GetPackets(), Bytes: r.GetBytes()}
}

func newSeries(s *queryv1.Series) api.Series {
	return api.Series{Key: s.GetKey(), Points: each(s.GetPoints(), func(p *queryv1.Point) api.Point {
		return api.Point{StartNs: api.Nanos(p.GetStartNs()), Flows: p.GetFlows(), Packets: p.GetPackets(), Bytes: p.GetBytes()}
	})}
}

func notNil[V any](m map[string]V) map[string]V {
	if m == nil {
		return map[string]V{}
	}
	return m
}

// newRule is a rule as one node has it.
func newRule(node string, s *enforcev1.RuleState) api.Rule {
	return api.Rule{
		RuleSpec: api.RuleSpecOf(s.GetRule()), Revision: strconv.FormatUint(s.GetRevision(), 10), State: s.GetState(),
		Reason: s.GetReason(), Detail: s.GetDetail(), Packets: s.GetPackets(), Bytes: s.GetBytes(),
		FirstDropNs: api.Nanos(s.GetFirstDropNs()), AppliedNs: api.Nanos(s.GetAppliedNs()),
		Nodes: []api.RuleNode{{Node: node, State: s.GetState(), Reason: s.GetReason(), Packets: s.GetPackets(), Bytes: s.GetBytes()}},
	}
}

func newGroup(g *classifyv1.Group) api.Group {
	return api.Group{Name: g.GetName(), Prefixes: append([]string{}, g.GetPrefixes()...), Thresholds: notNil(g.GetThresholds()),
		Learned: each(g.GetLearned(), func(h *classifyv1.LearnedHost) api.LearnedHost {
			return api.LearnedHost{Host: h.GetHost(), Thresholds: notNil(h.GetThresholds())}
		})}
}

func newInterface(i *ingestv1.Interface) api.Interface {
	return api.Interface{
		Name: i.GetName(), Mode: i.GetMode(), Capture: i.GetCapture(), Queues: i.GetQueues(), XDPPackets: notNil(i.GetXdpPackets()),
		XDPBytes: notNil(i.GetXdpBytes()), Received: i.GetReceived(), RingDrops: i.GetRingDrops(), Transmitted: i.GetTransmitted(),
	}
}

func newTalker(t *ingestv1.TopTalker) api.Talker {
	return api.Talker{Addr: t.GetAddr(), PPS: t.GetPps(), BPS: t.GetBps()}
}

func newService(s *statusv1.ServiceStatus) api.Service {
	return api.Service{
		Service: s.GetService(), Instance: s.GetInstance(), Version: s.GetVersion(), StartedNs: api.Nanos(s.GetStartedNs()),
		Ready: s.GetReady(), Problems: append([]string{}, s.GetProblems()...), CertificateExpiresNs: api.Nanos(s.GetCertificateExpiresNs()),
	}
}

func newPanic(p *eventv1.Panic) api.Panic {
	return api.Panic{On: p.GetOn(), SinceNs: api.Nanos(p.GetSinceNs()), By: p.GetBy(), Reason: p.GetReason()}
}

func newNode(n *eventv1.NodeHeartbeat) api.Node {
	return api.Node{
		Service: n.GetService(), Instance: n.GetInstance(), Address: n.GetAddress(), Version: n.GetVersion(),
		StartedNs: api.Nanos(n.GetStartedNs()), SeenNs: api.Nanos(n.GetTimeNs()),
	}
}

// strength orders the states of a rule: the strongest is what holds for the mesh.
var strength = map[string]int{"active": 7, "shadow": 6, "held": 5, "pending": 4, "refused": 3, "expired": 2, "elsewhere": 1}

// merge adds what another node says about the same rule. What the rule is comes from the node that knows the newest
// revision.
func merge(into *api.Rule, r *api.Rule) {
	if revision(r.Revision) > revision(into.Revision) {
		into.RuleSpec, into.Revision = r.RuleSpec, r.Revision
	}
	if strength[r.State] > strength[into.State] {
		into.State, into.Reason, into.Detail = r.State, r.Reason, r.Detail
	}
	into.Packets += r.Packets
	into.Bytes += r.Bytes
	into.FirstDropNs = earlier(into.FirstDropNs, r.FirstDropNs)
	into.AppliedNs = earlier(into.AppliedNs, r.AppliedNs)
	into.Nodes = append(into.Nodes, r.Nodes...)
}

func revision(s string) uint64 {
	n, _ := strconv.ParseUint(s, 10, 64)
	return n
}

// earlier is the lower of two times of which 0 is never.
func earlier(a, b api.Nanos) api.Nanos {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

func newestRuleFirst(rules []api.Rule) {
	slices.SortFunc(rules, func(a, b api.Rule) int {
		return cmp.Or(cmp.Compare(b.CreatedNs, a.CreatedNs), strings.Compare(a.ID, b.ID))
	})
}
