package window

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

// MaxBindings is how many pairs of address and station a window tells.
const MaxBindings = 256

// bindings are the pairs of address and station that ARP messages name, worn down like light's entries: who makes
// thousands of pairs up does not drive out one that is told again and again.
type bindings struct {
	list [MaxBindings]binding
	used int
}

type binding struct {
	station
	guard    uint32
	messages uint64
	firstNs  int64
}

type station struct {
	addr [16]byte
	mac  [6]byte
	vlan uint16
}

func (t *bindings) reset() {
	if t.used > 0 {
		clear(t.list[:])
		t.used = 0
	}
}

// add takes a message in; arp is it from its first byte on, as long as the decoder demands (RFC 826, packet.Decode). A
// reply names the station that it is for as well, which is what its sender knows of that one.
func (t *bindings) add(p *packet.Packet, arp []byte, nowNs int64, b *Builder) {
	if len(arp) < 28 || p.ARPOp != 1 && p.ARPOp != 2 {
		return
	}
	t.note(&station{p.Src, [6]byte(arp[8:]), p.VLAN}, 1, 1, nowNs, b)
	if p.ARPOp == 2 && p.Src != p.Dst {
		t.note(&station{p.Dst, [6]byte(arp[18:]), p.VLAN}, 1, 1, nowNs, b)
	}
}

// note counts messages for a pair. Probes have no address (RFC 5227 2.1.1), announcements leave the target's station
// open, and a group address is no station.
func (t *bindings) note(s *station, weight uint32, messages uint64, firstNs int64, b *Builder) {
	if s.mac == ([6]byte{}) || s.mac[0]&1 != 0 || flow.Addr(s.addr).IsUnspecified() {
		return
	}
	at := int(b.hash(&s.addr)%(MaxBindings/ways)) * ways //nolint:gosec // below MaxBindings
	set := t.list[at : at+ways : at+ways]
	weakest := 0
	for i := range set {
		e := &set[i]
		if e.guard == 0 {
			t.used++
			*e = binding{*s, weight, messages, firstNs}
			return
		}
		if e.station == *s {
			e.guard += weight
			e.messages += messages
			e.firstNs = min(e.firstNs, firstNs)
			return
		}
		if e.guard < set[weakest].guard {
			weakest = i
		}
	}
	if e := &set[weakest]; e.guard > weight {
		e.guard -= weight
	} else {
		*e = binding{*s, weight, messages, firstNs}
	}
}

func (t *bindings) merge(o *bindings, b *Builder) {
	for i := range o.list {
		if e := &o.list[i]; e.guard != 0 {
			t.note(&e.station, e.guard, e.messages, e.firstNs, b)
		}
	}
}

// encode writes the pairs in the order in which they were first told.
func (t *bindings) encode(w *flowv1.Window) {
	w.ArpBindings = w.ArpBindings[:0]
	if t.used == 0 {
		return
	}
	list := make([]*binding, 0, t.used)
	for i := range t.list {
		if t.list[i].guard != 0 {
			list = append(list, &t.list[i])
		}
	}
	slices.SortFunc(list, func(a, b *binding) int {
		return cmp.Or(cmp.Compare(a.firstNs, b.firstNs), bytes.Compare(a.addr[:], b.addr[:]), bytes.Compare(a.mac[:], b.mac[:]),
			cmp.Compare(a.vlan, b.vlan))
	})
	for _, e := range list {
		m := next(&w.ArpBindings)
		m.Addr, m.Mac = append(m.Addr[:0], e.addr[:]...), append(m.Mac[:0], e.mac[:]...)
		m.Vlan, m.Messages, m.FirstNs = uint32(e.vlan), e.messages, e.firstNs
	}
}
