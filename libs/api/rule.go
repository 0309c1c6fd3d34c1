package api

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/policy"
)

// DefaultFor is how long a rule lives whose RuleInput does not say.
const DefaultFor = time.Hour

// MaxFor bounds RuleInput.For: longer than that is "until revoked".
const MaxFor = 10 * 365 * 24 * time.Hour

// Rule reads the input as a rule that begins now, without an id: enforce derives it from what the rule does. The
// error is a Problem with status 422 that names every field that is wrong, as a location of the body.
func (in *RuleInput) Rule(now time.Time) (policy.Rule, error) {
	r := policy.Rule{Origin: policy.OriginUser, Comment: in.Comment, Priority: in.Priority, RatePPS: in.RatePPS, RateBPS: in.RateBPS, PerSource: in.PerSource, Shadow: in.Shadow, Created: now}
	var wrong []ProblemDetail
	check := func(location string, value any, err error) {
		if err != nil {
			wrong = append(wrong, ProblemDetail{Message: err.Error(), Location: location, Value: value})
		}
	}
	var err error
	r.Action, err = policy.ParseAction(in.Action)
	check("body.action", in.Action, err)
	in.Match.read(&r.Match, check)
	r.Scope, err = policy.ParseScope(in.Scope)
	check("body.scope", in.Scope, err)
	if in.Escalate != "" {
		if r.EscalateAfter, err = time.ParseDuration(in.Escalate); err != nil || r.EscalateAfter < time.Second {
			check("body.escalate_after", in.Escalate, fmt.Errorf("%q: give a duration of at least 1s, such as 30s", in.Escalate))
		}
	}
	life := DefaultFor
	if in.For != "" {
		if life, err = time.ParseDuration(in.For); err != nil || life < 0 || life > MaxFor {
			check("body.for", in.For, fmt.Errorf("%q: give a duration such as 10m or 1h30m, or 0 for until revoked", in.For))
		}
	}
	if life > 0 {
		r.Expires = now.Add(life)
	}
	if len(wrong) == 0 {
		named := r
		named.ID = "new" // enforce derives the real one
		err := named.Validate()
		if err != nil {
			err = errors.New(strings.TrimPrefix(err.Error(), "rule "+named.ID+": "))
		}
		check("body", nil, err)
	}
	if len(wrong) > 0 {
		return policy.Rule{}, &Problem{
			Title: http.StatusText(http.StatusUnprocessableEntity), Status: http.StatusUnprocessableEntity,
			Detail: "the rule cannot be applied as it is", Errors: wrong,
		}
	}
	return r, nil
}

// read fills a match field by field and reports each that cannot be read.
func (m *Match) read(out *policy.Match, check func(location string, value any, err error)) {
	out.OutOfState = m.OutOfState
	var err error
	if m.Host != "" {
		out.Host, err = policy.ParseDomain(m.Host)
		check("body.match.host", m.Host, err)
	}
	if m.Src != "" {
		out.Src, err = policy.ParsePrefix(m.Src)
		check("body.match.src", m.Src, err)
	}
	if m.Dst != "" {
		out.Dst, err = policy.ParsePrefix(m.Dst)
		check("body.match.dst", m.Dst, err)
	}
	if m.Proto != "" {
		out.Protocol, err = policy.ParseProtocol(m.Proto)
		out.HasProtocol = err == nil
		check("body.match.proto", m.Proto, err)
	}
	if m.SrcPort != nil {
		out.SrcPort, out.HasSrcPort = *m.SrcPort, true
	}
	if m.DstPort != nil {
		out.DstPort, out.HasDstPort = *m.DstPort, true
	}
	if m.TCPFlags != "" {
		out.TCPFlags, out.TCPFlagsMask, err = policy.ParseFlags(m.TCPFlags)
		check("body.match.tcp_flags", m.TCPFlags, err)
	}
	if m.Length != "" {
		out.LengthMin, out.LengthMax, err = policy.ParseRange(m.Length, 65535)
		check("body.match.length", m.Length, err)
	}
	if m.TTL != "" {
		var low, high uint16
		low, high, err = policy.ParseRange(m.TTL, 255)
		out.TTLMin, out.TTLMax = uint8(low), uint8(high) //nolint:gosec // ParseRange bounds them
		check("body.match.ttl", m.TTL, err)
	}
	if m.Fragment != nil {
		out.Fragment = policy.WholeOnly
		if *m.Fragment {
			out.Fragment = policy.FragmentsOnly
		}
	}
}

// NewMatch writes a match so that RuleInput.Rule reads the same one back.
func NewMatch(p *policy.Match) Match {
	m := Match{Host: p.Host, OutOfState: p.OutOfState}
	if p.Src.IsValid() {
		m.Src = p.Src.String()
	}
	if p.Dst.IsValid() {
		m.Dst = p.Dst.String()
	}
	if p.HasProtocol {
		m.Proto = protocolName(p.Protocol)
	}
	if p.HasSrcPort {
		v := p.SrcPort
		m.SrcPort = &v
	}
	if p.HasDstPort {
		v := p.DstPort
		m.DstPort = &v
	}
	if p.TCPFlagsMask != 0 {
		m.TCPFlags = policy.FlagString(p.TCPFlags) + "/" + policy.FlagString(p.TCPFlagsMask)
	}
	m.Length = rangeText(p.LengthMin, p.LengthMax, 65535)
	m.TTL = rangeText(uint16(p.TTLMin), uint16(p.TTLMax), 255)
	if p.Fragment != policy.AnyFragment {
		v := p.Fragment == policy.FragmentsOnly
		m.Fragment = &v
	}
	return m
}

// NewRuleSpec writes a rule as REST shows it.
func NewRuleSpec(r *policy.Rule) RuleSpec {
	s := RuleSpec{
		ID: r.ID, Action: r.Action.String(), Match: NewMatch(&r.Match), MatchText: r.Match.String(), RatePPS: r.RatePPS, RateBPS: r.RateBPS,
		PerSource: r.PerSource, SYNRetry: r.SYNRetry, Priority: r.Priority, Origin: r.Origin, AttackID: r.AttackID, VerdictID: r.VerdictID, Comment: r.Comment,
		Host: r.Host, List: r.List, HostRule: r.HostRule, Shadow: r.Shadow, Escalated: r.Escalated, Repeat: r.Repeat, Changed: r.Changed,
	}
	if r.Scope != (policy.Scope{}) {
		s.Scope = r.Scope.String()
	}
	if r.EscalateAfter > 0 {
		s.Escalate = r.EscalateAfter.String()
	}
	if !r.Created.IsZero() {
		s.CreatedNs = Nanos(r.Created.UnixNano())
	}
	if !r.Expires.IsZero() {
		s.ExpiresNs = Nanos(r.Expires.UnixNano())
	}
	if r.Lease > 0 {
		s.Lease = r.Lease.String()
	}
	return s
}

func protocolName(p uint8) string {
	for _, name := range []string{"tcp", "udp", "icmp", "icmpv6", "sctp", "gre"} {
		if n, err := policy.ParseProtocol(name); err == nil && n == p {
			return name
		}
	}
	return strconv.Itoa(int(p))
}

// rangeText leaves out a range without bounds; without an upper bound it is the field's largest value.
func rangeText(low, high, limit uint16) string {
	if low == 0 && high == 0 {
		return ""
	}
	if high == 0 {
		high = limit
	}
	return fmt.Sprintf("%d-%d", low, high)
}
