package shard

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/tidegate-mesh/tidegate/libs/packet"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

// header is a UDP packet from its network header on.
func header(src, dst string) []byte {
	h := packet.Header{Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst)}
	return h.AppendUDP(nil, 1000, 53, []byte("x"))[14:]
}

func section(dst, src string, bits uint32, packets uint64) *flowv1.Target {
	return &flowv1.Target{
		Addr: addr(dst)[:], PrefixLen: bits, Counters: &flowv1.Counters{Packets: packets},
		Samples: []*flowv1.HeaderSample{{Header: header(src, dst)}},
	}
}

// TestPartsAreTheWhole: every section is in one part, that of its network's owner, and what is said of everything is said
// once.
func TestPartsAreTheWhole(t *testing.T) {
	table := NewTable(names, all)
	sides, err := NewSides([]string{"10.0.0.0/8", "2001:db8::/32"})
	if err != nil {
		t.Fatal(err)
	}
	w := &flowv1.Window{
		Sensor: "edge", Epoch: 7, Sequence: 9, StartNs: 100, EndNs: 200, Total: &flowv1.Counters{Packets: 1000, Bytes: 5}, FlowsOpened: 3, FlowsActive: 4, FlowsSummarised: 5,
	}
	want := map[string]int{} // a section's address → its owner
	for i := range 64 {
		net := netip.AddrFrom4([4]byte{10, byte(i), 1, 0})
		host := netip.AddrFrom4([4]byte{10, byte(i), 1, 7}).String()
		region := netip.AddrFrom4([4]byte{10, byte(i), 0, 0}).String()
		scanner := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}).String()
		outside := netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}).String()
		owner := table.Addr(addr(host))
		w.Targets = append(w.Targets, section(host, scanner, 128, uint64(i)), section(net.String(), scanner, 120, 1), section(region, scanner, 112, 1),
			section(outside, host, 128, 1000))
		w.Sources = append(w.Sources, &flowv1.Source{Addr: addr(scanner)[:], TopHost: addr(host)[:]})
		w.ArpBindings = append(w.ArpBindings, &flowv1.ArpBinding{Addr: addr(host)[:]})
		for _, a := range []string{host, net.String(), region, scanner, outside} {
			want[a] = owner
		}
	}
	w.Sources = append(w.Sources, &flowv1.Source{Addr: addr("192.0.2.200")[:], ArpRequests: 3})
	want["192.0.2.200"] = table.Addr(addr("192.0.2.200"))

	parts := Split(w, table, sides, len(names))
	sum := &flowv1.Window{Sensor: "edge", Epoch: 7, Sequence: 9, StartNs: 100, EndNs: 200}
	owner := func(i int, a []byte) {
		if text := netip.AddrFrom16([16]byte(a)).Unmap().String(); want[text] != i {
			t.Errorf("%s is in part %d, want %d", text, i, want[text])
		}
	}
	totals := 0
	for i, p := range parts {
		if p.Sensor != w.Sensor || p.Epoch != w.Epoch || p.Sequence != w.Sequence || p.StartNs != w.StartNs || p.EndNs != w.EndNs || !p.Part {
			t.Errorf("part %d is of another window: %v", i, p)
		}
		if len(p.Targets) == 0 || len(p.Sources) == 0 {
			t.Errorf("part %d is empty", i)
		}
		for _, x := range p.Targets {
			owner(i, x.Addr)
		}
		for _, x := range p.Sources {
			owner(i, x.Addr)
		}
		for _, x := range p.ArpBindings {
			owner(i, x.Addr)
		}
		if p.Total != nil {
			totals++
			sum.Total = p.Total
			if n := len(p.TopDestinations); n != topDestinations || p.TopDestinations[0].Packets != 1000 {
				t.Errorf("%d heaviest hosts: %v", n, p.TopDestinations)
			}
		} else if p.FlowsOpened+p.FlowsActive+p.FlowsSummarised != 0 || p.TopDestinations != nil {
			t.Errorf("part %d has counts of everything", i)
		}
		sum.FlowsOpened, sum.FlowsActive, sum.FlowsSummarised = sum.FlowsOpened+p.FlowsOpened, sum.FlowsActive+p.FlowsActive, sum.FlowsSummarised+p.FlowsSummarised
		sum.Targets, sum.Sources, sum.ArpBindings = append(sum.Targets, p.Targets...), append(sum.Sources, p.Sources...), append(sum.ArpBindings, p.ArpBindings...)
	}
	if totals != 1 {
		t.Errorf("%d parts have totals", totals)
	}
	for _, x := range []*flowv1.Window{w, sum} {
		slices.SortFunc(x.Targets, func(a, b *flowv1.Target) int { return strings.Compare(a.String(), b.String()) })
		slices.SortFunc(x.Sources, func(a, b *flowv1.Source) int { return strings.Compare(a.String(), b.String()) })
		slices.SortFunc(x.ArpBindings, func(a, b *flowv1.ArpBinding) int { return strings.Compare(a.String(), b.String()) })
	}
	if d := cmp.Diff(w, sum, protocmp.Transform()); d != "" {
		t.Errorf("the parts are not the whole (-whole +parts):\n%s", d)
	}
}
