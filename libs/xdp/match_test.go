package xdp

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/gopacket/gopacket/layers"

	"github.com/tidegate-mesh/tidegate/libs/policy"
)

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// TestMatch puts one drop rule at a time and sends frames that it must and must not select.
func TestMatch(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeHost})
	p := program(t, g)
	const (
		a4, b4 = "192.0.2.1", "198.51.100.7"
		a6, b6 = "2001:db8::1", "2001:db8:1::7"
	)
	proto := func(n uint8) policy.Match { return policy.Match{HasProtocol: true, Protocol: n} }
	dport := func(n uint8, port uint16) policy.Match {
		m := proto(n)
		m.HasDstPort, m.DstPort = true, port
		return m
	}
	syn := proto(6)
	syn.TCPFlags, syn.TCPFlagsMask = policy.SYN, policy.SYN|policy.ACK
	tests := []struct {
		name  string
		match policy.Match
		yes   []pkt
		no    []pkt
	}{
		{"everything", policy.Match{}, []pkt{udp(a4, b4), udp(a6, b6), tcp(a4, b4, "S"), {src: a4, dst: b4, proto: 47}}, nil},
		{"source 4", policy.Match{Src: pfx("192.0.2.0/24")}, []pkt{udp(a4, b4), tcp("192.0.2.255", b4, "A")}, []pkt{udp(b4, a4), udp("192.0.3.1", b4), udp(a6, b6)}},
		{"source 4 /31", policy.Match{Src: pfx("192.0.2.0/31")}, []pkt{udp(a4, b4)}, []pkt{udp("192.0.2.2", b4)}},
		{"destination 4 /32", policy.Match{Dst: pfx(b4 + "/32")}, []pkt{udp(a4, b4)}, []pkt{udp(b4, a4), udp(a4, "198.51.100.6")}},
		{"both 4", policy.Match{Src: pfx("192.0.0.0/9"), Dst: pfx("198.51.100.0/25")}, []pkt{udp(a4, b4)}, []pkt{udp("192.128.0.1", b4), udp(a4, "198.51.100.200")}},
		{"family 4", policy.Match{Src: pfx("0.0.0.0/0")}, []pkt{udp(a4, b4)}, []pkt{udp(a6, b6)}},
		{"family 6", policy.Match{Dst: pfx("::/0")}, []pkt{udp(a6, b6)}, []pkt{udp(a4, b4)}},
		{"mapped prefix", policy.Match{Src: pfx("::ffff:192.0.2.0/120")}, []pkt{udp(a4, b4)}, []pkt{udp("192.0.3.1", b4)}},
		{"source 6", policy.Match{Src: pfx("2001:db8::/64")}, []pkt{udp(a6, b6)}, []pkt{udp(b6, a6), udp(a4, b4)}},
		{"destination 6 /128", policy.Match{Dst: pfx(b6 + "/128")}, []pkt{tcp(a6, b6, "A")}, []pkt{udp(a6, "2001:db8:1::8")}},
		{"destination 6 /65", policy.Match{Dst: pfx("2001:db8:1::/65")}, []pkt{udp(a6, b6)}, []pkt{udp(a6, "2001:db8:1:0:8000::")}},
		{"protocol", proto(17), []pkt{udp(a4, b4), udp(a6, b6)}, []pkt{tcp(a4, b4, "S"), tcp(a6, b6, "S")}},
		{"icmp", proto(1), []pkt{{src: a4, dst: b4, proto: layers.IPProtocolICMPv4}}, []pkt{udp(a4, b4)}},
		{"icmp6", proto(58), []pkt{{src: a6, dst: b6, proto: layers.IPProtocolICMPv6}}, []pkt{udp(a6, b6)}},
		{"udp port", dport(17, 53), []pkt{udp(a4, b4), udp(a6, b6), udp(a4, b4).with(func(p *pkt) { p.options = true })},
			[]pkt{udp(a4, b4).with(func(p *pkt) { p.dport = 54 }), tcp(a4, b4, "").with(func(p *pkt) { p.dport = 53 })}},
		{"tcp port", dport(6, 80), []pkt{tcp(a4, b4, "S"), tcp(a6, b6, "A")}, []pkt{tcp(a4, b4, "S").with(func(p *pkt) { p.dport = 81 })}},
		{"sctp port", dport(132, 9), []pkt{{src: a4, dst: b4, proto: 132, sport: 1, dport: 9}, {src: a6, dst: b6, proto: 132, dport: 9}}, []pkt{{src: a4, dst: b4, proto: 132, dport: 8}}},
		{"source port", policy.Match{HasProtocol: true, Protocol: 17, HasSrcPort: true, SrcPort: 1000}, []pkt{udp(a4, b4), udp(a6, b6)}, []pkt{udp(a4, b4).with(func(p *pkt) { p.sport = 53 })}},
		{"port 0", dport(17, 0), []pkt{udp(a4, b4).with(func(p *pkt) { p.dport = 0 })}, []pkt{udp(a4, b4), udp(a4, b4).with(func(p *pkt) { p.offset = 10 })}},
		{"flags", syn, []pkt{tcp(a4, b4, "S"), tcp(a6, b6, "SP")}, []pkt{tcp(a4, b4, "SA"), tcp(a4, b4, "A"), udp(a4, b4)}},
		{"flags none", policy.Match{HasProtocol: true, Protocol: 6, TCPFlagsMask: 0xff}, []pkt{tcp(a4, b4, "")}, []pkt{tcp(a4, b4, "F"), tcp(a4, b4, "").with(func(p *pkt) { p.offset = 5 })}},
		{"length", policy.Match{LengthMin: 100, LengthMax: 200}, []pkt{udp(a4, b4).with(func(p *pkt) { p.payload = 72 }), udp(a4, b4).with(func(p *pkt) { p.payload = 172 }), udp(a6, b6).with(func(p *pkt) { p.payload = 52 })},
			[]pkt{udp(a4, b4).with(func(p *pkt) { p.payload = 71 }), udp(a4, b4).with(func(p *pkt) { p.payload = 173 }), udp(a6, b6).with(func(p *pkt) { p.payload = 51 })}},
		{"ttl", policy.Match{TTLMin: 10, TTLMax: 20}, []pkt{udp(a4, b4).with(func(p *pkt) { p.ttl = 10 }), udp(a6, b6).with(func(p *pkt) { p.ttl = 20 })}, []pkt{udp(a4, b4), udp(a6, b6).with(func(p *pkt) { p.ttl = 9 })}},
		{"fragments", policy.Match{Fragment: policy.FragmentsOnly}, []pkt{
			udp(a4, b4).with(func(p *pkt) { p.more = true }), udp(a4, b4).with(func(p *pkt) { p.offset = 4 }),
			udp(a6, b6).with(func(p *pkt) { p.more = true }), udp(a6, b6).with(func(p *pkt) { p.offset = 4 }),
		}, []pkt{udp(a4, b4), udp(a6, b6), udp(a6, b6).with(func(p *pkt) { p.atomic = true })}},
		{"whole", policy.Match{Fragment: policy.WholeOnly}, []pkt{udp(a4, b4), udp(a6, b6)}, []pkt{udp(a4, b4).with(func(p *pkt) { p.more = true }), udp(a6, b6).with(func(p *pkt) { p.offset = 4 })}},
		{"ports of fragments", dport(17, 53), []pkt{udp(a4, b4).with(func(p *pkt) { p.more = true }), udp(a6, b6).with(func(p *pkt) { p.more = true; p.exts = "hd" })},
			[]pkt{udp(a4, b4).with(func(p *pkt) { p.offset = 4; p.payload = 64 }), udp(a6, b6).with(func(p *pkt) { p.offset = 4; p.payload = 64 })}},
		{"protocol of later fragments", proto(17), []pkt{udp(a4, b4).with(func(p *pkt) { p.offset = 4 }), udp(a6, b6).with(func(p *pkt) { p.offset = 4 })}, []pkt{tcp(a6, b6, "").with(func(p *pkt) { p.offset = 4 })}},
		{"extension headers", dport(6, 80), []pkt{
			tcp(a6, b6, "S").with(func(p *pkt) { p.exts = "h" }), tcp(a6, b6, "S").with(func(p *pkt) { p.exts = "r" }),
			tcp(a6, b6, "S").with(func(p *pkt) { p.exts = "d" }), tcp(a6, b6, "S").with(func(p *pkt) { p.exts = "a" }),
			tcp(a6, b6, "S").with(func(p *pkt) { p.exts = "hdrad" }), tcp(a6, b6, "S").with(func(p *pkt) { p.exts = "h"; p.atomic = true }),
			tcp(a6, b6, "S").with(func(p *pkt) { p.exts = "hddddddd" }),
		}, []pkt{tcp(a6, b6, "S").with(func(p *pkt) { p.exts = "hdddddddd" })}},
		{"vlan", dport(17, 53), []pkt{
			udp(a4, b4).with(func(p *pkt) { p.vlans = []uint16{7} }), udp(a6, b6).with(func(p *pkt) { p.vlans = []uint16{7} }),
			udp(a4, b4).with(func(p *pkt) { p.vlans = []uint16{7, 9} }), udp(a6, b6).with(func(p *pkt) { p.vlans = []uint16{7, 9} }),
		}, []pkt{udp(a4, b4).with(func(p *pkt) { p.vlans = []uint16{7, 9, 11} })}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			must(t, g.PutRules([]Rule{{ID: 1, Match: tt.match, Action: policy.Drop}}))
			for i, k := range tt.yes {
				if got := send(t, p, k.frame(t)); got != drop {
					t.Errorf("frame %d (%+v) was not selected: action %d", i, k, got)
				}
			}
			for i, k := range tt.no {
				if got := send(t, p, k.frame(t)); got != pass {
					t.Errorf("frame %d (%+v) was selected: action %d", i, k, got)
				}
			}
			back, err := g.Rules()
			must(t, err)
			if len(back) != 1 {
				t.Fatalf("%d rules, want 1", len(back))
			}
			m1, k1, err := shape(&back[0].Match)
			must(t, err)
			m2, k2, err := shape(&tt.match)
			must(t, err)
			if m1 != m2 || k1 != k2 {
				t.Errorf("read back %s, put %s", &back[0].Match, &tt.match)
			}
		})
	}
	counters(t, g)
}

