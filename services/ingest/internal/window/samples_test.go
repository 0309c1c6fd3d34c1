package window

import (
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/packet"
	"github.com/tidegate-mesh/tidegate/services/ingest/internal/flowtable"
)

// TestNetworkSamples: the samples of a /24 show its hosts as often as they get packets, however many they are.
func TestNetworkSamples(t *testing.T) {
	shown := map[[16]byte]int{}
	const windows = 40
	for seed := range uint64(windows) {
		b := New(Config{Seed: seed})
		for i := range 2000 {
			dst := v4(198, 51, 100, i%250)
			if i%2 == 0 {
				dst = v4(198, 51, 100, 255) // half of all
			}
			p := packet.Packet{Src: v4(203, 0, 113, 1).As16(), Dst: dst.As16(), Proto: 17, IPLen: 100, IsIP: true, TTL: 64}
			b.Add(&p, p.Dst[:], 1, &flowtable.Observation{})
		}
		x := target(encode(t, b), "198.51.100.0/24")
		if len(x.Samples) != netSamples {
			t.Fatalf("%d samples", len(x.Samples))
		}
		for _, s := range x.Samples {
			shown[[16]byte(s.Header)]++
		}
	}
	const all = windows * netSamples
	if n := shown[v4(198, 51, 100, 255).As16()]; n < all*4/10 || n > all*6/10 {
		t.Errorf("the host with half of the packets has %d of %d samples", n, all)
	}
	if n := len(shown); n < 100 {
		t.Errorf("%d of 125 hosts are shown", n-1)
	}
}
