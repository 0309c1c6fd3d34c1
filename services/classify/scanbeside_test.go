package classify

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/packet"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

// TestScanBesideMuchTraffic: an allowed scanner's SYNs are no flood in windows that sample few of them, and in no proportion,
// because much other traffic is in them: a speed test begins where the scan ends, or goes on beside it.
func TestScanBesideMuchTraffic(t *testing.T) {
	scanner, tester := netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("203.0.113.9")
	attacks := 0
	const turns = 400
	for seed := range uint64(turns) {
		l := newLab(t)
		l.rng = rand.New(rand.NewPCG(seed, 3)) //nolint:gosec // reproducible
		l.e.Allow(policy.NewCover([]netip.Prefix{netip.PrefixFrom(scanner, 32)}))
		port, tried := uint16(0), uint64(0)
		syn := func(src netip.Addr, port uint16) {
			h := packet.Header{Src: src, Dst: victim, TTL: 64}
			l.frame(h.AppendTCP(nil, &packet.TCP{SrcPort: 40000, DstPort: port, Flags: packet.FlagSYN}, nil), 0, false)
		}
		scan := func(n int) {
			for range n {
				port++
				tried++
				syn(scanner, port)
			}
		}
		data := packet.Header{Src: tester, Dst: victim, TTL: 64}
		segment := data.AppendTCP(nil, &packet.TCP{SrcPort: 40000, DstPort: 5201, Flags: packet.FlagACK}, make([]byte, 1400))
		rate := 100 + l.rng.IntN(400)
		end := func() {
			attacks += len(l.close(allowedTries(scanner, tried)).Attacks)
			tried = 0
		}
		for range 1000 / rate {
			scan(rate)
			end()
		}
		share := l.rng.Float64()
		scan(int(share * float64(rate)))
		for range 8 {
			syn(tester, 5201)
			l.of(netip.PrefixFrom(victim, 32)).GetCounters().Handshakes++
		}
		for range int((1 - share) * 15_000) {
			l.frame(segment, 0, false)
		}
		for range 12 {
			end()
			if l.rng.IntN(2) == 0 { // a client
				syn(netip.AddrFrom4([4]byte{203, 0, 113, byte(20 + l.rng.IntN(16))}), 443)
			}
			for range 1500 {
				l.frame(segment, 0, false)
			}
		}
	}
	if attacks > 0 {
		t.Errorf("%d attacks in %d turns", attacks, turns)
	}
}

// allowedTries is what a window tells of a source that tried n of the victim's ports.
func allowedTries(src netip.Addr, n uint64) *flowv1.Source {
	addr, top := src.As16(), victim.As16()
	return &flowv1.Source{Addr: addr[:], TopHost: top[:], Attempts: n, TopHostAttempts: n}
}
