package persist

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
	"github.com/tidegate-mesh/tidegate/services/persist/internal/sqlstore"
)

// Between the messages of the bus and the rows of the store. Messages that cannot be rows give an error and
// are counted as rejected.

var errRange = errors.New("a counter is above 2^63-1, which SQL cannot hold")

// text makes a string storable everywhere: PostgreSQL refuses NUL. A hostile host name must not keep its flow
// out of the table, so the character is replaced, not the row refused.
func text(s string) string {
	if !strings.ContainsRune(s, 0) {
		return s
	}
	return strings.ReplaceAll(s, "\x00", "\uFFFD")
}

// signed converts counters and remembers one that does not fit.
type signed struct{ bad bool }

func (s *signed) of(v uint64) int64 {
	if v > math.MaxInt64 {
		s.bad = true
		return 0
	}
	return int64(v)
}

func unsigned(v int64) uint64 { return uint64(max(v, 0)) } //nolint:gosec // not negative

func flowRow(sensor string, r *eventv1.FlowRecord) (sqlstore.Flow, error) {
	src, dst := flow.AddrBytes(r.GetSrcIp()), flow.AddrBytes(r.GetDstIp())
	if !src.IsValid() || !dst.IsValid() {
		return sqlstore.Flow{}, errors.New("an address is not 16 bytes long")
	}
	var s signed
	row := sqlstore.Flow{
		TS: r.GetFirstNs(), ID: text(r.GetId()), LastNs: r.GetLastNs(), Sensor: text(sensor),
		Src: sqlstore.Addr{Addr: src}, Dst: sqlstore.Addr{Addr: dst}, SrcPort: r.GetSrcPort(), DstPort: r.GetDstPort(),
		Protocol: r.GetProtocol(), VLAN: r.GetVlan(), App: text(r.GetApp()), Host: text(r.GetHost()), ALPN: text(r.GetAlpn()),
		PacketsFwd: s.of(r.GetPacketsFwd()), PacketsRev: s.of(r.GetPacketsRev()),
		BytesFwd: s.of(r.GetBytesFwd()), BytesRev: s.of(r.GetBytesRev()),
		TCPFlagsFwd: r.GetTcpFlagsFwd(), TCPFlagsRev: r.GetTcpFlagsRev(), EndReason: r.GetEndReason(),
		JA3: text(r.GetJa3()), JA4: text(r.GetJa4()), HASSH: text(r.GetHassh()), Confidence: text(r.GetConfidence()), HostSource: text(r.GetHostSource()),
		TLSVersion: text(r.GetTlsVersion()), UserAgent: text(r.GetUserAgent()), HTTPMethod: text(r.GetHttpMethod()), DNSType: text(r.GetDnsType()),
		DNSRcode: text(r.GetDnsRcode()), DNSAnswers: text(strings.Join(r.GetDnsAnswers(), " ")), Risks: sqlstore.Bits(flow.RisksNamed(r.GetRisks())),
		Tunnel: sql.NullInt64{Int64: int64(r.GetTunnel()), Valid: r.GetTunnel() != 0},
	}
	if f := r.GetTcp(); f != nil {
		row.RTTClientUs, row.RTTServerUs = measured(f.GetRttClientUs()), measured(f.GetRttServerUs())
		row.RetransmitsFwd = sql.NullInt64{Int64: int64(f.GetRetransmitsFwd()), Valid: true}
		row.RetransmitsRev = sql.NullInt64{Int64: int64(f.GetRetransmitsRev()), Valid: true}
	}
	if s.bad {
		return row, errRange
	}
	return row, nil
}

// measured is a time of TcpFacts, where 0 means that there is none.
func measured(us uint32) sql.NullInt64 { return sql.NullInt64{Int64: int64(us), Valid: us != 0} }

