package packet

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tidegate-mesh/tidegate/libs/flow"
)

var (
	v4 = Header{
		DstMAC: [6]byte{2, 0, 0, 0, 0, 1}, SrcMAC: [6]byte{2, 0, 0, 0, 0, 2},
		Src: netip.MustParseAddr("192.0.2.1"), Dst: netip.MustParseAddr("198.51.100.2"),
	}
	v6 = Header{
		DstMAC: [6]byte{2, 0, 0, 0, 0, 1}, SrcMAC: [6]byte{2, 0, 0, 0, 0, 2},
		Src: netip.MustParseAddr("2001:db8::1"), Dst: netip.MustParseAddr("2001:db8:1::2"),
	}
	syn = TCP{SrcPort: 40000, DstPort: 443, Seq: 0x01020304, Ack: 5, Flags: FlagSYN, Window: 64240,
		Options: AppendWindowScale(AppendTimestamps(AppendSACKPermitted(AppendMSS(nil, 1460)), 1, 0), 7)}
	body = []byte("payload of sixteen and more")
)

func with(h Header, f func(*Header)) *Header {
	f(&h)
	return &h
}

// frames are sound frames of every kind that the builder makes; the fuzz target begins from them.
func frames() map[string][]byte {
	ext := []Extension{{ProtoHopByHop, []byte{5, 2, 0, 0}}, {ProtoDestOpts, make([]byte, 14)}}
	half := body[:16]
	return map[string][]byte{
		"tcp4":        v4.AppendTCP(nil, &syn, nil),
		"tcp4 data":   v4.AppendTCP(nil, &TCP{SrcPort: 1, DstPort: 2, Flags: FlagACK | FlagPSH}, body),
		"tcp4 vlan":   with(v4, func(h *Header) { h.VLAN = 77 }).AppendTCP(nil, &syn, body),
		"tcp4 qinq":   with(v4, func(h *Header) { h.VLAN, h.InnerVLAN = 77, 5 }).AppendTCP(nil, &syn, body),
		"udp4":        v4.AppendUDP(nil, 53, 5353, body),
		"udp4 empty":  v4.AppendUDP(nil, 53, 5353, nil),
		"udp4 opts":   with(v4, func(h *Header) { h.Options = []byte{7, 7, 4, 0, 0, 0, 0} }).AppendUDP(nil, 53, 5353, body),
		"icmp4":       v4.AppendICMP(nil, 8, 0, 0x00010002, body),
		"udp4 first":  append(with(v4, func(h *Header) { h.MoreFragments = true }).AppendIP(nil, ProtoUDP, 8+16), append([]byte{0, 53, 1, 2, 0, 200, 0, 0}, half...)...),
		"udp4 later":  append(with(v4, func(h *Header) { h.FragmentOffset = 3 }).AppendIP(nil, ProtoUDP, len(body)), body...),
		"sctp4":       append(v4.AppendIP(nil, ProtoSCTP, 12+16), append([]byte{0x0B, 0x59, 0x0B, 0x5A, 0, 0, 0, 1, 0, 0, 0, 0}, half...)...),
		"gre4":        append(v4.AppendIP(nil, 47, 16), half...),
		"tcp6":        v6.AppendTCP(nil, &syn, body),
		"udp6 ext":    with(v6, func(h *Header) { h.Extensions = ext }).AppendUDP(nil, 53, 5353, body),
		"icmp6":       v6.AppendICMP(nil, 128, 0, 0x00010002, body),
		"udp6 later":  append(with(v6, func(h *Header) { h.FragmentOffset = 3 }).AppendIP(nil, ProtoUDP, len(body)), body...),
		"udp6 first":  append(with(v6, func(h *Header) { h.MoreFragments, h.Extensions = true, ext }).AppendIP(nil, ProtoUDP, 8+16), append([]byte{0, 53, 1, 2, 0, 200, 0, 0}, half...)...),
		"arp":         v4.AppendARP(nil, 1, [6]byte{}),
		"no next hdr": append(v6.AppendIP(nil, ProtoNone, 4), 1, 2, 3, 4),
	}
}

