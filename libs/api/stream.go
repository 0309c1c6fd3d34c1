package api

// The events of /api/v1/stream. Data is one JSON object: Attack, Verdict, EnforcementEvent, WindowSummary, Live or
// StreamGap. Attack, verdict, enforcement and gap events carry an id to resume from.
const (
	EventAttack      = "attack"
	EventVerdict     = "verdict"
	EventEnforcement = "enforcement"
	EventWindow      = "window"
	EventLive        = "live"
	EventGap         = "gap"
	EventExpired     = "expired" // the token's time is over; the stream ends
)

// EnforcementEvent is one thing that an enforce node did with a rule.
type EnforcementEvent struct {
	ID                string `json:"id"`
	Node              string `json:"node"`
	RuleID            string `json:"rule_id"`
	AttackID          string `json:"attack_id,omitempty"`
	State             string `json:"state" enum:"applied,refused,first_drop,hits,renewed,expired,revoked,unchanged,announced,withdrawn"`
	Action            string `json:"action,omitempty" enum:"allow,drop,rate-limit,count"`
	Reason            string `json:"reason,omitempty" doc:"of a refusal"`
	Detail            string `json:"detail,omitempty"`
	TimeNs            Nanos  `json:"time_ns"`
	ApplyNs           Nanos  `json:"apply_ns,omitempty" doc:"a duration: from the watcher's delivery to the entry in the map"`
	FirstDropNs       Nanos  `json:"first_drop_ns,omitempty"`
	TimeToFirstDropNs Nanos  `json:"time_to_first_drop_ns,omitempty" doc:"a duration: from the attack's first packet"`
	Packets           uint64 `json:"packets"`
	Bytes             uint64 `json:"bytes"`
	Shadow            bool   `json:"shadow,omitempty" doc:"only counted, not dropped"`
	TraceID           string `json:"trace_id,omitempty"`
}

// WindowSummary is one sensor's traffic of 100 ms.
type WindowSummary struct {
	Sensor      string         `json:"sensor"`
	StartNs     Nanos          `json:"start_ns"`
	EndNs       Nanos          `json:"end_ns"`
	Packets     uint64         `json:"packets"`
	Bytes       uint64         `json:"bytes"`
	TCP         uint64         `json:"tcp"`
	UDP         uint64         `json:"udp"`
	ICMP        uint64         `json:"icmp"`
	SYN         uint64         `json:"syn" doc:"SYN without ACK"`
	Fragments   uint64         `json:"fragments"`
	FlowsOpened uint64         `json:"flows_opened"`
	FlowsActive uint64         `json:"flows_active"`
	TopDst      []WindowTarget `json:"top_destinations" nullable:"false" doc:"hosts, heaviest first, at most 5"`
}

// WindowTarget is one destination's part of a window.
type WindowTarget struct {
	Addr    string `json:"addr"`
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// StreamGap says that events were lost to this client: read attacks and rules again.
type StreamGap struct {
	From      uint64 `json:"from,omitempty" doc:"first id that is gone"`
	To        uint64 `json:"to,omitempty" doc:"last id that is gone"`
	Restarted bool   `json:"restarted,omitempty" doc:"the event stream was made anew; ids begin at 1 again"`
}
