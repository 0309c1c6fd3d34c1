package hook

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/bus"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// event is one event as webhooks and scripts get it.
type event struct {
	id, kind string
	body     []byte // envelope as JSON
}

// envelope is the JSON of an event. The names are part of the contract (docs/hooks.md).
type envelope struct {
	ID        string    `json:"id"`
	Type      string    `json:"type"`
	Timestamp time.Time `json:"timestamp"`
	Sequence  uint64    `json:"sequence"`
	Source    string    `json:"source"`
	Data      any       `json:"data"`
}

// ruleChange is the data of rule events: what a node did with a rule.
type ruleChange struct {
	RuleID            string        `json:"rule_id"`
	AttackID          string        `json:"attack_id,omitempty"`
	Node              string        `json:"node"`
	State             string        `json:"state"`
	By                string        `json:"by,omitempty"`
	Reason            string        `json:"reason,omitempty"`
	Detail            string        `json:"detail,omitempty"`
	Action            string        `json:"action,omitempty"`
	Shadow            bool          `json:"shadow"`
	Packets           uint64        `json:"packets"`
	Bytes             uint64        `json:"bytes"`
	Dropped           uint64        `json:"dropped"`
	ApplyNs           api.Nanos     `json:"apply_ns,omitempty"`
	FirstDropNs       api.Nanos     `json:"first_drop_ns,omitempty"`
	TimeToFirstDropNs api.Nanos     `json:"time_to_first_drop_ns,omitempty"`
	Rule              *api.RuleSpec `json:"rule,omitempty"`
	Before            *api.RuleSpec `json:"before,omitempty"`
	TraceID           string        `json:"trace_id,omitempty"`
}

// typeOf names an event, for example attack.started; empty for one that this version does not know.
func typeOf(m *bus.EventMsg) string {
	join := func(group, state string) string {
		if state == "" {
			return ""
		}
		return group + "." + state
	}
	switch {
	case m.Attack != nil:
		return join("attack", api.EnumName(m.Attack.GetState().String(), "ATTACK_STATE_"))
	case m.Verdict != nil:
		return "verdict.made"
	case m.Enforcement != nil:
		return join("rule", api.EnumName(m.Enforcement.GetState().String(), "ENFORCEMENT_STATE_"))
	case m.Audit != nil:
		return join("audit", api.EnumName(m.Audit.GetOutcome().String(), "AUDIT_OUTCOME_"))
	}
	return ""
}

// eventID is short, free of separators, and the same each time the message is delivered.
func eventID(at bus.Place) string {
	sum := sha256.Sum256([]byte(at.ID))
	return "evt_" + hex.EncodeToString(sum[:16])
}

func newEvent(m *bus.EventMsg, at bus.Place) (*event, error) {
	e := envelope{ID: eventID(at), Type: typeOf(m), Sequence: at.Seq}
	var ns int64
	switch {
	case m.Attack != nil:
		a := m.Attack
		ns, e.Source, e.Data = max(a.GetDetectedNs(), a.GetUpdatedNs(), a.GetEndedNs()), a.GetSensor(), api.NewAttack(a)
	case m.Verdict != nil:
		ns, e.Source, e.Data = m.Verdict.GetDecidedNs(), m.Verdict.GetSensor(), api.NewVerdict(m.Verdict)
	case m.Enforcement != nil:
		ns, e.Source, e.Data = m.Enforcement.GetTimeNs(), m.Enforcement.GetNode(), newRuleChange(m.Enforcement)
	case m.Audit != nil:
		ns, e.Source, e.Data = m.Audit.GetTimeNs(), m.Audit.GetGateway(), api.NewAuditEntry(m.Audit)
	}
	if e.Timestamp = at.Stored.UTC(); ns > 0 {
		e.Timestamp = time.Unix(0, ns).UTC()
	}
	body, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode event %s: %w", at.ID, err)
	}
	return &event{id: e.ID, kind: e.Type, body: body}, nil
}

func newRuleChange(e *eventv1.Enforcement) ruleChange {
	c := ruleChange{
		RuleID: e.GetRuleId(), AttackID: e.GetAttackId(), Node: e.GetNode(), State: api.EnumName(e.GetState().String(), "ENFORCEMENT_STATE_"),
		By: e.GetBy(), Reason: e.GetReason(), Detail: e.GetDetail(), Shadow: e.GetShadow(),
		Action:  api.ActionName(e.GetAction()),
		Packets: e.GetPackets(), Bytes: e.GetBytes(), Dropped: e.GetDropped(), ApplyNs: api.Nanos(e.GetApplyNs()),
		FirstDropNs: api.Nanos(e.GetFirstDropNs()), TimeToFirstDropNs: api.Nanos(e.GetTimeToFirstDropNs()), TraceID: e.GetTraceId(),
	}
	if r := e.GetRule(); r != nil {
		spec := api.RuleSpecOf(r)
		c.Rule = &spec
	}
	if r := e.GetBefore(); r != nil {
		spec := api.RuleSpecOf(r)
		c.Before = &spec
	}
	return c
}