func TestDecode(t *testing.T) {
	src4, dst4 := v4.Src.As16(), v4.Dst.As16()
	src6, dst6 := v6.Src.As16(), v6.Dst.As16()
	base4 := Packet{Src: src4, Dst: dst4, EtherType: EtherTypeIPv4, TTL: 64, IsIP: true, L3: 14, L4: 34}
	base6 := Packet{Src: src6, Dst: dst6, EtherType: EtherTypeIPv6, TTL: 64, IsIP: true, IsV6: true, L3: 14, L4: 54}
	n := len(body)
	of := func(p Packet, f func(*Packet)) Packet { f(&p); return p }
	tcp := func(p *Packet, payload int) {
		p.Proto, p.SrcPort, p.DstPort = ProtoTCP, 40000, 443
		p.Seq, p.Ack, p.Window, p.TCPFlags = 0x01020304, 5, 64240, FlagSYN
		p.Payload, p.PayloadLen = p.L4+40, payload
		p.IPLen = uint16(p.L4 - p.L3 + 40 + payload)
	}
	udp := func(p *Packet) {
		p.Proto, p.SrcPort, p.DstPort = ProtoUDP, 53, 5353
		p.Payload, p.PayloadLen = p.L4+8, n
		p.IPLen = uint16(p.L4 - p.L3 + 8 + n)
	}
	want := map[string]Packet{
		"tcp4": of(base4, func(p *Packet) { tcp(p, 0) }),
		"tcp4 data": of(base4, func(p *Packet) {
			p.Proto, p.SrcPort, p.DstPort, p.TCPFlags = ProtoTCP, 1, 2, FlagACK|FlagPSH
			p.Payload, p.PayloadLen, p.IPLen = 54, n, uint16(40+n)
		}),
		"tcp4 vlan":  of(base4, func(p *Packet) { p.VLAN, p.L3, p.L4 = 77, 18, 38; tcp(p, n) }),
		"tcp4 qinq":  of(base4, func(p *Packet) { p.VLAN, p.L3, p.L4 = 77, 22, 42; tcp(p, n) }),
		"udp4":       of(base4, udp),
		"udp4 empty": of(base4, func(p *Packet) { udp(p); p.PayloadLen, p.IPLen = 0, 28 }),
		"udp4 opts":  of(base4, func(p *Packet) { p.L4 = 42; udp(p) }),
		"icmp4": of(base4, func(p *Packet) {
			p.Proto, p.ICMPType, p.Payload, p.PayloadLen, p.IPLen = ProtoICMP, 8, 42, n, uint16(28+n)
		}),
		"udp4 first": of(base4, func(p *Packet) {
			p.Proto, p.SrcPort, p.DstPort, p.Fragment = ProtoUDP, 53, 0x0102, true
			p.Payload, p.PayloadLen, p.IPLen = 42, 16, 44
		}),
		"udp4 later": of(base4, func(p *Packet) {
			p.Proto, p.Fragment, p.LaterFragment = ProtoUDP, true, true
			p.Payload, p.PayloadLen, p.IPLen = 34, n, uint16(20+n)
		}),
		"sctp4": of(base4, func(p *Packet) {
			p.Proto, p.SrcPort, p.DstPort, p.Payload, p.PayloadLen, p.IPLen = ProtoSCTP, 2905, 2906, 46, 16, 48
		}),
		"gre4": of(base4, func(p *Packet) { p.Proto, p.Payload, p.PayloadLen, p.IPLen = 47, 34, 16, 36 }),
		"tcp6": of(base6, func(p *Packet) { tcp(p, n) }),
		"udp6 ext": of(base6, func(p *Packet) {
			p.L4 = 54 + 8 + 16
			udp(p)
		}),
		"icmp6": of(base6, func(p *Packet) {
			p.Proto, p.ICMPType, p.Payload, p.PayloadLen, p.IPLen = ProtoICMPv6, 128, 62, n, uint16(48+n)
		}),
		"udp6 later": of(base6, func(p *Packet) {
			p.L4, p.Proto, p.Fragment, p.LaterFragment = 62, ProtoUDP, true, true
			p.Payload, p.PayloadLen, p.IPLen = 62, n, uint16(48+n)
		}),
		"udp6 first": of(base6, func(p *Packet) {
			p.L4, p.Proto, p.SrcPort, p.DstPort, p.Fragment = 86, ProtoUDP, 53, 0x0102, true
			p.Payload, p.PayloadLen, p.IPLen = 94, 16, 96
		}),
		"arp": {Src: src4, Dst: dst4, EtherType: EtherTypeARP, IsARP: true, ARPOp: 1, Proto: flow.ProtocolARP, L3: 14},
		"no next hdr": of(base6, func(p *Packet) {
			p.Proto, p.Payload, p.PayloadLen, p.IPLen = ProtoNone, 54, 4, 44
		}),
	}
	all := frames()
	if len(all) != len(want) {
		t.Errorf("%d frames, %d expectations", len(all), len(want))
	}
	var p Packet
	for name, frame := range all {
		t.Run(name, func(t *testing.T) {
			reason := OK
			if name == "arp" {
				reason = NotIP
			}
			padded := append(append([]byte{}, frame...), make([]byte, 20)...) // Ethernet pads short frames
			for form, f := range map[string][]byte{"exact": frame, "padded": padded} {
				if got := p.Decode(f); got != reason {
					t.Fatalf("%s: reason %v, want %v", form, got, reason)
				}
				if d := cmp.Diff(want[name], p); d != "" {
					t.Errorf("%s: %s", form, d)
				}
			}
			k := p.Key()
			if k.Src != p.Src || k.Dst != p.Dst || k.SrcPort != p.SrcPort || k.DstPort != p.DstPort ||
				k.VLAN != p.VLAN || k.Protocol != p.Proto {
				t.Errorf("key %+v of %+v", k, p)
			}
		})
	}
}

