package sqlstore

import (
	"database/sql"
	"fmt"
	"net/netip"
)

// Table names a table of rows.
type Table string

// The tables, in the order in which the size cap takes from them: flows first, audits last.
const (
	Flows        Table = "flows"
	Enforcements Table = "enforcements"
	Verdicts     Table = "verdicts"
	Attacks      Table = "attacks"
	Audits       Table = "audit"
)

// Tables lists all of them in pruning order.
var Tables = []Table{Flows, Enforcements, Verdicts, Attacks, Audits}

// Addr is an address as the databases hold it: inet text or 16 bytes. IPv4 is always unmapped here.
type Addr struct{ netip.Addr }

// Scan reads 16 bytes or the text of an address.
func (a *Addr) Scan(v any) error {
	switch v := v.(type) {
	case []byte:
		if len(v) != 16 {
			return fmt.Errorf("address of %d bytes in the database, expected 16", len(v))
		}
		a.Addr = netip.AddrFrom16([16]byte(v)).Unmap()
		return nil
	case string:
		x, err := netip.ParseAddr(v)
		if err != nil {
			return fmt.Errorf("address in the database: %w", err)
		}
		a.Addr = x.Unmap()
		return nil
	}
	return fmt.Errorf("address in the database has type %T", v)
}

// Bits is a bit set in a bigint, whose sign is bit 63.
type Bits uint64

// Scan reads the column.
func (b *Bits) Scan(v any) error {
	n, ok := v.(int64)
	if !ok {
		return fmt.Errorf("bit set in the database has type %T", v)
	}
	*b = Bits(n) //nolint:gosec // the same 64 bits
	return nil
}

// Flow is a row of flows. TS is the time of the first packet. All times are Unix ns.
type Flow struct {
	TS          int64  `db:"ts"`
	ID          string `db:"id"`
	LastNs      int64  `db:"last_ns"`
	Sensor      string `db:"sensor"`
	Src         Addr   `db:"src_ip"`
	Dst         Addr   `db:"dst_ip"`
	SrcPort     uint32 `db:"src_port"`
	DstPort     uint32 `db:"dst_port"`
	Protocol    uint32 `db:"protocol"`
	VLAN        uint32 `db:"vlan"`
	App         string `db:"app"`
	Host        string `db:"host"`
	ALPN        string `db:"alpn"`
	PacketsFwd  int64  `db:"packets_fwd"`
	PacketsRev  int64  `db:"packets_rev"`
	BytesFwd    int64  `db:"bytes_fwd"`
	BytesRev    int64  `db:"bytes_rev"`
	TCPFlagsFwd uint32 `db:"tcp_flags_fwd"`
	TCPFlagsRev uint32 `db:"tcp_flags_rev"`
	EndReason   uint32 `db:"end_reason"`
	// What the classifier read from the first packets; empty: not seen.
	JA3        string `db:"ja3"`
	JA4        string `db:"ja4"`
	HASSH      string `db:"hassh"`
	Confidence string `db:"confidence"`
	HostSource string `db:"host_source"`
	TLSVersion string `db:"tls_version"`
	UserAgent  string `db:"user_agent"`
	HTTPMethod string `db:"http_method"`
	DNSType    string `db:"dns_type"`
	DNSRcode   string `db:"dns_rcode"`
	DNSAnswers string `db:"dns_answers"`
	Risks      Bits   `db:"risks"`
	// What the sensor measured of TCP; NULL: it did not. Times are microseconds.
	RTTClientUs    sql.NullInt64 `db:"rtt_client_us"`
	RTTServerUs    sql.NullInt64 `db:"rtt_server_us"`
	RetransmitsFwd sql.NullInt64 `db:"retransmits_fwd"`
	RetransmitsRev sql.NullInt64 `db:"retransmits_rev"`
	// Tunnel is the network that the tunnel around the flow names; NULL without one.
	Tunnel sql.NullInt64 `db:"tunnel"`
}

// Attack is one revision of an attack; TS is when the revision was made. TopSources is a JSON array of
// strings, State a lower-case name such as started.
type Attack struct {
	ID         string  `db:"id"`
	Revision   uint32  `db:"revision"`
	TS         int64   `db:"ts"`
	Type       string  `db:"type"`
	Target     string  `db:"target"`
	State      string  `db:"state"`
	Sensor     string  `db:"sensor"`
	FirstNs    int64   `db:"first_ns"`
	DetectedNs int64   `db:"detected_ns"`
	UpdatedNs  int64   `db:"updated_ns"`
	EndedNs    int64   `db:"ended_ns"`
	Packets    int64   `db:"packets"`
	Bytes      int64   `db:"bytes"`
	PPS        float64 `db:"pps"`
	BPS        float64 `db:"bps"`
	Sources    int64   `db:"sources"`
	TopSources string  `db:"top_sources"`
	TraceID    string  `db:"trace_id"`
}

