package hook

import (
	"encoding/json"
	"hash/fnv"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

// Types of EVE lines, as Suricata names them.
const (
	typeAlert = "alert"
	typeFlow  = "flow"
	typeDrop  = "drop"
)

const (
	eveTime = "2006-01-02T15:04:05.000000-0700"
	// Suricata's own signatures are of generator 1; with another one their numbers cannot meet.
	generator = 731
)

// eveLine is one line. The names are those of Suricata's EVE format (docs.suricata.io, EVE JSON Format); what it has
// no name for is in tidegate, which comes first in the object and begins with the line's id.
type eveLine struct {
	Tidegate    eveTidegate `json:"tidegate"`
	Timestamp   string      `json:"timestamp"`
	FlowID      uint64      `json:"flow_id"`
	EventType   string      `json:"event_type"`
	Host        string      `json:"host,omitempty"`
	VLAN        []uint32    `json:"vlan,omitempty"`
	SrcIP       string      `json:"src_ip"`
	SrcPort     uint32      `json:"src_port,omitempty"`
	DestIP      string      `json:"dest_ip"`
	DestPort    uint32      `json:"dest_port,omitempty"`
	Proto       string      `json:"proto,omitempty"`
	AppProto    string      `json:"app_proto,omitempty"`
	CommunityID string      `json:"community_id,omitempty"`
	Alert       *eveAlert   `json:"alert,omitempty"`
	Drop        *eveDrop    `json:"drop,omitempty"`
	Flow        *eveFlow    `json:"flow,omitempty"`
	TCP         *eveTCP     `json:"tcp,omitempty"`
	TLS         *eveTLS     `json:"tls,omitempty"`
	HTTP        *eveHTTP    `json:"http,omitempty"`
	DNS         *eveDNS     `json:"dns,omitempty"`
	SSH         *eveSSH     `json:"ssh,omitempty"`
}

type eveAlert struct {
	Action      string `json:"action"`
	GID         uint32 `json:"gid"`
	SignatureID uint32 `json:"signature_id"`
	Rev         uint32 `json:"rev"`
	Signature   string `json:"signature"`
	Category    string `json:"category"`
	Severity    uint32 `json:"severity"`
}

type eveDrop struct {
	Reason string `json:"reason"`
}

type eveFlow struct {
	PktsToServer  uint64 `json:"pkts_toserver"`
	PktsToClient  uint64 `json:"pkts_toclient"`
	BytesToServer uint64 `json:"bytes_toserver"`
	BytesToClient uint64 `json:"bytes_toclient"`
	Start         string `json:"start"`
	End           string `json:"end"`
	Age           int64  `json:"age"`
	State         string `json:"state"`
	Reason        string `json:"reason"`
	Alerted       bool   `json:"alerted"`
}

type eveTCP struct {
	Flags   string `json:"tcp_flags"`
	FlagsTS string `json:"tcp_flags_ts"`
	FlagsTC string `json:"tcp_flags_tc"`
	SYN     bool   `json:"syn,omitempty"`
	FIN     bool   `json:"fin,omitempty"`
	RST     bool   `json:"rst,omitempty"`
	PSH     bool   `json:"psh,omitempty"`
	ACK     bool   `json:"ack,omitempty"`
	URG     bool   `json:"urg,omitempty"`
	State   string `json:"state"`
}

type eveHash struct {
	Hash string `json:"hash"`
}

type eveTLS struct {
	SNI     string   `json:"sni,omitempty"`
	Version string   `json:"version,omitempty"`
	JA3     *eveHash `json:"ja3,omitempty"`
	JA4     string   `json:"ja4,omitempty"`
}

type eveHTTP struct {
	Hostname  string `json:"hostname,omitempty"`
	UserAgent string `json:"http_user_agent,omitempty"`
	Method    string `json:"http_method,omitempty"`
}

type eveDNS struct {
	RRName string `json:"rrname,omitempty"`
	RRType string `json:"rrtype,omitempty"`
	RCode  string `json:"rcode,omitempty"`
}

type eveSSH struct {
	Client struct {
		HASSH eveHash `json:"hassh"`
	} `json:"client"`
}

// eveTidegate is what Suricata has no names for.
type eveTidegate struct {
	ID                string    `json:"id"` // first: the file's reader looks for it
	AttackID          string    `json:"attack_id,omitempty"`
	Type              string    `json:"type,omitempty"`
	Target            string    `json:"target,omitempty"`
	State             string    `json:"state,omitempty"`
	Sources           uint64    `json:"sources,omitempty"`
	TopSources        []string  `json:"top_sources,omitempty"`
	PPS               float64   `json:"pps,omitempty"`
	BPS               float64   `json:"bps,omitempty"`
	RuleID            string    `json:"rule_id,omitempty"`
	Node              string    `json:"node,omitempty"`
	Match             string    `json:"match,omitempty"`
	Packets           uint64    `json:"packets,omitempty"`
	Bytes             uint64    `json:"bytes,omitempty"`
	Dropped           uint64    `json:"dropped,omitempty"`
	TimeToFirstDropNs api.Nanos `json:"time_to_first_drop_ns,omitempty"`
	Host              string    `json:"host,omitempty"`
	ALPN              string    `json:"alpn,omitempty"`
	Risks             []string  `json:"risks,omitempty"`
	Tunnel            uint32    `json:"tunnel,omitempty"`
	TraceID           string    `json:"trace_id,omitempty"`
}

// eventLines makes the lines of an event; most have none.
func eventLines(m *bus.EventMsg, at bus.Place, types map[string]bool) []bus.EVELine {
	var l *eveLine
	switch {
	case m.Attack.GetState() == eventv1.AttackState_ATTACK_STATE_STARTED && types[typeAlert]:
		l = alertLine(m.Attack)
	case m.Enforcement != nil && types[typeDrop]:
		l = dropLine(m.Enforcement)
	}
	if l == nil {
		return nil
	}
	l.Tidegate.ID = eventID(at)
	return encode(nil, l)
}

// flowLines makes a line of each record.
func flowLines(m *bus.FlowMsg, _ bus.Place) []bus.EVELine {
	out := make([]bus.EVELine, 0, len(m.Records.GetRecords()))
	for _, r := range m.Records.GetRecords() {
		out = encode(out, flowLine(m.Records.GetSensor(), r))
	}
	return out
}

// encode appends a line. The values are strings, numbers and booleans, which always have a JSON form but for numbers
// that are none: those are left out before.
func encode(out []bus.EVELine, l *eveLine) []bus.EVELine {
	b, err := json.Marshal(l)
	if err != nil {
		return out
	}
	return append(out, bus.EVELine{Type: l.EventType, ID: l.Tidegate.ID, JSON: b})
}

func timestamp(ns int64) string { return time.Unix(0, ns).UTC().Format(eveTime) }

// flowID correlates lines, as Suricata's does: those of one flow, or of one attack. Below 2^53, so that every reader's
// numbers hold it.
func flowID(s string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(s)) // a hash takes everything
	return h.Sum64() >> 11
}

