package header

import (
	"net/netip"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/packet"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

var (
	client = netip.MustParseAddr("192.0.2.1")
	server = netip.MustParseAddr("198.51.100.1")
)

func TestMatched(t *testing.T) {
	h := packet.Header{Src: client, Dst: server, TTL: 57}
	frame := h.AppendTCP(nil, &packet.TCP{SrcPort: 40000, DstPort: 443, Flags: packet.FlagSYN | packet.FlagECE}, nil)
	f, ok := Parse(&flowv1.HeaderSample{Header: frame[14:], Length: uint32(len(frame) - 14), TimeNs: 5}) //nolint:gosec // few bytes
	if !ok || f.TimeNs != 5 || f.Length != 40 || f.TTL != 57 {
		t.Fatalf("parsed %+v, %v", f, ok)
	}
	pfx := netip.MustParsePrefix
	tcp := func(m policy.Match) policy.Match { m.HasProtocol, m.Protocol = true, 6; return m }
	for _, tt := range []struct {
		name string
		m    policy.Match
		want bool
	}{
		{"everything", policy.Match{}, true},
		{"destination", policy.Match{Dst: pfx("198.51.100.0/24")}, true},
		{"other destination", policy.Match{Dst: pfx("198.51.101.0/24")}, false},
		{"source", policy.Match{Src: pfx("192.0.2.1/32")}, true},
		{"protocol", policy.Match{HasProtocol: true, Protocol: 17}, false},
		{"port", tcp(policy.Match{HasDstPort: true, DstPort: 443}), true},
		{"source port", tcp(policy.Match{HasSrcPort: true, SrcPort: 443}), false},
		{"SYN under four", tcp(policy.Match{TCPFlags: policy.SYN, TCPFlagsMask: policy.SYN | policy.ACK | policy.FIN | policy.RST}), true},
		{"SYN exactly", tcp(policy.Match{TCPFlags: policy.SYN, TCPFlagsMask: 0xFF}), false},
		{"length", policy.Match{LengthMin: 40, LengthMax: 40}, true},
		{"longer", policy.Match{LengthMin: 41}, false},
		{"ttl", policy.Match{TTLMin: 58}, false},
		{"fragments", policy.Match{Fragment: policy.FragmentsOnly}, false},
		{"whole", policy.Match{Fragment: policy.WholeOnly}, true},
	} {
		if got := f.Matched(&tt.m); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
	later := Facts{Protocol: 17, Fragment: true, Later: true}
	if later.Matched(&policy.Match{HasProtocol: true, Protocol: 17, HasSrcPort: true}) {
		t.Error("a later fragment matches a port")
	}
}

func TestInner(t *testing.T) {
	quoted := (&packet.Header{Src: client, Dst: server}).AppendUDP(nil, 1, 2, make([]byte, 20))[14:]
	frame := (&packet.Header{Src: server, Dst: client}).AppendICMP(nil, 3, 2, 0, quoted)
	src, dst, proto, ok := Inner(frame[14:])
	if !ok || netip.AddrFrom16(src).Unmap() != client || netip.AddrFrom16(dst).Unmap() != server || proto != 17 {
		t.Errorf("inner packet %v %v %d %v", src, dst, proto, ok)
	}
	if _, _, _, ok := Inner(quoted); ok {
		t.Error("a UDP packet quotes something")
	}
}

func TestAnswer(t *testing.T) {
	udp := func(sport, dport uint16, body ...byte) []byte {
		return (&packet.Header{Src: client, Dst: server}).AppendUDP(nil, sport, dport, append(body, make([]byte, 16)...))[14:]
	}
	for _, tt := range []struct {
		name   string
		sample []byte
		want   bool
	}{
		{"dns answer", udp(53, 4000, 0, 0, 0x80), true},
		{"dns query from 53", udp(53, 4000, 0, 0, 0), false},
		{"ntp server", udp(123, 4000, 0x24), true},
		{"ntp client", udp(123, 123, 0x23), false},
		{"monlist", udp(123, 4000, 0xD7), true},
		{"snmp", udp(161, 4000), true},
		{"high ports", udp(4001, 4000), false},
	} {
		if got := Answer(tt.sample); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// FuzzSample: no sample, however cut, makes a reader panic.
func FuzzSample(f *testing.F) {
	frame := (&packet.Header{Src: server, Dst: client}).AppendICMP(nil, 3, 2, 0, make([]byte, 40))
	f.Add(frame[14:])
	f.Add((&packet.Header{Src: client, Dst: server}).AppendUDP(nil, 123, 9, []byte{0xD7})[14:])
	f.Fuzz(func(_ *testing.T, b []byte) {
		Parse(&flowv1.HeaderSample{Header: b})
		Inner(b)
		Answer(b)
	})
}