// StateEnded is the Attack.State of an attack that is over.
const StateEnded = "ended"

// Verdict is a row of verdicts; TS is when it was decided. Rules is a JSON array, Evidence a JSON object.
type Verdict struct {
	TS          int64  `db:"ts"`
	ID          string `db:"id"`
	AttackID    string `db:"attack_id"`
	Type        string `db:"type"`
	Target      string `db:"target"`
	Sensor      string `db:"sensor"`
	KeyKind     string `db:"key_kind"`
	Explanation string `db:"explanation"`
	Rules       string `db:"rules"`
	Evidence    string `db:"evidence"`
	TraceID     string `db:"trace_id"`
	Traceparent string `db:"traceparent"`
}

// Enforcement is a row of enforcements; TS is when it happened on the node.
type Enforcement struct {
	TS                int64  `db:"ts"`
	ID                string `db:"id"`
	Node              string `db:"node"`
	RuleID            string `db:"rule_id"`
	AttackID          string `db:"attack_id"`
	State             string `db:"state"`
	Reason            string `db:"reason"`
	Detail            string `db:"detail"`
	ApplyNs           int64  `db:"apply_ns"`
	FirstDropNs       int64  `db:"first_drop_ns"`
	TimeToFirstDropNs int64  `db:"time_to_first_drop_ns"`
	Packets           int64  `db:"packets"`
	Bytes             int64  `db:"bytes"`
	Shadow            bool   `db:"shadow"`
	Action            string `db:"action"`
	TraceID           string `db:"trace_id"`
}

// Audit is one step of a change that a user asked for; TS is when it was written. Outcome is a lower-case name such
// as done. Before and After are JSON of the changed object, NULL where there is none.
type Audit struct {
	TS        int64          `db:"ts"`
	ID        string         `db:"id"`
	Revision  uint32         `db:"revision"`
	Actor     string         `db:"actor"`
	Role      string         `db:"role"`
	Remote    string         `db:"remote"`
	Action    string         `db:"action"`
	Target    string         `db:"target"`
	Outcome   string         `db:"outcome"`
	Before    sql.NullString `db:"before_json"`
	After     sql.NullString `db:"after_json"`
	Detail    string         `db:"detail"`
	RequestID string         `db:"request_id"`
	TraceID   string         `db:"trace_id"`
	Gateway   string         `db:"gateway"`
}

// record is a row on its way into a table. put hands its values over in the order of the table's columns.
type record interface {
	key() (ts int64, id string)
	put(to values)
}

// values takes a row's values, one after the other.
type values interface {
	num(n int64)
	float(f float64)
	flag(b bool)
	text(s string)
	numOrNull(n sql.NullInt64)
	textOrNull(s sql.NullString)
	addr(a netip.Addr)
}

// args appends the values of a row to dst, for database/sql.
func args(d dialect, r record, dst []any) []any {
	a := arguments{d, dst}
	r.put(&a)
	return a.list
}

type arguments struct {
	d    dialect
	list []any
}

func (a *arguments) num(n int64)       { a.list = append(a.list, n) }
func (a *arguments) float(f float64)   { a.list = append(a.list, f) }
func (a *arguments) flag(b bool)       { a.list = append(a.list, b) }
func (a *arguments) text(s string)     { a.list = append(a.list, s) }
func (a *arguments) addr(x netip.Addr) { a.list = append(a.list, a.d.addr(x)) }

func (a *arguments) numOrNull(n sql.NullInt64) {
	if !n.Valid {
		a.list = append(a.list, nil)
		return
	}
	a.list = append(a.list, n.Int64)
}

func (a *arguments) textOrNull(s sql.NullString) {
	if !s.Valid {
		a.list = append(a.list, nil)
		return
	}
	a.list = append(a.list, s.String)
}

// columns of each table, in the order of put. Reserved columns are left to their default, NULL.
var columns = map[Table][]string{
	Flows: {"ts", "id", "last_ns", "sensor", "src_ip", "dst_ip", "src_port", "dst_port", "protocol", "vlan",
		"app", "host", "alpn", "packets_fwd", "packets_rev", "bytes_fwd", "bytes_rev", "tcp_flags_fwd",
		"tcp_flags_rev", "end_reason", "ja3", "ja4", "hassh", "confidence", "host_source", "tls_version",
		"user_agent", "http_method", "dns_type", "dns_rcode", "dns_answers", "risks",
		"rtt_client_us", "rtt_server_us", "retransmits_fwd", "retransmits_rev", "tunnel"},
	Attacks: {"id", "revision", "ts", "type", "target", "state", "sensor", "first_ns", "detected_ns",
		"updated_ns", "ended_ns", "packets", "bytes", "pps", "bps", "sources", "top_sources", "trace_id"},
	Verdicts: {"ts", "id", "attack_id", "type", "target", "sensor", "key_kind", "explanation", "rules",
		"evidence", "trace_id", "traceparent"},
	Enforcements: {"ts", "id", "node", "rule_id", "attack_id", "state", "reason", "detail", "apply_ns",
		"first_drop_ns", "time_to_first_drop_ns", "packets", "bytes", "shadow", "action", "trace_id"},
	Audits: {"ts", "id", "revision", "actor", "role", "remote", "action", "target", "outcome", "before_json",
		"after_json", "detail", "request_id", "trace_id", "gateway"},
}