func alertLine(a *eventv1.Attack) *eveLine {
	k := kindOf(a.GetType())
	l := &eveLine{
		Timestamp: timestamp(a.GetDetectedNs()), FlowID: flowID(a.GetId()), EventType: typeAlert, Host: a.GetSensor(),
		Proto: k.proto, SrcPort: k.srcPort, DestPort: k.destPort, Alert: k.alert(a.GetType(), "allowed"),
		Tidegate: eveTidegate{
			AttackID: a.GetId(), Type: a.GetType(), Target: a.GetTarget(), State: "started", Sources: a.GetSources(), TopSources: a.GetTopSources(),
			Packets: a.GetPackets(), Bytes: a.GetBytes(), PPS: finite(a.GetPps()), BPS: finite(a.GetBps()), TraceID: a.GetTraceId(),
		},
	}
	target, err := policy.ParsePrefix(a.GetTarget())
	if err == nil {
		l.DestIP = target.Addr().String()
	}
	l.SrcIP = anyOf(target)
	if top := a.GetTopSources(); len(top) > 0 {
		if src, err := policy.ParsePrefix(top[0]); err == nil {
			l.SrcIP = src.Addr().String()
		}
	}
	if l.DestIP == "" {
		l.DestIP = anyOf(netip.Prefix{})
	}
	if l.Proto == "ICMP" && target.Addr().Is6() {
		l.Proto = protoName(58)
	}
	return l
}