func TestReasons(t *testing.T) {
	all := frames()
	cut := func(name string, n int) []byte { return all[name][:n] }
	edit := func(name string, at int, v ...byte) []byte {
		f := append([]byte{}, all[name]...)
		copy(f[at:], v)
		return f
	}
	tagged := append(append(append([]byte{}, all["tcp4"][:12]...), 0x81, 0, 0, 1, 0x81, 0, 0, 2, 0x81, 0, 0, 3), all["tcp4"][12:]...)
	chain := with(v6, func(h *Header) {
		for range MaxExtensions + 1 {
			h.Extensions = append(h.Extensions, Extension{Type: ProtoDestOpts})
		}
	}).AppendUDP(nil, 1, 2, nil)
	icmp := v4.AppendIP(nil, ProtoICMP, 3)
	icmp6 := v6.AppendIP(nil, ProtoICMPv6, 3)
	tests := []struct {
		frame []byte
		want  Reason
	}{
		{nil, TruncatedEthernet},
		{cut("tcp4", 13), TruncatedEthernet},
		{edit("tcp4", 12, 0x88, 0xCC), NotIP},
		{edit("tcp4", 12, 0x00, 0x26), NotIP},
		{cut("tcp4 vlan", 17), TruncatedVLAN},
		{tagged, TooManyVLANs},
		{cut("arp", 14+7), TruncatedARP},
		{cut("arp", 14+27), TruncatedARP},
		{edit("arp", 14+4, 8), NotIP},
		{cut("tcp4", 14+19), TruncatedIPv4},
		{cut("udp4 opts", 14+21), TruncatedIPv4},
		{edit("tcp4", 14, 0x65), BadIPv4Version},
		{edit("tcp4", 14, 0x44), BadIPv4HeaderLength},
		{edit("tcp4", 16, 0, 19), BadIPv4TotalLength},
		{cut("tcp6", 14+39), TruncatedIPv6},
		{edit("tcp6", 14, 0x45), BadIPv6Version},
		{cut("udp6 ext", 54+7), TruncatedIPv6Extension},
		{edit("udp6 ext", 54+1, 200), TruncatedIPv6Extension},
		{cut("udp6 later", 54+7), TruncatedIPv6Extension},
		{chain, TooManyIPv6Extensions},
		{cut("tcp4", 34+19), TruncatedTCP},
		{cut("tcp4", 34+39), TruncatedTCP},
		{edit("tcp4", 34+12, 0x40), BadTCPHeaderLength},
		{cut("udp4", 34+7), TruncatedUDP},
		{edit("udp4", 34+4, 0, 7), BadUDPLength},
		{cut("sctp4", 34+11), TruncatedSCTP},
		{append(icmp, 8, 0, 0), TruncatedICMP},
		{append(icmp6, 128, 0, 0), TruncatedICMPv6},
	}
	seen := map[Reason]bool{OK: true, UnsupportedLinkType: true, TruncatedLink: true}
	for i, tt := range tests {
		var p Packet
		if got := p.Decode(tt.frame); got != tt.want {
			t.Errorf("%d: %v, want %v", i, got, tt.want)
		}
		seen[tt.want] = true
	}
	names := map[string]bool{}
	for r := range NumReasons {
		if !seen[r] {
			t.Errorf("no frame for %v", r)
		}
		if r.String() == "" || names[r.String()] {
			t.Errorf("reason %d: name %q is missing or used twice", r, r.String())
		}
		names[r.String()] = true
		if r.Undecodable() != (r != OK && r != NotIP) {
			t.Errorf("%v: Undecodable %v", r, r.Undecodable())
		}
	}
}

