package main

import (
	"strings"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	enforcev1 "github.com/tidegate-mesh/tidegate/proto/enforce/v1"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// The JSON objects of tidegate replay; their field names are part of the contract. Commands that ask a gateway print
// the objects of libs/api.

type flowObject struct {
	Kind       string   `json:"kind"`
	Pcap       string   `json:"pcap,omitempty"`
	SrcIP      string   `json:"src_ip"`
	SrcPort    uint32   `json:"src_port"`
	DstIP      string   `json:"dst_ip"`
	DstPort    uint32   `json:"dst_port"`
	Transport  string   `json:"transport"`
	VLAN       uint32   `json:"vlan"`
	Tunnel     uint32   `json:"tunnel,omitempty"`
	App        string   `json:"app"`
	Host       string   `json:"host,omitempty"`
	HostSource string   `json:"host_source,omitempty"`
	ALPN       string   `json:"alpn,omitempty"`
	JA3        string   `json:"ja3,omitempty"`
	JA4        string   `json:"ja4,omitempty"`
	HASSH      string   `json:"hassh,omitempty"`
	TLSVersion string   `json:"tls_version,omitempty"`
	UserAgent  string   `json:"user_agent,omitempty"`
	HTTPMethod string   `json:"http_method,omitempty"`
	DNSType    string   `json:"dns_type,omitempty"`
	DNSRcode   string   `json:"dns_rcode,omitempty"`
	DNSAnswers []string `json:"dns_answers,omitempty"`
	Confidence string   `json:"confidence,omitempty"`
	Risks      []string `json:"risks,omitempty"`
	Packets    uint64   `json:"packets"`
	Bytes      uint64   `json:"bytes"`
	FirstNs    int64    `json:"first_ns"`
	LastNs     int64    `json:"last_ns"`

	TCP *api.TCPFacts `json:"tcp,omitempty"`
}

func newFlowObject(r *eventv1.FlowRecord, pcap string) flowObject {
	app := r.App
	if app == "" {
		app = "unknown"
	}
	return flowObject{
		Kind: "flow", Pcap: pcap, SrcIP: flow.AddrBytes(r.SrcIp).String(), SrcPort: r.SrcPort,
		DstIP: flow.AddrBytes(r.DstIp).String(), DstPort: r.DstPort, Transport: flow.ProtocolName(uint8(r.Protocol)),
		VLAN: r.Vlan, Tunnel: r.Tunnel, App: app, Host: r.Host, HostSource: r.HostSource, ALPN: r.Alpn,
		JA3: r.Ja3, JA4: r.Ja4, HASSH: r.Hassh, TLSVersion: r.TlsVersion, UserAgent: r.UserAgent, HTTPMethod: r.HttpMethod,
		DNSType: r.DnsType, DNSRcode: r.DnsRcode, DNSAnswers: r.DnsAnswers, Confidence: r.Confidence, Risks: r.Risks, Packets: r.PacketsFwd + r.PacketsRev,
		Bytes: r.BytesFwd + r.BytesRev, FirstNs: r.FirstNs, LastNs: r.LastNs,
		TCP: api.NewTCPFacts(r.GetTcp()),
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

// ruleObject is a rule as the demo shows it.
type ruleObject struct {
	Action, Match, State string
	Packets              uint64
}

func newRuleObject(s *enforcev1.RuleState) ruleObject {
	o := ruleObject{Action: policy.Action(s.GetRule().GetAction()).String(), State: s.State, Packets: s.Packets}
	if r, err := policy.FromProto(s.GetRule()); err == nil {
		o.Match = r.Match.String()
	}
	return o
}

func enumName(s, prefix string) string { return strings.ToLower(strings.TrimPrefix(s, prefix)) }