// anyOf stands for "no single address".
func anyOf(like netip.Prefix) string {
	if like.IsValid() && like.Addr().Is6() {
		return "::"
	}
	return "0.0.0.0"
}

func finite(v float64) float64 {
	if v-v != 0 { // an infinity, or no number
		return 0
	}
	return v
}

// dropLine tells of a rule's first drop, and of all it dropped when it ends; nil for everything else.
func dropLine(e *eventv1.Enforcement) *eveLine {
	switch e.GetState() {
	case eventv1.EnforcementState_ENFORCEMENT_STATE_FIRST_DROP:
	case eventv1.EnforcementState_ENFORCEMENT_STATE_EXPIRED, eventv1.EnforcementState_ENFORCEMENT_STATE_REVOKED:
		if e.GetDropped() == 0 {
			return nil
		}
	default:
		return nil
	}
	l := &eveLine{
		Timestamp: timestamp(e.GetTimeNs()), FlowID: flowID(e.GetRuleId()), EventType: typeDrop, Host: e.GetNode(),
		Drop: &eveDrop{Reason: "rules"},
		Tidegate: eveTidegate{
			AttackID: e.GetAttackId(), State: api.EnumName(e.GetState().String(), "ENFORCEMENT_STATE_"), RuleID: e.GetRuleId(), Node: e.GetNode(),
			Packets: e.GetPackets(), Bytes: e.GetBytes(), Dropped: e.GetDropped(), TimeToFirstDropNs: api.Nanos(e.GetTimeToFirstDropNs()), TraceID: e.GetTraceId(),
		},
	}
	kind, signature := "", "rule "+e.GetRuleId()
	if e.GetAttackId() != "" {
		l.FlowID = flowID(e.GetAttackId())
		signature = e.GetRule().GetComment() // a detector's: the type of the attack, and what the rule selects by
		kind, _, _ = strings.Cut(signature, " ")
		l.Tidegate.Type = kind
	}
	l.Alert = kindOf(kind).alert(signature, "blocked")
	l.SrcIP, l.DestIP = anyOf(netip.Prefix{}), anyOf(netip.Prefix{})
	r, err := policy.FromProto(e.GetRule())
	if err != nil { // of an older version's node, which did not tell, or of a later one's
		return l
	}
	m := &r.Match
	l.Tidegate.Match = m.String()
	like := m.Dst
	if !like.IsValid() {
		like = m.Src
	}
	l.SrcIP, l.DestIP = anyOf(like), anyOf(like)
	if m.Src.IsValid() {
		l.SrcIP = m.Src.Addr().String()
	}
	if m.Dst.IsValid() {
		l.DestIP = m.Dst.Addr().String()
	}
	if m.HasProtocol {
		l.Proto = protoName(m.Protocol)
	}
	l.SrcPort, l.DestPort = uint32(m.SrcPort), uint32(m.DstPort)
	return l
}

// protoName is a protocol as Suricata writes it.
func protoName(p uint8) string {
	switch p {
	case 1, 6, 17, 132, 47, 50, 51:
		return strings.ToUpper(flow.ProtocolName(p))
	case 58:
		return "IPv6-ICMP"
	}
	return strconv.Itoa(int(p))
}

