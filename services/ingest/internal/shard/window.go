package shard

import (
	"bytes"
	"cmp"
	"slices"

	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

// topDestinations is how many of the heaviest hosts the part with the totals names.
const topDestinations = 10

// Split shares a window out among n owners, a part for each, all with the window's bounds and number. Sections are shared
// with w, not copied; what w says of everything is in one part, its sensor's, so that sums of parts are the window's.
//
//   - Hosts and networks go to their own owner. What goes to hosts outside goes to the owner of the protected host that
//     the first sample is from.
//   - A source goes to the owner of the host that it tried most: that one knows whether they are old acquaintances and
//     whether the host is under flood. A sweep over networks of several owners is seen in as many parts.
//   - ARP bindings go to their address's.
func Split(w *flowv1.Window, t *Table, s *Sides, n int) []*flowv1.Window {
	parts := make([]*flowv1.Window, n)
	for i := range parts {
		parts[i] = &flowv1.Window{Sensor: w.Sensor, Epoch: w.Epoch, Sequence: w.Sequence, StartNs: w.StartNs, EndNs: w.EndNs, Part: true}
	}
	whole := parts[t.Name(w.GetSensor())]
	whole.Total, whole.FlowsOpened, whole.FlowsActive, whole.FlowsSummarised = w.Total, w.FlowsOpened, w.FlowsActive, w.FlowsSummarised
	whole.TopDestinations = heaviest(w.GetTargets())
	for _, x := range w.GetTargets() {
		p := parts[t.target(x, s)]
		p.Targets = append(p.Targets, x)
	}
	for _, x := range w.GetSources() {
		p := parts[t.bytes(cmp.Or(string(x.GetTopHost()), string(x.GetAddr())))]
		p.Sources = append(p.Sources, x)
	}
	for _, x := range w.GetArpBindings() {
		p := parts[t.bytes(string(x.GetAddr()))]
		p.ArpBindings = append(p.ArpBindings, x)
	}
	return parts
}

// target is the owner of a host or network.
func (t *Table) target(x *flowv1.Target, s *Sides) int {
	if len(x.GetAddr()) != 16 {
		return 0
	}
	addr := [16]byte(x.GetAddr())
	if len(x.GetSamples()) > 0 {
		if src, ok := source(x.GetSamples()[0].GetHeader()); ok {
			addr = *s.Of(&src, &addr)
		}
	}
	return t.Addr(&addr)
}

// bytes is the owner of an address of 16 bytes.
func (t *Table) bytes(addr string) int {
	if len(addr) != 16 {
		return 0
	}
	a := [16]byte([]byte(addr))
	return t.Addr(&a)
}

// source is where a packet comes from, by its network header.
func source(ip []byte) (a [16]byte, ok bool) {
	switch {
	case len(ip) >= 20 && ip[0]>>4 == 4:
		a[10], a[11] = 0xFF, 0xFF
		copy(a[12:], ip[12:16])
		return a, true
	case len(ip) >= 40 && ip[0]>>4 == 6:
		copy(a[:], ip[8:24])
		return a, true
	}
	return a, false
}

// heaviest lists the hosts that got most packets.
func heaviest(targets []*flowv1.Target) []*flowv1.AddrCount {
	var list []*flowv1.AddrCount
	for _, x := range targets {
		if x.GetPrefixLen() == 128 {
			list = append(list, &flowv1.AddrCount{Addr: x.GetAddr(), Packets: x.GetCounters().GetPackets(), Bytes: x.GetCounters().GetBytes()})
		}
	}
	slices.SortFunc(list, func(a, b *flowv1.AddrCount) int {
		return cmp.Or(cmp.Compare(b.GetPackets(), a.GetPackets()), bytes.Compare(a.GetAddr(), b.GetAddr()))
	})
	return list[:min(len(list), topDestinations)]
}