// tcpFacts is nil when nothing was measured.
func tcpFacts(f *sqlstore.Flow) *eventv1.TcpFacts {
	if !f.RetransmitsFwd.Valid && !f.RetransmitsRev.Valid && !f.RTTClientUs.Valid && !f.RTTServerUs.Valid {
		return nil
	}
	number := func(n sql.NullInt64) uint32 { return uint32(min(unsigned(n.Int64), math.MaxUint32)) } //nolint:gosec // bounded
	return &eventv1.TcpFacts{
		RttClientUs: number(f.RTTClientUs), RttServerUs: number(f.RTTServerUs),
		RetransmitsFwd: number(f.RetransmitsFwd), RetransmitsRev: number(f.RetransmitsRev),
	}
}

func flowRecord(f *sqlstore.Flow) *eventv1.FlowRecord {
	src, dst := f.Src.As16(), f.Dst.As16()
	return &eventv1.FlowRecord{
		Id: f.ID, SrcIp: src[:], DstIp: dst[:], SrcPort: f.SrcPort, DstPort: f.DstPort, Protocol: f.Protocol,
		Vlan: f.VLAN, FirstNs: f.TS, LastNs: f.LastNs, PacketsFwd: unsigned(f.PacketsFwd),
		PacketsRev: unsigned(f.PacketsRev), BytesFwd: unsigned(f.BytesFwd), BytesRev: unsigned(f.BytesRev),
		TcpFlagsFwd: f.TCPFlagsFwd, TcpFlagsRev: f.TCPFlagsRev, EndReason: f.EndReason, App: f.App, Host: f.Host,
		Alpn: f.ALPN, Ja3: f.JA3, Ja4: f.JA4, Hassh: f.HASSH, Confidence: f.Confidence, HostSource: f.HostSource,
		TlsVersion: f.TLSVersion, UserAgent: f.UserAgent, HttpMethod: f.HTTPMethod, DnsType: f.DNSType, DnsRcode: f.DNSRcode,
		DnsAnswers: strings.Fields(f.DNSAnswers), Risks: flow.Risk(f.Risks).Names(),
		Tcp:    tcpFacts(f),
		Tunnel: uint32(f.Tunnel.Int64), //nolint:gosec // 32 bits, or 0
	}
}

// name is an enum value in lower case without its prefix; a value that this version does not know is its
// number.
func name(prefix string, v fmt.Stringer) string {
	return strings.ToLower(strings.TrimPrefix(v.String(), prefix))
}

// number is the reverse of name.
func number(prefix, s string, values map[string]int32) int32 {
	if v, ok := values[prefix+strings.ToUpper(s)]; ok {
		return v
	}
	v, err := strconv.ParseInt(s, 10, 32)
	if err != nil {
		return 0
	}
	return int32(v)
}

const (
	attackPrefix      = "ATTACK_STATE_"
	enforcementPrefix = "ENFORCEMENT_STATE_"
	actionPrefix      = "ACTION_"
	outcomePrefix     = "AUDIT_OUTCOME_"
)

// firstTime is the first time that is set.
func firstTime(times ...int64) int64 {
	for _, t := range times {
		if t != 0 {
			return t
		}
	}
	return 0
}

func attackRow(a *eventv1.Attack) (sqlstore.Attack, error) {
	var s signed
	top := make([]string, 0, len(a.GetTopSources()))
	for _, t := range a.GetTopSources() {
		top = append(top, text(t))
	}
	list, err := json.Marshal(top)
	if err != nil {
		return sqlstore.Attack{}, fmt.Errorf("top sources: %w", err)
	}
	row := sqlstore.Attack{
		ID: text(a.GetId()), Revision: a.GetRevision(),
		TS:   firstTime(a.GetUpdatedNs(), a.GetEndedNs(), a.GetDetectedNs(), a.GetFirstNs()),
		Type: text(a.GetType()), Target: text(a.GetTarget()), State: name(attackPrefix, a.GetState()), Sensor: text(a.GetSensor()),
		FirstNs: a.GetFirstNs(), DetectedNs: a.GetDetectedNs(), UpdatedNs: a.GetUpdatedNs(), EndedNs: a.GetEndedNs(),
		Packets: s.of(a.GetPackets()), Bytes: s.of(a.GetBytes()), PPS: a.GetPps(), BPS: a.GetBps(),
		Sources: s.of(a.GetSources()), TopSources: string(list), TraceID: text(a.GetTraceId()),
	}
	if s.bad {
		return row, errRange
	}
	return row, nil
}

