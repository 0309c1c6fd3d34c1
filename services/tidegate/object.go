package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	enforcev1 "github.com/tidegate-mesh/tidegate/proto/enforce/v1"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// The JSON objects that commands print; their field names are part of the contract.

type flowObject struct {
	Kind       string   `json:"kind"`
	Pcap       string   `json:"pcap,omitempty"`
	SrcIP      string   `json:"src_ip"`
	SrcPort    uint32   `json:"src_port"`
	DstIP      string   `json:"dst_ip"`
	DstPort    uint32   `json:"dst_port"`
	Transport  string   `json:"transport"`
	VLAN       uint32   `json:"vlan"`
	App        string   `json:"app"`
	Host       string   `json:"host,omitempty"`
	ALPN       string   `json:"alpn,omitempty"`
	JA3        string   `json:"ja3,omitempty"`
	JA4        string   `json:"ja4,omitempty"`
	HASSH      string   `json:"hassh,omitempty"`
	Confidence string   `json:"confidence,omitempty"`
	Risks      []string `json:"risks,omitempty"`
	Packets    uint64   `json:"packets"`
	Bytes      uint64   `json:"bytes"`
	FirstNs    int64    `json:"first_ns"`
	LastNs     int64    `json:"last_ns"`
}

func newFlowObject(r *eventv1.FlowRecord, pcap string) flowObject {
	app := r.App
	if app == "" {
		app = "unknown"
	}
	return flowObject{
		Kind: "flow", Pcap: pcap, SrcIP: flow.AddrBytes(r.SrcIp).String(), SrcPort: r.SrcPort,
		DstIP: flow.AddrBytes(r.DstIp).String(), DstPort: r.DstPort, Transport: flow.ProtocolName(uint8(r.Protocol)),
		VLAN: r.Vlan, App: app, Host: r.Host, ALPN: r.Alpn,
		JA3: r.Ja3, JA4: r.Ja4, HASSH: r.Hassh, Confidence: r.Confidence, Risks: r.Risks, Packets: r.PacketsFwd + r.PacketsRev,
		Bytes: r.BytesFwd + r.BytesRev, FirstNs: r.FirstNs, LastNs: r.LastNs,
	}
}

type attackObject struct {
	Kind       string         `json:"kind"`
	Pcap       string         `json:"pcap,omitempty"`
	ID         string         `json:"id,omitempty"`
	Type       string         `json:"type"`
	Target     string         `json:"target"`
	State      string         `json:"state,omitempty"`
	Sources    uint64         `json:"sources"`
	FirstNs    int64          `json:"first_ns"`
	DetectedNs int64          `json:"detected_ns"`
	EndedNs    int64          `json:"ended_ns,omitempty"`
	PPS        float64        `json:"pps,omitempty"`
	BPS        float64        `json:"bps,omitempty"`
	TopSources []string       `json:"top_sources,omitempty"`
	TraceID    string         `json:"trace_id,omitempty"`
	Evidence   map[string]any `json:"evidence,omitempty"`
}

func newAttackObject(a *eventv1.Attack) attackObject {
	return attackObject{
		Kind: "attack", ID: a.Id, Type: a.Type, Target: a.Target, State: enumName(a.State.String(), "ATTACK_STATE_"),
		Sources: a.Sources, FirstNs: a.FirstNs, DetectedNs: a.DetectedNs, EndedNs: a.EndedNs, PPS: a.Pps, BPS: a.Bps,
		TopSources: a.TopSources, TraceID: a.TraceId,
	}
}

func evidenceObject(v *eventv1.Verdict) map[string]any {
	e := v.GetEvidence()
	out := map[string]any{"features": e.GetFeatures(), "thresholds": e.GetThresholds(), "windows": e.GetWindows()}
	if v.GetExplanation() != "" {
		out["explanation"] = v.GetExplanation()
	}
	var rules []string
	for _, p := range v.GetRules() {
		if r, err := policy.FromProto(p); err == nil {
			rules = append(rules, r.Action.String()+" "+r.Match.String())
		}
	}
	if len(rules) > 0 {
		out["key"], out["rules"] = v.GetKey(), rules
		out["attack_share"], out["good_share"] = e.GetAttackShare(), e.GetGoodShare()
	}
	return out
}

type ruleObject struct {
	ID          string `json:"id"`
	Action      string `json:"action"`
	Match       string `json:"match"`
	State       string `json:"state"`
	Reason      string `json:"reason,omitempty"`
	Origin      string `json:"origin"`
	AttackID    string `json:"attack_id,omitempty"`
	Comment     string `json:"comment,omitempty"`
	RatePPS     uint64 `json:"rate_pps,omitempty"`
	RateBPS     uint64 `json:"rate_bps,omitempty"`
	Packets     uint64 `json:"packets"`
	Bytes       uint64 `json:"bytes"`
	CreatedNs   int64  `json:"created_ns"`
	ExpiresNs   int64  `json:"expires_ns,omitempty"`
	FirstDropNs int64  `json:"first_drop_ns,omitempty"`
}

func newRuleObject(s *enforcev1.RuleState) ruleObject {
	p := s.GetRule()
	o := ruleObject{
		ID: p.GetId(), State: s.State, Reason: s.Reason, Origin: p.GetOrigin(), AttackID: p.GetAttackId(), Comment: p.GetComment(),
		RatePPS: p.GetRatePps(), RateBPS: p.GetRateBps(), Packets: s.Packets, Bytes: s.Bytes,
		CreatedNs: p.GetCreatedNs(), ExpiresNs: p.GetExpiresNs(), FirstDropNs: s.FirstDropNs,
		Action: policy.Action(p.GetAction()).String(),
	}
	if r, err := policy.FromProto(p); err == nil {
		o.Match = r.Match.String()
	}
	return o
}

func enumName(s, prefix string) string { return strings.ToLower(strings.TrimPrefix(s, prefix)) }

// printJSON writes one object a line.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func clock(ns int64) string {
	if ns == 0 {
		return "-"
	}
	return time.Unix(0, ns).Format("15:04:05.000")
}

// quantity writes a number with a decimal unit: 1.2k, 3.4M.
func quantity(v float64) string {
	for _, u := range []struct {
		at   float64
		name string
	}{{1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if v >= u.at {
			return strconv.FormatFloat(v/u.at, 'f', 1, 64) + u.name
		}
	}
	return strconv.FormatFloat(v, 'f', 0, 64)
}

func addrPort(ip string, port uint32) string {
	a, err := netip.ParseAddr(ip)
	if err != nil || port == 0 {
		return ip
	}
	return netip.AddrPortFrom(a, uint16(port)).String()
}

func parseProtocol(proto string) (uint8, bool, error) {
	switch strings.ToLower(proto) {
	case "":
		return 0, false, nil
	case "tcp":
		return 6, true, nil
	case "udp":
		return 17, true, nil
	case "icmp":
		return 1, true, nil
	case "icmpv6":
		return 58, true, nil
	case "sctp":
		return 132, true, nil
	case "gre":
		return 47, true, nil
	}
	n, err := strconv.ParseUint(proto, 10, 8)
	if err != nil {
		return 0, false, fmt.Errorf("--proto %q: use tcp, udp, icmp, icmpv6, sctp, gre or a number up to 255", proto)
	}
	return uint8(n), true, nil
}
