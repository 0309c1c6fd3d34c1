// Package api holds the objects of the REST API as the gateway writes them and clients read them. The JSON names
// are part of the contract. Times are Nanos, counters JSON numbers, rates per second.
package api

import (
	"fmt"
	"strconv"
	"time"

	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
)

// Nanos is a time in Unix nanoseconds. In JSON it is a string of digits: a browser's numbers are exact up to 2^53
// only. 0 stands for "never" and is left out where it may be.
type Nanos int64

// MarshalText writes the digits.
func (n Nanos) MarshalText() ([]byte, error) { return strconv.AppendInt(nil, int64(n), 10), nil }

// UnmarshalText reads them.
func (n *Nanos) UnmarshalText(b []byte) error {
	v, err := strconv.ParseInt(string(b), 10, 64)
	if err != nil {
		return fmt.Errorf("time %q: give Unix nanoseconds as digits", b)
	}
	*n = Nanos(v)
	return nil
}

// Time is the time in UTC; the zero time for 0.
func (n Nanos) Time() time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, int64(n)).UTC()
}

// Page is one page of a listing. Next, when not empty, is the cursor of the following one.
type Page[T any] struct {
	Items []T    `json:"items" nullable:"false"`
	Next  string `json:"next,omitempty" doc:"cursor of the next page; absent on the last"`
}

// Flow is one classified flow, or one part of a long one.
type Flow struct {
	ID         string `json:"id"`
	Sensor     string `json:"sensor"`
	SrcIP      string `json:"src_ip" doc:"the side that sent first"`
	SrcPort    uint16 `json:"src_port"`
	DstIP      string `json:"dst_ip"`
	DstPort    uint16 `json:"dst_port"`
	Transport  string `json:"transport" example:"tcp"`
	VLAN       uint16 `json:"vlan"`
	Tunnel     uint32 `json:"tunnel,omitempty" doc:"network that the tunnel around the flow names: VNI or GRE key; absent without one" example:"4096"`
	App        string `json:"app" example:"tls"`
	Host       string `json:"host,omitempty" example:"example.org"`
	HostSource string `json:"host_source,omitempty" doc:"dns: the client had asked its resolver for it; absent: the flow says it"`
	ALPN       string `json:"alpn,omitempty" example:"h2"`
	Confidence string `json:"confidence,omitempty" doc:"what app rests on; absent for unknown" enum:"payload,negotiated,session,port"`
	JA3        string `json:"ja3,omitempty" doc:"of the TLS or QUIC client, MD5 in hex"`
	JA4        string `json:"ja4,omitempty" doc:"of the TLS or QUIC client" example:"t13d1516h2_8daaf6152771_e5627efa2ab1"`
	HASSH      string `json:"hassh,omitempty" doc:"of the SSH client, MD5 in hex"`
	TLSVersion string `json:"tls_version,omitempty" doc:"the one the server chose, else the newest the client offers" example:"1.3"`
	UserAgent  string `json:"user_agent,omitempty" doc:"HTTP"`
	HTTPMethod string `json:"http_method,omitempty" example:"GET"`
	DNSType    string `json:"dns_type,omitempty" doc:"of the question" example:"AAAA"`
	DNSRcode   string `json:"dns_rcode,omitempty" doc:"of the answer; absent without one" example:"NXDOMAIN"`
	Packets    uint64 `json:"packets" doc:"both directions"`
	Bytes      uint64 `json:"bytes" doc:"IP bytes, both directions"`
	PacketsRev uint64 `json:"packets_rev" doc:"towards the source"`
	BytesRev   uint64 `json:"bytes_rev" doc:"towards the source"`
	EndReason  string `json:"end_reason,omitempty" example:"fin"`
	FirstNs    Nanos  `json:"first_ns"`
	LastNs     Nanos  `json:"last_ns"`

	TCP *TCPFacts `json:"tcp,omitempty" doc:"what the sensor measured of a TCP flow; absent where it did not"`

	DNSAnswers []string `json:"dns_answers,omitempty" doc:"addresses and names of the answer, at most 8 and 256 bytes in all"`
	Risks      []Risk   `json:"risks,omitempty" doc:"what somebody should look at"`
}