func attackEvent(a *sqlstore.Attack) (*eventv1.Attack, error) {
	var top []string
	if err := json.Unmarshal([]byte(a.TopSources), &top); err != nil {
		return nil, fmt.Errorf("top sources of attack %s: %w", a.ID, err)
	}
	return &eventv1.Attack{
		Id: a.ID, Type: a.Type, Target: a.Target,
		State:  eventv1.AttackState(number(attackPrefix, a.State, eventv1.AttackState_value)),
		Sensor: a.Sensor, FirstNs: a.FirstNs, DetectedNs: a.DetectedNs, UpdatedNs: a.UpdatedNs, EndedNs: a.EndedNs,
		Packets: unsigned(a.Packets), Bytes: unsigned(a.Bytes), Pps: a.PPS, Bps: a.BPS, Sources: unsigned(a.Sources),
		TopSources: top, TraceId: a.TraceID, Revision: a.Revision,
	}, nil
}

func verdictRow(v *eventv1.Verdict) (sqlstore.Verdict, error) {
	rules := make([]json.RawMessage, 0, len(v.GetRules()))
	for _, r := range v.GetRules() {
		j, err := protojson.Marshal(r)
		if err != nil {
			return sqlstore.Verdict{}, fmt.Errorf("rules of the verdict: %w", err)
		}
		rules = append(rules, j)
	}
	list, err := json.Marshal(rules)
	if err != nil {
		return sqlstore.Verdict{}, fmt.Errorf("rules of the verdict: %w", err)
	}
	evidence := []byte("{}")
	if v.GetEvidence() != nil {
		if evidence, err = protojson.Marshal(v.GetEvidence()); err != nil {
			return sqlstore.Verdict{}, fmt.Errorf("evidence of the verdict: %w", err)
		}
	}
	return sqlstore.Verdict{
		TS: v.GetDecidedNs(), ID: text(v.GetId()), AttackID: text(v.GetAttackId()), Type: text(v.GetType()),
		Target: text(v.GetTarget()), Sensor: text(v.GetSensor()), KeyKind: text(v.GetKey()), Explanation: text(v.GetExplanation()),
		Rules: string(list), Evidence: string(evidence), TraceID: text(v.GetTraceId()), Traceparent: text(v.GetTraceparent()),
	}, nil
}

func verdictEvent(v *sqlstore.Verdict) (*eventv1.Verdict, error) {
	out := &eventv1.Verdict{
		Id: v.ID, AttackId: v.AttackID, Type: v.Type, Target: v.Target, Sensor: v.Sensor, DecidedNs: v.TS, Key: v.KeyKind,
		Explanation: v.Explanation, TraceId: v.TraceID, Traceparent: v.Traceparent, Evidence: &eventv1.Evidence{},
	}
	read := protojson.UnmarshalOptions{DiscardUnknown: true} // rows of a newer version
	var rules []json.RawMessage
	if err := json.Unmarshal([]byte(v.Rules), &rules); err != nil {
		return nil, fmt.Errorf("rules of verdict %s: %w", v.ID, err)
	}
	for _, j := range rules {
		r := &policyv1.Rule{}
		if err := read.Unmarshal(j, r); err != nil {
			return nil, fmt.Errorf("rules of verdict %s: %w", v.ID, err)
		}
		out.Rules = append(out.Rules, r)
	}
	if err := read.Unmarshal([]byte(v.Evidence), out.Evidence); err != nil {
		return nil, fmt.Errorf("evidence of verdict %s: %w", v.ID, err)
	}
	if proto.Size(out.Evidence) == 0 {
		out.Evidence = nil
	}
	return out, nil
}

