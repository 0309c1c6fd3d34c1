package classify

import (
	"net/netip"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

// BenchmarkWindow is one window of a SYN flood: the victim and the many destinations of its answers.
func BenchmarkWindow(b *testing.B) {
	l := newLab(b)
	gen, err := loadgen.NewFrames(loadgen.Attack{Kind: loadgen.SYNFlood, Seed: 3, Target: victim})
	if err != nil {
		b.Fatal(err)
	}
	l.attack(gen, 1000)
	for i := range 63 {
		for range 4 {
			h := packet.Header{Src: victim, Dst: netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), TTL: 64}
			l.frame(h.AppendTCP(nil, &packet.TCP{SrcPort: 80, DstPort: 4000, Flags: packet.FlagSYN | packet.FlagACK}, nil), 0, false)
		}
	}
	w := &flowv1.Window{Sensor: "lab", StartNs: labStart, EndNs: labStart + labSlot}
	for a, t := range l.target {
		t.SourceRegisters = l.hll[a][:]
		w.Targets = append(w.Targets, t)
	}
	var out WindowResult
	b.ReportAllocs()
	for b.Loop() {
		w.Sequence++
		w.StartNs, w.EndNs = w.StartNs+labSlot, w.EndNs+labSlot
		if err := l.e.Window(w, &out); err != nil {
			b.Fatal(err)
		}
	}
}
