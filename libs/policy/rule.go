// Package policy holds rules as the services think of them: what to match, what to do, until when.
package policy

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Action is what a rule does with a packet it matches.
type Action uint8

// The actions. The numbers are the BPF program's and the wire's.
const (
	Allow Action = iota + 1
	Drop
	RateLimit
	Count
)

// Blocks says whether the action keeps packets back.
func (a Action) Blocks() bool { return a == Drop || a == RateLimit }

var actionNames = [...]string{"unspecified", "allow", "drop", "rate-limit", "count"}

// String returns the name users type: allow, drop, rate-limit or count.
func (a Action) String() string {
	if int(a) < len(actionNames) {
		return actionNames[a]
	}
	return fmt.Sprintf("action(%d)", uint8(a))
}

// ParseAction reads what String writes.
func ParseAction(s string) (Action, error) {
	for i, n := range actionNames[1:] {
		if s == n {
			return Action(i + 1), nil //nolint:gosec // four names
		}
	}
	return 0, fmt.Errorf("unknown action %q: use allow, drop, rate-limit or count", s)
}

// Fragment says whether a match looks at fragmentation.
type Fragment uint8

// Fragment values.
const (
	AnyFragment   Fragment = iota
	FragmentsOnly          // any fragment, first or later
	WholeOnly
)

// Match selects packets. The zero value matches every IP packet. A later fragment has no ports and no TCP
// flags: a match that names them does not select it.
type Match struct {
	Src, Dst         netip.Prefix // the zero Prefix matches every address; if both are set, of one family
	Protocol         uint8
	HasProtocol      bool
	SrcPort, DstPort uint16
	HasSrcPort       bool
	HasDstPort       bool
	TCPFlags         uint8 // compared under TCPFlagsMask
	TCPFlagsMask     uint8 // 0: flags are not looked at
	LengthMin        uint16
	LengthMax        uint16 // IP length in bytes, inclusive; 0 = no upper bound
	TTLMin           uint8
	TTLMax           uint8 // inclusive; 0 = no upper bound
	Fragment         Fragment
	// OutOfState selects only TCP but first SYNs, and UDP, to a port that sent nothing to theirs before: segments of no
	// connection, answers that nobody asked for. It needs a destination and TCP or UDP. Only gates of an inline pair can
	// tell; elsewhere it selects nothing.
	OutOfState bool
	// Host, if set, is a domain as ParseDomain writes it: the flow names it or a host below it. No packet says so, so the
	// match is of flows: classify makes a rule for each, and what only packets have (flags, length, TTL, fragments) is not set.
	Host string
}

// Validate reports what makes a match meaningless.
func (m *Match) Validate() error {
	if m.Src.IsValid() && m.Dst.IsValid() && m.Src.Addr().Is4() != m.Dst.Addr().Is4() {
		return fmt.Errorf("source %s and destination %s are of different address families", m.Src, m.Dst)
	}
	if (m.HasSrcPort || m.HasDstPort) && (!m.HasProtocol || (m.Protocol != 6 && m.Protocol != 17 && m.Protocol != 132)) {
		return errors.New("a port needs protocol tcp, udp or sctp")
	}
	if m.TCPFlagsMask != 0 && (!m.HasProtocol || m.Protocol != 6) {
		return errors.New("TCP flags need protocol tcp")
	}
	if m.TCPFlags&^m.TCPFlagsMask != 0 {
		return errors.New("a TCP flag that must be set is outside the flags looked at")
	}
	if m.OutOfState && (!m.Dst.IsValid() || m.Dst.Bits() == 0 || !m.HasProtocol || m.Protocol != 6 && m.Protocol != 17) {
		return errors.New("out of state needs a destination and protocol tcp or udp")
	}
	if m.LengthMax != 0 && m.LengthMin > m.LengthMax {
		return fmt.Errorf("length %d-%d: the lower bound is above the upper", m.LengthMin, m.LengthMax)
	}
	if m.TTLMax != 0 && m.TTLMin > m.TTLMax {
		return fmt.Errorf("ttl %d-%d: the lower bound is above the upper", m.TTLMin, m.TTLMax)
	}
	if m.Host == "" {
		return nil
	}
	if err := CheckDomain(m.Host); err != nil {
		return fmt.Errorf("host %q: %w", m.Host, err)
	}
	if m.HasProtocol && m.Protocol != 6 && m.Protocol != 17 {
		return errors.New("only flows of tcp and udp name a host")
	}
	if m.TCPFlagsMask|m.TTLMin|m.TTLMax != 0 || m.LengthMin|m.LengthMax != 0 || m.Fragment != AnyFragment || m.OutOfState {
		return errors.New("a host is matched with flows: flags, length, ttl, fragments and state are of packets")
	}
	return nil
}