func TestLengthsThatLie(t *testing.T) {
	var p Packet
	frame := v4.AppendUDP(nil, 1, 2, body)
	binary.BigEndian.PutUint16(frame[16:], 1500) // cut by the capture's snap length
	if r := p.Decode(frame); r != OK || p.PayloadLen != len(body) || p.IPLen != 1500 {
		t.Errorf("%v: payload %d, IP length %d", r, p.PayloadLen, p.IPLen)
	}
	binary.BigEndian.PutUint16(frame[16:], 0) // segmentation offload
	if r := p.Decode(frame); r != OK || p.PayloadLen != len(body) || int(p.IPLen) != len(frame)-14 {
		t.Errorf("%v: payload %d, IP length %d", r, p.PayloadLen, p.IPLen)
	}
	frame = v4.AppendUDP(nil, 1, 2, body)
	binary.BigEndian.PutUint16(frame[38:], 8+5) // UDP length shorter than the IP packet
	if r := p.Decode(frame); r != OK || p.PayloadLen != 5 {
		t.Errorf("%v: payload %d, want 5", r, p.PayloadLen)
	}
}

func TestDecodeLink(t *testing.T) {
	wlan := append(append([]byte{0x08, 0x01}, make([]byte, 22)...), 0xAA, 0xAA, 3, 0, 0, 0, 0x08, 0x00)
	ip4 := v4.AppendUDP(nil, 53, 5353, body)[14:]
	ip6 := v6.AppendUDP(nil, 53, 5353, body)[14:]
	prefix := func(head, ip []byte) []byte { return append(append([]byte{}, head...), ip...) }
	cooked := make([]byte, 16)
	cooked[14] = 0x08
	cooked2 := make([]byte, 20)
	cooked2[0], cooked2[1] = 0x86, 0xDD
	tests := []struct {
		name  string
		link  int
		frame []byte
		want  Reason
		v6    bool
	}{
		{"ethernet", LinkEthernet, v4.AppendUDP(nil, 53, 5353, body), OK, false},
		{"raw v4", LinkRaw, ip4, OK, false},
		{"raw v6", LinkRaw, ip6, OK, true},
		{"raw old", LinkRawOld, ip4, OK, false},
		{"raw openbsd", LinkRawOpenBSD, ip4, OK, false},
		{"ipv4", LinkIPv4, ip4, OK, false},
		{"ipv6", LinkIPv6, ip6, OK, true},
		{"raw other", LinkRaw, []byte{0xF0}, NotIP, false},
		{"raw empty", LinkRaw, nil, TruncatedLink, false},
		{"null little-endian", LinkNull, prefix([]byte{2, 0, 0, 0}, ip4), OK, false},
		{"null big-endian v6", LinkNull, prefix([]byte{0, 0, 0, 30}, ip6), OK, true},
		{"loop", LinkLoop, prefix([]byte{0, 0, 0, 24}, ip6), OK, true},
		{"null other", LinkNull, []byte{7, 0, 0, 0}, NotIP, false},
		{"null short", LinkNull, []byte{2, 0, 0}, TruncatedLink, false},
		{"cooked", LinkCooked, prefix(cooked, ip4), OK, false},
		{"cooked short", LinkCooked, cooked[:15], TruncatedLink, false},
		{"cooked 2", LinkCooked2, prefix(cooked2, ip6), OK, true},
		{"cooked 2 short", LinkCooked2, cooked2[:19], TruncatedLink, false},
		{"ppp", LinkPPP, prefix([]byte{0, 0x21}, ip4), OK, false},
		{"ppp with address", LinkPPP, prefix([]byte{0xFF, 3, 0, 0x57}, ip6), OK, true},
		{"ppp control", LinkPPP, []byte{0xFF, 3, 0xC0, 0x21}, NotIP, false},
		{"ppp short", LinkPPP, []byte{0xFF, 3, 0}, TruncatedLink, false},
		{"hdlc", LinkCiscoHDLC, prefix([]byte{0x0F, 0, 8, 0}, ip4), OK, false},
		{"hdlc short", LinkCiscoHDLC, []byte{0x0F, 0, 8}, TruncatedLink, false},
		{"ppi", LinkPPI, prefix([]byte{0, 0, 12, 0, 1, 0, 0, 0, 0, 0, 0, 0}, v4.AppendUDP(nil, 53, 5353, body)), OK, false},
		{"ppi of 802.11", LinkPPI, prefix([]byte{0, 0, 8, 0, 105, 0, 0, 0}, append(wlan[:len(wlan):len(wlan)], ip4...)), OK, false},
		{"ppi of another", LinkPPI, prefix([]byte{0, 0, 8, 0, 147, 0, 0, 0}, ip4), UnsupportedLinkType, false},
		{"ppi short", LinkPPI, []byte{0, 0, 12, 0, 1, 0, 0, 0}, TruncatedLink, false},
		{"pppoe", LinkEthernet, prefix(append(make([]byte, 12), 0x88, 0x64, 0x11, 0, 0, 1, 0, 22, 0, 0x21), ip4), OK, false},
		{"pppoe v6", LinkEthernet, prefix(append(make([]byte, 12), 0x88, 0x64, 0x11, 0, 0, 1, 0, 22, 0, 0x57), ip6), OK, true},
		{"pppoe control", LinkEthernet, append(make([]byte, 12), 0x88, 0x64, 0x11, 0, 0, 1, 0, 2, 0xC0, 0x21), NotIP, false},
		{"pppoe short", LinkEthernet, append(make([]byte, 12), 0x88, 0x64, 0x11, 0, 0, 1), TruncatedLink, false},
		{"mpls", LinkEthernet, prefix(append(make([]byte, 12), 0x88, 0x47, 0, 1, 0, 64, 0, 1, 1, 64), ip4), OK, false},
		{"mpls other", LinkEthernet, append(make([]byte, 12), 0x88, 0x47, 0, 1, 1, 64, 0, 0), NotIP, false},
		{"mpls short", LinkEthernet, append(make([]byte, 12), 0x88, 0x47, 0, 1, 0, 64, 0, 1), TruncatedLink, false},
		{"mpls without end", LinkEthernet, append(append(make([]byte, 12), 0x88, 0x47), make([]byte, 64)...), NotIP, false},
		{"snap", LinkEthernet, prefix(append(make([]byte, 12), 0, 63, 0xAA, 0xAA, 3, 0, 0, 0, 8, 0), ip4), OK, false},
		{"snap tagged v6", LinkEthernet, prefix(append(make([]byte, 12), 0x81, 0, 0, 5, 0, 83, 0xAA, 0xAA, 3, 0, 0, 0, 0x86, 0xDD), ip6), OK, true},
		{"snap of a vendor", LinkEthernet, prefix(append(make([]byte, 12), 0, 63, 0xAA, 0xAA, 3, 0, 0, 0xC, 8, 0), ip4), NotIP, false},
		{"snap of a length", LinkEthernet, prefix(append(make([]byte, 12), 0, 63, 0xAA, 0xAA, 3, 0, 0, 0, 0, 63), ip4), NotIP, false},
		{"llc", LinkEthernet, append(make([]byte, 12), 0, 3, 0x42, 0x42, 3), NotIP, false},
		{"vn-tag", LinkEthernet, prefix(append(make([]byte, 12), 0x89, 0x26, 0, 0, 0, 0, 0x81, 0, 0, 5, 8, 0), ip4), OK, false},
		{"vn-tag between tags", LinkEthernet, prefix(append(make([]byte, 12), 0x81, 0, 0, 5, 0x89, 0x26, 0, 0, 0, 51, 0x81, 0, 0, 5, 0x86, 0xDD), ip6), OK, true},
		{"vn-tag twice", LinkEthernet, prefix(append(make([]byte, 12), 0x89, 0x26, 0, 0, 0, 0, 0x89, 0x26, 0, 0, 0, 0, 8, 0), ip4), NotIP, false},
		{"vn-tag short", LinkEthernet, append(make([]byte, 12), 0x89, 0x26, 0, 0, 0, 0, 8), TruncatedLink, false},
		{"nflog", LinkNFLOG, prefix([]byte{2, 0, 0, 42, 5, 0, 10, 0, 1, 0, 0, 0, byte(4 + len(ip4)), 0, 9, 0}, ip4), OK, false},
		{"nflog v6", LinkNFLOG, prefix([]byte{10, 0, 0, 0, byte(4 + len(ip6)), 0, 9, 0}, ip6), OK, true},
		{"nflog of a bridge", LinkNFLOG, prefix([]byte{7, 0, 0, 0, byte(4 + len(ip4)), 0, 9, 0}, ip4), NotIP, false},
		{"nflog without packet", LinkNFLOG, []byte{2, 0, 0, 0, 5, 0, 10, 0, 1, 0, 0, 0}, TruncatedLink, false},
		{"nflog loop", LinkNFLOG, prefix([]byte{2, 0, 0, 0, 0, 0, 10, 0}, ip4), TruncatedLink, false},
		{"nflog short", LinkNFLOG, prefix([]byte{2, 0, 0, 0, 200, 0, 9, 0}, ip4), TruncatedLink, false},
		{"802.11", LinkWLAN, prefix(wlan, ip4), OK, false},
		{"802.11 protected", LinkWLAN, prefix(append([]byte{0x08, 0x41}, wlan[2:]...), ip4), NotIP, false},
		{"802.11 short", LinkWLAN, wlan[:20], TruncatedLink, false},
		{"radiotap", LinkRadiotap, prefix([]byte{0, 0, 8, 0, 0, 0, 0, 0}, append(wlan[:len(wlan):len(wlan)], ip4...)), OK, false},
		{"radiotap short", LinkRadiotap, []byte{0, 0, 8, 0}, TruncatedLink, false},
		{"other", 147, ip4, UnsupportedLinkType, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var p Packet
			if got := p.DecodeLink(tt.link, tt.frame); got != tt.want {
				t.Fatalf("%v, want %v", got, tt.want)
			}
			if tt.want == OK && (p.SrcPort != 53 || p.IsV6 != tt.v6 || p.PayloadLen != len(body)) {
				t.Errorf("%+v", p)
			}
		})
	}
}