// TestNotIP sends what rules do not look at, even those for everything.
func TestNotIP(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeHost})
	p := program(t, g)
	must(t, g.PutRules([]Rule{{ID: 1, Action: policy.Drop}}))
	v4, v6 := udp("192.0.2.1", "192.0.2.2").frame(t), udp("2001:db8::1", "2001:db8::2").frame(t)
	badIHL := append([]byte(nil), v4...)
	badIHL[14] = 0x44
	badVersion := append([]byte(nil), v4...)
	badVersion[14] = 0x65
	bad6 := append([]byte(nil), v6...)
	bad6[14] = 0x40
	arp := append(append([]byte(nil), v4[:12]...), 0x08, 0x06)
	arp = append(arp, make([]byte, 28)...)
	vlan := append(append([]byte(nil), v4[:12]...), 0x81, 0x00, 0x00)
	for name, frame := range map[string][]byte{
		"arp": arp, "short ethernet": v4[:14], "short ipv4": v4[:33], "short ipv6": v6[:53], "header length": badIHL,
		"version 4": badVersion, "version 6": bad6, "short vlan": vlan,
	} {
		if got := send(t, p, frame); got != pass {
			t.Errorf("%s: action %d, want pass", name, got)
		}
	}
	// A cut transport header: the addresses count, the ports do not.
	must(t, g.PutRules([]Rule{{ID: 1, Action: policy.Drop, Match: policy.Match{HasProtocol: true, Protocol: 17, HasDstPort: true, DstPort: 53}}}))
	for name, frame := range map[string][]byte{"udp 4": v4[:37], "udp 6": v6[:57], "options": func() []byte {
		f := udp("192.0.2.1", "192.0.2.2").with(func(p *pkt) { p.options = true }).frame(t)
		return f[:40]
	}()} {
		if got := send(t, p, frame); got != pass {
			t.Errorf("%s cut: action %d, want pass", name, got)
		}
	}
	must(t, g.PutRules([]Rule{{ID: 1, Action: policy.Drop, Match: policy.Match{HasProtocol: true, Protocol: 17}}}))
	if got := send(t, p, v4[:37]); got != drop {
		t.Errorf("cut udp under a rule without ports: action %d, want drop", got)
	}
	if c := counters(t, g); c.Seen != 12 {
		t.Errorf("seen %d, want 12", c.Seen)
	}
}

