package packet

import (
	"cmp"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/flow"
)

// tunnels are frames with a DNS-sized UDP packet from port 53 to 5353 inside.
func tunnels() map[string][]byte {
	join := func(parts ...[]byte) []byte {
		var out []byte
		for _, p := range parts {
			out = append(out, p...)
		}
		return out
	}
	inner4 := v4.AppendUDP(nil, 53, 5353, body)
	inner6 := v6.AppendUDP(nil, 53, 5353, body)
	ip4, ip6 := inner4[14:], inner6[14:]
	inside := func(proto uint8, payload []byte) []byte {
		return append(v4.AppendIP(nil, proto, len(payload)), payload...)
	}
	wlan := append([]byte{0x08, 0x01}, make([]byte, 22)...)
	qos := append([]byte{0x88, 0x03}, make([]byte, 30)...)
	swapped := append([]byte{0x01, 0x08}, make([]byte, 22)...)
	llc := []byte{0xAA, 0xAA, 3, 0, 0, 0, 0x08, 0x00}
	capwap := []byte{0, 2 << 3, 1<<1 | 1, 0, 0, 0, 0, 0}
	return map[string][]byte{
		"4in4":                 inside(4, ip4),
		"6in4":                 inside(41, ip6),
		"4in6":                 append(v6.AppendIP(nil, 4, len(ip4)), ip4...),
		"gre":                  inside(47, join([]byte{0, 0, 0x86, 0xDD}, ip6)),
		"gre with key":         inside(47, join([]byte{0x30, 0, 0x08, 0, 0, 0, 0, 1, 0, 0, 0, 2}, ip4)),
		"gre checksum and key": inside(47, join([]byte{0xA0, 0, 0x08, 0, 1, 2, 3, 4, 0x80, 0, 0, 7}, ip4)),
		"gre ethernet":         inside(47, join([]byte{0, 0, 0x65, 0x58}, inner4)),
		"gre aruba":            inside(47, join([]byte{0, 0, 0x83, 0x10}, qos, llc, ip4)),
		"vxlan":                v4.AppendUDP(nil, 40000, portVXLAN, join([]byte{8, 0, 0, 0, 0, 0, 5, 0}, inner4)),
		"erspan I":             inside(47, join([]byte{0, 0, 0x88, 0xBE}, inner4)),
		"erspan II":            inside(47, join([]byte{0x10, 0, 0x88, 0xBE, 0, 0, 0, 1, 0x10, 7, 0, 5, 0, 0, 0, 0}, inner4)),
		"erspan III":           inside(47, join([]byte{0x10, 0, 0x22, 0xEB, 0, 0, 0, 1, 0x20, 7, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0}, inner6)),
		"erspan III own":       inside(47, join([]byte{0x10, 0, 0x22, 0xEB, 0, 0, 0, 1, 0x20, 7, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1}, make([]byte, 8), inner6)),
		"vxlan gpe":            v4.AppendUDP(nil, 40000, portVXLANGPE, join([]byte{0x0C, 0, 0, 3, 0, 0, 5, 0}, inner4)),
		"vxlan gpe ip":         v4.AppendUDP(nil, 40000, portVXLANGPE, join([]byte{0x0C, 0, 0, 2, 0, 0, 5, 0}, ip6)),
		"geneve":               v4.AppendUDP(nil, 40000, portGeneve, join([]byte{0, 0, 0x65, 0x58, 0, 0, 5, 0}, inner4)),
		"geneve options":       v4.AppendUDP(nil, 40000, portGeneve, join([]byte{1, 0, 0x86, 0xDD, 0, 0, 5, 0, 0, 0, 0, 0}, ip6)),
		"gtp":                  v4.AppendUDP(nil, 2152, portGTPU, join([]byte{0x30, 0xFF, 0, 0, 0, 0, 0, 1}, ip4)),
		"gtp extension":        v4.AppendUDP(nil, 2152, portGTPU, join([]byte{0x34, 0xFF, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0x85, 1, 0, 0, 0}, ip6)),
		"capwap":               v4.AppendUDP(nil, 9000, portCapwapData, join(capwap, wlan, llc, ip4)),
		"capwap qos":           v4.AppendUDP(nil, portCapwapData, 9000, join(capwap, qos, llc, ip4)),
		"capwap swapped":       v4.AppendUDP(nil, 9000, portCapwapData, join(capwap, swapped, llc, ip4)),
		"capwap 802.3":         v4.AppendUDP(nil, 9000, portCapwapData, join([]byte{0, 2 << 3, 1 << 1, 0, 0, 0, 0, 0}, inner6)),
	}
}

