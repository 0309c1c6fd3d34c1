package window

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"google.golang.org/protobuf/testing/protocmp"
)

// arp makes an ARP message; the station of an address is its last byte.
func arp(op uint16, src, dst netip.Addr, srcMAC, dstMAC byte, vlan uint16) []byte {
	h := packet.Header{SrcMAC: [6]byte{2, 0, 0, 0, 0, srcMAC}, Src: src, Dst: dst, VLAN: vlan}
	target := [6]byte{2, 0, 0, 0, 0, dstMAC}
	if dstMAC == 0 {
		target = [6]byte{}
	}
	return h.AppendARP(nil, op, target)
}

func bound(addr netip.Addr, mac byte, vlan uint32, messages uint64, firstNs int64) *flowv1.ArpBinding {
	a := addr.As16()
	return &flowv1.ArpBinding{Addr: a[:], Mac: []byte{2, 0, 0, 0, 0, mac}, Vlan: vlan, Messages: messages, FirstNs: firstNs}
}

// TestBindings: who is where by ARP's requests and replies, of one queue and of two that are merged.
func TestBindings(t *testing.T) {
	r := newRig(t)
	one, q1, q2 := New(Config{}), New(Config{Seed: 1}), New(Config{Seed: 2})
	host, gateway, zero := v4(10, 0, 0, 7), v4(10, 0, 0, 1), v4(0, 0, 0, 0)
	start := r.now
	for i, f := range [][]byte{
		arp(1, host, gateway, 7, 0, 0),
		arp(2, gateway, host, 1, 7, 0),
		arp(1, zero, host, 7, 0, 0), // a probe
		arp(2, gateway, gateway, 1, 0, 0),
		arp(2, gateway, host, 66, 7, 0), // spoofed
		arp(1, host, gateway, 8, 0, 5),
		arp(8, host, gateway, 9, 0, 0), // no ARP operation
		arp(2, gateway, host, 66, 7, 0),
	} {
		r.now = start + int64(i)
		r.add(f, one, []*Builder{q1, q2}[i%2])
	}
	want := []*flowv1.ArpBinding{
		bound(host, 7, 0, 4, start), bound(gateway, 1, 0, 2, start+1), bound(gateway, 66, 0, 2, start+4), bound(host, 8, 5, 1, start+5),
	}
	if d := cmp.Diff(want, encode(t, one).ArpBindings, protocmp.Transform()); d != "" {
		t.Errorf("one queue (-want +got):\n%s", d)
	}
	q1.Merge(q2)
	if d := cmp.Diff(want, encode(t, q1).ArpBindings, protocmp.Transform()); d != "" {
		t.Errorf("two queues (-want +got):\n%s", d)
	}
	one.Reset()
	if n := len(encode(t, one).ArpBindings); n != 0 {
		t.Errorf("%d bindings after Reset", n)
	}
}

// TestBindingsBounded: made-up pairs do not drive out one that is told again and again.
func TestBindingsBounded(t *testing.T) {
	r, b := newRig(t), New(Config{})
	for i := range 50_000 {
		if i%20 == 0 {
			r.add(arp(2, v4(10, 0, 0, 1), v4(10, 0, 0, 7), 66, 7, 0), b)
		}
		r.add(arp(1, v4(172, 16, i>>8, i), v4(10, 0, 0, 1), byte(i), 0, 0), b)
	}
	w, found := encode(t, b), false
	for _, x := range w.ArpBindings {
		found = found || x.Mac[5] == 66 && x.Messages > 1000
	}
	if !found || len(w.ArpBindings) > MaxBindings {
		t.Errorf("%d bindings, the spoofed one among them: %v", len(w.ArpBindings), found)
	}
	f := arp(2, v4(10, 0, 0, 1), v4(10, 0, 0, 7), 66, 7, 0)
	if n := testing.AllocsPerRun(100, func() { r.add(f, b) }); n != 0 {
		t.Errorf("%v allocations a message", n)
	}
}