func flowLine(sensor string, r *eventv1.FlowRecord) *eveLine {
	src, dst := flow.AddrBytes(r.GetSrcIp()), flow.AddrBytes(r.GetDstIp())
	id, _, _ := cutLast(r.GetId(), "/") // without the part: parts of one flow belong together
	l := &eveLine{
		Timestamp: timestamp(r.GetLastNs()), FlowID: flowID(id), EventType: typeFlow, Host: sensor,
		SrcIP: src.String(), DestIP: dst.String(), SrcPort: r.GetSrcPort(), DestPort: r.GetDstPort(), Proto: protoName(uint8(r.GetProtocol())), //nolint:gosec // 8 bits
		CommunityID: communityID(src, dst, r.GetSrcPort(), r.GetDstPort(), r.GetProtocol()),
		Flow: &eveFlow{
			PktsToServer: r.GetPacketsFwd(), PktsToClient: r.GetPacketsRev(), BytesToServer: r.GetBytesFwd(), BytesToClient: r.GetBytesRev(),
			Start: timestamp(r.GetFirstNs()), End: timestamp(r.GetLastNs()), Age: max(0, r.GetLastNs()-r.GetFirstNs()) / int64(time.Second),
		},
		Tidegate: eveTidegate{ID: r.GetId(), ALPN: r.GetAlpn(), Risks: r.GetRisks(), Tunnel: r.GetTunnel()},
	}
	l.Flow.State, l.Flow.Reason = flowState(r)
	if v := r.GetVlan(); v != 0 {
		l.VLAN = []uint32{v}
	}
	if app := r.GetApp(); app != "" && app != "unknown" {
		l.AppProto = app
	}
	if r.GetProtocol() == 6 {
		l.TCP = newTCP(r, l.Flow.State)
	}
	l.applications(r)
	return l
}

// applications fills what Suricata has in the events of the protocols.
func (l *eveLine) applications(r *eventv1.FlowRecord) {
	switch {
	case r.GetJa3() != "" || r.GetJa4() != "" || r.GetTlsVersion() != "":
		l.TLS = &eveTLS{SNI: r.GetHost(), JA4: r.GetJa4()}
		if v := r.GetTlsVersion(); v != "" {
			l.TLS.Version = "TLS " + v
		}
		if r.GetJa3() != "" {
			l.TLS.JA3 = &eveHash{r.GetJa3()}
		}
	case r.GetHttpMethod() != "" || r.GetUserAgent() != "":
		l.HTTP = &eveHTTP{Hostname: r.GetHost(), UserAgent: r.GetUserAgent(), Method: r.GetHttpMethod()}
	case r.GetDnsType() != "":
		l.DNS = &eveDNS{RRName: r.GetHost(), RRType: r.GetDnsType(), RCode: r.GetDnsRcode()}
	case r.GetHassh() != "":
		l.SSH = &eveSSH{}
		l.SSH.Client.HASSH.Hash = r.GetHassh()
	default:
		l.Tidegate.Host = r.GetHost()
	}
}

// flowState says it in Suricata's words: a flow is closed by FIN or RST, else established when both sides sent.
func flowState(r *eventv1.FlowRecord) (state, reason string) {
	state, reason = "new", "timeout"
	if r.GetPacketsRev() > 0 {
		state = "established"
	}
	switch flowv1.EndReason(r.GetEndReason()) { //nolint:gosec // an enum of a few values
	case flowv1.EndReason_END_REASON_FIN, flowv1.EndReason_END_REASON_RST:
		state = "closed"
	case flowv1.EndReason_END_REASON_ACTIVE, flowv1.EndReason_END_REASON_EVICTED:
		reason = "forced"
	case flowv1.EndReason_END_REASON_SHUTDOWN:
		reason = "shutdown"
	}
	return state, reason
}

func newTCP(r *eventv1.FlowRecord, state string) *eveTCP {
	ts, tc := r.GetTcpFlagsFwd()&0xff, r.GetTcpFlagsRev()&0xff
	all := ts | tc
	hex := func(f uint32) string {
		s := strconv.FormatUint(uint64(f), 16)
		return strings.Repeat("0", 2-min(2, len(s))) + s
	}
	t := &eveTCP{
		Flags: hex(all), FlagsTS: hex(ts), FlagsTC: hex(tc),
		FIN: all&1 != 0, SYN: all&2 != 0, RST: all&4 != 0, PSH: all&8 != 0, ACK: all&16 != 0, URG: all&32 != 0, State: state,
	}
	if state == "new" {
		t.State = "syn_sent"
	}
	return t
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}
