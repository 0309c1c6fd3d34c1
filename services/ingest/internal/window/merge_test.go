package window

import (
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"github.com/tidegate-mesh/tidegate/services/ingest/internal/flowtable"
	"google.golang.org/protobuf/testing/protocmp"
)

// TestMergeEqualsOne splits traffic between queues and compares with one builder that saw it all.
func TestMergeEqualsOne(t *testing.T) {
	r := newRig(t)
	one := New(Config{})
	queues := []*Builder{New(Config{Seed: 1}), New(Config{Seed: 2}), New(Config{Seed: 3})}
	rng := rand.New(rand.NewPCG(3, 4))
	for range 5000 {
		h := header(v4(203, 0, 113, rng.IntN(10)), v4(198, 51, rng.IntN(3), rng.IntN(10)))
		f := h.AppendTCP(nil, &packet.TCP{SrcPort: uint16(4000 + rng.IntN(20)), DstPort: uint16(rng.IntN(5)), Flags: uint8(rng.IntN(64))}, make([]byte, rng.IntN(900)))
		if rng.IntN(5) == 0 {
			f = h.AppendUDP(nil, 53, uint16(4000+rng.IntN(3)), dnsAnswer())
		}
		r.add(f, one, queues[rng.IntN(3)])
	}
	one.Metered(flow.Key{Dst: v4(198, 51, 1, 1).As16(), Protocol: 6}, 10, 1000)
	queues[1].Metered(flow.Key{Dst: v4(198, 51, 1, 1).As16(), Protocol: 6}, 10, 1000)
	for i, q := range queues {
		q.StartNs, q.EndNs, q.Flows = 100, 200, Flows{1, 2, 3}
		if i > 0 {
			queues[0].Merge(q)
		}
	}
	one.StartNs, one.EndNs, one.Flows = 100, 200, Flows{3, 6, 9}
	want, got := encode(t, one), encode(t, queues[0])
	// Which packets are sampled differs, how many does not; which host a source tried most is a guess when it
	// tried thirty alike.
	for _, w := range []*flowv1.Window{want, got} {
		for _, x := range w.Targets {
			for _, s := range x.Samples {
				s.Reset()
			}
		}
		for _, s := range w.Sources {
			s.Samples = nil
			s.TopHost, s.TopHostAttempts, s.TopHostPorts, s.TopHostFailedPorts = nil, 0, nil, nil
		}
	}
	if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
		t.Errorf("one builder and three merged differ (-one +merged):\n%s", d)
	}
}

func TestMergeKeepsTheHeaviest(t *testing.T) {
	a, b := New(Config{Seed: 1}), New(Config{Seed: 2})
	fill := func(to *Builder, second int) {
		for i := range 160 * 20 {
			p := packet.Packet{Src: v4(1, 1, 1, 1).As16(), Dst: v4(10, second, 0, i%160).As16(), Proto: 17, IPLen: 100, IsIP: true}
			to.Add(&p, nil, 1, &flowtable.Observation{})
		}
	}
	fill(a, 1)
	fill(b, 2)
	for range 1000 {
		p := packet.Packet{Src: v4(1, 1, 1, 1).As16(), Dst: v4(10, 2, 0, 77).As16(), Proto: 17, IPLen: 100, IsIP: true}
		b.Add(&p, nil, 1, &flowtable.Observation{})
	}
	a.Merge(b)
	w := encode(t, a)
	if x := w.Targets[0]; x.Counters.Packets != 1020 || flow.AddrBytes(x.Addr) != v4(10, 2, 0, 77) || counts(x.LengthHistogram)[6] != 1020 {
		t.Errorf("heaviest: %v", x)
	}
	if w.Total.Packets != 2*3200+1000 {
		t.Errorf("total %v", w.Total)
	}
	for prefix, n := range map[string]uint64{"10.1.0.0/16": 3200, "10.2.0.0/16": 4200, "10.2.0.0/24": 4200} {
		if x := target(w, prefix); x == nil || x.Counters.Packets != n {
			t.Errorf("%s has %v, want %d", prefix, x.GetCounters().GetPackets(), n)
		}
	}
}