// OnlySYN reports whether the match selects nothing but TCP packets with SYN and without ACK.
func (m *Match) OnlySYN() bool {
	return m.HasProtocol && m.Protocol == 6 && m.TCPFlagsMask&(SYN|ACK) == SYN|ACK && m.TCPFlags&(SYN|ACK) == SYN
}

// String describes the match in one line, fields that match everything left out.
func (m *Match) String() string {
	var p []string
	if m.Host != "" {
		p = append(p, "host "+m.Host)
	}
	if m.HasProtocol {
		p = append(p, "proto "+fmt.Sprint(m.Protocol))
	}
	if m.Src.IsValid() {
		p = append(p, "src "+m.Src.String())
	}
	if m.HasSrcPort {
		p = append(p, fmt.Sprintf("sport %d", m.SrcPort))
	}
	if m.Dst.IsValid() {
		p = append(p, "dst "+m.Dst.String())
	}
	if m.HasDstPort {
		p = append(p, fmt.Sprintf("dport %d", m.DstPort))
	}
	if m.TCPFlagsMask != 0 {
		p = append(p, fmt.Sprintf("flags %s/%s", FlagString(m.TCPFlags), FlagString(m.TCPFlagsMask)))
	}
	if m.LengthMin != 0 || m.LengthMax != 0 {
		p = append(p, fmt.Sprintf("length %d-%d", m.LengthMin, m.LengthMax))
	}
	if m.TTLMin != 0 || m.TTLMax != 0 {
		p = append(p, fmt.Sprintf("ttl %d-%d", m.TTLMin, m.TTLMax))
	}
	switch m.Fragment {
	case FragmentsOnly:
		p = append(p, "fragments")
	case WholeOnly:
		p = append(p, "no fragments")
	}
	if m.OutOfState {
		p = append(p, "out of state")
	}
	if len(p) == 0 {
		return "everything"
	}
	return strings.Join(p, " ")
}

// TCP flag bits as in the header's 14th byte (RFC 9293 3.1).
const (
	FIN uint8 = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
	ECE
	CWR
)

const flagLetters = "FSRPAUEC"

// FlagString writes TCP flags as letters FSRPAUEC, "-" for none.
func FlagString(f uint8) string {
	var b strings.Builder
	for i := range 8 {
		if f>>i&1 == 1 {
			b.WriteByte(flagLetters[i])
		}
	}
	if b.Len() == 0 {
		return "-"
	}
	return b.String()
}

// ParseFlags reads "S", "SA/SAFR" (value/mask); without a mask the mask is SYN, ACK, FIN, RST and the
// named flags.
func ParseFlags(s string) (value, mask uint8, err error) {
	v, m, hasMask := strings.Cut(strings.ToUpper(s), "/")
	if value, err = parseFlagLetters(v); err != nil {
		return 0, 0, err
	}
	if !hasMask {
		return value, value | SYN | ACK | FIN | RST, nil
	}
	if mask, err = parseFlagLetters(m); err != nil {
		return 0, 0, err
	}
	return value, mask, nil
}

func parseFlagLetters(s string) (uint8, error) {
	var f uint8
	for _, r := range s {
		if r == '-' {
			continue
		}
		i := strings.IndexRune(flagLetters, r)
		if i < 0 {
			return 0, fmt.Errorf("unknown TCP flag %q: use letters of %s", r, flagLetters)
		}
		f |= 1 << i
	}
	return f, nil
}

