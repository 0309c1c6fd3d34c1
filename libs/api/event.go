package api

import (
	"encoding/json"
	"strconv"
	"strings"

	"github.com/tidegate-mesh/tidegate/libs/policy"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
)

// EnumName is a value of a protobuf enumeration as REST names it: ATTACK_STATE_STARTED is started, the unspecified
// value is empty.
func EnumName(s, prefix string) string {
	s = strings.ToLower(strings.TrimPrefix(s, prefix))
	if s == "unspecified" {
		return ""
	}
	return s
}

// ActionName is an action as users write it: rate-limit; empty for none.
func ActionName(a policyv1.Action) string {
	return strings.ReplaceAll(EnumName(a.String(), "ACTION_"), "_", "-")
}

func notNil[V any](m map[string]V) map[string]V {
	if m == nil {
		return map[string]V{}
	}
	return m
}

// NewAttack makes the object of REST, of the event stream and of hooks. The first drop is not part of the event.
func NewAttack(a *eventv1.Attack) Attack {
	return Attack{
		ID: a.GetId(), Type: a.GetType(), Target: a.GetTarget(), State: EnumName(a.GetState().String(), "ATTACK_STATE_"), Sensor: a.GetSensor(),
		FirstNs: Nanos(a.GetFirstNs()), DetectedNs: Nanos(a.GetDetectedNs()), UpdatedNs: Nanos(a.GetUpdatedNs()),
		EndedNs: Nanos(a.GetEndedNs()), Packets: a.GetPackets(), Bytes: a.GetBytes(), PPS: a.GetPps(), BPS: a.GetBps(),
		Sources: a.GetSources(), TopSources: a.GetTopSources(), TraceID: a.GetTraceId(),
	}
}

// NewVerdict makes the object of REST, of the event stream and of hooks.
func NewVerdict(v *eventv1.Verdict) Verdict {
	e := v.GetEvidence()
	rules, windows := make([]RuleSpec, 0, len(v.GetRules())), make([]string, 0, len(e.GetWindows()))
	for _, r := range v.GetRules() {
		rules = append(rules, RuleSpecOf(r))
	}
	for _, n := range e.GetWindows() {
		windows = append(windows, strconv.FormatUint(n, 10))
	}
	return Verdict{
		ID: v.GetId(), AttackID: v.GetAttackId(), Type: v.GetType(), Target: v.GetTarget(), Sensor: v.GetSensor(),
		DecidedNs: Nanos(v.GetDecidedNs()), Key: v.GetKey(), Explanation: v.GetExplanation(), Rules: rules,
		Evidence: Evidence{
			Features: notNil(e.GetFeatures()), Thresholds: notNil(e.GetThresholds()), ConfigVersion: e.GetConfigVersion(),
			Windows:     windows,
			AttackShare: e.GetAttackShare(), GoodShare: e.GetGoodShare(), Samples: len(e.GetSamples()),
			Host: e.GetHost(), List: e.GetList(), HostRule: e.GetHostRule(), Entry: e.GetEntry(),
		},
		TraceID: v.GetTraceId(),
	}
}

// RuleSpecOf writes a rule of the wire as REST shows it, also a rule of a later version, whose match this one cannot read.
func RuleSpecOf(p *policyv1.Rule) RuleSpec {
	r, err := policy.FromProto(p)
	if err == nil {
		return NewRuleSpec(&r)
	}
	return RuleSpec{
		ID: p.GetId(), Action: ActionName(p.GetAction()), MatchText: "not readable by this version",
		RatePPS: p.GetRatePps(), RateBPS: p.GetRateBps(), PerSource: p.GetPerSource(), SYNRetry: p.GetSynRetry(), Scope: p.GetScope(), Shadow: p.GetShadow(), Priority: p.GetPriority(), Origin: p.GetOrigin(), AttackID: p.GetAttackId(),
		VerdictID: p.GetVerdictId(), Comment: p.GetComment(), CreatedNs: Nanos(p.GetCreatedNs()), ExpiresNs: Nanos(p.GetExpiresNs()),
	}
}

// NewAuditEntry makes the object of REST and of hooks.
func NewAuditEntry(a *eventv1.Audit) AuditEntry {
	return AuditEntry{
		ID: a.GetId(), TimeNs: Nanos(a.GetTimeNs()), Actor: a.GetActor(), Role: a.GetRole(), Remote: a.GetRemote(), Action: a.GetAction(),
		Target: a.GetTarget(), Outcome: EnumName(a.GetOutcome().String(), "AUDIT_OUTCOME_"), Before: document(a.GetBefore()), After: document(a.GetAfter()),
		Detail: a.GetDetail(), RequestID: a.GetRequestId(), TraceID: a.GetTraceId(), Gateway: a.GetGateway(),
	}
}

// document is stored JSON as it is; nil when there is none, and a text when it is damaged.
func document(s string) any {
	switch {
	case s == "":
		return nil
	case json.Valid([]byte(s)):
		return json.RawMessage(s)
	}
	return s
}