func TestNoAllocation(t *testing.T) {
	all := frames()
	var p Packet
	var in Packet
	for name, f := range tunnels() {
		all[name] = f
	}
	var k flow.Key
	if n := testing.AllocsPerRun(100, func() {
		for _, f := range all {
			p.Decode(f)
			p.Inner(f, &in)
			k = p.Key()
		}
	}); n != 0 {
		t.Errorf("decode: %v allocations", n)
	}
	_ = k
	buf := make([]byte, 0, 2048)
	if n := testing.AllocsPerRun(100, func() {
		buf = v4.AppendTCP(buf[:0], &syn, body)
		buf = v6.AppendUDP(buf[:0], 1, 2, body)
		buf = v6.AppendICMP(buf[:0], 128, 0, 1, body)
	}); n != 0 {
		t.Errorf("build: %v allocations", n)
	}
}

func FuzzDecode(f *testing.F) {
	for _, frame := range frames() {
		f.Add(uint16(LinkEthernet), frame)
		f.Add(uint16(LinkRaw), frame[14:])
		f.Add(uint16(LinkNull), append([]byte{2, 0, 0, 0}, frame[14:]...))
		f.Add(uint16(LinkCooked), append(make([]byte, 14), frame[12:]...))
		f.Add(uint16(LinkCooked2), append(append(append([]byte{}, frame[12:14]...), make([]byte, 18)...), frame[14:]...))
	}
	for _, frame := range tunnels() {
		f.Add(uint16(LinkEthernet), frame)
	}
	f.Fuzz(func(t *testing.T, link uint16, frame []byte) {
		var p Packet
		r := p.DecodeLink(int(link), frame)
		if r >= NumReasons {
			t.Fatalf("reason %d", r)
		}
		if p.L3 < 0 || p.L4 < 0 || p.Payload < 0 || p.PayloadLen < 0 || p.L3 > len(frame) || p.L4 > len(frame) ||
			p.Payload+p.PayloadLen > len(frame) {
			t.Fatalf("%v: offsets outside %d bytes: %+v", r, len(frame), p)
		}
		if r == OK && !p.IsIP {
			t.Fatalf("ok without IP: %+v", p)
		}
		var in Packet
		if r == OK && p.Inner(frame, &in) && (!in.IsIP || in.L3 < p.Payload || in.PayloadLen < 0 ||
			in.Payload+in.PayloadLen > p.Payload+p.PayloadLen) {
			t.Fatalf("inner packet outside: %+v in %+v", in, p)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	for _, name := range []string{"tcp4", "udp4", "tcp6", "udp6 ext"} {
		frame := frames()[name]
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var p Packet
			for range b.N {
				p.Decode(frame)
			}
		})
	}
}

func BenchmarkAppendTCP(b *testing.B) {
	b.ReportAllocs()
	buf := make([]byte, 0, 2048)
	for range b.N {
		buf = v4.AppendTCP(buf[:0], &syn, nil)
	}
}