// TCPFacts is what the sensor measured of a TCP flow: the handshake's round trip with its two parts, as seen from where the
// sensor is, and segments that were sent again, of this part of the flow and as far as the sensor read its packets.
type TCPFacts struct {
	RTTUs          uint32 `json:"rtt_us,omitempty" doc:"round trip of the handshake in microseconds, the sum of both parts; absent when one was not measured"`
	RTTClientUs    uint32 `json:"rtt_client_us,omitempty" doc:"from the SYN-ACK to the ACK: between sensor and client"`
	RTTServerUs    uint32 `json:"rtt_server_us,omitempty" doc:"from the SYN to the SYN-ACK: between sensor and server"`
	RetransmitsFwd uint32 `json:"retransmits_fwd" doc:"segments sent again from the source"`
	RetransmitsRev uint32 `json:"retransmits_rev" doc:"towards the source"`
}

// NewTCPFacts is nil without facts.
func NewTCPFacts(f *eventv1.TcpFacts) *TCPFacts {
	if f == nil {
		return nil
	}
	out := &TCPFacts{
		RTTClientUs: f.GetRttClientUs(), RTTServerUs: f.GetRttServerUs(),
		RetransmitsFwd: f.GetRetransmitsFwd(), RetransmitsRev: f.GetRetransmitsRev(),
	}
	if out.RTTClientUs != 0 && out.RTTServerUs != 0 {
		out.RTTUs = out.RTTClientUs + out.RTTServerUs
	}
	return out
}

// Risk is one thing about a flow that somebody should look at.
type Risk struct {
	Name   string `json:"name" example:"obsolete_tls"`
	Reason string `json:"reason" doc:"a sentence; empty for a risk that this version does not know"`
}