func enforcementRow(e *eventv1.Enforcement) (sqlstore.Enforcement, error) {
	var s signed
	row := sqlstore.Enforcement{
		TS: e.GetTimeNs(), ID: text(e.GetId()), Node: text(e.GetNode()), RuleID: text(e.GetRuleId()), AttackID: text(e.GetAttackId()),
		State: name(enforcementPrefix, e.GetState()), Reason: text(e.GetReason()), Detail: text(e.GetDetail()),
		ApplyNs: e.GetApplyNs(), FirstDropNs: e.GetFirstDropNs(), TimeToFirstDropNs: e.GetTimeToFirstDropNs(),
		Packets: s.of(e.GetPackets()), Bytes: s.of(e.GetBytes()), Shadow: e.GetShadow(),
		Action: name(actionPrefix, e.GetAction()), TraceID: text(e.GetTraceId()),
	}
	if s.bad {
		return row, errRange
	}
	return row, nil
}

func enforcementEvent(e *sqlstore.Enforcement) *eventv1.Enforcement {
	return &eventv1.Enforcement{
		Id: e.ID, Node: e.Node, RuleId: e.RuleID, AttackId: e.AttackID,
		State:  eventv1.EnforcementState(number(enforcementPrefix, e.State, eventv1.EnforcementState_value)),
		Reason: e.Reason, Detail: e.Detail, TimeNs: e.TS, ApplyNs: e.ApplyNs, FirstDropNs: e.FirstDropNs,
		TimeToFirstDropNs: e.TimeToFirstDropNs, Packets: unsigned(e.Packets), Bytes: unsigned(e.Bytes), Shadow: e.Shadow,
		Action: policyv1.Action(number(actionPrefix, e.Action, policyv1.Action_value)), TraceId: e.TraceID,
	}
}

// auditRow cannot fail on what the user sent: what was done goes on record.
func auditRow(a *eventv1.Audit) (sqlstore.Audit, error) {
	before, err := object(a.GetBefore())
	if err != nil {
		return sqlstore.Audit{}, fmt.Errorf("object before the change: %w", err)
	}
	after, err := object(a.GetAfter())
	if err != nil {
		return sqlstore.Audit{}, fmt.Errorf("object after the change: %w", err)
	}
	return sqlstore.Audit{
		TS: a.GetTimeNs(), ID: text(a.GetId()), Revision: a.GetRevision(), Actor: text(a.GetActor()), Role: text(a.GetRole()),
		Remote: text(a.GetRemote()), Action: text(a.GetAction()), Target: text(a.GetTarget()),
		Outcome: name(outcomePrefix, a.GetOutcome()), Before: before, After: after, Detail: text(a.GetDetail()),
		RequestID: text(a.GetRequestId()), TraceID: text(a.GetTraceId()), Gateway: text(a.GetGateway()),
	}, nil
}

// object makes JSON a column; what is no JSON is kept as a JSON string.
func object(s string) (sql.NullString, error) {
	if s == "" || json.Valid([]byte(s)) {
		return sql.NullString{String: s, Valid: s != ""}, nil
	}
	b, err := json.Marshal(s)
	return sql.NullString{String: string(b), Valid: true}, err
}

func auditEvent(a *sqlstore.Audit) *eventv1.Audit {
	return &eventv1.Audit{
		Id: a.ID, Revision: a.Revision, TimeNs: a.TS, Actor: a.Actor, Role: a.Role, Remote: a.Remote, Action: a.Action,
		Target:  a.Target,
		Outcome: eventv1.AuditOutcome(number(outcomePrefix, a.Outcome, eventv1.AuditOutcome_value)),
		Before:  a.Before.String, After: a.After.String, Detail: a.Detail, RequestId: a.RequestID, TraceId: a.TraceID,
		Gateway: a.Gateway,
	}
}