func TestReadBack(t *testing.T) {
	r := newRig(t, 1)
	g := r.open(t, Options{Mode: ModeHost})
	want := []Rule{
		{ID: 1, Action: policy.Drop, Priority: -5, WouldDrop: true, Match: policy.Match{Src: pfx("10.0.0.0/8"), Dst: pfx("192.0.2.1/32"), HasProtocol: true, Protocol: 6,
			HasSrcPort: true, SrcPort: 1, HasDstPort: true, DstPort: 65535, TCPFlags: 2, TCPFlagsMask: 0x12, LengthMin: 40, LengthMax: 60, TTLMin: 1, TTLMax: 9, Fragment: policy.WholeOnly}},
		{ID: 2, Action: policy.RateLimit, RatePPS: 7, Match: policy.Match{Dst: pfx("2001:db8::/33")}},
		{ID: 3, Action: policy.RateLimit, RateBPS: 1e12, Match: policy.Match{Src: pfx("2001:db8::/32")}},
		{ID: 4, Action: policy.Allow},
		{ID: 5, Action: policy.Count},
	}
	must(t, g.PutRules(want))
	got, err := r.open(t, Options{}).Rules() // another process's view
	must(t, err)
	byID := cmpopts.SortSlices(func(a, b Rule) bool { return a.ID < b.ID })
	if d := cmp.Diff(want, got, byID, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Error(d)
	}
}