// TopRow is one key with the traffic of all its flows.
type TopRow struct {
	Key     string `json:"key"`
	Flows   uint64 `json:"flows"`
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Top is a ranking.
type Top struct {
	By   string   `json:"by" enum:"src,dst,app,host,port"`
	Rows []TopRow `json:"rows" nullable:"false"`
}

// TimeSeries is stored traffic over time.
type TimeSeries struct {
	StepNs Nanos    `json:"step_ns"`
	Series []Series `json:"series" nullable:"false"`
}

// Series is one line of a TimeSeries; empty buckets are left out.
type Series struct {
	Key    string  `json:"key"`
	Points []Point `json:"points" nullable:"false"`
}

// Point is one bucket.
type Point struct {
	StartNs Nanos  `json:"start_ns"`
	Flows   uint64 `json:"flows"`
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Attack is the newest known state of an attack.
type Attack struct {
	ID          string   `json:"id"`
	Type        string   `json:"type" example:"syn_flood"`
	Target      string   `json:"target" doc:"the victim, or the scanned or bombed prefix"`
	State       string   `json:"state" enum:"started,updated,ended"`
	Sensor      string   `json:"sensor"`
	FirstNs     Nanos    `json:"first_ns" doc:"first packet"`
	DetectedNs  Nanos    `json:"detected_ns"`
	FirstDropNs Nanos    `json:"first_drop_ns,omitempty" doc:"when the XDP program first dropped for it"`
	UpdatedNs   Nanos    `json:"updated_ns"`
	EndedNs     Nanos    `json:"ended_ns,omitempty"`
	Packets     uint64   `json:"packets"`
	Bytes       uint64   `json:"bytes"`
	PPS         float64  `json:"pps"`
	BPS         float64  `json:"bps" doc:"bits a second"`
	Sources     uint64   `json:"sources" doc:"estimate of distinct sources"`
	TopSources  []string `json:"top_sources,omitempty"`
	TraceID     string   `json:"trace_id,omitempty"`
}

// AttackDetail is an attack with what is known around it.
type AttackDetail struct {
	Attack
	Timeline []TimelineEntry `json:"timeline" nullable:"false" doc:"in order of time"`
	Verdicts []Verdict       `json:"verdicts" nullable:"false"`
	PcapURL  string          `json:"pcap_url" doc:"sampled packets as a capture"`
}

// TimelineEntry is one thing that happened in an attack.
type TimelineEntry struct {
	TimeNs  Nanos  `json:"time_ns"`
	Kind    string `json:"kind" enum:"first_packet,attack,verdict,enforcement"`
	State   string `json:"state" example:"applied"`
	Node    string `json:"node,omitempty" doc:"sensor or enforce node"`
	RuleID  string `json:"rule_id,omitempty"`
	Packets uint64 `json:"packets,omitempty"`
	Text    string `json:"text" doc:"a sentence"`
}

// Verdict is what was decided about an attack, with its evidence.
type Verdict struct {
	ID          string     `json:"id"`
	AttackID    string     `json:"attack_id" doc:"empty: it is about a flow's host, not about an attack"`
	Type        string     `json:"type"`
	Target      string     `json:"target"`
	Sensor      string     `json:"sensor"`
	DecidedNs   Nanos      `json:"decided_ns"`
	Key         string     `json:"key" doc:"what the rules select by: sources, signature, prefix or flow"`
	Explanation string     `json:"explanation"`
	Rules       []RuleSpec `json:"rules" nullable:"false"`
	Evidence    Evidence   `json:"evidence"`
	TraceID     string     `json:"trace_id,omitempty"`
}

// Evidence is what a verdict was decided on.
type Evidence struct {
	Features      map[string]float64 `json:"features"`
	Thresholds    map[string]float64 `json:"thresholds"`
	ConfigVersion string             `json:"config_version"`
	Windows       []string           `json:"windows" nullable:"false" doc:"sequence numbers of the windows read"`
	AttackShare   float64            `json:"attack_share" doc:"share of attack samples that the rules hit"`
	GoodShare     float64            `json:"good_share" doc:"share of the baseline's samples that they would hit"`
	Samples       int                `json:"samples" doc:"sampled packets in the capture"`
	Host          string             `json:"host,omitempty" doc:"what the flow named"`
	List          string             `json:"list,omitempty" doc:"the list of domains that has it"`
	HostRule      string             `json:"host_rule,omitempty" doc:"the id of the user's rule that is about it"`
	Entry         string             `json:"entry,omitempty" doc:"the domain that is listed"`
}

// Match selects packets; an absent field matches everything.
type Match struct {
	Host       string  `json:"host,omitempty" doc:"flows that name this host or one below it, by TLS, QUIC, HTTP and the like; each gets rules of its own. Not with tcp_flags, length, ttl and fragment" example:"example.org" maxLength:"255"`
	Src        string  `json:"src,omitempty" doc:"source prefix or address" example:"192.0.2.0/24" maxLength:"64"`
	Dst        string  `json:"dst,omitempty" doc:"destination prefix or address" maxLength:"64"`
	Proto      string  `json:"proto,omitempty" doc:"tcp, udp, icmp, icmpv6, sctp, gre or a number" example:"udp" maxLength:"16"`
	SrcPort    *uint16 `json:"sport,omitempty" doc:"source port" maximum:"65535"`
	DstPort    *uint16 `json:"dport,omitempty" doc:"destination port" maximum:"65535"`
	TCPFlags   string  `json:"tcp_flags,omitempty" doc:"flags that must be set, of FSRPAUEC; with a mask: S/SA" maxLength:"17"`
	Length     string  `json:"length,omitempty" doc:"IP length, or a range: 60-100" maxLength:"11"`
	TTL        string  `json:"ttl,omitempty" doc:"TTL, or a range: 40-64" maxLength:"7"`
	Fragment   *bool   `json:"fragment,omitempty" doc:"true: fragments only; false: whole packets only"`
	OutOfState bool    `json:"out_of_state,omitempty" doc:"only TCP but first SYNs, and UDP, to a port that sent nothing to theirs before; needs dst and proto tcp or udp, and an inline sensor"`
}

// RuleSpec is what a rule is, without what it has done.
type RuleSpec struct {
	ID        string `json:"id"`
	Action    string `json:"action" enum:"allow,drop,rate-limit,count"`
	Match     Match  `json:"match"`
	MatchText string `json:"match_text" doc:"the match in one line"`
	RatePPS   uint64 `json:"rate_pps,omitempty"`
	RateBPS   uint64 `json:"rate_bps,omitempty" doc:"bits a second"`
	PerSource bool   `json:"per_source,omitempty" doc:"the rate is of each source (IPv6: each /64)"`
	Scope     string `json:"scope,omitempty" doc:"where it acts: site:NAME, node:NAME, interface:NAME or interface:NODE/NAME; absent: everywhere"`
	Shadow    bool   `json:"shadow,omitempty" doc:"it only counts what it would keep back"`
	Escalate  string `json:"escalate_after,omitempty" doc:"rate-limit: when it was exceeded for so long it drops all, until less comes" example:"30s"`
	Escalated bool   `json:"escalated,omitempty" doc:"it drops all now"`
	Repeat    uint32 `json:"repeat,omitempty" doc:"how often the same was blocked within a day before; the lease is longer for it"`
	Changed   string `json:"changed,omitempty" doc:"what enforce changed last about it, and why"`
	SYNRetry  bool   `json:"syn_retry,omitempty" doc:"the rate is of each source, and a source's SYNs are dropped until it sends one again"`
	Priority  int32  `json:"priority"`
	Origin    string `json:"origin" enum:"user,detector"`
	AttackID  string `json:"attack_id,omitempty"`
	VerdictID string `json:"verdict_id,omitempty"`
	Comment   string `json:"comment,omitempty"`
	CreatedNs Nanos  `json:"created_ns"`
	ExpiresNs Nanos  `json:"expires_ns,omitempty" doc:"absent: until revoked"`
	Lease     string `json:"lease,omitempty" doc:"renewed by this much while the rule is hit" example:"15s"`
	Host      string `json:"host,omitempty" doc:"of a rule for one flow, made for what the flow names: that host"`
	List      string `json:"list,omitempty" doc:"the list of domains that has the host"`
	HostRule  string `json:"host_rule,omitempty" doc:"the id of the user's rule that is about the host"`
}

// Rule is a rule and what the enforce nodes did with it.
type Rule struct {
	RuleSpec
	Revision    string     `json:"revision" doc:"rises with every change; the ETag of the rule"`
	State       string     `json:"state" enum:"pending,active,shadow,refused,expired,held,elsewhere" doc:"the strongest of the nodes' states; elsewhere: its scope has none of the nodes that answered"`
	Reason      string     `json:"reason,omitempty" doc:"of a refusal"`
	Detail      string     `json:"detail,omitempty" doc:"of a refusal, a sentence"`
	Packets     uint64     `json:"packets"`
	Bytes       uint64     `json:"bytes"`
	FirstDropNs Nanos      `json:"first_drop_ns,omitempty"`
	AppliedNs   Nanos      `json:"applied_ns,omitempty"`
	Nodes       []RuleNode `json:"nodes" nullable:"false"`
}

// RuleNode is a rule on one node.
type RuleNode struct {
	Node    string `json:"node"`
	State   string `json:"state"`
	Reason  string `json:"reason,omitempty"`
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// RuleInput is a rule as a user asks for it.
type RuleInput struct {
	Action    string `json:"action" enum:"allow,drop,rate-limit,count"`
	Match     Match  `json:"match"`
	RatePPS   uint64 `json:"rate_pps,omitempty" doc:"packets a second, for rate-limit"`
	RateBPS   uint64 `json:"rate_bps,omitempty" doc:"bits a second, for rate-limit"`
	PerSource bool   `json:"per_source,omitempty" doc:"rate-limit: the rate is of each source (IPv6: each /64) and not of all together"`
	Scope     string `json:"scope,omitempty" doc:"where it acts: all, site:NAME, node:NAME, interface:NAME or interface:NODE/NAME; absent: all" maxLength:"520" example:"site:ams"`
	Shadow    bool   `json:"shadow,omitempty" doc:"drop and rate-limit: only count what it would keep back"`
	Escalate  string `json:"escalate_after,omitempty" doc:"rate-limit of all sources together: when it was exceeded for so long, drop all until less comes" example:"30s" maxLength:"32"`
	Priority  int32  `json:"priority,omitempty" doc:"higher wins among equally specific rules" minimum:"-2147483648" maximum:"2147483647"`
	Comment   string `json:"comment,omitempty" maxLength:"512"`
	For       string `json:"for,omitempty" doc:"how long, as 10m or 1h30m; 0 = until revoked; default 1h" example:"10m" maxLength:"32"`
}

// CaptureInput is a capture of live frames as a user asks for it. What is left out has the sensor's default.
type CaptureInput struct {
	Sensor  string `json:"sensor,omitempty" doc:"the sensor's name; needed where there are several" maxLength:"255"`
	Iface   string `json:"iface,omitempty" doc:"one interface of the sensor; absent: all" maxLength:"64"`
	Filter  string `json:"filter,omitempty" doc:"tcpdump's expression, pcap-filter(7); absent: every frame" maxLength:"4096" example:"tcp port 443 and host 192.0.2.1"`
	Snaplen uint32 `json:"snaplen,omitempty" doc:"bytes kept of a frame; absent: all" maximum:"262144"`
	Count   uint64 `json:"count,omitempty" doc:"frames at most; absent: bounded by bytes and time"`
	Bytes   uint64 `json:"bytes,omitempty" doc:"bytes of the file at most; absent: 67108864" maximum:"1073741824"`
	For     string `json:"for,omitempty" doc:"how long at most, as 90s; absent: 1m, at most 1h" example:"90s" maxLength:"32"`
}

// CaptureSummary says how a capture ended. The last four are frames of any kind that no capture can have, of the
// sensor's interfaces while it ran.
type CaptureSummary struct {
	Sensor    string `json:"sensor"`
	Reason    string `json:"reason" doc:"count, bytes, time, stopped (the sensor ends), cancelled (by the user), expired (the token) or failed"`
	Problem   string `json:"problem,omitempty" doc:"of a failed one"`
	Frames    uint64 `json:"frames" doc:"in the file"`
	Missed    uint64 `json:"missed" doc:"matched, but were not read fast enough"`
	Dropped   uint64 `json:"dropped" doc:"by rules, in the driver"`
	Forwarded uint64 `json:"forwarded" doc:"in the kernel, of flows that were decided"`
	Passed    uint64 `json:"passed" doc:"to the machine's own stack"`
	Unread    uint64 `json:"unread" doc:"lost before the sensor read them"`
}

// CaptureType is the media type of a capture; CaptureTrailer the header field after its body, which holds a
// CaptureSummary as JSON.
const (
	CaptureType    = "application/vnd.tcpdump.pcap"
	CaptureTrailer = "Tidegate-Capture"
)

// DryRun says what a rule would do.
type DryRun struct {
	Rule     RuleSpec `json:"rule" doc:"as it would be applied"`
	Accepted bool     `json:"accepted"`
	Reason   string   `json:"reason,omitempty" doc:"why it would be refused"`
	Detail   string   `json:"detail,omitempty"`
	Replaces bool     `json:"replaces" doc:"a rule with this id exists"`
	Matched  *Matched `json:"matched,omitempty" doc:"stored flows of the last hour that it would have met; absent when the database does not answer"`
}

// Matched is stored traffic that a match selects.
type Matched struct {
	Flows       uint64   `json:"flows"`
	Packets     uint64   `json:"packets"`
	Bytes       uint64   `json:"bytes"`
	Apps        []TopRow `json:"apps" nullable:"false"`
	Approximate bool     `json:"approximate" doc:"flags, lengths, TTL and fragments were not looked at"`
}

// Explanation says why a rule is there and what it does.
type Explanation struct {
	Rule    Rule     `json:"rule"`
	Text    string   `json:"text"`
	Verdict *Verdict `json:"verdict,omitempty" doc:"of a detector's rule"`
}

// Group is a set of protected prefixes with thresholds of its own.
type Group struct {
	Name       string             `json:"name"`
	Prefixes   []string           `json:"prefixes" nullable:"false" doc:"empty: every address"`
	Thresholds map[string]float64 `json:"thresholds" doc:"as configured"`
	Learned    []LearnedHost      `json:"learned" nullable:"false" doc:"hosts with higher thresholds, because much is usual for them"`
}

// LearnedHost is a host with thresholds above its group's.
type LearnedHost struct {
	Host       string             `json:"host"`
	Thresholds map[string]float64 `json:"thresholds" doc:"in force; those that are the group's are left out"`
}

// Panic is the mesh's panic state.
type Panic struct {
	On      bool   `json:"on"`
	SinceNs Nanos  `json:"since_ns,omitempty" doc:"of the last change"`
	By      string `json:"by,omitempty"`
	Reason  string `json:"reason,omitempty"`
}

// PanicResult is what panic did.
type PanicResult struct {
	Panic
	Revoked []RuleSpec  `json:"revoked" nullable:"false" doc:"users' rules that were taken away"`
	Held    uint32      `json:"held" doc:"detectors' rules that are held"`
	Nodes   []PanicNode `json:"nodes" nullable:"false"`
}

// PanicNode is the panic state as one node has it.
type PanicNode struct {
	Node    string `json:"node"`
	Done    bool   `json:"done" doc:"no drop and no rate limit is left in its driver"`
	Problem string `json:"problem,omitempty"`
}

// AuditEntry is one change that somebody asked for.
type AuditEntry struct {
	ID        string `json:"id"`
	TimeNs    Nanos  `json:"time_ns"`
	Actor     string `json:"actor"`
	Role      string `json:"role,omitempty"`
	Remote    string `json:"remote"`
	Action    string `json:"action" example:"rule.add"`
	Target    string `json:"target,omitempty"`
	Outcome   string `json:"outcome" enum:"requested,done,refused,failed"`
	Before    any    `json:"before,omitempty"`
	After     any    `json:"after,omitempty"`
	Detail    string `json:"detail,omitempty"`
	RequestID string `json:"request_id"`
	TraceID   string `json:"trace_id,omitempty"`
	Gateway   string `json:"gateway"`
}

// Live is the state of the last second, refreshed every 250 ms.
type Live struct {
	TimeNs  Nanos              `json:"time_ns"`
	PPS     map[string]float64 `json:"pps" doc:"packets a second by XDP action, and seen"`
	BPS     map[string]float64 `json:"bps" doc:"bits a second by XDP action, and seen"`
	Attacks []Attack           `json:"attacks" nullable:"false" doc:"those that go on"`
	TopDst  []Talker           `json:"top_destinations" nullable:"false"`
	TopSrc  []Talker           `json:"top_sources" nullable:"false"`
	Ledger  Ledger             `json:"ledger"`
	Panic   Panic              `json:"panic"`
	Missing []Missing          `json:"missing" nullable:"false"`

	Enforcing bool `json:"enforcing" doc:"false: rules only count what they would drop"`
}

// Identity is who a token belongs to.
type Identity struct {
	Subject   string `json:"subject"`
	Role      string `json:"role" enum:"viewer,operator,admin"`
	ExpiresNs Nanos  `json:"expires_ns"`
}

// Problem is an error answer (RFC 9457).
type Problem struct {
	Type      string          `json:"type,omitempty"`
	Title     string          `json:"title"`
	Status    int             `json:"status"`
	Detail    string          `json:"detail,omitempty"`
	Instance  string          `json:"instance,omitempty"`
	Reason    string          `json:"reason,omitempty" doc:"machine-readable, for example never_block"`
	Service   string          `json:"service,omitempty" doc:"the service that is at fault"`
	RequestID string          `json:"request_id,omitempty"`
	Errors    []ProblemDetail `json:"errors,omitempty"`
}

// ReasonRunning is the Reason of a 409: an earlier request with the same Idempotency-Key still runs, so asking again helps.
const ReasonRunning = "idempotency_key_running"

// ProblemDetail is what is wrong with one part of a request.
type ProblemDetail struct {
	Message  string `json:"message,omitempty"`
	Location string `json:"location,omitempty" example:"body.match.src"`
	Value    any    `json:"value,omitempty"`
}

// Error makes a Problem an error for clients.
func (p *Problem) Error() string {
	s := p.Detail
	if s == "" {
		s = p.Title
	}
	for _, e := range p.Errors {
		s += "; " + e.Location + ": " + e.Message
	}
	return s
}