// conflict is the unique key of each table.
var conflict = map[Table]string{
	Flows: "ts, id", Attacks: "id, revision, ts", Verdicts: "ts, id", Enforcements: "ts, id",
	Audits: "ts, id, revision",
}

func (f *Flow) key() (int64, string)        { return f.TS, f.ID }
func (a *Attack) key() (int64, string)      { return a.TS, a.ID }
func (v *Verdict) key() (int64, string)     { return v.TS, v.ID }
func (e *Enforcement) key() (int64, string) { return e.TS, e.ID }
func (a *Audit) key() (int64, string)       { return a.TS, a.ID }

func (f *Flow) put(to values) {
	to.num(f.TS)
	to.text(f.ID)
	to.num(f.LastNs)
	to.text(f.Sensor)
	to.addr(f.Src.Addr)
	to.addr(f.Dst.Addr)
	to.num(int64(f.SrcPort))
	to.num(int64(f.DstPort))
	to.num(int64(f.Protocol))
	to.num(int64(f.VLAN))
	to.text(f.App)
	to.text(f.Host)
	to.text(f.ALPN)
	to.num(f.PacketsFwd)
	to.num(f.PacketsRev)
	to.num(f.BytesFwd)
	to.num(f.BytesRev)
	to.num(int64(f.TCPFlagsFwd))
	to.num(int64(f.TCPFlagsRev))
	to.num(int64(f.EndReason))
	to.text(f.JA3)
	to.text(f.JA4)
	to.text(f.HASSH)
	to.text(f.Confidence)
	to.text(f.HostSource)
	to.text(f.TLSVersion)
	to.text(f.UserAgent)
	to.text(f.HTTPMethod)
	to.text(f.DNSType)
	to.text(f.DNSRcode)
	to.text(f.DNSAnswers)
	to.num(int64(f.Risks)) //nolint:gosec // the same 64 bits
	to.numOrNull(f.RTTClientUs)
	to.numOrNull(f.RTTServerUs)
	to.numOrNull(f.RetransmitsFwd)
	to.numOrNull(f.RetransmitsRev)
	to.numOrNull(f.Tunnel)
}

func (a *Attack) put(to values) {
	to.text(a.ID)
	to.num(int64(a.Revision))
	to.num(a.TS)
	to.text(a.Type)
	to.text(a.Target)
	to.text(a.State)
	to.text(a.Sensor)
	to.num(a.FirstNs)
	to.num(a.DetectedNs)
	to.num(a.UpdatedNs)
	to.num(a.EndedNs)
	to.num(a.Packets)
	to.num(a.Bytes)
	to.float(a.PPS)
	to.float(a.BPS)
	to.num(a.Sources)
	to.text(a.TopSources)
	to.text(a.TraceID)
}

func (v *Verdict) put(to values) {
	to.num(v.TS)
	to.text(v.ID)
	to.text(v.AttackID)
	to.text(v.Type)
	to.text(v.Target)
	to.text(v.Sensor)
	to.text(v.KeyKind)
	to.text(v.Explanation)
	to.text(v.Rules)
	to.text(v.Evidence)
	to.text(v.TraceID)
	to.text(v.Traceparent)
}

func (e *Enforcement) put(to values) {
	to.num(e.TS)
	to.text(e.ID)
	to.text(e.Node)
	to.text(e.RuleID)
	to.text(e.AttackID)
	to.text(e.State)
	to.text(e.Reason)
	to.text(e.Detail)
	to.num(e.ApplyNs)
	to.num(e.FirstDropNs)
	to.num(e.TimeToFirstDropNs)
	to.num(e.Packets)
	to.num(e.Bytes)
	to.flag(e.Shadow)
	to.text(e.Action)
	to.text(e.TraceID)
}

func (a *Audit) put(to values) {
	to.num(a.TS)
	to.text(a.ID)
	to.num(int64(a.Revision))
	to.text(a.Actor)
	to.text(a.Role)
	to.text(a.Remote)
	to.text(a.Action)
	to.text(a.Target)
	to.text(a.Outcome)
	to.textOrNull(a.Before)
	to.textOrNull(a.After)
	to.text(a.Detail)
	to.text(a.RequestID)
	to.text(a.TraceID)
	to.text(a.Gateway)
}