// Rule is a match with an action and a lease.
type Rule struct {
	ID      string
	Action  Action
	Match   Match
	RatePPS uint64 // for RateLimit exactly one of the two, packets or bits per second
	RateBPS uint64
	// PerSource makes the rate that of each source, in IPv6 of each /64, and not of all together.
	PerSource bool
	// SYNRetry makes RatePPS the rate of each source, and drops the SYNs of a source until one of them comes again, as a
	// host's does that got no answer. It needs RateLimit and a match of OnlySYN.
	SYNRetry      bool
	Priority      int32  // higher wins among equally specific rules
	Origin        string // OriginDetector or OriginUser
	AttackID      string
	VerdictID     string
	Comment       string
	Created       time.Time
	Expires       time.Time     // zero = until revoked
	Lease         time.Duration // enforce renews by this much while the rule is hit; 0 = never
	AttackFirstNs int64         // kernel time of the attack's first frame, Unix ns
	Traceparent   string
	Scope         Scope // where it acts
	// Shadow makes the rule count what it would keep back, also where others act. The policy of enforce may end it.
	Shadow bool
	// EscalateAfter makes a rate limit that was exceeded for so long drop all that it matches until less than its rate comes;
	// 0 = never. Escalated says that it does so now.
	EscalateAfter time.Duration
	Escalated     bool
	// Of a detector's rule: how often the same was blocked within a day before, by which enforce made Lease longer; and the
	// share of the target's good samples that it hits, 0 to 1.
	Repeat    uint32
	GoodShare float64
	Changed   string // what enforce changed last about the rule, and why
	// Of a rule that classify made for one flow: the host that it named, and the list or the id of the user's rule that has
	// the host.
	Host, List, HostRule string
}

// Origins of rules.
const (
	OriginDetector = "detector"
	OriginUser     = "user"
)

// InForce is the action that the rule has now: Drop of an escalated rate limit.
func (r *Rule) InForce() Action {
	if r.Escalated {
		return Drop
	}
	return r.Action
}

// Validate reports why a rule cannot be enforced.
func (r *Rule) Validate() error {
	if r.ID == "" {
		return errors.New("a rule needs an id")
	}
	if r.Action < Allow || r.Action > Count {
		return fmt.Errorf("rule %s: unknown action %d", r.ID, r.Action)
	}
	if (r.Action == RateLimit) != (r.RatePPS != 0 || r.RateBPS != 0) || r.RatePPS != 0 && r.RateBPS != 0 {
		return fmt.Errorf("rule %s: rate-limit needs exactly one of pps and bps, other actions none", r.ID)
	}
	if r.SYNRetry && (r.RatePPS == 0 || !r.Match.OnlySYN()) {
		return fmt.Errorf("rule %s: waiting for retries needs a rate in packets per second and a match of TCP SYNs only", r.ID)
	}
	if r.PerSource && (r.Action != RateLimit || r.SYNRetry) {
		return fmt.Errorf("rule %s: per-source needs rate-limit, and none that waits for retries, which limits each source already", r.ID)
	}
	if r.EscalateAfter < 0 || r.EscalateAfter > 0 && (r.Action != RateLimit || r.SYNRetry || r.PerSource || r.Match.Host != "") {
		return fmt.Errorf("rule %s: only a rate-limit of all sources together, and not by host, can escalate", r.ID)
	}
	if r.Escalated && r.EscalateAfter == 0 {
		return fmt.Errorf("rule %s: it is escalated but cannot escalate", r.ID)
	}
	if !(r.GoodShare >= 0 && r.GoodShare <= 1) {
		return fmt.Errorf("rule %s: a share is 0 to 1", r.ID)
	}
	if r.Shadow && !r.Action.Blocks() {
		return fmt.Errorf("rule %s: only a rule that drops or limits can be in shadow", r.ID)
	}
	if r.PerSource && r.Match.Host != "" {
		return fmt.Errorf("rule %s: a rule by host limits each flow, not each source", r.ID)
	}
	if err := r.Match.Validate(); err != nil {
		return fmt.Errorf("rule %s: %w", r.ID, err)
	}
	return nil
}

// NumericID is the rule's id in BPF maps: the first 8 bytes of the id's SHA-256, never 0.
func NumericID(id string) uint64 {
	h := sha256.Sum256([]byte(id))
	if n := binary.LittleEndian.Uint64(h[:]); n != 0 {
		return n
	}
	return 1
}

// DerivedID makes an id that is the same for the same parts, so that whoever decides twice decides the
// same rule: 16 hexadecimal digits of a SHA-256, valid as a NATS subject token.
func DerivedID(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		h.Write([]byte(p))
		h.Write([]byte{0})
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}
