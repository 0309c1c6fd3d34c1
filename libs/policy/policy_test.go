package policy

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func prefixes() cmp.Option {
	return cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
}

func fullRule() Rule {
	return Rule{
		ID: "r1", Action: RateLimit, RatePPS: 500, PerSource: true, Priority: -3, Origin: OriginDetector, AttackID: "a", VerdictID: "v", Comment: "why",
		Created: time.Unix(100, 5).UTC(), Expires: time.Unix(200, 0).UTC(), Lease: 15 * time.Second, AttackFirstNs: 99, Traceparent: "00-x",
		Match: Match{
			Src: netip.MustParsePrefix("192.0.2.0/24"), Dst: netip.MustParsePrefix("198.51.100.1/32"), Protocol: 6, HasProtocol: true,
			SrcPort: 0, HasSrcPort: true, DstPort: 443, HasDstPort: true, TCPFlags: SYN, TCPFlagsMask: SYN | ACK,
			LengthMin: 40, LengthMax: 60, TTLMin: 10, TTLMax: 64, Fragment: WholeOnly, OutOfState: true,
		},
	}
}

func TestRuleAsJSON(t *testing.T) {
	for name, r := range map[string]Rule{
		"full":  fullRule(),
		"plain": {ID: "r2", Action: Drop, Match: Match{Dst: netip.MustParsePrefix("2001:db8::/64"), Fragment: FragmentsOnly}},
		"all":   {ID: "r3", Action: Count},
	} {
		b, err := Marshal(&r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Unmarshal(b)
		if err != nil {
			t.Fatalf("%s: %v in %s", name, err, b)
		}
		if d := cmp.Diff(r, got, prefixes()); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	later := `{"id":"r","action":"ACTION_DROP","some_field_of_tomorrow":1}`
	if _, err := Unmarshal([]byte(later)); err != nil {
		t.Errorf("a field of a later version: %v", err)
	}
}

func TestUnmarshalRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"no JSON":        `{`,
		"no id":          `{"action":"ACTION_DROP"}`,
		"no action":      `{"id":"r"}`,
		"bad prefix":     `{"id":"r","action":"ACTION_DROP","match":{"src":"1.2.3"}}`,
		"port range":     `{"id":"r","action":"ACTION_DROP","match":{"protocol":6,"dstPort":70000}}`,
		"protocol":       `{"id":"r","action":"ACTION_DROP","match":{"protocol":300}}`,
		"drop each":      `{"id":"r","action":"ACTION_DROP","perSource":true}`,
		"twice each":     `{"id":"r","action":"ACTION_RATE_LIMIT","ratePps":"1","perSource":true,"synRetry":true,"match":{"protocol":6,"tcpFlags":2,"tcpFlagsMask":23}}`,
		"no destination": `{"id":"r","action":"ACTION_DROP","match":{"protocol":6,"outOfState":true}}`,
		"no protocol":    `{"id":"r","action":"ACTION_DROP","match":{"dst":"192.0.2.0/24","outOfState":true}}`,
		"two rates":      `{"id":"r","action":"ACTION_RATE_LIMIT","ratePps":"1","rateBps":"1"}`,
		"no rate":        `{"id":"r","action":"ACTION_RATE_LIMIT"}`,
		"rate of drop":   `{"id":"r","action":"ACTION_DROP","ratePps":"1"}`,
		"two families":   `{"id":"r","action":"ACTION_DROP","match":{"src":"192.0.2.1","dst":"2001:db8::1"}}`,
		"flags of udp":   `{"id":"r","action":"ACTION_DROP","match":{"protocol":17,"tcpFlags":2,"tcpFlagsMask":2}}`,
		"flag off mask":  `{"id":"r","action":"ACTION_DROP","match":{"protocol":6,"tcpFlags":2,"tcpFlagsMask":1}}`,
		"length":         `{"id":"r","action":"ACTION_DROP","match":{"lengthMin":9,"lengthMax":8}}`,
		"ttl":            `{"id":"r","action":"ACTION_DROP","match":{"ttlMin":9,"ttlMax":8}}`,
	} {
		if r, err := Unmarshal([]byte(text)); err == nil {
			t.Errorf("%s was accepted as %+v", name, r)
		}
	}
}

