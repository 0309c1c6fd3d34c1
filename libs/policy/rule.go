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
	if m.TCPFlagsMask|m.TTLMin|m.TTLMax != 0 || m.LengthMin|m.LengthMax != 0 || m.Fragment != AnyFragment {
		return errors.New("a host is matched with flows: flags, length, ttl and fragments are of packets")
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
	// Of a rule that classify made for one flow: the host that it named, and the list or the id of the user's rule that has
	// the host.
	Host, List, HostRule string
}

// Origins of rules.
const (
	OriginDetector = "detector"
	OriginUser     = "user"
)

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
