package live

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/flow"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	policyv1 "github.com/tidegate-mesh/tidegate/proto/policy/v1"
)

const (
	windowTargets = 5
	hostBits      = 128 // of a target that is one address
)

func enforcement(e *eventv1.Enforcement) api.EnforcementEvent {
	out := api.EnforcementEvent{
		ID: e.GetId(), Node: e.GetNode(), RuleID: e.GetRuleId(), AttackID: e.GetAttackId(),
		State:  strings.ToLower(strings.TrimPrefix(e.GetState().String(), "ENFORCEMENT_STATE_")),
		Reason: e.GetReason(), Detail: e.GetDetail(), TimeNs: api.Nanos(e.GetTimeNs()), ApplyNs: api.Nanos(e.GetApplyNs()),
		FirstDropNs: api.Nanos(e.GetFirstDropNs()), TimeToFirstDropNs: api.Nanos(e.GetTimeToFirstDropNs()),
		Packets: e.GetPackets(), Bytes: e.GetBytes(), Shadow: e.GetShadow(), TraceID: e.GetTraceId(),
	}
	if a := e.GetAction(); a != policyv1.Action_ACTION_UNSPECIFIED {
		out.Action = strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(a.String(), "ACTION_"), "_", "-"))
	}
	return out
}

func summary(w *flowv1.Window) api.WindowSummary {
	c := w.GetTotal()
	out := api.WindowSummary{
		Sensor: w.GetSensor(), StartNs: api.Nanos(w.GetStartNs()), EndNs: api.Nanos(w.GetEndNs()),
		Packets: c.GetPackets(), Bytes: c.GetBytes(), TCP: c.GetTcp(), UDP: c.GetUdp(), ICMP: c.GetIcmp(),
		SYN: c.GetSyn(), Fragments: c.GetFragments(), FlowsOpened: w.GetFlowsOpened(), FlowsActive: w.GetFlowsActive(),
		TopDst: []api.WindowTarget{},
	}
	for _, t := range w.GetTargets() {
		addr, ok := netip.AddrFromSlice(t.GetAddr())
		if !ok || t.GetPrefixLen() != hostBits {
			continue
		}
		out.TopDst = append(out.TopDst, api.WindowTarget{
			Addr: addr.Unmap().String(), Packets: t.GetCounters().GetPackets(), Bytes: t.GetCounters().GetBytes(),
		})
	}
	if w.GetPart() {
		out.TopDst = out.TopDst[:0]
		for _, t := range w.GetTopDestinations() {
			out.TopDst = append(out.TopDst, api.WindowTarget{Addr: flow.AddrBytes(t.GetAddr()).String(), Packets: t.GetPackets(), Bytes: t.GetBytes()})
		}
	}
	slices.SortStableFunc(out.TopDst, func(a, b api.WindowTarget) int { return cmp.Compare(b.Packets, a.Packets) })
	out.TopDst = out.TopDst[:min(len(out.TopDst), windowTargets)]
	return out
}