// kinds are those of tunnels, with the networks that they name.
var kinds = map[string]struct {
	kind Tunnel
	id   uint32
}{
	"4in4": {IPInIP, 0}, "6in4": {SixInFour, 0}, "4in6": {IPInIP, 0}, "gre": {GRE, 0}, "gre with key": {GRE, 1}, "gre checksum and key": {GRE, 0x80000007},
	"gre ethernet": {GRE, 0}, "gre aruba": {GRE, 0}, "vxlan": {VXLAN, 5}, "erspan I": {GRE, 0}, "erspan II": {GRE, 0}, "erspan III": {GRE, 0},
	"erspan III own": {GRE, 0}, "vxlan gpe": {VXLAN, 5}, "vxlan gpe ip": {VXLAN, 5}, "geneve": {Geneve, 5}, "geneve options": {Geneve, 5},
	"gtp": {GTPU, 0}, "gtp extension": {GTPU, 0}, "capwap": {CAPWAP, 0}, "capwap qos": {CAPWAP, 0}, "capwap swapped": {CAPWAP, 0}, "capwap 802.3": {CAPWAP, 0},
}

func TestInner(t *testing.T) {
	var p, in Packet
	for name, frame := range tunnels() {
		if r := p.Decode(frame); r != OK {
			t.Errorf("%s: %v", name, r)
			continue
		}
		if !p.Inner(frame, &in) {
			t.Errorf("%s: nothing inside", name)
			continue
		}
		if in.Proto != ProtoUDP || in.SrcPort != 53 || in.PayloadLen != len(body) ||
			string(frame[in.Payload:in.Payload+in.PayloadLen]) != string(body) {
			t.Errorf("%s: %+v", name, in)
		}
		if k := kinds[name]; p.Carrier() != k.kind || in.Tunnel != k.id || in.Key().Tunnel != k.id || p.Tunnel != 0 {
			t.Errorf("%s: %v of network %#x", name, p.Carrier(), in.Tunnel)
		}
		p.Tunnel = 77 // as if it came out of one
		if want := cmp.Or(kinds[name].id, 77); !p.Inner(frame, &in) || in.Tunnel != want {
			t.Errorf("%s: in another tunnel it is of network %#x, want %#x", name, in.Tunnel, want)
		}
		if flow.Addr(in.Src) != v4.Src && flow.Addr(in.Src) != v6.Src {
			t.Errorf("%s: inner source %v", name, flow.Addr(in.Src))
		}
		// No prefix of a tunnel may be read past its end.
		for n := range frame {
			if p.Decode(frame[:n]) == OK {
				p.Inner(frame[:n], &in)
			}
		}
	}
	tagged := with(v4, func(h *Header) { h.VLAN = 9 })
	frame := append(tagged.AppendIP(nil, 4, 28), v4.AppendUDP(nil, 1, 2, nil)[14:]...)
	if p.Decode(frame) != OK || !p.Inner(frame, &in) || in.VLAN != 9 {
		t.Errorf("the outer tag is lost: %+v", in)
	}
}

func TestNothingInside(t *testing.T) {
	all := frames()
	for name, frame := range map[string][]byte{
		"tcp":               all["tcp4 data"],
		"udp":               all["udp4"],
		"arp":               all["arp"],
		"first fragment":    append(with(v4, func(h *Header) { h.MoreFragments = true }).AppendIP(nil, 4, 28), v4.AppendUDP(nil, 1, 2, nil)[14:]...),
		"later fragment":    append(with(v4, func(h *Header) { h.FragmentOffset = 3 }).AppendIP(nil, 4, 28), v4.AppendUDP(nil, 1, 2, nil)[14:]...),
		"cut in a fragment": append(with(v4, func(h *Header) { h.MoreFragments = true }).AppendIP(nil, 4, 24), v4.AppendUDP(nil, 1, 2, nil)[14:38]...),
		"gre of routing":    append(v4.AppendIP(nil, 47, 8), 0x40, 0, 8, 0, 0, 0, 0, 0),
		"vxlan no flag":     v4.AppendUDP(nil, 1, portVXLAN, make([]byte, 60)),
		"gtp echo":          v4.AppendUDP(nil, 1, portGTPU, []byte{0x30, 1, 0, 0, 0, 0, 0, 0, 0x45}),
		"gtp loop":          v4.AppendUDP(nil, 1, portGTPU, []byte{0x34, 0xFF, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0x85, 0, 0, 0, 0x85}),
		"capwap dtls":       v4.AppendUDP(nil, 1, portCapwapData, append([]byte{1}, make([]byte, 60)...)),
		"capwap protected":  v4.AppendUDP(nil, 1, portCapwapData, append([]byte{0, 16, 3, 0, 0, 0, 0, 0, 0x08, 0x41}, make([]byte, 60)...)),
	} {
		var p, in Packet
		p.Decode(frame)
		if p.Inner(frame, &in) {
			t.Errorf("%s: %+v", name, in)
		}
	}
}
