package policy

import (
	"fmt"
	"net/netip"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
)

// ToProto converts a rule for the wire.
func ToProto(r *Rule) *policyv1.Rule {
	m := &policyv1.Match{
		TcpFlags: uint32(r.Match.TCPFlags), TcpFlagsMask: uint32(r.Match.TCPFlagsMask),
		LengthMin: uint32(r.Match.LengthMin), LengthMax: uint32(r.Match.LengthMax),
		TtlMin: uint32(r.Match.TTLMin), TtlMax: uint32(r.Match.TTLMax), OutOfState: r.Match.OutOfState,
	}
	if r.Match.Src.IsValid() {
		m.Src = r.Match.Src.String()
	}
	if r.Match.Dst.IsValid() {
		m.Dst = r.Match.Dst.String()
	}
	if r.Match.HasProtocol {
		v := uint32(r.Match.Protocol)
		m.Protocol = &v
	}
	if r.Match.HasSrcPort {
		v := uint32(r.Match.SrcPort)
		m.SrcPort = &v
	}
	if r.Match.HasDstPort {
		v := uint32(r.Match.DstPort)
		m.DstPort = &v
	}
	if r.Match.Fragment != AnyFragment {
		v := r.Match.Fragment == FragmentsOnly
		m.Fragment = &v
	}
	m.Host = r.Match.Host
	scope := ""
	if r.Scope != (Scope{}) {
		scope = r.Scope.String()
	}
	return &policyv1.Rule{
		Scope: scope, Shadow: r.Shadow, EscalateAfterNs: int64(r.EscalateAfter), Escalated: r.Escalated, Repeat: r.Repeat, GoodShare: r.GoodShare,
		Changed: r.Changed,
		Id:      r.ID, Action: policyv1.Action(r.Action), Match: m, RatePps: r.RatePPS, RateBps: r.RateBPS, PerSource: r.PerSource, SynRetry: r.SYNRetry,
		Priority: r.Priority, Origin: r.Origin, AttackId: r.AttackID, VerdictId: r.VerdictID, Comment: r.Comment,
		CreatedNs: unixNs(r.Created), ExpiresNs: unixNs(r.Expires), LeaseNs: int64(r.Lease),
		AttackFirstNs: r.AttackFirstNs, Traceparent: r.Traceparent,
		Host: r.Host, List: r.List, HostRule: r.HostRule,
	}
}

// FromProto converts a rule from the wire and validates it.
func FromProto(p *policyv1.Rule) (Rule, error) {
	r := Rule{
		ID: p.GetId(), Action: Action(p.GetAction()), RatePPS: p.GetRatePps(), RateBPS: p.GetRateBps(), PerSource: p.GetPerSource(), SYNRetry: p.GetSynRetry(), //nolint:gosec // validated below
		Priority: p.GetPriority(), Origin: p.GetOrigin(), AttackID: p.GetAttackId(), VerdictID: p.GetVerdictId(),
		Comment: p.GetComment(), Created: timeOf(p.GetCreatedNs()), Expires: timeOf(p.GetExpiresNs()),
		Lease: time.Duration(p.GetLeaseNs()), AttackFirstNs: p.GetAttackFirstNs(), Traceparent: p.GetTraceparent(),
		Host: p.GetHost(), List: p.GetList(), HostRule: p.GetHostRule(),
		Shadow: p.GetShadow(), EscalateAfter: time.Duration(p.GetEscalateAfterNs()), Escalated: p.GetEscalated(), Repeat: p.GetRepeat(),
		GoodShare: p.GetGoodShare(), Changed: p.GetChanged(),
	}
	m := p.GetMatch()
	fail := func(field string, err error) (Rule, error) {
		return Rule{}, fmt.Errorf("rule %s: %s: %w", r.ID, field, err)
	}
	var err error
	if r.Scope, err = ParseScope(p.GetScope()); err != nil {
		return fail("scope", err)
	}
	if r.Match.Src, err = parsePrefix(m.GetSrc()); err != nil {
		return fail("source", err)
	}
	if r.Match.Dst, err = parsePrefix(m.GetDst()); err != nil {
		return fail("destination", err)
	}
	small := func(field string, v, limit uint32) uint32 {
		if v > limit && err == nil {
			err = fmt.Errorf("rule %s: %s: %d is above %d", r.ID, field, v, limit)
		}
		return v
	}
	r.Match.Host = m.GetHost()
	r.Match.HasProtocol = m != nil && m.Protocol != nil
	r.Match.Protocol = uint8(small("protocol", m.GetProtocol(), 255)) //nolint:gosec // bounded
	r.Match.HasSrcPort = m != nil && m.SrcPort != nil
	r.Match.HasDstPort = m != nil && m.DstPort != nil
	r.Match.SrcPort = uint16(small("source port", m.GetSrcPort(), 65535))      //nolint:gosec // bounded
	r.Match.DstPort = uint16(small("destination port", m.GetDstPort(), 65535)) //nolint:gosec // bounded
	r.Match.TCPFlags = uint8(small("tcp flags", m.GetTcpFlags(), 255))         //nolint:gosec // bounded
	r.Match.TCPFlagsMask = uint8(small("tcp flags", m.GetTcpFlagsMask(), 255)) //nolint:gosec // bounded
	r.Match.LengthMin = uint16(small("length", m.GetLengthMin(), 65535))       //nolint:gosec // bounded
	r.Match.LengthMax = uint16(small("length", m.GetLengthMax(), 65535))       //nolint:gosec // bounded
	r.Match.TTLMin = uint8(small("ttl", m.GetTtlMin(), 255))                   //nolint:gosec // bounded
	r.Match.TTLMax = uint8(small("ttl", m.GetTtlMax(), 255))                   //nolint:gosec // bounded
	r.Match.OutOfState = m.GetOutOfState()
	if m != nil && m.Fragment != nil {
		r.Match.Fragment = WholeOnly
		if *m.Fragment {
			r.Match.Fragment = FragmentsOnly
		}
	}
	if err != nil {
		return Rule{}, err
	}
	return r, r.Validate()
}

// Marshal writes a rule as the JSON value of its key in tg_rules.
func Marshal(r *Rule) ([]byte, error) {
	b, err := protojson.Marshal(ToProto(r))
	if err != nil {
		return nil, fmt.Errorf("encode rule %s: %w", r.ID, err)
	}
	return b, nil
}

// Unmarshal reads what Marshal writes; fields of later versions are ignored.
func Unmarshal(b []byte) (Rule, error) {
	var p policyv1.Rule
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, &p); err != nil {
		return Rule{}, fmt.Errorf("decode rule: %w", err)
	}
	return FromProto(&p)
}

// ParsePrefix reads a CIDR prefix or a single address; host bits are cleared. What is IPv4's in IPv6's notation
// (::ffff:a.b.c.d) becomes IPv4's: guardrails count bits.
func ParsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is neither an address nor a prefix in CIDR notation", s)
	}
	return unmapped(p), nil
}

func unmapped(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

func parsePrefix(s string) (netip.Prefix, error) {
	if s == "" {
		return netip.Prefix{}, nil
	}
	return ParsePrefix(s)
}

func unixNs(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func timeOf(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}