func FuzzUnmarshal(f *testing.F) {
	r := fullRule()
	b, err := Marshal(&r)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Unmarshal(b)
		if err == nil && r.Validate() != nil {
			t.Errorf("an invalid rule was accepted: %+v", r)
		}
	})
}

func TestParseFlags(t *testing.T) {
	for _, c := range []struct {
		in          string
		value, mask uint8
		fails       bool
	}{
		{"S", SYN, SYN | ACK | FIN | RST, false},
		{"sa", SYN | ACK, SYN | ACK | FIN | RST, false},
		{"S/SA", SYN, SYN | ACK, false},
		{"-/FSRPAU", 0, FIN | SYN | RST | PSH | ACK | URG, false},
		{"X", 0, 0, true},
		{"S/Q", 0, 0, true},
	} {
		v, m, err := ParseFlags(c.in)
		if (err != nil) != c.fails || v != c.value || m != c.mask {
			t.Errorf("%q: %s/%s, %v", c.in, FlagString(v), FlagString(m), err)
		}
	}
}

func TestWords(t *testing.T) {
	r := fullRule()
	want := "proto 6 src 192.0.2.0/24 sport 0 dst 198.51.100.1/32 dport 443 flags S/SA length 40-60 ttl 10-64 no fragments out of state"
	if got := r.Match.String(); got != want {
		t.Errorf("match reads %q, want %q", got, want)
	}
	if got := (&Match{}).String(); got != "everything" {
		t.Errorf("an empty match reads %q", got)
	}
	for _, a := range []Action{Allow, Drop, RateLimit, Count} {
		if back, err := ParseAction(a.String()); err != nil || back != a {
			t.Errorf("action %v reads back as %v, %v", a, back, err)
		}
	}
	if _, err := ParseAction("unspecified"); err == nil {
		t.Error("an action that is none was accepted")
	}
}

func TestIDs(t *testing.T) {
	a, b := DerivedID("x", "yz"), DerivedID("xy", "z")
	if a == b || a != DerivedID("x", "yz") || len(a) != 16 || strings.ContainsAny(a, ". *>") {
		t.Errorf("derived ids %q and %q", a, b)
	}
	if NumericID(a) == NumericID(b) || NumericID(a) == 0 {
		t.Error("numeric ids collide")
	}
}

func TestParsePrefix(t *testing.T) {
	for in, want := range map[string]string{"192.0.2.7": "192.0.2.7/32", "192.0.2.7/24": "192.0.2.0/24", "::ffff:192.0.2.7": "192.0.2.7/32", "2001:db8::1": "2001:db8::1/128"} {
		if p, err := ParsePrefix(in); err != nil || p.String() != want {
			t.Errorf("%s gives %v, %v; want %s", in, p, err, want)
		}
	}
}

// TestParsePrefixMapped: an IPv4 prefix in IPv6's notation is IPv4's, so that a guardrail counts its bits as IPv4's.
func TestParsePrefixMapped(t *testing.T) {
	for in, want := range map[string]string{
		"::ffff:198.51.100.7":      "198.51.100.7/32",
		"::ffff:198.51.100.0/120":  "198.51.100.0/24",
		"::ffff:0.0.0.0/96":        "0.0.0.0/0",
		"::ffff:198.51.100.77/121": "198.51.100.0/25",
		"2001:db8::1/32":           "2001:db8::/32",
		"::/0":                     "::/0",
	} {
		if got, err := ParsePrefix(in); err != nil || got != netip.MustParsePrefix(want) {
			t.Errorf("%s: %v, %v, want %s", in, got, err, want)
		}
	}
}
